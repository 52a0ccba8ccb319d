"""The best configuration on one cluster: every family at every micro batch, by time first and memory second.

Times cost next to nothing to predict, so all candidates are put in order of time, and the first that fits is
the fastest that fits: nothing is greedy.  Memory is counted only for those that may still win.  Where keeping
all activations does not fit, the same with as many layers recomputed as that lacks takes its place in the
order, at its own time.  Among configurations that are as fast within `TIE` the simplest wins.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import count

from trimtab import moves
from trimtab.cluster import Cluster
from trimtab.config import Config
from trimtab.plan.candidates import (
    Family,
    families,
    on_disk,
    smaller_bucket,
    split_layers,
    split_samples,
    with_micro_batch,
)
from trimtab.plan.contender import TIE, Contender, Line, Loser
from trimtab.plan.counting import Arithmetic
from trimtab.plan.layers import Layers
from trimtab.plan.shortfall import Shortfall
from trimtab.plan.wishes import Wishes

MEASURED_TIE = 0.02
"""The same once times are measured (docs/plan-quality.md)."""
WORTH = 0.01
"""The share of a step from which on another whole replay of the allocator is made to save layers."""


@dataclass(slots=True)
class Field:
    """Everything that may run on one cluster; what is asked of it is kept."""

    wishes: Wishes
    cluster: Cluster
    arithmetic: Arithmetic
    exact: bool = True
    """Whether the caching allocator is replayed; where not, what it usually loses is taken."""
    refuted: dict[Line, int] = field(default_factory=dict)
    """By line the smallest micro batch that a proof refused."""
    retimed: dict[tuple[tuple[str, ...], int], float] = field(default_factory=dict)
    """Step seconds that were measured, by family and micro batch."""
    faster: float = 1.0
    """The least share of its predicted time that one of them took: others may be as much faster."""
    settled: bool = False
    """Whether nothing more is measured: then only what was can be the best."""
    _every: list[Contender] | None = None
    _widened: bool = False
    """Whether families whose GPUs share layers or samples have joined."""
    _impossible: list[Family] = field(default_factory=list)
    """Families whose weights and optimizer states alone are too large."""
    _lean: dict[tuple[tuple[str, ...], int], Contender] = field(default_factory=dict)
    _short: dict[tuple[tuple[str, ...], int], Shortfall | None] = field(default_factory=dict)
    _shorts: dict[Line, list[tuple[int, Shortfall]]] = field(default_factory=dict)
    _partial: dict[tuple[tuple[str, ...], int], Contender] = field(default_factory=dict)
    """Those with some layers recomputed that were looked at."""
    _wholly: dict[tuple[tuple[str, ...], int], Contender] = field(default_factory=dict)
    """By sharding and micro batch, those with all layers recomputed."""
    _ends: dict[Line, tuple[Contender, Contender | None]] = field(default_factory=dict)
    _layers: Layers = field(init=False)

    def __post_init__(self) -> None:
        self._layers = Layers(self.wishes, self.cluster, self.arithmetic, self.exact, self._recomputed)

    @property
    def divides(self) -> bool:
        """Whether the global batch divides by the ranks; nothing can run where it does not."""
        return self.wishes.batch_for(self.cluster.world_size) % self.cluster.world_size == 0

    @property
    def weighed(self) -> bool:
        """Whether its configurations were looked at; a cluster that cannot win is not."""
        return self._every is not None

    def refute(self, one: Contender) -> None:
        """``one`` turned out not to fit: its smaller buckets come next, then smaller micro batches."""
        key = (one.family.name, one.micro)
        lean = smaller_bucket(one.family, self.wishes, self.cluster) if key not in self._lean else None
        if lean is None:
            self.refuted[one.line] = one.micro
        else:
            config = with_micro_batch(lean, one.micro, self.cluster)
            self._lean[key] = replace(one, family=lean, config=config)

    def every(self) -> list[Contender]:
        """Every family at every micro batch, whether it fits or not, the fastest first."""
        if self._every is None:
            possible: list[Family] = []
            for family in families(self.wishes, self.cluster) if self.divides else ():
                (self._impossible if self._cannot(family) else possible).append(family)
            found = list(self._timed(possible))
            offloading = [one for one in found if one.family.config.offload_optimizer == "cpu"]
            if self.divides and all(self._host_is_short(one) for one in offloading):
                found += self._timed(on_disk(self.wishes, self.cluster))
            self._every = _ordered(found)
        return self._every

    def best(self) -> Contender | None:
        """The one to choose: the simplest of those that fit and are as fast as the fastest that fits.

        GPUs share layers (AutoTP) only where no more than one sample fits or is there for a GPU, and samples
        (Ulysses) only where not even one fits: what they exchange in every layer would else be for nothing.
        """
        measured = self._best_measured() if self.settled else None
        if measured is not None:
            return measured
        found = self._best()
        if (found is None or found.micro == 1) and self.divides and not self._widened:
            self._widened = True
            more = split_layers(self.wishes, self.cluster)
            if found is None:
                more += split_samples(self.wishes, self.cluster)
            possible = [one for one in more if not self._cannot(one)]
            self._every = _ordered((*(self._every or ()), *self._timed(possible)))
            return self._best()
        return found

    def _best(self) -> Contender | None:
        first = next((fit for one in self._ascending() if (fit := self.fitting(one)) is not None), None)
        if first is None:
            return None
        first = self._recomputing_fewer(first)
        slowest = first.careful_seconds * (1 + (MEASURED_TIE if self.retimed else TIE))
        close = sorted((one for one in self.every() if one.careful_seconds <= slowest), key=self.preference)
        if first.family.is_partial:  # that a layer's second forward pass takes time is certain
            close = [one for one in close if not one.family.recomputes]
        chosen = first
        for one in close:
            if self.preference(one) >= self.preference(chosen):
                break
            fit = self.fitting(one)  # with smaller buckets it is less simple
            if fit is not None and self.preference(fit) < self.preference(chosen):
                chosen = fit
        if not chosen.family.is_partial:
            return chosen
        return self._recomputing_fewer(self._simpler_partial(chosen, slowest))

    def _best_measured(self) -> Contender | None:
        every = (*self.every(), *self._partial.values())
        timed = [one for one in every if (one.family.name, one.micro) in self.retimed]
        timed = [fit for one in timed if (fit := self.fitting(one)) is not None]
        slowest = min((one.careful_seconds for one in timed), default=0.0) * (1 + MEASURED_TIE)
        close = (one for one in timed if one.careful_seconds <= slowest)
        return min(close, key=self.preference, default=None)

    def _ascending(self) -> Iterator[Contender]:
        """All of them by time; one that does not fit is followed by itself with more layers recomputed.

        What is known of that one grows step by step, each at the least time that it leaves: how many layers
        it recomputes at the least, how many it does, and its own time.
        """
        number = count()
        waiting = [(one.careful_seconds, next(number), one, 0, False) for one in self.every()]
        while waiting:  # in order from the start: a heap
            _, _, one, layers, known = heapq.heappop(waiting)
            if known:
                one = self._partially(one, layers)
                heapq.heappush(waiting, (one.careful_seconds, next(number), one, 0, False))
                continue
            if layers:
                layers, known = self._layers.needed(one, self._lacks(one)), True
            else:
                yield one
                layers = 0 if self.fitting(one) is not None else self._layers.least(one, self._lacks(one))
            if layers:
                seconds = self._layers.least_seconds(one, layers)
                heapq.heappush(waiting, (seconds, next(number), one, layers, known))

    def _simpler_partial(self, first: Contender, slowest: float) -> Contender:
        """The simplest that some recomputed layers make fit, and as fast.

        At the micro batch of ``first``; at a smaller one too, where that offloads what others need not.
        """
        cluster = self.cluster
        kept = [
            one
            for one in self.every()
            if not one.family.recomputes
            and one.micro <= first.micro
            and (one.micro == first.micro or one.family.offloads < first.family.offloads)
        ]
        for start in sorted(kept, key=self.preference):
            if start.family.recomputing(1, cluster).complexity >= first.family.complexity:
                break
            one: Contender | None = start
            while one is not None and one.careful_seconds <= slowest:
                fit = self.fitting(one)
                if fit is not None:
                    return fit
                layers = self._layers.needed(one, self._lacks(one))
                soon = layers and self._layers.least_seconds(one, layers) <= slowest
                one = self._partially(one, layers) if soon else None
        return first

    def _lacks(self, one: Contender) -> Shortfall | None:
        """What is known of what ``one`` lacks."""
        return self._short.get((one.family.name, one.micro))

    def _recomputed(self, one: Contender) -> Contender:
        """``one`` with all layers recomputed."""
        key = (one.family.sharding, one.micro)
        if key not in self._wholly:
            family = one.family.recomputing(True, self.cluster)
            known = (each for each in self._every or () if each.micro == one.micro)
            found = next((each for each in known if each.family.name == family.name), None)
            self._wholly[key] = found or self._contender(family, one.micro)
        return self._wholly[key]

    def _recomputing_fewer(self, one: Contender) -> Contender:
        """``one``, which fits, with fewer layers recomputed, by what a whole replay leaves: for `WORTH`."""
        if not (self.exact and one.family.is_partial):
            return one
        every = self.wishes.model.all_layers
        done = one.config.job.recomputed_of(every, self.wishes.model.name)
        saved = self._layers.saved_by_one(one)
        each = (self._recomputed(one).careful_seconds - one.careful_seconds) / (every - done)

        def worthwhile(spare: int) -> int:
            layers = max(1, done - int(spare / saved))
            return layers if (done - layers) * each >= WORTH * one.careful_seconds else done

        layers = self.arithmetic.by_spare(one.config, self.cluster, worthwhile)
        if layers == done:
            return one
        fewer = self._partially(one, layers)
        key = (fewer.family.name, fewer.micro)
        if key not in self._short:
            self._short[key] = self._weigh(fewer.config)
        return self.fitting(fewer) or one

    def _partially(self, one: Contender, layers: int) -> Contender:
        """``one`` with so many layers recomputed."""
        found = self._with_time(self._contender(one.family.recomputing(layers, self.cluster), one.micro))
        self._partial[found.family.name, found.micro] = found
        return found

    def preference(self, one: Contender) -> tuple[object, ...]:
        """The simplest, then the largest micro batch, then the fastest.

        What the arithmetic does not see (launches, hooks, Python) comes once a micro step: GPT-2 on one H200
        took 8 % less time with micro batches of 64 than of 16 (bench/grid.py).  Over several GPUs stage 1 is
        as simple as stage 0: it asks for no more of whoever trains.
        """
        *apart, stage, more = one.family.complexity
        stage = max(stage, 1) if self.cluster.world_size > 1 else stage
        return *apart, stage, more, -one.micro, one.careful_seconds, one.family.name

    def fitting(self, one: Contender) -> Contender | None:
        """``one`` if it fits, or with smaller buckets if only that fits; None if it does not."""
        if one.micro >= self.refuted.get(one.line, one.micro + 1):
            return None
        key = (one.family.name, one.micro)
        if key not in self._short:
            short = self._short[key] = self._verdict(one)
            if short is not None:
                self._shorts.setdefault(one.line, []).append((one.micro, short))
        return None if self._short[key] is not None else self._counted(self._lean.get(key, one))

    def _counted(self, one: Contender) -> Contender:
        return replace(one, peak_bytes=self.arithmetic.profile(one.config, self.cluster).peak)

    def shortfall(self, one: Contender) -> Shortfall | None:
        """What ``one`` lacks, smaller buckets tried."""
        self.fitting(one)
        return self._short.get((one.family.name, one.micro))

    def impossible(self) -> Iterator[Loser]:
        """One of each family whose weights and optimizer states alone are too large, with what it lacks."""
        for family in self._impossible:
            one = self._contender(family, 1)
            short = self.arithmetic.shortfall(one.config, self.cluster)
            if short is not None:
                yield Loser(contender=one, shortfall=short)

    def partial(self) -> Iterable[Contender]:
        """Of those with some layers recomputed that were found to fit, the fastest of each sharding."""
        found: dict[tuple[str, ...], Contender] = {}
        for key, one in sorted(self._partial.items(), key=lambda item: item[1].careful_seconds):
            fit = self.fitting(one) if key in self._short else None
            if fit is not None:
                found.setdefault(one.family.sharding, fit)
        return found.values()

    def may_fit(self, one: Contender) -> bool:
        """Whether a quick replay finds room for ``one``: a guess, which says what to ask about first."""
        if not self.exact:
            return False
        short = self.arithmetic.shortfall(one.config, self.cluster)
        if short is None and self.arithmetic.quickly_fits(one.config, self.cluster):
            return True
        lean = smaller_bucket(one.family, self.wishes, self.cluster)
        if lean is None or not self._buckets_could_help(one, short):
            return False
        return self.arithmetic.quickly_fits(with_micro_batch(lean, one.micro, self.cluster), self.cluster)

    def likely(self, one: Contender) -> Contender | None:
        """As `fitting`, but the allocator's loss is taken as usual where nobody replayed it."""
        key = (one.family.name, one.micro)
        if key in self._short or one.micro >= self.refuted.get(one.line, one.micro + 1):
            return self.fitting(one)
        short = self._known_short(one) or self.arithmetic.usual_shortfall(one.config, self.cluster)
        return None if short is not None else self._counted(one)

    def beyond(self, one: Contender) -> Loser | None:
        """The next larger micro batch of the same family, if that does not fit."""
        larger = [each for each in self.every() if each.line == one.line]
        larger = sorted((each for each in larger if each.micro > one.micro), key=lambda each: each.micro)
        for each in larger:
            short = self._hopeless(each)
            if short is None and self.arithmetic.usual_shortfall(each.config, self.cluster) is not None:
                short = self.shortfall(each)
            if short is not None:
                return Loser(contender=each, shortfall=short)
        return None

    def rival(self, best: Contender) -> Contender | None:
        """The fastest that fits, of a family not measured yet, and may beat ``best``; None without one."""
        measured = {best.family.name, *(name for name, _ in self.retimed)}
        for one in sorted(self.every(), key=lambda each: each.careful_seconds):
            if one.careful_seconds * self.faster > best.careful_seconds * (1 + TIE):
                break
            if one.family.name not in measured and (fit := self.fitting(one)) is not None:
                return fit
        return None

    def retime(self, one: Contender, step_seconds: float) -> None:
        """Take a measured time in the place of the predicted one."""
        self.retimed[one.family.name, one.micro] = step_seconds
        self.faster = min(self.faster, step_seconds / one.careful_seconds)
        self._every = _ordered(self._with_time(each) for each in self._every or [])
        self._lean = {key: self._with_time(each) for key, each in self._lean.items()}
        self._partial = {key: self._with_time(each) for key, each in self._partial.items()}
        self._wholly = {}

    def _with_time(self, one: Contender) -> Contender:
        seconds = self.retimed.get((one.family.name, one.micro))
        if seconds is None:
            return one
        return replace(one, speed=replace(one.speed, step_seconds=seconds, slow_host_seconds=seconds))

    def _timed(self, these: Iterable[Family]) -> Iterator[Contender]:
        for family in these:
            options = moves.MOVES["micro-batch"].options(family.config, self.wishes.model, self.cluster)
            shared = family.config.data_parallel_divisor
            for size in options:
                assert isinstance(size, int)
                if size > shared > 1:  # as many samples a group as it has GPUs, which had one each
                    continue
                yield self._contender(family, size)

    def _contender(self, family: Family, size: int) -> Contender:
        config = with_micro_batch(family, size, self.cluster)
        return Contender(
            family=family,
            config=config,
            cluster=self.cluster,
            micro=size,
            accumulation=config.batch(self.cluster.world_size).accumulation,
            speed=self.arithmetic.speed(config, self.cluster),
        )

    def _cannot(self, family: Family) -> bool:
        states = self.arithmetic.states_bytes(family.config, self.cluster.world_size)
        return states > self.arithmetic.room(family.config, self.cluster)

    def _host_is_short(self, one: Contender) -> bool:
        short = self.arithmetic.offload_shortfall(one.config, self.cluster)
        return short is not None and short.where.startswith("host")

    def _verdict(self, one: Contender) -> Shortfall | None:
        """Memory grows with the micro batch: a smaller one that does not fit answers for this one."""
        short = self._known_short(one)
        if short is not None:
            return short
        if one.family.is_partial:
            return self._weigh_partial(one.config)
        short = self.arithmetic.early_shortfall(one.config, self.cluster)
        short = short or self._hopeless(one) or self.arithmetic.shortfall(one.config, self.cluster)
        if short is None and self._fits(one.config):
            return None
        lean = smaller_bucket(one.family, self.wishes, self.cluster)
        if lean is None or not self._buckets_could_help(one, short):
            return short or self._weigh(one.config)
        other = replace(one, family=lean, config=with_micro_batch(lean, one.micro, self.cluster))
        still = self._weigh(other.config)
        if still is None:
            self._lean[one.family.name, one.micro] = other
        return still

    def _fits(self, config: Config) -> bool:
        """Whether `_weigh` finds nothing lacking: known sooner than what is."""
        return self.arithmetic.fits(config, self.cluster) if self.exact else self._weigh(config) is None

    def _weigh(self, config: Config) -> Shortfall | None:
        if self.exact:
            return self.arithmetic.verdict(config, self.cluster)
        return self.arithmetic.usual_shortfall(config, self.cluster)

    def _weigh_partial(self, config: Config) -> Shortfall | None:
        """As `_weigh`, a quick replay first: it says best how many layers are still to be added."""
        quick = self.arithmetic.quick_shortfall(config, self.cluster) if self.exact else None
        return quick or self._weigh(config)

    def _known_short(self, one: Contender) -> Shortfall | None:
        return next((short for micro, short in self._shorts.get(one.line, ()) if micro < one.micro), None)

    def _hopeless(self, one: Contender) -> Shortfall | None:
        """What ``one`` lacks as its family's two smallest micro batches tell.

        The peak over a step is the highest of many sums that each grow in a line with the micro batch, so it
        bends upwards, and the line through two points lies below it.
        """
        first, second = self.smallest(one.line)
        at_first = self.arithmetic.shortfall(first.config, self.cluster)
        if at_first is not None or second is None or one.micro <= second.micro:
            return at_first
        at_second = self.arithmetic.shortfall(second.config, self.cluster)
        if at_second is not None:
            return at_second
        low, high = (self.arithmetic.profile(each.config, self.cluster).peak for each in (first, second))
        slope = (high - low) / (second.micro - first.micro)
        peak = low + slope * (one.micro - first.micro)
        return self.arithmetic.certain_shortfall(one.config, peak, self.cluster)

    def smallest(self, line: Line) -> tuple[Contender, Contender | None]:
        """The two smallest micro batches of a family."""
        if line not in self._ends:
            members = sorted(
                (one for one in self._every or [] if one.line == line), key=lambda one: one.micro
            )
            self._ends[line] = members[0], members[1] if len(members) > 1 else None
        return self._ends[line]

    def _buckets_could_help(self, one: Contender, short: Shortfall | None) -> bool:
        """Whether the lack, if the tensors alone tell it, is no more than twice what the buckets take."""
        if short is None:
            return True
        if short.where != "GPU memory":
            return False
        config = one.config
        buckets = (
            2 * int(config.zero("reduce_bucket_size")) * max(config.gradient_bytes, config.parameter_bytes)
        )
        return short.needing(short.need.within[0]) - short.there <= buckets >= short.needed - short.there


def _ordered(these: Iterable[Contender]) -> list[Contender]:
    return sorted(these, key=lambda one: (one.careful_seconds, one.family.complexity, one.micro))


def search(wishes: Wishes, cluster: Cluster, arithmetic: Arithmetic, *, exact: bool = True) -> Field:
    """The field on one cluster; see `Field.exact`."""
    return Field(wishes, cluster, arithmetic, exact)
