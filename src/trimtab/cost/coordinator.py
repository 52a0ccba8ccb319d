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
TAKE, UNPACK, DROP, RELEASE = range(4)
Act = tuple[int, tuple[int, ...]]
"""Gather these parameters together; the first of what was gathered n-th is asked for, the last is; or let go
of this one."""


class Kept:
    """Whether a parameter stays after a use, by use and place.

    The first pass that knows the order decides, for good (``__params_to_release`` is cached, :637).  A pass
    that decides nothing new hands on the very object that it was given.
    """

    __slots__ = ("stays",)

    def __init__(self, stays: dict[tuple[int, int], bool]) -> None:
        self.stays = stays


NONE_KEPT = Kept({})


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
        queue, when, steps, reach = self.queue, self.when, self.steps, self.reach
        step = read = 0
        for kind, used in heard:
            if kind in (USE, AGAIN):
                for index in used:
                    queue.append(index)
                    when.append(step)
                    steps[index].append(step)
                    read += numels[index]
                reach.append(read)
                step += 1


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
    kept: Kept = NONE_KEPT,
    *,
    untrained: frozenset[int] = frozenset(),
) -> Passed:
    """A pass in ``order`` that finds so much ``gathered``: the same for all who shard however many bytes."""
    one = OrderedPass(order, gathering, persistent, gathered, dict(kept.stays), untrained)
    acts = one.acts()
    return Passed(acts, kept if len(one.kept) == len(kept.stays) else Kept(one.kept))


def left_over(order: Order, persistent: frozenset[int], untrained: frozenset[int]) -> frozenset[int]:
    """What a pass that does not know its ``order`` leaves gathered: of what was kept for a whole layer's
    recomputation that which is persistent (:504), each by itself."""
    left, owned = set[int](), set[int]()
    for kind, indices in order.heard:
        if kind == OWNER:
            owned.clear()
        for index in indices:
            if index in persistent:
                if kind != USED:
                    left.add(index)
                elif index not in owned:
                    left.discard(index)
                if kind == AGAIN and index in untrained:
                    owned.add(index)
    return frozenset(left)


class Pass:
    """Stage 3's ``PartitionedParameterCoordinator`` through one pass (partitioned_param_coordinator.py)."""

    def __init__(
        self,
        persistent: frozenset[int],
        gathered: Iterable[int] = (),
        untrained: frozenset[int] = frozenset(),
    ) -> None:
        self.persistent, self.gathered = persistent, set(gathered)
        """By place of the parameter, as all that follows."""
        self.untrained, self.owned = untrained, set[int]()
        """Frozen parameters, and those of them that were gathered for recomputation and stay for whoever
        asked for it (``ds_recompute_parameters``, :393)."""
        self.gathers = 0

    def _disown(self) -> list[int]:
        """All that was kept for it goes, however soon it is used again, but what is persistent (:501-529)."""
        going = sorted((self.owned & self.gathered) - self.persistent)
        self.owned.clear()
        return going


class FirstPass(Pass):
    """One that does not know the order: what is used is gathered, and let go when it was used."""

    def hear(self, kind: int, indices: Sequence[int]) -> Sequence[Act]:
        """What is done at one of `USES`."""
        if kind == USED:
            going = [index for index in indices if index in self.gathered and index not in self.owned]
        elif kind == OWNER:
            going = self._disown()
        else:
            return self._fetch(indices, again=kind == AGAIN)
        self.gathered.difference_update(going)
        return [(RELEASE, (index,)) for index in going]

    def _fetch(self, indices: Sequence[int], *, again: bool) -> Sequence[Act]:
        missing = tuple([index for index in indices if index not in self.gathered])
        if again:
            self.owned |= self.untrained.intersection(indices)
        if not missing:
            return ()
        self.gathered.update(missing)
        self.gathers += 1
        number = (self.gathers - 1,)
        return (TAKE, missing), (UNPACK, number), (DROP, number)


class Flight:
    """A gather on its way: its number in the pass, its parameters, and how many were not asked for yet."""

    __slots__ = ("arrived", "indices", "number", "waiting")

    def __init__(self, number: int, indices: Sequence[int]) -> None:
        self.number, self.indices, self.waiting, self.arrived = number, indices, len({*indices}), False


class OrderedPass(Pass):
    """One that knows the order: it gathers ahead, and keeps what is used again soon."""

    def __init__(
        self,
        order: Order,
        gathering: Gathering,
        persistent: frozenset[int],
        gathered: Iterable[int],
        kept: dict[tuple[int, int], bool],
        untrained: frozenset[int],
    ) -> None:
        super().__init__(persistent, gathered, untrained)
        self.order, self.gathering, self.kept = order, gathering, kept
        self.in_flight: dict[int, Flight] = {}
        self.fetched_until = [-1] * len(order.numels)
        self.position = self.queue_at = self.available = 0
        self._acts: list[Act] = []

    def acts(self) -> Sequence[Sequence[Act]]:
        """What is done at each of `USES` in turn."""
        every: list[Sequence[Act]] = []
        kept, gathered, persistent = self.kept, self.gathered, self.persistent
        position, queued, most = 0, len(self.order.queue), self.gathering.max_live
        for kind, indices in self.order.heard:
            if kind == USED:
                for index in indices:
                    if index in gathered and index not in persistent:
                        stays = kept.get((position, index))
                        if stays is None:
                            stays = kept[position, index] = self._stays(index)
                        if not stays and index not in self.owned:
                            self._release(index)
            elif kind == OWNER:
                for index in self._disown() if self.owned else ():
                    self._release(index)
            else:
                if indices:
                    self._fetch(indices, again=kind == AGAIN)
                if self.available < most and self.queue_at < queued:
                    self._prefetch()
                self.position = position = position + 1
            if self._acts:
                every.append(self._acts)
                self._acts = []
            else:
                every.append(())
        return every

    def _fetch(self, indices: Sequence[int], *, again: bool) -> None:
        """``fetch_sub_module``: gather what is needed now, and take it from the queue.

        What was prefetched was taken from the queue before.
        """
        gathered, in_flight, until = self.gathered, self.in_flight, self.fetched_until
        missing = [index for index in indices if index not in gathered and index not in in_flight]
        if missing:
            self._gather(missing)
        wanted = 0
        for index in indices:
            if index in in_flight:
                self._arrive(index)
            if until[index] < self.position:
                wanted += 1
        if again and self.untrained:
            self.owned |= self.untrained.intersection(indices)
        if wanted:
            self._advance(wanted)

    def _gather(self, indices: Sequence[int]) -> None:
        flight = Flight(self.gathers, indices)
        self.gathers += 1
        for index in indices:
            self.available += self.order.numels[index]
            self.in_flight[index] = flight
        self._acts.append((TAKE, tuple(indices)))

    def _arrive(self, index: int) -> None:
        flight = self.in_flight.pop(index)
        if not flight.arrived:
            flight.arrived = True
            self.gathered.update(flight.indices)
            self._acts.append((UNPACK, (flight.number,)))
        flight.waiting -= 1
        if not flight.waiting:
            self._acts.append((DROP, (flight.number,)))

    def _advance(self, wanted: int) -> None:
        queue, when = self.order.queue, self.order.when
        popped: set[int] = set()
        while len(popped) < wanted and self.queue_at < len(queue):
            index = queue[self.queue_at]
            self.fetched_until[index] = when[self.queue_at]
            self.queue_at += 1
            popped.add(index)

    def _prefetch(self) -> None:
        s, order = self.gathering, self.order
        until, queue, when, numels = self.fetched_until, order.queue, order.when, order.numels
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
                numel += numels[index]
        self.queue_at = at
        if chosen:
            self._gather(chosen)

    def _release(self, index: int) -> None:
        """``release_sub_module``: let go of what is not used again within the reuse distance."""
        self.gathered.remove(index)
        self.available -= self.order.numels[index]
        self._acts.append((RELEASE, (index,)))

    def _stays(self, index: int) -> bool:
        """Whether it was found further up in the queue, or its next use is nearer than the reuse distance."""
        order, position = self.order, self.position
        if self.fetched_until[index] > position:
            return True
        for step in order.steps[index]:
            if step >= position:
                return order.reach[step] - order.reach[position] < self.gathering.max_reuse_distance
        return False
