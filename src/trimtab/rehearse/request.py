"""What a phantom rehearsal is asked and what it answers, as plain values.

The request goes to the child process as one JSON object on its standard input, the answer comes back as one
JSON object in a file.  Both have ``"schema_version": 1``; sizes are bytes, times seconds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from trimtab.config import Config
from trimtab.job import ENCODER_DECODER_TASKS, Lora

SCHEMA_VERSION = 1

Record = Literal["none", "counts", "ordered"]

MOMENTS = ("model", "engine", "after_forward", "after_backward", "end")
"""Built, initialized, and three instants of the measured step (its last micro step)."""
PHASES = ("build", "initialize", "forward", "backward", "step")


MICRO_STEPS_ENOUGH = 3
"""Micro steps that show what all of them take: the first, whose gradients are written where later ones add;
one between; and the last, after which they are reduced or handed over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PhantomRequest:
    """One training job on one rank of a made-up world."""

    deepspeed: Mapping[str, Any]
    """As it goes to ``deepspeed.initialize``; its batch keys give way to the fields below."""
    hf: Mapping[str, Any]
    """A Hugging Face configuration (``model_type`` and what differs from its class's defaults)."""
    micro_batch: int
    accumulation: int = 1
    task: str = "causal-lm"
    sequence_length: int = 2048
    target_length: int | None = None
    checkpoint_activations: bool = False
    recomputed_layers: int | None = None
    """Of how many layers; None: of all."""
    attention: str = "sdpa"
    kernels: str = "plain"
    lora: Lora | None = None
    padding: bool = False
    """Whether the batches hold padding, so that an attention mask is really used."""
    world_size: int = 1
    ranks_per_node: int = 8
    rank: int = 0
    steps: int = 2
    """Optimizer steps to run, at least 2; the last one is measured, once the optimizer's states exist."""
    gpu_memory_bytes: int | None = None
    """What the engine believes is free at the start (it decides where ZeRO-1/2 flattens); None: plenty."""
    compute_capability: tuple[int, int] = (9, 0)
    record: Record = "counts"
    find_capacity: bool = False
    """Also look for the smallest capacity that the caching allocator can run in (some seconds more)."""

    @classmethod
    def of_config(
        cls,
        config: Config,
        hf: Mapping[str, Any],
        *,
        world_size: int,
        ranks_per_node: int = 8,
        rank: int = 0,
        record: Record = "counts",
        gpu_memory_bytes: int | None = None,
        compute_capability: tuple[int, int] = (9, 0),
    ) -> PhantomRequest:
        """The request that a configuration and a world state.

        Raises:
            RefusedConfig: the batch keys contradict each other for this world.
        """
        batch, job = config.batch(world_size), config.job
        return cls(
            deepspeed=config.deepspeed(),
            hf=hf,
            micro_batch=batch.micro,
            accumulation=batch.accumulation,
            task=job.task,
            sequence_length=job.sequence_length,
            target_length=job.target_length if job.task in ENCODER_DECODER_TASKS else None,
            checkpoint_activations=job.checkpoint_activations,
            recomputed_layers=job.recomputed_layers,
            attention=job.attention,
            kernels=job.kernels,
            lora=job.lora,
            world_size=world_size,
            ranks_per_node=ranks_per_node,
            rank=rank,
            gpu_memory_bytes=gpu_memory_bytes,
            compute_capability=compute_capability,
            record=record,
        )

    def to_json(self) -> dict[str, Any]:
        """The request as the child process reads it."""
        return {"schema_version": SCHEMA_VERSION, **dataclasses.asdict(self)}

    @classmethod
    def from_json(cls, text: Mapping[str, Any]) -> PhantomRequest:
        """The request that `to_json` wrote."""
        values = {key: value for key, value in text.items() if key != "schema_version"}
        if values.get("lora") is not None:
            lora = dict(values["lora"])
            for key in ("target_modules", "modules_to_save"):
                if lora.get(key) is not None:
                    lora[key] = tuple(lora[key])
            values["lora"] = Lora(**lora)
        values["compute_capability"] = tuple(values.get("compute_capability", (9, 0)))
        return cls(**values)


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Bytes of one kind, such as ``parameters`` or ``activations``."""

    name: str
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """What is alive at one instant of the run."""

    name: str
    allocated_bytes: int
    peak_bytes: int
    """Highest so far: from the start for ``model`` and ``engine``, else from the measured step's start."""
    blocks_bytes: int
    """What the caching allocator has handed out for it, the libraries' workspace among it."""
    peak_blocks_bytes: int
    """``max_memory_allocated`` of a GPU, as far as a replay of the allocator tells."""
    reserved_bytes: int
    peak_reserved_bytes: int
    host_bytes: int
    host_pinned_bytes: int
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """The highest instant of one phase, and what was alive there."""

    name: str
    peak_bytes: int
    at: str
    """The module and operator whose allocation made the peak."""
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """Memory over the measured step, in spans of as many allocations; not in time, a phantom has none."""

    parts: tuple[str, ...]
    rows: tuple[tuple[int, ...], ...]
    """Bytes alive by part, at the highest instant of each span."""
    phases: tuple[tuple[str, float], ...]
    """Each phase of each micro step, and where it begins: 0 is the step's start, 1 its end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Module:
    """Activations that one module's forward keeps for the backward pass, and the module's parameters."""

    name: str
    class_name: str
    kept_bytes: int
    calls: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Operator:
    """One operator with its shapes, and how often it ran in one phase of the measured step."""

    name: str
    phase: str
    module_class: str
    inputs: tuple[tuple[str, tuple[int, ...]], ...]
    """``(dtype, shape)`` of each tensor it reads."""
    outputs: tuple[tuple[str, tuple[int, ...]], ...]
    count: int
    view: bool
    """True if it moves no data and starts no kernel."""
    host: bool = False
    """True if it runs on the host's memory alone."""
    uneven: bool = False
    """True if its tensors lie differently in memory: some are repeated along a dimension, or transposed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Collective:
    """One kind of collective at one size, and how often it ran in one phase of the measured step."""

    name: str
    phase: str
    bytes: int
    """The larger of what the rank gives and what it gets."""
    group_size: int
    stream: str
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy:
    """Copies between host and device, or host and disk, of one size in one phase of the measured step."""

    direction: Literal["to_device", "to_host", "to_disk", "from_disk"]
    phase: str
    bytes: int
    pinned: bool
    stream: str
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Rehearsal:
    """The answer of a phantom rehearsal: memory of one rank's device and host, and what was run."""

    parameters: int
    trainable_parameters: int
    recomputed: float = 0.0
    """Share of the transformer layers whose activations are recomputed."""
    moments: tuple[Moment, ...]
    phases: tuple[Phase, ...]
    workspace_bytes: int
    """Libraries' workspace on the GPU that no tensor shows (cuBLAS); already in no other number here."""
    init_peak_bytes: int
    step_peak_bytes: int
    """Highest over forward, backward and step once optimizer states exist, without ``workspace_bytes``."""
    host_peak_bytes: int
    """Highest on the host over the whole run of this rank, without the process itself."""
    host_pinned_peak_bytes: int
    nvme_bytes: int
    modules: tuple[Module, ...]
    operators: tuple[Operator, ...]
    collectives: tuple[Collective, ...]
    copies: tuple[Copy, ...]
    order: tuple[tuple[str, int], ...] = ()
    """The measured step in order, as `trimtab.rehearse.timeline` says."""
    streams: tuple[str, ...] = ()
    """The streams that ``order`` numbers; the first is the one that computes."""
    handovers: tuple[tuple[tuple[int, ...], ...], ...] = ()
    """What ``order`` numbers too: of each reduction at stages 1 and 2 with the optimizer offloaded, the
    elements of every gradient that goes to the host, by rank; this one's first, then those that keep any."""
    course: Course | None = None
    smallest_capacity_bytes: int | None = None
    """The least that the allocator may reserve for the run to end, with fragmentation; None: not asked."""
    optimizer: str
    engine_optimizer: str
    assumptions: tuple[str, ...]
    versions: Mapping[str, str]
    seconds: float
    extras: Mapping[str, Any] = field(default_factory=dict)

    @property
    def peak_allocated_bytes(self) -> int:
        """What a GPU's allocator will report as its peak over a step."""
        return self.moment("end").peak_blocks_bytes

    @property
    def peak_reserved_bytes(self) -> int:
        """What a GPU's allocator will have taken from the driver at most, given room to take it."""
        return self.moment("end").peak_reserved_bytes

    def moment(self, name: str) -> Moment:
        """The moment called ``name`` (one of `MOMENTS`)."""
        return next(moment for moment in self.moments if moment.name == name)

    def to_json(self) -> dict[str, Any]:
        """The answer as JSON values."""
        return {"schema_version": SCHEMA_VERSION, **dataclasses.asdict(self)}

    @classmethod
    def from_json(cls, text: Mapping[str, Any]) -> Rehearsal:
        """The answer that `to_json` wrote."""
        values = {key: value for key, value in text.items() if key != "schema_version"}
        values["moments"] = tuple(
            Moment(**{**moment, "parts": _parts(moment["parts"])}) for moment in values["moments"]
        )
        values["phases"] = tuple(
            Phase(**{**phase, "parts": _parts(phase["parts"])}) for phase in values["phases"]
        )
        values["modules"] = tuple(Module(**module) for module in values["modules"])
        values["operators"] = tuple(
            Operator(**{**row, "inputs": _shapes(row["inputs"]), "outputs": _shapes(row["outputs"])})
            for row in values["operators"]
        )
        values["collectives"] = tuple(Collective(**row) for row in values["collectives"])
        values["copies"] = tuple(Copy(**row) for row in values["copies"])
        if values.get("course") is not None:
            values["course"] = Course(
                parts=tuple(values["course"]["parts"]),
                rows=tuple(map(tuple, values["course"]["rows"])),
                phases=tuple((name, at) for name, at in values["course"]["phases"]),
            )
        values["order"] = tuple((kind, index) for kind, index in values["order"])
        values["streams"] = tuple(values["streams"])
        values["handovers"] = tuple(tuple(map(tuple, ranks)) for ranks in values["handovers"])
        values["assumptions"] = tuple(values["assumptions"])
        return cls(**values)


def _parts(rows: Any) -> tuple[Part, ...]:
    return tuple(Part(**row) for row in rows)


def _shapes(rows: Any) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return tuple((dtype, tuple(shape)) for dtype, shape in rows)
