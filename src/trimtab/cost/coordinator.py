"""When stage 3 gathers which parameters and lets go of them, whatever bytes that takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

from trimtab.cost.machine import Weight
from trimtab.cost.meter import Storage

USES = USE, AGAIN, USED, OWNER = 11, 12, 13, 14
"""A use of parameters; one to recompute; the end of either; that of the module which had it recomputed."""
Heard = tuple[tuple[int, tuple[int, ...]], ...]
"""Which of `USES` come through both passes, each with the parameters' places."""


class Gathering(NamedTuple):
    """What of a configuration decides it, in elements; the keys that begin with ``stage3_``."""

    prefetch_bucket: int
    persistence_threshold: int
    model_persistence_threshold: int
    max_live: int
    max_reuse_distance: int


class Order:
    """The order in which a forward and a backward pass use the parameters: DeepSpeed's trace of modules.

    ``uses``: the places of the parameters that each use reads; ``numels``: the parameters' elements by place.
    """

    __slots__ = ("queue", "reach", "steps", "when")

    def __init__(self, uses: Sequence[Sequence[int]], numels: Sequence[int]) -> None:
        self.queue: list[int] = []
        self.when: list[int] = []
        """By place in the queue, the use."""
        self.steps: list[list[int]] = [[] for _ in numels]
        """By parameter, the uses that read it."""
        self.reach = [0]
        """By use, the elements that earlier ones read."""
        read = 0
        for step, used in enumerate(uses):
            for index in used:
                self.queue.append(index)
                self.when.append(step)
                self.steps[index].append(step)
                read += numels[index]
            self.reach.append(read)


@lru_cache(maxsize=64)
def order_of(heard: Heard, numels: tuple[int, ...]) -> Order:
    """The order that ``heard`` tells: the same for all micro batches."""
    return Order([indices for kind, indices in heard if kind in (USE, AGAIN)], numels)


class Gather:
    """One all-gather, whose result lives until every parameter in it was asked for."""

    __slots__ = ("arrived", "copies", "indices", "result")

    def __init__(self, indices: Sequence[int]) -> None:
        self.indices, self.arrived = indices, False
        self.result: Storage | None = None
        self.copies: dict[int, Storage] = {}
        """Parameters that are there by themselves."""


class Coordinator:
    """Stage 3's ``PartitionedParameterCoordinator`` (partitioned_param_coordinator.py)."""

    def __init__(self, weights: Sequence[Weight], gathering: Gathering) -> None:
        self.gathering = gathering
        self.numels = [weight.numel for weight in weights]
        self.persistent = self._persistent(weights)
        self.untrained = frozenset(weight.index for weight in weights if not weight.trainable)
        self.owned: set[int] = set()
        """Frozen parameters that were gathered for recomputation and stay for whoever asked for it
        (``ds_recompute_parameters``, :393)."""
        self.gathered: dict[int, Storage | None] = {}
        """By place of the parameter, as all that follows."""
        self.in_flight: dict[int, Gather] = {}
        self.uses: list[Sequence[int]] = []
        self.order: Order | None = None
        self.position = self.queue_at = self.available = 0
        self.fetched_until = [-1] * len(weights)
        self.kept: dict[tuple[int, int], bool] = {}
        """Whether a parameter stays after a use, by use and place: as the first pass that knows the order
        decides, for good (``__params_to_release`` is cached, :637)."""

    def _persistent(self, weights: Sequence[Weight]) -> set[int]:
        """``mark_persistent_parameters`` (parameter_offload.py:317)."""
        chosen: set[int] = set()
        total = 0
        for weight in weights:
            if weight.numel + total > self.gathering.model_persistence_threshold:
                continue
            if weight.numel <= self.gathering.persistence_threshold:
                chosen.add(weight.index)
                total += weight.numel
        return chosen

    def learn(self, order: Order) -> None:
        """Know the order of uses, as after a first pass."""
        self.order = order

    def reset_step(self) -> None:
        """A pass begins; the trace is complete once one was recorded."""
        self.in_flight.clear()
        self.position = self.queue_at = 0
        self.fetched_until = [-1] * len(self.numels)
        self.available = 0
        if self.order is None and self.uses:
            self.learn(Order(self.uses, self.numels))

    def before_use(self, uses: Sequence[int], shift: int = 0, *, again: bool = False) -> None:
        """``fetch_sub_module``: gather what is needed now, then prefetch."""
        order, position = self.order, self.position
        if uses:
            gathered, in_flight = self.gathered, self.in_flight
            indices = [index + shift for index in uses]
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
            self.uses.append([index + shift for index in uses])
        elif self.available < self.gathering.max_live and self.queue_at < len(order.queue):
            self._prefetch(order)
        self.position = position + 1

    def _gather(self, indices: Sequence[int]) -> None:
        gather = Gather(indices)
        for index in indices:
            self.available += self.numels[index]
            self.in_flight[index] = gather
        self._take(gather)

    def _take(self, gather: Gather) -> None:
        """Make what ``gather`` gathers into."""

    def _arrive(self, index: int) -> None:
        gather = self.in_flight.pop(index)
        if not gather.arrived:
            gather.arrived = True
            self._unpack(gather)

    def _unpack(self, gather: Gather) -> None:
        """Put into `gathered` what was gathered."""
        for index in gather.indices:
            self.gathered[index] = None

    def _let_go(self, index: int) -> None:
        """``param.partition``: only this rank's share of it stays."""

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

    def after_use(self, uses: Sequence[int], shift: int = 0) -> None:
        """``release_sub_module``: let go of what is not used again within the reuse distance."""
        ordered = self.order is not None
        for one in uses:
            index = one + shift
            if index not in self.gathered or (ordered and (index in self.persistent or self._stays(index))):
                continue
            if index not in self.owned:
                self._release(index)

    def after_owner(self) -> None:
        """All that was kept for it goes, however soon it is used again, but what is persistent (:501-529)."""
        for index in (self.owned & self.gathered.keys()) - self.persistent:
            self._release(index)
        self.owned.clear()

    def _release(self, index: int) -> None:
        self._let_go(index)  # what stays of it is there before it goes
        del self.gathered[index]
        self.available -= self.numels[index]

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


@lru_cache(maxsize=64)
def first_kept(
    heard: Heard, weights: tuple[Weight, ...], gathering: Gathering
) -> Mapping[tuple[int, int], bool]:
    """What stays after which use (`Coordinator.kept`) in the first pass that knows the order."""
    recording = _heard(Coordinator(weights, gathering), heard)
    first = Coordinator(weights, gathering)
    # what was kept for a whole layer's recomputation, and is persistent, stayed (:504)
    first.gathered.update(dict.fromkeys(recording.gathered.keys() & first.persistent))
    first.learn(order_of(heard, tuple(first.numels)))
    return _heard(first, heard).kept


def _heard(coordinator: Coordinator, heard: Heard) -> Coordinator:
    """``coordinator`` after both passes."""
    for kind, indices in heard:
        if kind == OWNER:
            coordinator.after_owner()
        elif kind == USED:
            coordinator.after_use(indices)
        else:
            coordinator.before_use(indices, again=kind == AGAIN)
    return coordinator
