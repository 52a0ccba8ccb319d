"""What a rehearsal saw of one rank, under the names of the estimate, whichever way it was rehearsed."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from trimtab.cost.speed import Speed
from trimtab.estimate import PROCESS_BYTES, Range
from trimtab.rehearse.on_gpu import PHASES, GpuRehearsal, Shortage
from trimtab.rehearse.request import Course, Module, Rehearsal
from trimtab.rehearse.simulator import Simulated

# a GPU's peak of tensors names no smallest capacity: that of nine measured jobs, their allocator replayed,
# was 1.5 to 28 % above it, 11 % at the median
SLACK_EXPECTED, SLACK_HIGH = 0.10, 0.28
# phantom peaks against those measured (docs/accuracy.md) are nearer; these bounds are by judgement, for other
# cards and versions, and for collectives that take time (they hold what they read until they end)
PHANTOM_LOW, PHANTOM_HIGH = 0.98, 1.02
# one name for a part in both answers: the arithmetic's
PART_NAMES = {
    "parameters": "parameters",
    "model_buffers": "parameters",
    "gradients": "gradients",
    "master_weights": "master weights",
    "optimizer_states": "optimizer states",
    "communication_buffers": "buckets",
    "gathered_parameters": "gathered parameters",
    "activations": "activations",
    "recomputed_activations": "activations",
    "logits_and_loss": "logits and loss",
}
STAYING = ("parameters", "gradients", "master weights", "optimizer states", "buckets")
REST = "activations and the rest"
"""What a GPU holds beside the parts that stay from step to step: it cannot say more of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OnGpu:
    """What a rehearsal on a real GPU tells beyond a phantom; bytes and seconds."""

    gpu: str
    """The card that it ran on, as the driver names it."""
    allocator_bytes: int
    """What PyTorch's allocator was held to."""
    outside_bytes: int | None
    """Of the card, beside the allocator: context, libraries, other processes."""
    host_peak_bytes: int
    phase_seconds: Mapping[str, float]
    """Forward, backward and step of one whole optimizer step, its micro steps summed; empty if it never came
    so far."""
    step_seconds: tuple[float, ...]
    """Of each timed step as it ran, with the micro steps that ran."""
    loss: float | None
    out_of_memory: Shortage | None

    @property
    def seconds(self) -> float | None:
        """One whole optimizer step without communication."""
        return sum(self.phase_seconds.values()) if self.phase_seconds else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What a rehearsal saw of one rank, in bytes."""

    method: str
    """``phantom`` or ``rehearsal``."""
    parameters: int
    trainable: int
    peak: Range
    """Allocated over forward, backward and step, once the optimizer's states exist."""
    phases: Mapping[str, int]
    parts: Mapping[str, int]
    """Of the peak; a GPU tells those that stay from step to step and `REST`."""
    reserved: Range
    """What the allocator must be able to reserve, start included."""
    host_bytes: int
    """Of one rank, the process included."""
    nvme_bytes: int
    modules: tuple[Module, ...]
    assumptions: tuple[str, ...]
    versions: Mapping[str, str]
    seconds: float
    live: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """Allocated at the ``start`` and the end of each phase."""
    course: Course | None = None
    """Memory over the step, where every allocation was seen."""
    on_gpu: OnGpu | None = None
    """What only a real GPU tells."""
    simulated: Simulated | None = None
    """The step replayed with measured rates, of a phantom."""
    speed: Speed | None = None
    """The same in the estimate's terms."""

    @property
    def out_of_memory(self) -> Shortage | None:
        """Where memory ran out, if it did."""
        return None if self.on_gpu is None else self.on_gpu.out_of_memory


def seen_by_phantom(answer: Rehearsal, said: tuple[str, ...] = ()) -> Seen:
    """A phantom rehearsal's answer under the names of the estimate."""
    peak, workspace = answer.peak_allocated_bytes, answer.workspace_bytes
    highest = max(answer.phases, key=lambda phase: phase.peak_bytes)
    parts: Counter[str] = Counter()
    for part in highest.parts:
        parts[PART_NAMES.get(part.name, "temporaries")] += part.bytes
    parts["workspace, slack"] = max(workspace, peak - answer.step_peak_bytes)
    start = answer.moment("engine")
    reserved = max(answer.peak_reserved_bytes, start.peak_reserved_bytes)
    least = max(peak, start.peak_blocks_bytes)
    return Seen(
        method="phantom",
        parameters=answer.parameters,
        trainable=answer.trainable_parameters,
        peak=Range(low=peak * PHANTOM_LOW, expected=peak, high=peak * PHANTOM_HIGH),
        phases={
            "init": start.peak_blocks_bytes,
            **{phase.name: phase.peak_bytes + workspace for phase in answer.phases},
        },
        parts=dict(parts),
        reserved=Range(
            low=least * PHANTOM_LOW,
            expected=answer.smallest_capacity_bytes or reserved,
            high=max(reserved, answer.smallest_capacity_bytes or 0) * PHANTOM_HIGH,
        ),
        host_bytes=answer.host_peak_bytes + PROCESS_BYTES,
        nvme_bytes=answer.nvme_bytes,
        modules=answer.modules,
        assumptions=(*said, *answer.assumptions),
        versions=answer.versions,
        seconds=answer.seconds,
        live={
            "start": answer.moment("end").blocks_bytes,
            "forward": answer.moment("after_forward").blocks_bytes,
            "backward": answer.moment("after_backward").blocks_bytes,
            "step": answer.moment("end").blocks_bytes,
        },
        course=None if answer.course is None else _renamed(answer.course, parts["workspace, slack"]),
    )


def _renamed(course: Course, slack_bytes: int) -> Course:
    """The course under the arithmetic's names, with what the blocks hold beside tensors."""
    names = [PART_NAMES.get(name, "temporaries") for name in course.parts]
    parts = tuple(dict.fromkeys((*names, "workspace, slack")))
    rows = []
    for row in course.rows:
        sums = dict.fromkeys(parts, 0) | {"workspace, slack": slack_bytes}
        for name, size in zip(names, row, strict=True):
            sums[name] += size
        rows.append(tuple(sums.values()))
    return Course(parts=parts, rows=tuple(rows), phases=course.phases)


def seen_on_gpu(
    answer: GpuRehearsal,
    said: tuple[str, ...] = (),
    *,
    allocator_bytes: int,
    micro_steps: float = 1.0,
) -> Seen:
    """A rehearsal on a GPU under the names of the estimate.

    ``micro_steps`` is how many micro steps a step has for each that ran: forward and backward take so much
    longer.
    """
    peak = answer.peak_bytes
    parts: Counter[str] = Counter()
    for name, size in answer.held.items():
        known = PART_NAMES.get(name)
        if known in STAYING:
            parts[known] += size
    if parts:
        parts[REST] = peak - sum(parts.values())
    short = answer.out_of_memory
    seconds = {
        name: value * (1.0 if name == PHASES[-1] else micro_steps)
        for name, value in answer.phase_seconds.items()
    }
    return Seen(
        method="rehearsal",
        parameters=answer.parameters,
        trainable=answer.trainable,
        peak=Range(low=peak, expected=peak, high=peak),
        phases=answer.phases,
        parts=dict(parts),
        reserved=_reserved(answer, allocator_bytes),
        host_bytes=answer.host_bytes,
        nvme_bytes=0,
        modules=(),
        assumptions=(
            *said,
            *answer.notes,
            *(("memory ran out: what is needed is a lower bound",) if short else ()),
        ),
        versions=answer.versions,
        seconds=answer.seconds,
        live=answer.live,
        on_gpu=OnGpu(
            gpu=answer.gpu,
            allocator_bytes=allocator_bytes,
            outside_bytes=answer.outside_bytes,
            host_peak_bytes=answer.host_peak_bytes,
            phase_seconds=seconds,
            step_seconds=answer.step_seconds,
            loss=answer.loss,
            out_of_memory=short,
        ),
    )


def _reserved(answer: GpuRehearsal, allocator_bytes: int) -> Range:
    """What the allocator must be able to reserve: no more than the limit that it ran within."""
    most, short = max((*answer.phases.values(), answer.peak_bytes)), answer.out_of_memory
    if short is not None:
        least = max(most, short.allocated_bytes + (short.asked_bytes or 0))
        return Range(low=least, expected=least, high=least)
    return Range(
        low=most,
        expected=min(most * (1 + SLACK_EXPECTED), allocator_bytes),
        high=min(most * (1 + SLACK_HIGH), allocator_bytes),
    )
