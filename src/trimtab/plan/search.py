"""The best configuration on one cluster: every family, and every micro batch that fits.

Nothing is greedy.  Memory grows with the micro batch, so a bisection finds the largest that fits; step times
are compared at every size below it.  Among configurations that are as fast within `TIE` the simplest wins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trimtab import moves
from trimtab.cluster import Cluster
from trimtab.config import Config
from trimtab.cost.speed import Speed
from trimtab.plan.candidates import Family, families, smaller_bucket, with_micro_batch
from trimtab.plan.counting import Arithmetic, Shortfall
from trimtab.plan.wishes import Wishes

TIE = 0.01
"""Step times within this share of the fastest count as equal: less than the arithmetic can tell apart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """A configuration that fits a cluster, with its time."""

    family: Family
    config: Config
    cluster: Cluster
    micro: int
    accumulation: int
    speed: Speed
    peak_bytes: int
    """Of tensors, over forward, backward and step."""

    @property
    def step_seconds(self) -> float:
        """Expected seconds of an optimizer step."""
        return self.speed.step_seconds

    @property
    def seconds_per_token(self) -> float:
        """Of the whole cluster."""
        return self.speed.step_seconds / (self.speed.tokens_per_step * self.cluster.world_size)


@dataclass(frozen=True, slots=True, kw_only=True)
class Loser:
    """A family that does not fit, and what it lacks at its smallest micro batch."""

    family: Family
    config: Config
    cluster: Cluster
    micro: int
    shortfall: Shortfall


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """Everything that was considered on one cluster."""

    cluster: Cluster
    every: tuple[Contender, ...]
    """All that fit, of every family at every micro batch."""
    losers: tuple[Loser, ...]
    """Of each family the smallest micro batch that does not fit."""
    divides: bool = True
    """Whether the global batch divides by the ranks; nothing is considered where it does not."""

    def contenders(self) -> tuple[Contender, ...]:
        """The best of each family, the one to choose first, then by step time."""
        by_family: dict[tuple[str, ...], list[Contender]] = {}
        for one in self.every:
            by_family.setdefault(one.family.name, []).append(one)
        best = [choose(found) for found in by_family.values()]
        if not best:
            return ()
        first = choose(best)
        rest = (one for one in best if one is not first)
        return (first, *sorted(rest, key=lambda one: (one.step_seconds, one.family.complexity)))

    @property
    def best(self) -> Contender | None:
        """The one to choose on this cluster."""
        found = self.contenders()
        return found[0] if found else None

    def without(self, refuted: Contender) -> Field:
        """What is left once ``refuted`` turned out not to fit: larger micro batches of its family go too."""
        kept = (
            one
            for one in self.every
            if one.family.name != refuted.family.name or one.micro < refuted.micro
        )
        return Field(cluster=self.cluster, every=tuple(kept), losers=self.losers)


def search(wishes: Wishes, cluster: Cluster, arithmetic: Arithmetic) -> Field:
    """Every family on ``cluster``."""
    if wishes.batch_for(cluster.world_size) % cluster.world_size:
        return Field(cluster=cluster, every=(), losers=(), divides=False)
    every: list[Contender] = []
    losers: list[Loser] = []
    for family in families(wishes, cluster):
        found, lost = _sizes(family, wishes, cluster, arithmetic)
        every += found
        losers += [lost] if lost is not None else []
    return Field(cluster=cluster, every=tuple(every), losers=tuple(losers))


def choose(contenders: Sequence[Contender]) -> Contender:
    """The simplest of those that are as fast as the fastest, then the one that leaves most memory."""
    fastest = min(one.step_seconds for one in contenders)
    close = [one for one in contenders if one.step_seconds <= fastest * (1 + TIE)]
    return min(close, key=lambda one: (one.family.complexity, one.peak_bytes, one.micro, one.family.name))


def _sizes(
    family: Family, wishes: Wishes, cluster: Cluster, arithmetic: Arithmetic
) -> tuple[list[Contender], Loser | None]:
    """The family at every micro batch that fits, and at the smallest that does not.

    Where the family itself no longer fits, smaller buckets are tried in its place.
    """
    options = moves.MOVES["micro-batch"].options(family.config, wishes.model, cluster)
    sizes = sorted(int(size) for size in options if isinstance(size, int))
    found, lost = _fitting(family, sizes, cluster, arithmetic)
    lean = smaller_bucket(family, wishes, cluster) if lost is not None else None
    if lean is not None and lost is not None:
        larger = [size for size in sizes if size >= lost.micro]
        more, lost_again = _fitting(lean, larger, cluster, arithmetic)
        found += more
        lost = lost_again
    return found, lost


def _fitting(
    family: Family, sizes: list[int], cluster: Cluster, arithmetic: Arithmetic
) -> tuple[list[Contender], Loser | None]:
    low, high = 0, len(sizes)
    lost: Loser | None = None
    while low < high:
        middle = (low + high) // 2
        config = with_micro_batch(family, sizes[middle], cluster)
        shortfall = arithmetic.shortfall(config, cluster)
        if shortfall is None:
            low = middle + 1
        else:
            high = middle
            lost = Loser(
                family=family, config=config, cluster=cluster, micro=sizes[middle], shortfall=shortfall
            )
    return [_contender(family, size, cluster, arithmetic) for size in sizes[:low]], lost


def _contender(family: Family, size: int, cluster: Cluster, arithmetic: Arithmetic) -> Contender:
    config = with_micro_batch(family, size, cluster)
    return Contender(
        family=family,
        config=config,
        cluster=cluster,
        micro=size,
        accumulation=config.batch(cluster.world_size).accumulation,
        speed=arithmetic.speed(config, cluster),
        peak_bytes=arithmetic.profile(config, cluster).peak,
    )
