"""The answer of a rehearsal, in the estimate's form, with what the arithmetic had predicted beside it."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trimtab.cluster import Cluster
from trimtab.config import Config
from trimtab.errors import EngineMoved, NotFound, UnknownArchitecture, Unsupported, UsageError
from trimtab.estimate import (
    PROCESS_BYTES,
    PROCESS_SPREAD_BYTES,
    Estimate,
    Range,
    estimate,
    outside_allocator,
)
from trimtab.estimate import to_json as estimate_to_json
from trimtab.model import HfConfig, find_hf
from trimtab.prices import price
from trimtab.rehearse.on_gpu import GpuRequest, rehearse_on_gpu
from trimtab.rehearse.phantom import rehearse_phantom
from trimtab.rehearse.request import Module, PhantomRequest, Rehearsal

# memory of the third and later micro steps of a step is that of the second
ACCUMULATION_ENOUGH = 2
# a GPU's peak of tensors names no smallest capacity: that of nine measured jobs, their allocator replayed,
# was 1.5 to 28 % above it, 11 % at the median
SLACK_EXPECTED, SLACK_HIGH = 0.10, 0.28
# phantom peaks against those measured (docs/accuracy.md) are off by less; these bounds are by judgement, for
# other cards and versions, and for collectives that take time (they hold what they read until they end)
PHANTOM_LOW, PHANTOM_HIGH, PHANTOM_SIGMA = 0.98, 1.02, 0.01
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
    """Of the peak; empty where a GPU cannot tell."""
    reserved: Range
    """What the allocator must be able to reserve, start included."""
    host_bytes: int
    """Of one rank, the process included."""
    nvme_bytes: int
    modules: tuple[Module, ...]
    assumptions: tuple[str, ...]
    versions: Mapping[str, str]
    seconds: float
    out_of_memory: str | None = None
    extras: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What was seen beside what was predicted; either may be missing, never both."""

    config: Config
    cluster: Cluster
    model_name: str
    seen: Seen | None
    """None where the engine could not be rehearsed and the arithmetic stands in."""
    predicted: Estimate | None
    """None for an architecture that the arithmetic does not know."""
    why_not: str | None = None
    """Why nothing was seen."""

    @property
    def capacity_bytes(self) -> int:
        """What PyTorch may have of the card."""
        return self.cluster.gpu.usable_bytes

    @property
    def needed(self) -> Range:
        """The smallest card: what the allocator reserves, the CUDA context, NCCL."""
        if self.seen is None:
            return self._fallback.needed
        outside = outside_allocator(self.cluster.world_size)
        reserved = self.seen.reserved
        return Range(
            low=reserved.low + outside,
            expected=reserved.expected + outside,
            high=reserved.high + outside,
        )

    @property
    def host_bytes_per_node(self) -> Range:
        """Host memory of a node's ranks together."""
        if self.seen is None:
            return self._fallback.host_bytes_per_node
        ranks = self.cluster.gpus_per_node
        expected, spread = ranks * self.seen.host_bytes, ranks * PROCESS_SPREAD_BYTES
        return Range(low=expected * 0.98 - spread, expected=expected, high=expected * 1.05 + spread)

    @property
    def nvme_bytes_per_node(self) -> int:
        """Bytes on a node's local disks."""
        if self.seen is None:
            return self._fallback.nvme_bytes_per_node
        return self.seen.nvme_bytes * self.cluster.gpus_per_node

    @property
    def fits_probability(self) -> float:
        """That the job runs: what it needs as a normal about its expected value."""
        if self.seen is None:
            return self._fallback.fits_probability
        cluster = self.cluster
        short = self.host_bytes_per_node.expected > cluster.host_memory_bytes
        if self.seen.out_of_memory or short or self.nvme_bytes_per_node > cluster.nvme_bytes:
            return 0.0
        needed = self.needed
        sigma = needed.expected * PHANTOM_SIGMA
        return round(0.5 * math.erfc((needed.expected - self.capacity_bytes) / (sigma * math.sqrt(2))), 4)

    @property
    def fits(self) -> bool:
        """Whether the job more likely runs than not."""
        return self.fits_probability >= 0.5

    @property
    def assumptions(self) -> tuple[str, ...]:
        """What the answer stands on."""
        if self.seen is None:
            return (
                f"nothing was rehearsed, this is the arithmetic: {self.why_not}",
                *self._fallback.assumptions,
            )
        said = (*self.seen.assumptions, *(f"assumed: {text}" for text in self.cluster.assumptions))
        if self.predicted is not None:
            return (*said, "step time is the arithmetic's closed form, coarse")
        return (*said, "no arithmetic for this architecture: no step time")

    @property
    def _fallback(self) -> Estimate:
        assert self.predicted is not None
        return self.predicted


def rehearse(
    config: Config,
    cluster: Cluster,
    *,
    phantom: bool = True,
    rank: int = 0,
    use_cache: bool = True,
    timeout_seconds: float = 900,
) -> Answer:
    """Run ``config`` through the real engine as one rank of ``cluster`` and say what it takes.

    Raises:
        UsageError: no model is named, or the world has no such rank.
        RefusedConfig: DeepSpeed or the model refused the configuration; carries their message.
        MissingExtra: torch, DeepSpeed or transformers is not installed.
        Unsupported: the job needs what a rehearsal cannot do, or this card is smaller than the one asked for.
        EngineMoved: torch or DeepSpeed has moved and the arithmetic, which would stand in, does not know the
            architecture.
    """
    if config.job.model is None:
        raise UsageError(
            f"{config.name}: no model is named. Give --model NAME (a catalogue name, a Hugging Face id or a "
            'config.json), or a "trimtab" block with "model"'
        )
    if not 0 <= rank < cluster.world_size:
        raise UsageError(f"--rank {rank}: the {cluster.world_size} ranks are 0 to {cluster.world_size - 1}")
    if config.job.pipeline_stages > 1:
        raise Unsupported(
            f"pipeline_stages is {config.job.pipeline_stages}: a rehearsal runs Hugging Face models whole. "
            "Remove the key and use ZeRO stage 3"
        )
    found = find_hf(config.job.model)
    predicted = _predicted(config, cluster)
    seen, why_not = None, None
    try:
        if phantom:
            seen = _phantom(config, cluster, found, rank, use_cache, timeout_seconds)
        else:
            seen = _on_gpu(config, cluster, found, rank, timeout_seconds)
    except EngineMoved as moved:
        if predicted is None:
            raise
        why_not = str(moved)
    return Answer(
        config=config,
        cluster=cluster,
        model_name=found.name,
        seen=seen,
        predicted=predicted,
        why_not=why_not,
    )


def _predicted(config: Config, cluster: Cluster) -> Estimate | None:
    try:
        return estimate(config, cluster)
    except UnknownArchitecture:
        return None


def _phantom(
    config: Config, cluster: Cluster, found: HfConfig, rank: int, use_cache: bool, timeout_seconds: float
) -> Seen:
    capability = cluster.gpu.compute_capability.split(".")
    known = all(part.isdigit() for part in capability)
    request = PhantomRequest.of_config(
        config,
        found.hf,
        world_size=cluster.world_size,
        ranks_per_node=cluster.gpus_per_node,
        rank=rank,
        gpu_memory_bytes=cluster.gpu.usable_bytes,
        compute_capability=(int(capability[0]), int(capability[1])) if known else (9, 0),
    )
    batch = config.batch(cluster.world_size)
    said = _said(config, found, rank)
    if batch.accumulation > ACCUMULATION_ENOUGH:
        request = dataclasses.replace(request, accumulation=ACCUMULATION_ENOUGH)
        said += (
            f"{ACCUMULATION_ENOUGH} of {batch.accumulation} micro steps run: the others take no more memory",
        )
    if not known:
        said += (f"{cluster.gpu.name} ({cluster.gpu.compute_capability}) behaves as an NVIDIA card",)
    request = dataclasses.replace(request, find_capacity=True)
    return seen_by_phantom(
        rehearse_phantom(request, timeout_seconds=timeout_seconds, use_cache=use_cache), said
    )


def _said(config: Config, found: HfConfig, rank: int) -> tuple[str, ...]:
    job = config.job
    return (
        f"the real engine as rank {rank}, {job.kernels} kernels, {job.attention} attention, "
        + ("activations recomputed" if job.checkpoint_activations else "activations kept"),
        "batches without padding masks",
    )


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
    )


def _on_gpu(config: Config, cluster: Cluster, found: HfConfig, rank: int, timeout_seconds: float) -> Seen:
    batch = config.batch(cluster.world_size)
    answer = rehearse_on_gpu(
        GpuRequest(
            config=config.raw,
            name=config.name,
            hf=found.hf,
            world_size=cluster.world_size,
            ranks_per_node=cluster.gpus_per_node,
            rank=rank,
            accumulation=min(batch.accumulation, ACCUMULATION_ENOUGH),
            memory_bytes=cluster.gpu.usable_bytes,
        ),
        timeout_seconds=timeout_seconds,
    )
    peak = max((size for name, size in answer.phases.items() if name != "init"), default=0)
    most = max(answer.phases.values(), default=0)
    return Seen(
        method="rehearsal",
        parameters=answer.parameters,
        trainable=answer.trainable,
        peak=Range(low=peak, expected=peak, high=peak),
        phases=answer.phases,
        parts={},
        reserved=Range(low=most, expected=most * (1 + SLACK_EXPECTED), high=most * (1 + SLACK_HIGH)),
        host_bytes=answer.host_bytes,
        nvme_bytes=0,
        modules=(),
        assumptions=(*_said(config, found, rank), *answer.notes),
        versions=answer.versions,
        seconds=answer.seconds,
        out_of_memory=answer.out_of_memory,
        extras={"gpu_used": answer.gpu, "step_seconds_without_communication": answer.step_seconds},
    )


def to_json(answer: Answer) -> dict[str, Any]:
    """The answer under the estimate's keys, the arithmetic's own object under ``predicted`` (or null)."""
    predicted = None if answer.predicted is None else dict(estimate_to_json(answer.predicted))
    head = {
        "config": answer.config.name,
        "model": answer.model_name,
        "fits": answer.fits,
        "fits_probability": answer.fits_probability,
        "method": "arithmetic" if answer.seen is None else answer.seen.method,
        "assumptions": list(answer.assumptions),
    }
    if answer.seen is None:
        return {**(predicted or {}), **head, "predicted": predicted}
    seen, cluster = answer.seen, answer.cluster
    return {
        **head,
        "parameters": {"total": seen.parameters, "trainable": seen.trainable},
        "gpu": {
            "name": cluster.gpu.name,
            "gpus_per_node": cluster.gpus_per_node,
            "nodes": cluster.nodes,
            "capacity_bytes": answer.capacity_bytes,
            "peak_allocated_bytes": _range(seen.peak),
            "needed_bytes": _range(answer.needed),
            "parts": [{"name": name, "bytes": size} for name, size in seen.parts.items() if size],
            "phases": [{"name": name, "peak_allocated_bytes": size} for name, size in seen.phases.items()],
        },
        "host": {
            "bytes_per_node": _range(answer.host_bytes_per_node),
            "capacity_bytes_per_node": cluster.host_memory_bytes,
        },
        "nvme": {"bytes_per_node": answer.nvme_bytes_per_node},
        "speed": _NO_SPEED if predicted is None else predicted["speed"],
        "cost": _cost(cluster) if predicted is None else predicted["cost"],
        "modules": [dataclasses.asdict(module) for module in seen.modules],
        "out_of_memory": seen.out_of_memory,
        **seen.extras,
        "versions": dict(seen.versions),
        "rehearsal_seconds": seen.seconds,
        "predicted": predicted,
    }


_NO_SPEED = {
    "step_seconds": None,
    **dict.fromkeys(
        (
            "compute_seconds",
            "communication_seconds",
            "offload_seconds",
            "tokens_per_second_per_gpu",
            "samples_per_second_per_gpu",
            "mfu",
        )
    ),
}


def _cost(cluster: Cluster) -> dict[str, Any]:
    """What is known of the cost where no step time is."""
    try:
        found = price(cluster.gpu)
    except NotFound:
        found = None
    return {
        "usd_per_hour": found and found.usd_per_gpu_hour * cluster.world_size,
        "usd_per_billion_tokens": None,
        "price_source": found and found.source,
        "price_date": found and found.date,
    }


def _range(value: Range) -> dict[str, int]:
    return {"low": round(value.low), "expected": round(value.expected), "high": round(value.high)}
