"""A configuration on a cluster, as the search weighs it."""

from __future__ import annotations

from dataclasses import dataclass

from trimtab.cluster import Cluster
from trimtab.config import Config
from trimtab.cost.speed import Speed
from trimtab.plan.candidates import Family
from trimtab.plan.shortfall import Shortfall

TIE = 0.06
"""Step times within this share of the fastest count as equal: the arithmetic cannot tell them apart.

Of 80 measured points near the best of their job nine in ten are told apart from the others to 6 %, the worst
to 16 % (docs/plan-quality.md)."""

Line = tuple[tuple[str, ...], bool]
"""A family, and whether micro steps are accumulated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """A configuration on a cluster, with its time."""

    family: Family
    config: Config
    cluster: Cluster
    micro: int
    accumulation: int
    speed: Speed
    peak_bytes: int = 0
    """Of tensors over a step; counted for those that fit."""

    @property
    def step_seconds(self) -> float:
        """Expected seconds of an optimizer step."""
        return self.speed.step_seconds

    @property
    def careful_seconds(self) -> float:
        """What it is ranked by."""
        return self.speed.careful_seconds

    @property
    def seconds_per_token(self) -> float:
        """Of the whole cluster."""
        replicas = self.cluster.world_size // self.config.data_parallel_divisor
        return self.speed.step_seconds / (self.speed.tokens_per_step * replicas)

    @property
    def line(self) -> Line:
        """The family along which memory grows with the micro batch: without accumulation another begins."""
        return self.family.name, self.accumulation > 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Loser:
    """A contender that does not fit, and what it lacks."""

    contender: Contender
    shortfall: Shortfall
