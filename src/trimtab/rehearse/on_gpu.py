"""A rehearsal on one GPU: the real engine, the real kernels, as one rank of a world that is not there.

torch's fake process group answers every collective at once, so the allocator sees what a rank of the whole
world would see; no time of communication is in it.  The GPU's memory is held to the card that was asked for.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trimtab.errors import Unsupported, need_packages
from trimtab.probe.start import gpus_here
from trimtab.rehearse.child import ask

PHASES = ("forward", "backward", "step")
"""The phases of a step that are measured, in order; ``init`` and ``first step`` come before them."""


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
    """What the driver lets PyTorch have of the card that is asked for."""
    allocator_bytes: int
    """What of it PyTorch's allocator may take: the rest is the CUDA context's and NCCL's."""
    device: str = "cuda"
    """``cpu`` runs the same path without any memory to see; for machines without a GPU."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shortage:
    """Where memory ran out."""

    message: str
    """The allocator's own words, their first sentence."""
    memory: str
    """``gpu`` or ``host``."""
    step: int
    """0 before the first step."""
    phase: str
    """``build``, ``initialize``, ``forward``, ``backward`` or ``step``."""
    asked_bytes: int | None
    """What the allocation wanted; None where the message does not say."""
    allocated_bytes: int
    """What tensors held at that moment."""
    reserved_bytes: int
    """What the allocator had taken from the driver."""
    module: str | None
    """The innermost module of the model that was at work, such as ``model.layers.3.mlp``."""
    module_class: str | None
    frame: str | None
    """The innermost line outside torch and DeepSpeed, else inside DeepSpeed: ``file:line in function``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuRehearsal:
    """What the GPU's allocator, its clock and the host showed; bytes and seconds."""

    parameters: int
    trainable: int
    phases: Mapping[str, int]
    """Peaks of ``max_memory_allocated``: init, first step, and `PHASES` of the second; those reached."""
    peak_bytes: int
    """The highest over all steps after the first."""
    live: Mapping[str, int]
    """Allocated at the ``start`` and the end of each phase of the second step's last micro step."""
    held: Mapping[str, int]
    """Of the highest phase, by part: what is alive both when it starts and when it ends."""
    reserved_bytes: int
    """The allocator's highest, from the start on."""
    outside_bytes: int | None
    """What this process and others hold of the GPU beside the allocator; None on the CPU."""
    host_bytes: int
    """Resident memory of the process at its end."""
    host_peak_bytes: int
    step_seconds: tuple[float, ...]
    """Of each step that was timed, with nothing read in between; none if memory ran out before."""
    phase_seconds: Mapping[str, float]
    """By `PHASES`, medians over the timed steps, by CUDA events; micro steps summed."""
    loss: float | None
    out_of_memory: Shortage | None
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
    return from_json(answer["rehearsal"])


def from_json(values: Mapping[str, Any]) -> GpuRehearsal:
    """The answer that the child process wrote."""
    short = values["out_of_memory"]
    return GpuRehearsal(
        **{
            **values,
            "notes": tuple(values["notes"]),
            "step_seconds": tuple(values["step_seconds"]),
            "out_of_memory": None if short is None else Shortage(**short),
        }
    )
