"""What the search asks of the arithmetic: how long a step takes, and whether it fits.

The work of a micro step does not depend on where the optimizer lies or how buckets are cut, and memory not on
the card; profiles are counted once for all candidates that share them.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from typing import NamedTuple, TypeVar

from trimtab.cluster import Cluster
from trimtab.config import Config
from trimtab.cost.engine import Settings
from trimtab.cost.memory import Offloaded, Profile, offloaded, profile, settings_of
from trimtab.cost.need import REPLAY_RATIOS, Need, needed, outside_allocator, quickly_needed
from trimtab.cost.rates import Rates, rates_of
from trimtab.cost.speed import Speed, step_speed
from trimtab.cost.workload import Workload, workload
from trimtab.estimate import PROCESS_BYTES, Estimate, estimate
from trimtab.model import Model
from trimtab.parameters import parameters
from trimtab.plan.shortfall import AtLeast, Shortfall, lacking

T = TypeVar("T")
HOST_HIGH = 1.05
"""Over the expected host memory: its high bound in `trimtab.estimate`; a node that swaps ends the run."""
FRAGMENTED = 1.35
"""Above every ratio of a smallest capacity to the tensors' peak in nine measured jobs (1.015 to 1.28,
rehearse/answer.py): with this much room the caching allocator need not be replayed."""
USUALLY_FRAGMENTED = 1.11
"""The median of the same nine."""


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """The counted profiles of one model, kept for as long as a search lasts."""

    model: Model
    sure: float
    _profiles: dict[Hashable, Profile] = field(default_factory=dict, repr=False, compare=False)
    _works: dict[Hashable, Workload] = field(default_factory=dict, repr=False, compare=False)
    _offloaded: dict[Hashable, Offloaded] = field(default_factory=dict, repr=False, compare=False)
    _operations: dict[Hashable, float] = field(default_factory=dict, repr=False, compare=False)
    _sizes: dict[Hashable, tuple[int, int]] = field(default_factory=dict, repr=False, compare=False)
    _quick: dict[Hashable, tuple[Profile, Need]] = field(default_factory=dict, repr=False, compare=False)
    _needs: dict[Hashable, tuple[Profile, Need]] = field(default_factory=dict, repr=False, compare=False)
    _estimates: dict[Hashable, Estimate] = field(default_factory=dict, repr=False, compare=False)
    _rates: dict[Cluster, Rates] = field(default_factory=dict, repr=False, compare=False)
    _keys: dict[tuple[int, int], Keys] = field(default_factory=dict, repr=False, compare=False)
    """By a configuration's identity: to compare two would take longer than most of what is asked."""

    def profile(self, config: Config, cluster: Cluster) -> Profile:
        """What one rank of ``config`` allocates, without the allocator's blocks."""
        world = cluster.world_size
        key = self._keys_of(config, world).profile
        kept = self._profiles.get(key)
        if kept is None:
            kept = self._profiles[key] = profile(config, self.model, world)
        return kept

    def speed(self, config: Config, cluster: Cluster) -> Speed:
        """The time of one optimizer step."""
        if cluster not in self._rates:
            self._rates[cluster] = rates_of(cluster)
        work = self._workload(config, cluster.world_size)
        return step_speed(config, work, cluster, self._rates[cluster])

    def kept_bytes(self, config: Config, cluster: Cluster) -> int:
        """What the model keeps from its forward for its backward pass."""
        return self._workload(config, cluster.world_size).kept_bytes

    def _workload(self, config: Config, world: int) -> Workload:
        shared = config.tensor_parallel, config.sequence_parallel
        key = (config.stage == 3, config.precision, config.batch(world).micro, config.job, shared)
        if key not in self._works:
            self._works[key] = workload(config, self.model, world)
        return self._works[key]

    def operations_per_token(self, config: Config) -> float:
        """Floating-point operations of forward and backward for one token, recomputation left out."""
        key = (config.precision, config.job)
        if key not in self._operations:
            alone = config.with_values(
                {
                    "train_batch_size": None,
                    "train_micro_batch_size_per_gpu": 1,
                    "gradient_accumulation_steps": 1,
                }
            )
            work = workload(alone, self.model, 1).work
            total = sum(one.flops * runs for one, runs in work.items() if one.phase != "recompute")
            self._operations[key] = total / config.job.sequence_length
        return self._operations[key]

    def shortfall(self, config: Config, cluster: Cluster) -> Shortfall | None:
        """What ``config`` certainly lacks on ``cluster``, counted by tensors alone."""
        short = self.early_shortfall(config, cluster)
        return short or self.certain_shortfall(config, self.profile(config, cluster).peak, cluster)

    def early_shortfall(self, config: Config, cluster: Cluster) -> Shortfall | None:
        """The same where the host tells, or weights, states and what is kept for the backward pass alone."""
        short = self.offload_shortfall(config, cluster)
        if short is not None:
            return short
        settings = self._keys_of(config, cluster.world_size).settings
        if settings.moments != 2 or {settings.master_type, settings.state_type} != {"fp32"}:
            return None  # `states_bytes` are Adam's
        outside, there = outside_allocator(cluster.world_size, config.stage), cluster.gpu.usable_bytes
        least = self.states_bytes(config, cluster.world_size) + self.kept_bytes(config, cluster)
        if least + outside <= there:
            return None
        return self._lacking(config, AtLeast(least, lambda: self.profile(config, cluster).peak), cluster)

    def offload_shortfall(self, config: Config, cluster: Cluster) -> Shortfall | None:
        """What the host or its disks lack for what ``config`` offloads."""
        world = cluster.world_size
        key = self._keys_of(config, world).engine
        if key not in self._offloaded:
            self._offloaded[key] = offloaded(config, self.model, world)
        found = self._offloaded[key]
        host = int(cluster.gpus_per_node * (found.host_bytes + PROCESS_BYTES) * HOST_HIGH)
        if host > cluster.host_memory_bytes:
            return lacking("host memory a node", host, cluster.host_memory_bytes)
        nvme = found.nvme_bytes * cluster.gpus_per_node
        if nvme and nvme > cluster.nvme_bytes:
            return lacking("NVMe a node", nvme, cluster.nvme_bytes)
        return None

    def room(self, config: Config, cluster: Cluster) -> int:
        """Bytes that PyTorch's allocator may need at most, for the probability of fitting that is asked."""
        outside = outside_allocator(cluster.world_size, config.stage)
        return int((cluster.gpu.usable_bytes - outside) / (1 + margin(self.sure)))

    def certain_shortfall(self, config: Config, peak: float, cluster: Cluster) -> Shortfall | None:
        """What is lacking where tensors take at least ``peak`` bytes."""
        if peak <= self.room(config, cluster):
            return None
        fits = peak + outside_allocator(cluster.world_size, config.stage) <= cluster.gpu.usable_bytes
        return replace(self._short(config, peak, cluster), close=fits)

    def usual_shortfall(self, config: Config, cluster: Cluster) -> Shortfall | None:
        """What ``config`` lacks with what the allocator usually loses, nothing replayed."""
        short = self.shortfall(config, cluster)
        peak = self.profile(config, cluster).peak
        if short is not None or peak * USUALLY_FRAGMENTED <= self.room(config, cluster):
            return short
        usual = self._short(config, peak * USUALLY_FRAGMENTED, cluster)
        return replace(self._short(config, peak, cluster), close=True, lacking=lambda _: usual.lack)

    def quick_shortfall(self, config: Config, cluster: Cluster) -> Shortfall | None:
        """What ``config`` lacks, the caching allocator replayed quickly."""
        short = self.shortfall(config, cluster)
        if short is not None or self.profile(config, cluster).peak * FRAGMENTED <= self.room(config, cluster):
            return short
        need = self._quickly(config, cluster)[1]
        quick = self._short(config, need.expected, cluster)
        return replace(quick, close=True) if quick.lack > 0 else None

    def quickly_fits(self, config: Config, cluster: Cluster) -> bool:
        """Whether ``config`` fits by a quick replay of the allocator alone."""
        if self.shortfall(config, cluster) is not None:
            return False
        outside = outside_allocator(cluster.world_size, config.stage)
        return self._quickly(config, cluster)[1].fits(cluster.gpu.usable_bytes - outside, self.sure)

    def fits(self, config: Config, cluster: Cluster) -> bool:
        """Whether ``config`` fits, the caching allocator replayed where it is close, as far as that takes."""
        if self.shortfall(config, cluster) is not None:
            return False
        if self.profile(config, cluster).peak * FRAGMENTED <= self.room(config, cluster):
            return True
        outside = outside_allocator(cluster.world_size, config.stage)
        return self._need(config, cluster)[1].fits(cluster.gpu.usable_bytes - outside, self.sure)

    def verdict(self, config: Config, cluster: Cluster) -> Shortfall | None:
        """What ``config`` lacks on ``cluster``, the same way."""
        if self.fits(config, cluster):
            return None
        short = self.shortfall(config, cluster)
        if short is not None:
            return short
        there, outside = cluster.gpu.usable_bytes, outside_allocator(cluster.world_size, config.stage)
        return Shortfall(
            where="GPU memory",
            there=there,
            close=True,
            need=self._need(config, cluster)[1],
            needing=lambda expected: max(int(expected + outside), there + 1),
            lacking=lambda expected: self._short(config, expected, cluster).lack,
        )

    def by_spare(self, config: Config, cluster: Cluster, decide: Callable[[int], T]) -> T:
        """What ``decide`` makes of the bytes that a GPU has and ``config`` does not need.

        With the probability asked for; it must rise or fall with them, and no more is replayed than it takes.
        """
        need = self._need(config, cluster)[1]
        return need.decided(lambda expected: decide(-self._short(config, expected, cluster).lack))

    def estimate(self, config: Config, cluster: Cluster) -> Estimate:
        """The whole estimate, made once."""
        key = (self._keys_of(config, cluster.world_size).profile, cluster)
        if key not in self._estimates:
            memory = self._need(config, cluster)
            self._estimates[key] = estimate(config, cluster, model=self.model, memory=memory)
        return self._estimates[key]

    def _need(self, config: Config, cluster: Cluster) -> tuple[Profile, Need]:
        key = (self._keys_of(config, cluster.world_size).profile, cluster)
        if key not in self._needs:
            self._needs[key] = needed(config, self.model, cluster, quick=self._quickly(config, cluster))
        return self._needs[key]

    def _quickly(self, config: Config, cluster: Cluster) -> tuple[Profile, Need]:
        key = (self._keys_of(config, cluster.world_size).profile, cluster)
        if key not in self._quick:
            self._quick[key] = quickly_needed(config, self.model, cluster)
        return self._quick[key]

    def states_bytes(self, config: Config, world: int) -> float:
        """What a GPU holds of weights, master weights and Adam's moments: less than it needs."""
        key = (config.job.task, config.job.lora)
        if key not in self._sizes:
            listing = parameters(self.model, config.job.task, config.job.lora)
            trained = sum(one.numel for one in listing if one.trainable)
            self._sizes[key] = sum(one.numel for one in listing), trained
        whole, trained = self._sizes[key]
        split = config.tensor_parallel
        weights = whole * config.parameter_bytes / (world if config.stage == 3 else split)
        states = trained * (8 if config.precision == "fp32" else 12)
        return (weights if config.offload_param == "none" else 0) + (
            states / (world if config.stage else split) if config.offload_optimizer == "none" else 0
        )

    def _short(self, config: Config, peak: float, cluster: Cluster) -> Shortfall:
        return self._lacking(config, Need(peak, ()), cluster)

    def _lacking(self, config: Config, need: Need, cluster: Cluster) -> Shortfall:
        there, outside = cluster.gpu.usable_bytes, outside_allocator(cluster.world_size, config.stage)
        share = 1 + margin(self.sure)
        return Shortfall(
            where="GPU memory",
            there=there,
            need=need,
            needing=lambda peak: int(peak * share) + outside,
            lacking=lambda peak: int(peak * share) + outside - there,
        )

    def _keys_of(self, config: Config, world: int) -> Keys:
        found = self._keys.get((id(config), world))
        if found is None:
            found = self._keys[id(config), world] = keys_of(config, world)
        return found


class Keys(NamedTuple):
    """What of a configuration the counts depend on."""

    config: Config
    """Kept, so that none that is made later can be taken for it."""
    settings: Settings
    profile: Hashable
    engine: Hashable


def keys_of(config: Config, world: int) -> Keys:
    """Those for ``world`` ranks."""
    job, settings = config.job, settings_of(config, world)
    shared = config.tensor_parallel, config.sequence_parallel
    return Keys(
        config=config,
        settings=settings,
        profile=(settings, config.batch(world).micro, job, shared),
        engine=(settings, job.task, job.lora, config.tensor_parallel),
    )


def margin(sure: float) -> float:
    """The share by which a capacity must pass what a replay finds enough, for a probability of ``sure``.

    >>> round(margin(0.975), 3)
    0.029
    """
    return Need(1.0, REPLAY_RATIOS).at(sure) - 1
