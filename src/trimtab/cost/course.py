"""Records of requests on their way through PyTorch's caching allocator, and which cards are enough.

A run makes the same step again and again, and what it finds decides what it leaves.  So a step is replayed
once from each way in which blocks lie at its start, whichever card came there and however often.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NamedTuple

from trimtab.cost.allocator import UNIT, Block, CachingAllocator, Layout, OutOfMemory, Reading

RESET, NOTE, EMPTY, FLATTEN = 1, 2, 3, 4
"""Marks in a record: peaks start anew, statistics are read, ``torch.cuda.empty_cache``, and a request that
may wait until what ends right after it has gone (DeepSpeed flattens on the host where the device has no room,
stage_1_and_2.py:450)."""
MORE_STEPS = 17
"""Steps that a replay adds to three, at most."""


class Replay:
    """Records on their way through an allocator, one after the other.

    An entry of 512 and more is a request of that many bytes, with its stream in the low bits; a negative
    entry ``-n`` ends the ``n``-th request; the others are marks.
    """

    def __init__(self, allocator: CachingAllocator) -> None:
        self.allocator = allocator
        self.readings: list[Reading] = []
        """The statistics at every ``NOTE``."""
        self.requests = self.at = 0
        """How many there were, and where the last record ended or stopped."""
        self.blocks: dict[int, Block] = {}
        """What was not ended, by number of the request."""

    def run(self, record: Sequence[int], start: int = 0) -> list[Reading]:
        """Go through ``record`` from ``start`` on; all readings so far.

        Raises:
            OutOfMemory: a request does not fit; nothing of it was done.
        """
        allocator, blocks, record = self.allocator, self.blocks, list(record)
        take, give = allocator.take, allocator.give
        at, requests = start, self.requests
        try:
            for at, entry in enumerate(islice(record, start, None), start):
                if entry < 0:
                    give(blocks.pop(-entry))
                elif entry >= UNIT:
                    stream = entry % UNIT
                    blocks[requests + 1] = take(entry - stream, stream)
                    requests += 1
                elif entry == RESET:
                    allocator.reset_peaks()
                elif entry == EMPTY:
                    allocator.empty_cache()
                elif entry == NOTE:
                    self.readings.append(allocator.reading())
                elif entry == FLATTEN and not allocator.has_room(record[at + 1]):
                    _postpone(record, at + 1)
        finally:
            self.at, self.requests = at, requests
        return self.readings

    def renumber(self, requests: int) -> None:
        """Count as if this were the moment after so many requests."""
        later = requests - self.requests
        self.blocks = {number + later: block for number, block in self.blocks.items()}
        self.requests = requests


def _postpone(record: list[int], at: int) -> None:
    """Move the request at ``at`` behind the ends that follow it."""
    after = at + 1
    while record[after] < 0:
        after += 1
    record[at:after] = [*record[at + 1 : after], record[at]]


class Steps(NamedTuple):
    """A record of which a part comes again and again."""

    start: Sequence[int]
    step: Sequence[int] = ()
    """From a moment of a step to the same moment of the next, ``times`` over."""
    times: int = 0
    end: Sequence[int] = ()
    """What is left of the last one."""


def settling(record: Sequence[int], second: int, third: int) -> Steps:
    """``record`` with as many steps more as cutting up a card's memory goes on for.

    Its last two steps begin at ``second`` and ``third``.  On a full card it may take twenty until one finds
    all blocks as an earlier one did, or one no longer fits (bench/near_limit.py).  Nothing is added where the
    last step cannot be repeated: it requests more or less than the one before it, or ends what is older.
    """
    before, last = record[second:third], record[third:]
    older, requests = _requests(record[:second]), _requests(last)
    if _requests(before) != requests or any(-older <= entry < 0 for entry in last):
        return Steps(record)
    at = last.index(NOTE)  # blocks lie alike after a forward pass before they do so at a step's end
    if _repeated(before, requests) == last:
        return Steps(record[: second + at], [*before[at:], *last[:at]], MORE_STEPS + 1, before[at:])
    again = _repeated(last[:at], requests)
    return Steps(record[: third + at], [*last[at:], *again], MORE_STEPS, last[at:])


def _requests(record: Sequence[int]) -> int:
    return sum(entry >= UNIT for entry in record)


def _repeated(step: Sequence[int], requests: int) -> list[int]:
    """A step of so many requests once more; what ends in it began in it, or in the one before."""
    return [entry - requests if entry < 0 else entry for entry in step]


START, STEP, END = range(3)
DONE = object()


class Moment(NamedTuple):
    """A moment of `Steps`: a place in its start, step or end, the requests up to there, and how all lies."""

    part: int
    at: int
    requests: int
    layout: Layout

    def replay(self, capacity_bytes: int) -> Replay:
        """A replay that has come to it on a card of ``capacity_bytes``."""
        allocator, blocks = CachingAllocator.laid_out(self.layout, capacity_bytes)
        found = Replay(allocator)
        found.requests, found.blocks = self.requests, blocks
        return found


class Way(NamedTuple):
    """Where cards of ``served`` up to below ``refused`` bytes come next; None if they run out of memory."""

    served: int
    refused: int
    after: Moment | None


class Course:
    """The way of `Steps` through an allocator without limit, and those of smaller cards.

    A card parts from it where it has no room for what is reserved then.  Between two steps its way may join
    one that is known, and a card that comes by the same moment twice will do so for ever.  None goes further
    than somebody asks.  Cards smaller than ``capacity_bytes`` must not be asked about.
    """

    def __init__(self, steps: Steps, capacity_bytes: int) -> None:
        self._parts, self._times = (steps.start, steps.step, steps.end), steps.times
        self._requests = _requests(steps.start)
        self._ended = self._ended_later()
        self._ways: dict[Moment, list[Way]] = {}
        self._partings: list[tuple[int, int, Moment]] = []
        """Where more is reserved than ever before: how much, after how many steps, and the moment."""
        self._reserved = 0
        """At the most without limit, as far as that way was gone."""
        self._readings: list[Reading] = []
        self._unlimited = self._without_limit(capacity_bytes)

    @property
    def readings(self) -> list[Reading]:
        """All, on a card without limit."""
        for _ in self._unlimited:
            pass
        return self._readings

    def passes(self, capacity_bytes: int) -> bool:
        """Whether a card without limit ever has more than ``capacity_bytes`` reserved."""
        while self._reserved <= capacity_bytes:
            if next(self._unlimited, DONE) is DONE:
                return max(reading.peak_reserved for reading in self._readings) > capacity_bytes
        return True

    def fits(self, capacity_bytes: int) -> bool:
        """Whether a card of ``capacity_bytes`` serves every request."""
        while not self._partings or self._partings[-1][0] <= capacity_bytes:
            if next(self._unlimited, DONE) is DONE:
                return True
        after: Moment | None
        turn, after = next(one[1:] for one in self._partings if one[0] > capacity_bytes)
        seen: set[Moment] = set()
        while turn < self._times + 2 and after not in seen:
            seen.add(after)
            after = self._next(after if turn <= self._times else after._replace(part=END), capacity_bytes)
            if after is None:
                return False
            turn += 1
        return True

    def _next(self, moment: Moment, capacity_bytes: int) -> Moment | None:
        """The moment after the part that ``moment`` is in; None if memory runs out before it."""
        ways = self._ways.setdefault(moment, [])
        for served, refused, after in ways:
            if served <= capacity_bytes < refused:
                return after
        replay = moment.replay(capacity_bytes)
        try:
            replay.run(self._parts[moment.part], moment.at)
            after = self._between_steps(replay)
        except OutOfMemory:
            after = None
        ways.append(Way(replay.allocator.served, replay.allocator.refused, after))
        return after

    def _between_steps(self, replay: Replay) -> Moment:
        """Where ``replay`` is now.

        Requests are numbered as before the first step; one that no step ends is known by its place alone.
        """
        replay.renumber(self._requests)
        alike = [
            (pool, size, first, number if number in self._ended else -place)
            for place, (pool, size, first, number) in enumerate(replay.allocator.layout(replay.blocks), 1)
        ]
        return Moment(STEP, 0, self._requests, tuple(alike))

    def _ended_later(self) -> set[int | None]:
        """The requests before a step that it or the next one ends, and None."""
        step = self._parts[STEP]
        requests = _requests(step)
        here = {-entry for entry in step if -self._requests <= entry < 0}
        return {None, *here, *(number + requests for number in here)}

    def _without_limit(self, capacity_bytes: int) -> Iterator[None]:
        """Go the way of a card without limit, and rest wherever others part; at last the readings."""
        allocator = CachingAllocator(capacity_bytes, gives_back=False)
        replay = Replay(allocator)
        yield from self._go_on(replay, START, 0)
        moment, seen = self._between_steps(replay), {}
        for turn in range(1, self._times + 1):
            seen[moment] = len(replay.readings)
            allocator.served = 0
            yield from self._go_on(replay, STEP, turn)
            after = self._between_steps(replay)
            self._ways.setdefault(moment, []).append(Way(allocator.served, sys.maxsize, after))
            if after in seen:
                left = (self._times - turn) * self._parts[STEP].count(NOTE) + self._parts[END].count(NOTE)
                self._readings = _continued(replay, seen[after], left)
                return
            moment = after
        yield from self._go_on(replay, END, self._times + 1)
        self._readings = replay.readings

    def _go_on(self, replay: Replay, part: int, turn: int) -> Iterator[None]:
        """Let ``replay`` go through a part, and rest wherever others part from it."""
        allocator, at = replay.allocator, 0
        while True:
            try:
                replay.run(self._parts[part], at)
                break
            except OutOfMemory:
                at, refused = replay.at, allocator.refused
                moment = Moment(part, at, replay.requests, allocator.layout(replay.blocks))
                self._partings.append((refused, turn, moment))
                allocator.capacity_bytes, allocator.refused = refused, sys.maxsize
                if self._parts[part][at] != FLATTEN:  # which only asks
                    self._reserved = refused
                yield


def _continued(replay: Replay, since: int, count: int) -> list[Reading]:
    """All readings and ``count`` more, which go round as those ``since`` then did; no peak is higher."""
    now, again = replay.allocator.reading(), replay.readings[since:]
    for number in range(count):
        one = again[number % len(again)]
        replay.readings.append(now._replace(allocated=one.allocated, reserved=one.reserved))
    return replay.readings
