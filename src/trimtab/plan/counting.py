"""What the search asks of the arithmetic: whether a configuration fits, and how long its step takes.

Memory depends on the world's size and not on the card, so that a profile is counted once for all cards.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass, field

from trimtab.cluster import Cluster
from trimtab.config import Config
from trimtab.cost.allocator import WORKSPACE_BYTES
from trimtab.cost.memory import Profile, profile, settings_of
from trimtab.cost.speed import Speed, step_speed
from trimtab.estimate import PEAK_SIGMA, PROCESS_BYTES, REPLAY_SIGMA, outside_allocator
from trimtab.model import Model

FRAGMENTED = 1.35
"""Smallest capacities of nine measured jobs stood at most 28 % above their tensors' peak (rehearse/answer.py);
below this the caching allocator need not be replayed, and what is chosen is replayed anyway."""


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """The counted profiles of one model, kept for as long as a search lasts."""

    model: Model
    sure: float
    _profiles: dict[Hashable, Profile] = field(default_factory=dict, repr=False, compare=False)

    def profile(self, config: Config, cluster: Cluster, *, replayed: bool = False) -> Profile:
        """What one rank of ``config`` allocates; ``replayed`` if the caching allocator is wanted too."""
        world = cluster.world_size
        key = (settings_of(config, world), config.batch(world).micro, config.job, _hopper(cluster))
        kept = self._profiles.get(key)
        if kept is None or (replayed and not kept.record):
            kept = profile(
                config,
                self.model,
                world,
                allocator=replayed,
                workspace_bytes=WORKSPACE_BYTES[_hopper(cluster)],
            )
            self._profiles[key] = kept
        return kept

    def shortfall(self, config: Config, cluster: Cluster) -> Shortfall | None:
        """What ``config`` lacks on ``cluster``; None where it fits with the probability asked for."""
        counted = self.profile(config, cluster)
        host = cluster.gpus_per_node * (counted.host_bytes + PROCESS_BYTES)
        if host > cluster.host_memory_bytes:
            return Shortfall(where="host memory a node", needed=host, there=cluster.host_memory_bytes)
        nvme = counted.nvme_bytes * cluster.gpus_per_node
        if nvme and nvme > cluster.nvme_bytes:
            return Shortfall(where="NVMe a node", needed=nvme, there=cluster.nvme_bytes)
        outside = outside_allocator(cluster.world_size)
        room = int((cluster.gpu.usable_bytes - outside) / (1 + margin(self.sure)))
        if counted.peak * FRAGMENTED <= room:
            return None
        if counted.peak <= room and self.profile(config, cluster, replayed=True).fits(room):
            return None
        return Shortfall(
            where="GPU memory",
            needed=int(counted.peak * (1 + margin(self.sure))) + outside,
            there=cluster.gpu.usable_bytes,
        )

    def speed(self, config: Config, cluster: Cluster) -> Speed:
        """The time of one optimizer step."""
        return step_speed(config, self.profile(config, cluster), cluster)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shortfall:
    """Bytes that a configuration needs of something, at least, and what is there."""

    where: str
    needed: int
    there: int


def margin(sure: float) -> float:
    """The share by which a capacity must pass the counted need, for a probability of ``sure``.

    The need is taken as a normal about the replay's answer, as `trimtab.estimate` does.

    >>> round(margin(0.5), 6), round(margin(0.9) / math.hypot(PEAK_SIGMA, REPLAY_SIGMA), 3)
    (0.0, 1.282)
    """
    low, high = -8.0, 8.0
    for _ in range(60):
        middle = (low + high) / 2
        if 0.5 * math.erfc(-middle / math.sqrt(2)) < sure:
            low = middle
        else:
            high = middle
    return low * math.hypot(PEAK_SIGMA, REPLAY_SIGMA)


def _hopper(cluster: Cluster) -> bool:
    gpu = cluster.gpu
    return gpu.vendor == "nvidia" and float(gpu.compute_capability) >= 9
