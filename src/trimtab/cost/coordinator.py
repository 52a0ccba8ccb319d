"""When stage 3 gathers which parameters and lets go of them, whatever bytes that takes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

from trimtab.cost.machine import Weight

USES = USE, AGAIN, USED, OWNER = 11, 12, 13, 14
"""A use of parameters; one to recompute; the end of either; that of the module which had it recomputed."""
Heard = tuple[tuple[int, tuple[int, ...]], ...]
"""Which of `USES` come through both passes, each with the parameters' places."""
Kept = frozenset[tuple[tuple[int, int], bool]]
"""Whether a parameter stays after a use, by use and place: as the first pass that knows the order decides,
for good (``__params_to_release`` is cached, :637)."""

TAKE, UNPACK, DROP, RELEASE = range(4)
Act = tuple[int, tuple[int, ...]]
"""Gather these parameters together; the first of what was gathered n-th is asked for, the last is; or let go
of this one."""


class Gathering(NamedTuple):
    """What of a configuration decides it, in elements; the keys that begin with ``stage3_``."""

    prefetch_bucket: int
    persistence_threshold: int
    model_persistence_threshold: int
    max_live: int
    max_reuse_distance: int

    def persistent(self, weights: Iterable[Weight]) -> frozenset[int]:
        """``mark_persistent_parameters`` (parameter_offload.py:317)."""
        chosen = set()
        total = 0
        for weight in weights:
            if weight.numel + total > self.model_persistence_threshold:
                continue
            if weight.numel <= self.persistence_threshold:
                chosen.add(weight.index)
                total += weight.numel
        return frozenset(chosen)


class Order:
    """The order in which a forward and a backward pass use the parameters: DeepSpeed's trace of modules.

    ``numels``: the parameters' elements by place.
    """

    __slots__ = ("heard", "numels", "queue", "reach", "steps", "when")

    def __init__(self, heard: Heard, numels: tuple[int, ...]) -> None:
        self.heard, self.numels = heard, numels
        self.queue: list[int] = []
        self.when: list[int] = []
        """By place in the queue, the use."""
        self.steps: list[list[int]] = [[] for _ in numels]
        """By parameter, the uses that read it."""
        self.reach = [0]
        """By use, the elements that earlier ones read."""
        read = 0
        for step, used in enumerate(indices for kind, indices in heard if kind in (USE, AGAIN)):
            for index in used:
                self.queue.append(index)
                self.when.append(step)
                self.steps[index].append(step)
                read += numels[index]
            self.reach.append(read)


@lru_cache(maxsize=64)
def order_of(heard: Heard, numels: tuple[int, ...]) -> Order:
    """The order that ``heard`` tells: the same for all micro batches."""
    return Order(heard, numels)


class Passed(NamedTuple):
    """What a whole pass does at each use and each end of one, and what is known after it of what stays."""

    acts: Sequence[Sequence[Act]]
    kept: Kept


@lru_cache(maxsize=64)
def passed(
    order: Order,
    gathering: Gathering,
    persistent: frozenset[int],
    gathered: frozenset[int] = frozenset(),
    kept: Kept = frozenset(),
    *,
    untrained: frozenset[int] = frozenset(),
) -> Passed:
    """A pass in ``order`` that finds so much ``gathered``: the same for all who shard however many bytes."""
    one = Coordinator(order.numels, gathering, persistent, gathered, order, dict(kept), untrained)
    acts = [one.hear(kind, indices) for kind, indices in order.heard]
    return Passed(acts, frozenset(one.kept.items()))


def left_over(
    order: Order, gathering: Gathering, persistent: frozenset[int], untrained: frozenset[int]
) -> frozenset[int]:
    """What a pass that does not know its ``order`` leaves gathered: of what was kept for a whole layer's
    recomputation that which is persistent (:504)."""
    one = Coordinator(order.numels, gathering, persistent, untrained=untrained)
    for kind, indices in order.heard:
        one.hear(kind, indices)
    return persistent.intersection(one.gathered)


class Flight:
    """A gather on its way: its number in the pass, and its parameters, all and those not asked for yet."""

    __slots__ = ("arrived", "indices", "number", "waiting")

    def __init__(self, number: int, indices: Sequence[int]) -> None:
        self.number, self.indices, self.waiting, self.arrived = number, indices, {*indices}, False


class Coordinator:
    """Stage 3's ``PartitionedParameterCoordinator`` through one pass (partitioned_param_coordinator.py)."""

    def __init__(
        self,
        numels: Sequence[int],
        gathering: Gathering,
        persistent: frozenset[int],
        gathered: Iterable[int] = (),
        order: Order | None = None,
        kept: dict[tuple[int, int], bool] | None = None,
        untrained: frozenset[int] = frozenset(),
    ) -> None:
        self.numels, self.gathering, self.persistent, self.order = numels, gathering, persistent, order
        self.gathered = set(gathered)
        """By place of the parameter, as all that follows."""
        self.untrained, self.owned = untrained, set[int]()
        """Frozen parameters, and those of them that were gathered for recomputation and stay for whoever
        asked for it (``ds_recompute_parameters``, :393)."""
        self.in_flight: dict[int, Flight] = {}
        self.kept = {} if kept is None else kept
        self.fetched_until = [-1] * len(numels)
        self.position = self.queue_at = self.available = self.gathers = 0
        self._acts: list[Act] = []

    def hear(self, kind: int, indices: Sequence[int]) -> Sequence[Act]:
        """What is done at one of `USES`."""
        if kind == OWNER:
            return self.after_owner()
        return self.after_use(indices) if kind == USED else self.before_use(indices, again=kind == AGAIN)

    def before_use(self, indices: Sequence[int], *, again: bool = False) -> Sequence[Act]:
        """``fetch_sub_module``: gather what is needed now, then prefetch."""
        order, position = self.order, self.position
        acts = self._acts = []
        if indices:
            gathered, in_flight = self.gathered, self.in_flight
            missing = [index for index in indices if index not in gathered and index not in in_flight]
            if missing:
                self._gather(missing)
            for index in indices:
                if index in in_flight:
                    self._arrive(index)
            if again:
                self.owned |= self.untrained.intersection(indices)
            if order is not None:
                self._advance(indices, order)
        if order is None:
            pass
        elif self.available < self.gathering.max_live and self.queue_at < len(order.queue):
            self._prefetch(order)
        self.position = position + 1
        return acts

    def _gather(self, indices: Sequence[int]) -> None:
        flight = Flight(self.gathers, indices)
        self.gathers += 1
        for index in indices:
            self.available += self.numels[index]
            self.in_flight[index] = flight
        self._acts.append((TAKE, tuple(indices)))

    def _arrive(self, index: int) -> None:
        flight = self.in_flight.pop(index)
        if not flight.arrived:
            flight.arrived = True
            self.gathered.update(flight.indices)
            self._acts.append((UNPACK, (flight.number,)))
        flight.waiting.remove(index)
        if not flight.waiting:
            self._acts.append((DROP, (flight.number,)))

    def _advance(self, indices: Sequence[int], order: Order) -> None:
        """Take what is used now from the queue, unless it was prefetched and taken before."""
        until, position, queue = self.fetched_until, self.position, order.queue
        wanted = 0
        for index in indices:
            if until[index] < position:
                wanted += 1
        popped: set[int] = set()
        while len(popped) < wanted and self.queue_at < len(queue):
            index = queue[self.queue_at]
            until[index] = order.when[self.queue_at]
            self.queue_at += 1
            popped.add(index)

    def _prefetch(self, order: Order) -> None:
        s, until, queue, when = self.gathering, self.fetched_until, order.queue, order.when
        limit = min(s.max_live - self.available, s.prefetch_bucket)
        gathered, in_flight = self.gathered, self.in_flight
        chosen: list[int] = []
        numel, at, end = 0, self.queue_at, len(queue)
        while numel < limit and at < end:
            index = queue[at]
            if until[index] < when[at]:
                until[index] = when[at]
            at += 1
            if index not in gathered and index not in in_flight and index not in chosen:
                chosen.append(index)
                numel += self.numels[index]
        self.queue_at = at
        if chosen:
            self._gather(chosen)

    def after_use(self, indices: Sequence[int]) -> Sequence[Act]:
        """``release_sub_module``: let go of what is not used again within the reuse distance."""
        ordered, going = self.order is not None, []
        for index in indices:
            if index not in self.gathered or (ordered and (index in self.persistent or self._stays(index))):
                continue
            if index not in self.owned:
                going.append(index)
        return self._release(going)

    def after_owner(self) -> Sequence[Act]:
        """All that was kept for it goes, however soon it is used again, but what is persistent (:501-529)."""
        going = sorted((self.owned & self.gathered) - self.persistent)
        self.owned.clear()
        return self._release(going)

    def _release(self, indices: Sequence[int]) -> Sequence[Act]:
        for index in indices:
            self.gathered.remove(index)
            self.available -= self.numels[index]
        return [(RELEASE, (index,)) for index in indices]

    def _stays(self, index: int) -> bool:
        """Whether it was found further up in the queue, or its next use is nearer than the reuse distance."""
        key = (self.position, index)
        if key not in self.kept:
            self.kept[key] = self.fetched_until[index] > self.position or self._is_near(index)
        return self.kept[key]

    def _is_near(self, index: int) -> bool:
        assert self.order is not None
        order = self.order
        for step in order.steps[index]:
            if step >= self.position:
                distance = order.reach[step] - order.reach[self.position]
                return distance < self.gathering.max_reuse_distance
        return False
