"""A rehearsal on one GPU: the real engine, the real kernels, as one rank of a world that is not there.

torch's fake process group answers every collective at once, so the allocator sees what a rank of the whole
world would see; no time of communication is in it.  The GPU's memory is held to the card that was asked for.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trimtab.errors import Unsupported
from trimtab.probe.start import gpus_here
from trimtab.rehearse.child import ask, need_packages


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuRequest:
    """One training job on one rank of a made-up world, on this machine's GPU."""

    config: Mapping[str, Any]
    """The whole file, its ``"trimtab"`` block included."""
    name: str
    hf: Mapping[str, Any]
    world_size: int
    ranks_per_node: int
    rank: int
    accumulation: int
    memory_bytes: int
    """What the allocator may take: the usable bytes of the card that is asked for."""
    device: str = "cuda"
    """``cpu`` runs the same path without any memory to see; for machines without a GPU."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuRehearsal:
    """What the GPU's allocator and the host showed."""

    parameters: int
    trainable: int
    phases: Mapping[str, int]
    """Peak of ``max_memory_allocated`` in bytes; those that it reached before memory ran out."""
    reserved_bytes: int
    host_bytes: int
    """Resident memory of the process."""
    step_seconds: float | None
    loss: float | None
    out_of_memory: str | None
    """CUDA's own message, if memory ran out."""
    gpu: str
    notes: tuple[str, ...]
    versions: Mapping[str, str]
    seconds: float


def gpu_is_here() -> bool:
    """Whether CUDA's driver shows this process a GPU; imports nothing and makes no context."""
    return gpus_here() > 0


def rehearse_on_gpu(request: GpuRequest, *, timeout_seconds: float = 900) -> GpuRehearsal:
    """Run ``request`` in a child process on this machine's first GPU and return what it saw.

    Raises:
        MissingExtra: torch, DeepSpeed or transformers is not installed.
        Unsupported: there is no GPU, or it is smaller than ``memory_bytes``.
        RefusedConfig: DeepSpeed or the model refused the configuration; carries their message.
    """
    if request.device == "cuda" and not gpu_is_here():
        raise Unsupported(
            "this machine shows no GPU to rehearse on; --phantom rehearses the real engine without one"
        )
    need_packages("a rehearsal")
    answer = ask(
        "trimtab.rehearse.gpu_run", dataclasses.asdict(request), timeout_seconds, device=request.device
    )
    values = answer["rehearsal"]
    return GpuRehearsal(**{**values, "notes": tuple(values["notes"])})
