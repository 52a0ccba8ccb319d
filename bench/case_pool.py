"""Run many measured cases on the GPUs of one host, each in processes of its own that wait ready for it.

    python bench/case_pool.py JOBS.jsonl --output ROWS.jsonl [--gpus 4] [--ready 1] [--seconds 540]
    python bench/case_pool.py JOBS.jsonl --output ROWS.jsonl --device cpu --tiny     tries the path

A job is one JSON line:

``id``
``config``            the file with its ``"trimtab"`` block
``hf``                the model's config, where the block names none
``group``, ``world``  ``nccl``: that many real ranks; ``fake``: one GPU as rank 0 of them; ``single``
``family``, ``order`` once one of a family ran out of memory, those of a higher order are not tried
``cap_gib``           what PyTorch's allocator is held to
``timeout``           seconds
``initialize``        whether weights are as the architecture asks, and not just random
``allocations``       a folder: write what the allocator was asked for (scripts/allocation_trace.py)
``profile``           ``phases`` or ``kernels``: say where a step's time goes too (scripts/profiled_step.py)

What else it has is copied to its row under ``job``.  ``scripts/prove_on_gpu.py`` does the measuring.

Jobs start in the order of the file as GPUs become free.  Processes that have imported everything wait for
the next job, since importing takes longer than most cases.  A row is appended as soon as its job ends.

Three quarters of the host's cores are shared out to the GPUs, and a job's processes keep to their GPU's; the
processes that import have the rest: so that neither the neighbour nor what comes next slows a host-bound job.
With ``--quiet`` all processes have imported before the first job begins.

With ``--reuse`` a process whose job ran takes the next one, which saves most of a short job's time: a world's
ranks stay together.  Made-up groups cannot be taken down, so theirs are processes of their own.  Step times
are as in a process of its own; the host's memory is not, since what one job pinned another may find.
``--brief`` times fewer steps: three go before and two are timed at the least, or one where steps are slow.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "scripts")]

Job = dict[str, Any]
KEYS = ("id", "config", "hf", "group", "world", "family", "order", "timeout")
GRACE_SECONDS = 10
LEFT_BYTES = 64 << 20
"""A process that holds more of the GPU after a job is not given another."""
OUT_OF_MEMORY = ("OutOfMemoryError", "out of memory", "CUDA_ERROR_OUT_OF_MEMORY")


def cores(gpus: int) -> tuple[list[set[int]], set[int]]:
    """The cores of each GPU's job, and those of the processes that stand by."""
    all_cores = sorted(os.sched_getaffinity(0))
    each = max(1, len(all_cores) * 3 // 4 // gpus)
    if len(all_cores) < gpus + 1:
        return [set(all_cores)] * gpus, set(all_cores)
    return [set(all_cores[place * each : (place + 1) * each]) for place in range(gpus)], set(
        all_cores[gpus * each :]
    )


def worker(device: str) -> int:
    """Import everything, wait for a job on standard input, run it as the rank it names; again if it may."""
    import prove_on_gpu

    from trimtab.train.engine import choose_accelerator, import_deepspeed

    choose_accelerator(device)
    import torch  # noqa: F401
    import transformers.models.gpt2.modeling_gpt2
    import transformers.models.llama.modeling_llama  # noqa: F401

    import_deepspeed(device)
    print("READY", flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        os.sched_setaffinity(0, asked["cores"])
        os.environ.update(asked["environment"])
        options = argparse.Namespace(**asked["options"])
        row = prove_on_gpu.tell(options)
        if not (options.reuse and row["ok"] and cleared(device)):
            break
        print("AGAIN", flush=True)
    sys.stdout.flush()
    os._exit(0)  # a made-up process group cannot be taken down in order


def cleared(device: str) -> bool:
    """Whether what the last job held, on the GPU and pinned in the host's memory, is given back."""
    import gc

    import torch

    gc.collect()
    if device == "cpu":
        return True
    torch.cuda.empty_cache()
    torch._C._host_emptyCache()
    return torch.cuda.memory_allocated() < LEFT_BYTES


def ranks_of(job: Job) -> int:
    """Processes of a job, each with a GPU."""
    return int(job["world"]) if job["group"] == "nccl" else 1


def failed(job: Job, why: str) -> dict[str, Any]:
    """The row of a job that gave none."""
    return {"id": job["id"], "ok": False, "error": why, "gib": {}, "step_seconds": None}


class Standby:
    """A process that has imported everything and waits."""

    def __init__(self, options: argparse.Namespace) -> None:
        shares, spare = cores(options.gpus)
        self.folder = tempfile.TemporaryDirectory()
        self.log = Path(self.folder.name) / "log.txt"
        self.read = 0
        """Characters of the log that belong to earlier jobs."""
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve()), "--worker", "--device", options.device],
            stdin=subprocess.PIPE,
            stdout=self.log.open("a"),
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": str(len(shares[0])), "TOKENIZERS_PARALLELISM": "false"},
        )
        os.sched_setaffinity(self.process.pid, spare)

    def wait_ready(self) -> None:
        """Until it has imported everything, or has ended."""
        while self.process.poll() is None and "READY" not in self.text():
            time.sleep(0.2)

    def start(self, asked: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        self.read = len(self.log.read_text("utf-8", errors="replace"))
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def text(self) -> str:
        """What it said since its job began."""
        return self.log.read_text("utf-8", errors="replace")[self.read :]

    def done(self) -> bool:
        """Whether it waits for another job, the last one told."""
        return "\nAGAIN\n" in self.text()


class Pool:
    """GPUs of one host, processes that stand by, and the families that ran out of memory."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.free = set(range(options.gpus))
        self.change = threading.Condition()
        self.standby: deque[Standby] = deque()
        self.crews: dict[tuple[int, ...], list[Standby]] = {}
        """With ``--reuse``, by their GPUs: processes that wait for another job of as many ranks."""
        self.short: dict[str, float] = {}
        self.failures: list[bool] = []
        self.started = time.time()

    def take(self, count: int) -> list[int]:
        with self.change:
            self.change.wait_for(lambda: len(self.free) >= count)
            taken = sorted(self.free)[:count]
            self.free -= set(taken)
            return taken

    def give(self, gpus: list[int]) -> None:
        with self.change:
            self.free |= set(gpus)
            self.change.notify_all()

    def seconds(self) -> float:
        return time.time() - self.started

    def run(self, jobs: list[Job]) -> int:
        """Run all jobs; 1 if the last three failed."""
        self.import_ahead(jobs)
        threads = []
        for job in jobs:
            gpus = self.take(ranks_of(job))
            why = self.why_not(job)
            if why is not None:
                self.keep(job, failed(job, why))
                self.give(gpus)
                continue
            thread = threading.Thread(target=self.one, args=(job, gpus))
            thread.start()
            threads.append(thread)
        for thread in threads:
            thread.join()
        for standby in [*self.standby, *itertools.chain(*self.crews.values())]:
            standby.kill()
        return int(self.failures[-3:] == [True] * 3)

    def import_ahead(self, jobs: list[Job]) -> None:
        """Let the first processes import; where it shall be quiet all of them, until they have."""
        ahead = self.options.gpus * self.options.ready
        ahead = sum(map(ranks_of, jobs)) if self.options.quiet else ahead
        self.standby.extend(Standby(self.options) for _ in range(ahead))
        if self.options.quiet:
            for standby in self.standby:
                standby.wait_ready()

    def why_not(self, job: Job) -> str | None:
        if self.failures[-3:] == [True] * 3:
            return "not run: three failures in a row"
        if self.seconds() > self.options.seconds - job.get("least_seconds", 15):
            return "not run: no time left"
        if job.get("order", 0) > self.short.get(job.get("family", ""), float("inf")):
            return "not run: a smaller one of its family ran out of memory"
        return None

    def one(self, job: Job, gpus: list[int]) -> None:
        started = time.time()
        try:
            row = self.measure(job, gpus)
        except Exception as error:  # noqa: BLE001  one job's trouble is not another's
            row = failed(job, f"{type(error).__name__}: {error}")
        finally:
            self.give(gpus)
        row["seconds"] = round(time.time() - started, 1)
        short = not row["ok"] and any(text in str(row["error"]) for text in OUT_OF_MEMORY)
        row["out_of_memory"] = short
        with self.change:
            self.failures.append(not row["ok"] and not short)
            if short and "family" in job:
                order = job.get("order", 0)
                self.short[job["family"]] = min(order, self.short.get(job["family"], order))
        self.keep(job, row)

    def measure(self, job: Job, gpus: list[int]) -> dict[str, Any]:
        options = self.options
        with tempfile.TemporaryDirectory() as folder:
            block = dict(job["config"]["trimtab"])
            if "hf" in job:
                model = Path(folder) / "config.json"
                model.write_text(json.dumps(job["hf"]), encoding="utf-8")
                block["model"] = str(model)
            file = Path(folder) / f"{job['id']}.json"
            file.write_text(json.dumps({**job["config"], "trimtab": block}), encoding="utf-8")
            real = job["group"] == "nccl"
            reuse = options.reuse and job["group"] != "fake"
            ranks = (self.crew(gpus) if reuse else None) or [self.ready() for _ in gpus]
            asked = {
                "child": str(file), "real": real, "fake": not real, "gpus": job["world"],
                "world": job["world"], "device": options.device, "tiny": options.tiny,
                "max_accumulation": 10**6,
                "cap_gib": job.get("cap_gib"), "profile": job.get("profile"),
                "initialize": job.get("initialize", False),
                "allocations": job.get("allocations"),
                "brief": options.brief, "reuse": reuse,
            }  # fmt: skip
            environment = {
                "WORLD_SIZE": str(job["world"]), "LOCAL_WORLD_SIZE": str(min(job["world"], 8)),
                "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()),
            }  # fmt: skip
            for rank, (gpu, standby) in enumerate(zip(gpus, ranks, strict=True)):
                own = {"RANK": str(rank), "LOCAL_RANK": str(gpu)}
                share = sorted(cores(options.gpus)[0][gpu])
                standby.start({"options": asked, "environment": {**environment, **own}, "cores": share})
            if not options.quiet:  # the next ones import while this job runs
                with self.change:
                    missing = options.gpus * options.ready - len(self.standby)
                    self.standby.extend(Standby(options) for _ in gpus[:missing])
            return self.wait(job, ranks, gpus)

    def crew(self, gpus: list[int]) -> list[Standby] | None:
        """The processes that are left of these GPUs' last job; those of other jobs that hold one are gone."""
        with self.change:
            for others in [one for one in self.crews if one != tuple(gpus) and set(one) & set(gpus)]:
                for standby in self.crews.pop(others):
                    standby.kill()
            return self.crews.pop(tuple(gpus), None)

    def ready(self) -> Standby:
        with self.change:
            return self.standby.popleft() if self.standby else Standby(self.options)

    def wait(self, job: Job, ranks: list[Standby], gpus: list[int]) -> dict[str, Any]:
        limit = min(job.get("timeout", 120), self.options.seconds + 20 - self.seconds())
        end = time.time() + max(5.0, limit)
        while ranks[0].process.poll() is None and time.time() < end:
            if all(rank.done() for rank in ranks):
                with self.change:
                    self.crews[tuple(gpus)] = ranks
                return self.told(ranks[0].text()) or failed(job, "no row")
            if any(rank.process.poll() is not None for rank in ranks):
                end = min(end, time.time() + GRACE_SECONDS)  # one is gone: the others wait for it in vain
            time.sleep(0.1)
        late = ranks[0].process.poll() is None
        if not late:
            time.sleep(0.5)
        texts = [(rank.kill(), rank.text())[1] for rank in ranks]
        row = self.told(texts[0])
        if row is not None:
            return row
        said = f"no answer in {limit:.0f} s; " if late else ""
        others = [line for text in texts[1:] for line in text.splitlines() if line.startswith("ERROR ")]
        error = said + " ".join([*others, texts[0][-2500:]])
        return failed(job, error)

    @staticmethod
    def told(text: str) -> dict[str, Any] | None:
        """The row that a job's first rank printed."""
        for line in text.splitlines():
            if line.startswith("RESULT "):
                return dict(json.loads(line.removeprefix("RESULT ")))
        return None

    def keep(self, job: Job, row: dict[str, Any]) -> None:
        told = {name: getattr(self.options, name) for name in ("quiet", "brief", "reuse")}
        row.update(group=job["group"], **told)
        row["job"] = {key: value for key, value in job.items() if key not in KEYS}
        with self.change, open(self.options.output, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        peak = row["gib"].get("end", {}).get("peak_alloc")
        said = "" if row["ok"] else str(row["error"])[-300:]
        said = "out of memory" if row.get("out_of_memory") else said
        print(
            f"[{self.seconds():5.0f}] {job['id']:44} {job['group']:6} x{job['world']:<3} peak {peak}  "
            f"step {row['step_seconds']}  {said}",
            flush=True,
        )


def free_port() -> int:
    import prove_on_gpu

    return prove_on_gpu.free_port()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("jobs", type=Path, nargs="?")
    parser.add_argument("--output", default="rows.jsonl")
    parser.add_argument("--gpus", type=int, default=1)
    parser.add_argument(
        "--ready", type=int, default=1, help="processes that wait ready for each GPU: more for short jobs"
    )
    parser.add_argument("--quiet", action="store_true", help="nothing imports while jobs run")
    parser.add_argument("--brief", action="store_true", help="time fewer steps of each job")
    parser.add_argument("--reuse", action="store_true", help="run job after job in one process")
    parser.add_argument("--seconds", type=float, default=1e9, help="start no job after this long")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--tiny", action="store_true", help="shrunken models: tries the path")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        return worker(options.device)
    if options.jobs is None:
        parser.error("JOBS.jsonl is missing")
    lines = options.jobs.read_text(encoding="utf-8").splitlines()
    jobs = [json.loads(line) for line in lines if line.strip()]
    return Pool(options).run(jobs)


if __name__ == "__main__":
    sys.exit(main())
