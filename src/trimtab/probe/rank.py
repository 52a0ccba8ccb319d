"""What one rank of a probe does: ``python -m trimtab.probe.rank WISHES.json`` under torch.distributed.run.

Rank 0 measures what concerns one GPU alone while the others wait; links, the host's cores and collectives
are measured by all together.  Rank 0 writes the answer to the file that the wishes name.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from trimtab.errors import TrimtabError
from trimtab.probe import attention, collectives, elementwise, engine, host, host_adam, products, storage
from trimtab.probe.notes import Notes

WAIT = timedelta(minutes=3)
"""How long a rank waits for the others: longer than any part takes."""


def run(wishes: dict[str, Any]) -> dict[str, Any] | None:
    """Measure all there is; rank 0 returns the sheet, the others None.

    Args:
        wishes: ``device`` (cuda or cpu), ``disk`` (a folder or None), ``build`` (compile what is missing).
    """
    import torch
    import torch.distributed as dist

    warnings.filterwarnings("ignore")  # those of torch and DeepSpeed: this process does nothing else
    began = time.perf_counter()
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    local, locals_ = int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    device = wishes["device"]
    if device == "cuda":
        torch.cuda.set_device(local)
    dist.init_process_group(
        "nccl" if device == "cuda" else "gloo",
        timeout=WAIT,
        **({"device_id": torch.device("cuda", local)} if device == "cuda" else {}),
    )
    notes = Notes(device)
    sheet: dict[str, Any] = {
        "schema_version": 1,
        "made": datetime.now(timezone.utc).replace(microsecond=0).isoformat(),
        "machine": _machine(device, world, locals_),
        "seconds": 0.0,
        "seconds_by_part": {},
        "failures": [],
        "measurements": notes.rows,
    }

    def together(name: str, work: Callable[[], None], *, alone: bool = False) -> None:
        """One part; what fails in it is noted, and the other parts go on."""
        started = time.perf_counter()
        try:
            if not alone or rank == 0:
                work()
            notes.wait()
        except Exception as error:  # noqa: BLE001  a part that fails must not take the others with it
            traceback.print_exc()
            text = f"{type(error).__name__}: {error}".strip().partition("\n")[0]
            sheet["failures"].append({"part": name, "rank": rank, "error": text[:500]})
        sheet["seconds_by_part"][name] = round(time.perf_counter() - started, 3)
        sheet["seconds"] = round(time.perf_counter() - began, 1)
        if rank == 0 and "answer" in wishes:
            write_answer({"sheet": sheet}, wishes)
        dist.barrier()
        if device == "cuda":
            torch.cuda.empty_cache()

    if wishes["build"] and local == 0:
        host_adam.build(device)
    dist.barrier()
    together("products", lambda: products.measure(notes), alone=True)
    together("element-wise", lambda: elementwise.measure(notes), alone=True)
    together("attention", lambda: attention.measure(notes), alone=True)
    together("host", lambda: host.measure(notes), alone=True)
    together("models", lambda: engine.measure_models(notes), alone=True)
    together("copies alone", lambda: storage.measure_copies(notes, ranks=1), alone=True)
    together("host adam alone", lambda: host_adam.measure(notes, ranks=1), alone=True)
    if world > 1:
        together("copies", lambda: storage.measure_copies(notes, ranks=locals_))
        together("host adam", lambda: host_adam.measure(notes, ranks=locals_))
        together(
            "collectives",
            lambda: collectives.measure(notes, rank=rank, world_size=world, local_size=locals_),
        )
    fused = host_adam.is_built("fused_adam") and device == "cuda"
    together("engine", lambda: engine.measure_engine(notes, world_size=world, built=fused))
    if wishes["disk"]:
        disk = Path(wishes["disk"])
        together("disk", lambda: storage.measure_disk(notes, disk, ranks=locals_, rank=rank))
    everyone: list[Any] = [None] * world
    dist.all_gather_object(everyone, sheet["failures"])
    sheet["failures"] = [failure for failures in everyone for failure in failures]
    sheet["seconds"] = round(time.perf_counter() - began, 1)
    dist.destroy_process_group()
    return sheet if rank == 0 else None


def write_answer(answer: dict[str, Any], wishes: dict[str, Any]) -> None:
    """Put ``answer`` where the parent looks for it, whole or not at all."""
    file = Path(wishes["answer"])
    part = file.with_suffix(".part")
    part.write_text(json.dumps(answer), encoding="utf-8")
    part.replace(file)


def _machine(device: str, world: int, locals_: int) -> dict[str, Any]:
    import torch

    gpu: dict[str, Any] = {"gpu": None}
    if device == "cuda":
        card = torch.cuda.get_device_properties(torch.cuda.current_device())
        gpu = {
            "gpu": card.name,
            "gpu_memory_bytes": card.total_memory,
            "compute_capability": f"{card.major}.{card.minor}",
            "multiprocessors": card.multi_processor_count,
            "cuda": torch.version.cuda,
            "nccl": ".".join(map(str, torch.cuda.nccl.version())),
        }
    memory = None
    with contextlib.suppress(ImportError):
        import psutil

        memory = psutil.virtual_memory().total
    versions = {}
    for package in ("torch", "deepspeed", "transformers"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return {
        **gpu,
        "world_size": world,
        "gpus_per_node": locals_,
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "host_memory_bytes": memory,
        "python": platform.python_version(),
        "versions": versions,
    }


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def main(wishes_file: str) -> int:
    """Read the wishes, measure, and let rank 0 write the sheet or what went wrong."""
    wishes = json.loads(Path(wishes_file).read_text(encoding="utf-8"))
    try:
        sheet = run(wishes)
        answer: dict[str, Any] | None = None if sheet is None else {"sheet": sheet}
    except TrimtabError as error:
        answer = {"error": {"kind": type(error).__name__, "message": str(error)}}
    if answer is not None:
        write_answer(answer, wishes)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
