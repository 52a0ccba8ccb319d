"""DeepSpeed's Adam on the host's cores: elements a second, by threads and by ranks at work together."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

from trimtab.probe.notes import Notes

ELEMENTS = (10**6, 16 * 10**6, 128 * 10**6)


def is_built(name: str) -> bool:
    """Whether DeepSpeed's extension ``name`` has been compiled on this machine."""
    root = os.environ.get("TORCH_EXTENSIONS_DIR") or Path.home() / ".cache" / "torch_extensions"
    return any(Path(root).rglob(f"{name}.so"))


def build(device: str) -> None:
    """Compile DeepSpeed's two Adams, as a first run would; takes about a minute each."""
    import deepspeed

    builders = ["CPUAdamBuilder", *(["FusedAdamBuilder"] if device == "cuda" else [])]
    for name in builders:
        with contextlib.suppress(Exception):  # no compiler: what is not there is not measured
            getattr(deepspeed.ops.op_builder, name)().load(verbose=False)


def threads_to_try(ranks: int) -> tuple[int, ...]:
    """One (what torchrun gives a rank), four, a rank's share of the cores, and all of them."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return tuple(sorted({1, min(4, cores), max(1, cores // ranks), cores}))


def measure(notes: Notes, *, ranks: int) -> None:
    """Rows of kind ``host adam``: one update; ``ranks`` of this host do the same at once."""
    import torch

    if not is_built("cpu_adam"):
        notes.skip("host adam", "DeepSpeed's CPU Adam is not compiled here (--build compiles it)")
        return
    from deepspeed.ops.adam import DeepSpeedCPUAdam

    before = torch.get_num_threads()
    for elements in ELEMENTS if notes.on_gpu else ELEMENTS[:1]:
        parameter = torch.nn.Parameter(torch.zeros(elements))
        parameter.grad = torch.zeros(elements)
        optimizer = DeepSpeedCPUAdam([parameter], lr=1e-4)
        for threads in threads_to_try(ranks):
            torch.set_num_threads(threads)
            optimizer.step()
            samples = []
            for _ in range(2):
                began = time.perf_counter()
                optimizer.step()
                samples.append(time.perf_counter() - began)
            notes.add("host adam", samples, elements=elements, threads=threads, ranks=ranks)
    torch.set_num_threads(before)
