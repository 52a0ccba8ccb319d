"""A rehearsal asked and answered: what was seen, with what the arithmetic had predicted beside it."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from trimtab.cluster import Cluster, find_gpu
from trimtab.config import Config
from trimtab.corrections import RAN
from trimtab.cost.need import outside_allocator
from trimtab.cost.rates import rates_of
from trimtab.errors import EngineMoved, NotFound, Uncounted, UnknownArchitecture, Unsupported, UsageError
from trimtab.estimate import PROCESS_SPREAD_BYTES, Estimate, Range, estimate, warnings_of_any
from trimtab.model import HfConfig, find_hf
from trimtab.rehearse.on_gpu import GpuRequest, rehearse_on_gpu
from trimtab.rehearse.phantom import rehearse_phantom
from trimtab.rehearse.request import MICRO_STEPS_ENOUGH, PhantomRequest
from trimtab.rehearse.seen import Seen, seen_by_phantom, seen_on_gpu
from trimtab.rehearse.simulator import simulate, speed_of
from trimtab.rehearse.way_out import WayOut, way_out

# memory of the third and later micro steps of a step is that of the second
PHANTOM_SIGMA = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What was seen beside what was predicted; either may be missing, never both."""

    config: Config
    cluster: Cluster
    model: HfConfig
    seen: Seen | None
    """None where the engine could not be rehearsed and the arithmetic stands in."""
    predicted: Estimate | None
    """None for an architecture that the arithmetic does not know."""
    rank: int = 0
    why_not: str | None = None
    """Why nothing was seen."""
    way_out: WayOut | None = None
    """What would fit, where this does not."""

    @property
    def capacity_bytes(self) -> int:
        """What PyTorch may have of the card."""
        return self.cluster.gpu.usable_bytes

    @property
    def needed(self) -> Range:
        """The smallest card: what the allocator reserves, the CUDA context, NCCL."""
        if self.seen is None:
            return self._fallback.needed
        outside = outside_allocator(self.cluster.world_size, self.config.stage)
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
        if self.seen.on_gpu is not None:
            return RAN
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
        return (*said, self._about_time)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Why the run would not be what was counted."""
        if self.predicted is not None:
            return self.predicted.warnings
        return warnings_of_any(
            self.config, self.model.hf, self.cluster, self.host_bytes_per_node, self.nvme_bytes_per_node
        )

    @property
    def _about_time(self) -> str:
        if self.step_seconds is not None:
            if self.cluster.world_size == 1:
                return "step time is measured"
            alone = "the host's cores and links were one rank's alone, " * self._uses_host
            return f"step time is measured, {alone}its communication is the arithmetic's"
        if self.seen is not None and self.seen.speed is not None:
            return f"step time is simulated from the recorded step, {self.seen.speed.source}"
        if self.predicted is None:
            return "no arithmetic for this architecture: no step time"
        return "step time is the arithmetic's closed form"

    @property
    def _uses_host(self) -> bool:
        return self.config.offload_optimizer != "none" or self.config.offload_param != "none"

    @property
    def on_the_card(self) -> bool:
        """Whether it ran on the very card that was asked for, so that times count."""
        if self.seen is None or self.seen.on_gpu is None:
            return False
        try:
            return find_gpu(self.seen.on_gpu.gpu).name == self.cluster.gpu.name
        except NotFound:
            return False

    @property
    def alone_seconds(self) -> Range | None:
        """Of one optimizer step without communication, measured; None where it was not timed on this card."""
        if self.seen is None or self.seen.on_gpu is None or not self.on_the_card:
            return None
        measured, steps = self.seen.on_gpu.seconds, sorted(self.seen.on_gpu.step_seconds)
        if measured is None:
            return None
        middle = steps[len(steps) // 2]
        return Range(low=measured * steps[0] / middle, expected=measured, high=measured * steps[-1] / middle)

    @property
    def step_seconds(self) -> Range | None:
        """Of one optimizer step: measured, communication predicted; None where it was not timed."""
        alone = self.alone_seconds
        if alone is None or self.cluster.world_size == 1:
            return alone
        if self.predicted is None:
            return None
        speed = self.predicted.speed
        communication = speed.communication_seconds
        return Range(
            low=alone.low,
            expected=alone.expected + communication,
            high=alone.high + communication * speed.high_seconds / speed.step_seconds,
        )

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
    answer = Answer(
        config=config,
        cluster=cluster,
        model=found,
        seen=seen,
        predicted=predicted,
        rank=rank,
        why_not=why_not,
    )
    if answer.fits or predicted is None:
        return answer
    beyond = answer.needed.low - predicted.needed.expected
    out = way_out(config, cluster, predicted.model, beyond_bytes=beyond)
    return dataclasses.replace(answer, way_out=out)


def _predicted(config: Config, cluster: Cluster) -> Estimate | None:
    try:
        return estimate(config, cluster)
    except (UnknownArchitecture, Uncounted):
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
    if batch.accumulation > MICRO_STEPS_ENOUGH:
        request = dataclasses.replace(request, accumulation=MICRO_STEPS_ENOUGH)
        said += (
            f"{MICRO_STEPS_ENOUGH} of {batch.accumulation} micro steps run: the others take no more memory",
        )
    if not known:
        said += (f"{cluster.gpu.name} ({cluster.gpu.compute_capability}) behaves as an NVIDIA card",)
    # a third step shows what a step leaves to the next, and all later ones with it
    request = dataclasses.replace(request, steps=3, find_capacity=True, record="ordered")
    record = rehearse_phantom(request, timeout_seconds=timeout_seconds, use_cache=use_cache)
    if not record.operators or config.job.kernels == "fused":  # Triton's kernels leave no record
        return seen_by_phantom(record, said)
    rates = rates_of(cluster)
    simulated = simulate(
        record, rates, accumulation=batch.accumulation, stage=config.stage, nodes=cluster.nodes,
        split=config.data_parallel_divisor,
    )  # fmt: skip
    return dataclasses.replace(
        seen_by_phantom(record, said), simulated=simulated, speed=speed_of(simulated, record, config, rates)
    )


def _said(config: Config, found: HfConfig, rank: int) -> tuple[str, ...]:
    job = config.job
    return (
        f"the real engine as rank {rank}, {job.kernels} kernels, {job.attention} attention, "
        f"activations {job.activations}",
        "batches without padding masks",
    )


def _on_gpu(config: Config, cluster: Cluster, found: HfConfig, rank: int, timeout_seconds: float) -> Seen:
    batch = config.batch(cluster.world_size)
    accumulation = min(batch.accumulation, MICRO_STEPS_ENOUGH)
    request = GpuRequest(
        config=config.raw,
        name=config.name,
        hf=found.hf,
        world_size=cluster.world_size,
        ranks_per_node=cluster.gpus_per_node,
        rank=rank,
        accumulation=accumulation,
        memory_bytes=cluster.gpu.usable_bytes,
        allocator_bytes=cluster.gpu.usable_bytes - outside_allocator(cluster.world_size, config.stage),
    )
    return seen_on_gpu(
        rehearse_on_gpu(request, timeout_seconds=timeout_seconds),
        _said(config, found, rank),
        allocator_bytes=request.allocator_bytes,
        micro_steps=batch.accumulation / accumulation,
    )
