"""Run every catalogue configuration at full size on a GPU and write down what it took.

    prove_on_gpu.py --fake --output proof.jsonl              one GPU as rank 0 of each config's own world
    prove_on_gpu.py --real --gpus 4 --output proof.jsonl     that many GPUs through NCCL
    prove_on_gpu.py --fake --device cpu --tiny               the same path with tiny models, no GPU

Each configuration runs in a process of its own: real engine, random weights and tokens, six to
twenty-four optimizer steps.  One JSON line a case: memory at each moment, seconds a step and of its phases,
the host's resident memory.  Stops after three failures in a row.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "scripts")]

import allocation_trace  # noqa: E402
from step_clock import Clock, of_all_ranks  # noqa: E402

CONFIGS = ROOT / "src" / "trimtab" / "data" / "configs"
ARCH = {
    "causal-lm": "causal",
    "masked-lm": "mlm",
    "sequence-classification": "cls",
    "seq2seq-lm": "seq2seq",
    "span-corruption": "seq2seq",
}
GIB = 2**30
MEMORY_STEP = 2
"""The step whose memory is read at each moment; the first makes the optimizer's states."""
SETTLED_STEP = 5
"""The first step that is timed: those before it load kernels and fill the allocator's pools."""
STEPS, LEAST_TIMED, ENOUGH_SECONDS = 26, 4, 4.0
"""Steps at most; at least this many are timed, and no more once they have taken so long."""
BRIEF_SETTLED, BRIEF_TIMED, BRIEF_SECONDS = 3, 2, 1.5
"""The same where many cases are measured briefly."""
SLOW_SECONDS = 8.0
"""Once its steps have taken so long, a brief case times the next one, and ends if one is timed."""


def main() -> int:
    options = parse()
    if options.child:
        return child(options)
    paths = {path.stem: path for path in sorted(CONFIGS.glob("*/*.json"))}
    names = options.only.split(",") if options.only else list(paths)
    unknown = [name for name in names if name not in paths and not Path(name).is_file()]
    if unknown:
        print(f"unknown: {', '.join(unknown)}; known: {', '.join(paths)}", file=sys.stderr)
        return 2
    failures = 0
    for name in names:
        started = time.time()
        row = run_child(name, paths.get(name, Path(name)), options)
        with open(options.output, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        end = row["gib"].get("end", {})
        print(
            f"{name:28} {'ok' if row['ok'] else 'FAILED'}  peak allocated {end.get('peak_alloc')} GiB  "
            f"step {row['step_seconds']} s  host {row['host_rss_gib']} GiB  took "
            f"{time.time() - started:.0f} s" + ("" if row["ok"] else f"\n    {row['error']}"),
            flush=True,
        )
        failures = 0 if row["ok"] else failures + 1
        if failures == 3:
            print("three failures in a row: stopped", flush=True)
            return 1
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    mode = parser.add_mutually_exclusive_group(required=True)
    mode.add_argument("--fake", action="store_true", help="one process as rank 0 of the config's own world")
    mode.add_argument("--real", action="store_true", help="--gpus processes, every one a real rank")
    parser.add_argument("--gpus", type=int, default=1, help="ranks of --real")
    parser.add_argument("--only", help="names or paths, comma-separated")
    parser.add_argument("--output", default="proof.jsonl")
    parser.add_argument("--world", type=int, help="world size of --fake (default: the config's own)")
    parser.add_argument(
        "--max-accumulation", type=int, default=2, help="accumulation steps at most: more only cost time"
    )
    parser.add_argument("--cap-gib", type=float, help="hold PyTorch's allocator to this size")
    parser.add_argument("--timeout", type=float, default=240, help="seconds for one case")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument(
        "--tiny", action="store_true", help="shrink the model: tries the path, measures nothing"
    )
    parser.add_argument(
        "--profile",
        choices=["phases", "kernels"],
        help="say where a step's time goes as well (profiled_step.py)",
    )
    parser.add_argument(
        "--initialize", action="store_true", help="weights as the architecture asks; slower to make"
    )
    parser.add_argument(
        "--allocations", metavar="FOLDER", help="write what the allocator was asked for as well"
    )
    parser.add_argument("--brief", action="store_true", help="fewer steps: where many cases are to be timed")
    parser.set_defaults(reuse=False)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


def run_child(name: str, path: Path, options: argparse.Namespace) -> dict:
    arguments = [
        str(Path(__file__).resolve()),
        "--child",
        str(path),
        "--real" if options.real else "--fake",
        "--gpus",
        str(options.gpus),
        "--device",
        options.device,
        "--max-accumulation",
        str(options.max_accumulation),
    ]
    arguments += ["--cap-gib", str(options.cap_gib)] if options.cap_gib else []
    arguments += ["--tiny"] * options.tiny
    arguments += ["--profile", options.profile] if options.profile else []
    arguments += ["--initialize"] * options.initialize
    arguments += ["--brief"] * options.brief
    arguments += ["--allocations", options.allocations] if options.allocations else []
    arguments += ["--world", str(options.world)] if options.world else []
    command = [sys.executable, *arguments]
    if options.real and options.gpus > 1:
        command = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--nnodes",
            "1",
            "--nproc_per_node",
            str(options.gpus),
            "--master_addr",
            "127.0.0.1",
            "--master_port",
            str(free_port()),
            *arguments,
        ]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        output, _ = process.communicate(timeout=options.timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        output += f"\nno answer in {options.timeout:.0f} s"
    for line in output.splitlines():
        if line.startswith("RESULT "):
            return json.loads(line.removeprefix("RESULT "))
    return {
        "id": name,
        "ok": False,
        "error": output[-3000:],
        "gib": {},
        "step_seconds": None,
        "host_rss_gib": None,
    }


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def child(options: argparse.Namespace) -> int:
    tell(options)
    os._exit(0)  # a made-up process group cannot be taken down in order


def tell(options: argparse.Namespace) -> dict:
    """Measure one case and print its row; what went wrong is in it."""
    row: dict = {
        "id": Path(options.child).stem,
        "ok": False,
        "error": None,
        "gib": {},
        "step_seconds": None,
        "host_rss_gib": None,
    }
    try:
        measure(options, row)
        row["ok"] = True
    except Exception as error:  # noqa: BLE001  whatever it was belongs in the row
        row["error"] = f"{type(error).__name__}: {str(error)[:600]}"
        row["trace"] = traceback.format_exc()[-2500:]
        if options.allocations:
            write_allocations(options, row)
        try:
            remember(row, "fail", options.device)
        except Exception as second:  # noqa: BLE001  a dead CUDA context cannot be asked
            row["error"] += f" (and memory could not be read: {second})"
    if int(os.environ.get("RANK", "0")) == 0:
        print("RESULT " + json.dumps(row), flush=True)
    elif row["error"]:
        print("ERROR " + row["error"], flush=True)
    sys.stdout.flush()
    return row


def measure(options: argparse.Namespace, row: dict) -> None:
    raw = json.loads(Path(options.child).read_text(encoding="utf-8"))
    world = options.gpus if options.real else options.world or own_world(row["id"], raw)
    start_world(options, world)

    import psutil
    import torch
    import transformers

    from trimtab.config import Config
    from trimtab.train.engine import import_deepspeed, leave
    from trimtab.train.model import Build, build_model, prepare_config, read_model_config
    from trimtab.train.samples import random_batch
    from trimtab.train.sequences import share_attention, weight_of_part
    from trimtab.train.shrink import shrink

    deepspeed = import_deepspeed(options.device)
    if options.real or world == 1:
        deepspeed.init_distributed(dist_backend="nccl" if options.device == "cuda" else "gloo", verbose=False)
    transformers.utils.logging.set_verbosity_error()
    config, changed = measured_form(Config.from_mapping(raw, name=row["id"]), world, options)
    batch = config.batch(world)
    hf = read_model_config(config.job.model)
    if options.tiny:
        hf = shrink(hf)
        config = config.with_values({"trimtab.sequence_length": 32, "train_micro_batch_size_per_gpu": 2})
        batch = config.batch(world)
    notes = prepare_config(hf, config.job)
    job = config.job
    if options.cap_gib is not None and options.device == "cuda":
        torch.cuda.set_per_process_memory_fraction(options.cap_gib * GIB / torch.cuda.mem_get_info()[1])
    if options.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    row.update(
        gpu=torch.cuda.get_device_name() if options.device == "cuda" else "cpu",
        world=world,
        group=("nccl" if options.device == "cuda" else "gloo")
        if options.real and world > 1
        else "single"
        if world == 1
        else "fake",
        hf=hf.to_diff_dict() | {"model_type": hf.model_type},
        arch=ARCH.get(job.task, job.task),
        seq=job.sequence_length,
        tgt=job.target_length,
        mbs=batch.micro,
        gas=batch.accumulation,
        checkpointing=job.recomputation,
        attention=hf._attn_implementation,
        lora=raw["trimtab"].get("lora"),
        kernels=job.kernels,
        allocator_cap_gib=options.cap_gib,
        deepspeed_config=config.deepspeed(),
        changed=changed + list(notes),
        cores=len(os.sched_getaffinity(0)),
        torch=torch.__version__,
        deepspeed=deepspeed.__version__,
        transformers=transformers.__version__,
        date=time.strftime("%Y-%m-%d", time.gmtime()),
    )

    if options.allocations:
        allocation_trace.begin()
    started = time.time()
    built = build_model(config, hf, Build(initialize=options.initialize), device=options.device)
    row.update(parameters=built.parameters, trainable=built.trainable, model_seconds=time.time() - started)
    remember(row, "model", options.device)
    started = time.time()
    engine, optimizer, _, _ = deepspeed.initialize(
        model=built.module,
        model_parameters=[p for p in built.module.parameters() if p.requires_grad],
        config=config.deepspeed(),
        mpu=share_attention(
            built.module, config.sequence_parallel, micro=batch.micro, length=job.sequence_length
        ),
        dist_init_required=False,
    )
    row.update(
        optimizer=type(optimizer).__name__,
        engine_seconds=time.time() - started,
        basic_optimizer=type(getattr(optimizer, "optimizer", optimizer)).__name__,
    )
    remember(row, "engine", options.device)

    def samples() -> dict:
        if config.data_parallel_divisor > 1:  # the ranks that share a sample have to make the same
            torch.manual_seed(batch.micro)
        return random_batch(job, hf, samples=batch.micro, device=engine.device)

    weight = weight_of_part(config)
    clock = Clock(options.device)
    losses: list[float] = []
    since = time.perf_counter()
    for step in range(STEPS):
        if step == allocation_trace.STEPS and options.allocations:
            write_allocations(options, row)
        if agreed(timed_enough(clock.steps, since, options.brief), engine.device):
            break
        if step == 1 and options.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        clock.begin(keep=agreed(settled(step, since, options.brief), engine.device))
        for micro in range(batch.accumulation):
            last = step == MEMORY_STEP and micro == batch.accumulation - 1
            loss = loss_of(engine, config, samples())
            clock.mark("forward")
            if last:
                remember(row, "after_forward", options.device)
            engine.backward(loss * weight if weight != 1 else loss)
            clock.mark("backward")
            if last:
                remember(row, "after_backward", options.device)
            engine.step()
            clock.mark("step")
        clock.end()
        losses.append(float(loss))
    remember(row, "end", options.device)
    row.update(
        step_seconds=round(statistics.median(clock.steps), 4),
        all_step_seconds=[round(seconds, 4) for seconds in clock.steps],
        paces=of_all_ranks(clock.paces, engine.device),
        phase_seconds=clock.phases(),
        micro_step_seconds=clock.micro_steps(),
        skipped_steps=getattr(engine, "skipped_steps", None),
        loss=losses,
        # what earlier jobs of this process pinned is not this one's
        host_rss_gib=None if options.reuse else round(psutil.Process().memory_info().rss / GIB, 3),
    )
    if options.profile:
        from profiled_step import profiled

        try:
            row["profile"] = profiled(
                engine, samples, batch.accumulation, options.device, kernels=options.profile == "kernels"
            )
        except Exception as error:  # noqa: BLE001  what was measured before it stays
            row["profile"] = {"error": f"{type(error).__name__}: {str(error)[:600]}"}
    if options.reuse:
        leave(engine)


def write_allocations(options: argparse.Namespace, row: dict) -> None:
    """What the allocator was asked for up to now."""
    written = Path(options.allocations) / f"{row['id']}.json.gz"
    allocation_trace.end(written, capacity_gib=options.cap_gib)


def loss_of(engine: Any, config: Any, batch: dict) -> Any:
    """The loss of a micro batch, or of this rank's part of every sample."""
    size = config.sequence_parallel
    if size == 1:
        return engine(**batch).loss
    from trimtab.train.sequences import loss_of_part, part_of

    return loss_of_part(engine, part_of(batch, engine.global_rank % size, size), size)


def settled(step: int, since: float, brief: bool) -> bool:
    """Whether ``step`` is one to time; ``since`` is when the first began."""
    if not brief:
        return step >= SETTLED_STEP
    return step >= BRIEF_SETTLED or (step > 0 and time.perf_counter() - since > SLOW_SECONDS)


def timed_enough(seconds: list[float], since: float, brief: bool) -> bool:
    """Whether the timed steps, which took these ``seconds``, will do."""
    if not brief:
        return len(seconds) >= LEAST_TIMED and sum(seconds) > ENOUGH_SECONDS
    if seconds and time.perf_counter() - since > SLOW_SECONDS:
        return True
    return len(seconds) >= BRIEF_TIMED and sum(seconds) > BRIEF_SECONDS


def agreed(own: bool, device: Any) -> bool:
    """What rank 0 says, so that no rank waits for ever for another."""
    import torch
    import torch.distributed as dist

    if dist.get_world_size() == 1 or dist.get_backend() == "fake":
        return own
    said = torch.tensor([int(own)], device=device)
    dist.broadcast(said, src=0)
    return bool(said.item())


def start_world(options: argparse.Namespace, world: int) -> None:
    """This process as rank 0 of a made-up group of ``world``, or as the rank that the launcher says."""
    from trimtab.train.engine import choose_accelerator

    choose_accelerator(options.device)
    if "RANK" not in os.environ:
        os.environ.update(
            RANK="0",
            WORLD_SIZE=str(world),
            LOCAL_RANK="0",
            LOCAL_WORLD_SIZE=str(min(world, 8)),
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(free_port()),
        )
    import torch

    if options.device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    if options.fake and world > 1:
        import torch.distributed as dist
        from torch.testing._internal.distributed.fake_pg import FakeStore

        dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=world)


def own_world(name: str, raw: dict) -> int:
    from trimtab import catalogue

    if name in catalogue.names():
        return catalogue.card(name).hardware.world_size
    micro, accumulation = raw["train_micro_batch_size_per_gpu"], raw.get("gradient_accumulation_steps", 1)
    return raw["train_batch_size"] // micro // accumulation


def measured_form(config, world: int, options: argparse.Namespace):
    """``config`` as measured: micro batch kept, accumulation shortened, no quantized collectives if fake."""
    real = config.raw.get("train_batch_size")
    micro = config.raw["train_micro_batch_size_per_gpu"]
    accumulation = config.raw.get("gradient_accumulation_steps") or max(1, (real or micro) // micro // world)
    changes = {
        "train_batch_size": None,
        "gradient_accumulation_steps": min(accumulation, options.max_accumulation),
        "steps_per_print": 10**9,
    }
    if config.raw.get("bf16", {}).get("enabled") and options.tiny and options.device == "cpu":
        changes["optimizer.params.torch_adam"] = True
    elif options.device == "cpu":
        changes.update({"fp16": None, "optimizer.params.torch_adam": True})
    changed = [f"accumulation {accumulation} measured as {changes['gradient_accumulation_steps']}"]
    for key in ("zero_quantized_weights", "zero_quantized_gradients"):
        if options.fake and config.zero(key):
            changes[f"zero_optimization.{key}"] = None
            changed.append(f"{key} left out: torch's fake group cannot gather the scales")
    return config.with_values(changes), changed


def remember(row: dict, moment: str, device: str) -> None:
    if device != "cuda":
        row["gib"][moment] = {}
        return
    import torch

    torch.cuda.synchronize()
    stats = torch.cuda.memory_stats()
    free, total = torch.cuda.mem_get_info()
    numbers = {
        "alloc": stats["allocated_bytes.all.current"],
        "peak_alloc": stats["allocated_bytes.all.peak"],
        "reserved": stats["reserved_bytes.all.current"],
        "peak_reserved": stats["reserved_bytes.all.peak"],
        "device_used": total - free,
    }
    row["gib"][moment] = {key: round(value / GIB, 3) for key, value in numbers.items()}


if __name__ == "__main__":
    sys.exit(main())
