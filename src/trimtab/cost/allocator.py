"""PyTorch's caching allocator for CUDA, replayed: what its statistics show, and whether a card is enough.

Tensors ask for bytes; the allocator hands out blocks cut from segments that it takes from the driver,
sometimes larger than asked, and keeps what is freed.  The rules are those of
``c10/cuda/CUDACachingAllocator.cpp`` in PyTorch 2.11 with its default settings (no ``max_split_size``, no
expandable segments).  A block that another stream used counts as free at once; on a GPU it waits for that
stream.
"""

from __future__ import annotations

import sys
from bisect import bisect_left, insort
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from itertools import islice
from typing import NamedTuple

UNIT = 512  # kMinBlockSize: every request is rounded up to it
SMALL_REQUEST = 1 << 20  # kSmallSize: the largest request of the small pool
SMALL_SEGMENT = 2 << 20  # kSmallBuffer
LARGE_SEGMENT = 20 << 20  # kLargeBuffer: for requests below LARGE_REQUEST
LARGE_REQUEST = 10 << 20  # kMinLargeAlloc: from here on a request gets a segment of its own
LARGE_UNIT = 2 << 20  # kRoundLarge
LARGE_REST = SMALL_REQUEST + 1  # should_split: what must be left of a large block for it to be cut

RESET, NOTE, EMPTY, FLATTEN, AGAIN = 1, 2, 3, 4, 5
"""Marks in a record: peaks start anew, statistics are read, ``torch.cuda.empty_cache``, a request that may
wait until what ends right after it has gone (DeepSpeed flattens on the host where the device has no room,
stage_1_and_2.py:450), and a moment of a step after which nothing but that step comes, again and again."""
MORE_STEPS = 17
"""Steps that a replay adds to three, at most."""
STREAMS = 64
"""A request's low bits tell its stream: torch has pools of 32 at two priorities (c10/cuda/CUDAStream.cpp)."""
WORKSPACE_BYTES = {True: 32 << 20, False: (4096 * 2 + 16 * 8) << 10}
"""What one cuBLAS handle takes at its first product, on Hopper and later, and before.

aten/src/ATen/cuda/CublasHandlePool.cpp, ``parseChosenWorkspaceSize``.  The forward and the backward pass run
in threads of their own, and each has a handle.
"""


class OutOfMemory(Exception):
    """The capacity is too small, even after giving cached segments back."""


class Reading(NamedTuple):
    """The statistics at one moment, in bytes; peaks since they were last reset."""

    allocated: int
    peak_allocated: int
    reserved: int
    peak_reserved: int
    peak_used: int
    """Of segments that hold anything: a card with little more room gives the others back when it must."""


class Block:
    """A stretch of a segment, free or taken, and its neighbours there."""

    __slots__ = ("address", "after", "before", "free", "pool", "size")

    def __init__(
        self,
        size: int,
        pool: int,
        address: int,
        before: Block | None = None,
        after: Block | None = None,
        free: bool = False,
    ) -> None:
        self.size, self.pool, self.address = size, pool, address
        self.before, self.after, self.free = before, after, free


class CachingAllocator:
    """One device's allocator: blocks, segments and statistics, with a capacity in bytes or without.

    Where cached segments are not to be given back, the first time that this would be needed ends it: up to
    there all larger cards are the same.
    """

    def __init__(self, capacity_bytes: int | None = None, *, gives_back: bool = True) -> None:
        self.capacity_bytes, self.gives_back = capacity_bytes, gives_back
        self.served, self.refused = 0, sys.maxsize
        """The most that was ever reserved, and the least that there was no room for: what has happened would
        be the same with every capacity from the one up to below the other."""
        self.allocated = self.peak_allocated = 0
        self.reserved = self.peak_reserved = 0
        self.used = self.peak_used = 0
        """Bytes of the segments that hold anything."""
        self._address = 0
        self._free: list[list[tuple[int, int, Block]]] = [[] for _ in range(2 * STREAMS)]

    def take(self, size: int, stream: int = 0) -> Block:
        """The smallest free block of at least ``size`` bytes (a multiple of 512), cut where that pays.

        Raises:
            OutOfMemory: no free block fits and the capacity allows no further segment.
        """
        pool, least_rest = (2 * stream + 1, UNIT) if size <= SMALL_REQUEST else (2 * stream, LARGE_REST)
        free = self._free[pool]
        place = bisect_left(free, (size,))
        block = free.pop(place)[2] if place < len(free) else self._segment(size, pool)
        after = block.after
        whole = block.size
        if after is None and block.before is None:
            self.used += whole
            if self.used > self.peak_used:
                self.peak_used = self.used
        rest_size = whole - size
        if rest_size >= least_rest:  # should_split
            address = block.address + size
            block.after = rest = Block(rest_size, pool, address, block, after, True)
            if after is not None:
                after.before = rest
            block.size = whole = size
            insort(free, (rest_size, address, rest))
        block.free = False
        allocated = self.allocated = self.allocated + whole
        if allocated > self.peak_allocated:
            self.peak_allocated = allocated
        return block

    def give(self, block: Block) -> None:
        """Return ``block``; it joins its free neighbours."""
        size = block.size
        self.allocated -= size
        free = self._free[block.pool]
        before, after = block.before, block.after
        if before is not None and before.free:
            del free[bisect_left(free, (before.size, before.address))]
            size += before.size
            before.after = after
            if after is not None:
                after.before = before
            block = before
        else:
            block.free = True
        if after is not None and after.free:
            del free[bisect_left(free, (after.size, after.address))]
            size += after.size
            block.after = after = after.after
            if after is not None:
                after.before = block
        block.size = size
        if after is None and block.before is None:
            self.used -= size
        insort(free, (size, block.address, block))

    def lend(self, size: int, stream: int = 0) -> None:
        """`take` and `give` at once: what is there stays as it is, unless a segment is needed for it.

        Raises:
            OutOfMemory: as `take` does.
        """
        pool, least_rest = (2 * stream + 1, UNIT) if size <= SMALL_REQUEST else (2 * stream, LARGE_REST)
        free = self._free[pool]
        place = bisect_left(free, (size,))
        if place == len(free):
            self.give(self.take(size, stream))
            return
        block = free[place][2]
        allocated = self.allocated + (size if block.size - size >= least_rest else block.size)
        if allocated > self.peak_allocated:
            self.peak_allocated = allocated
        if block.before is None and block.after is None and self.used + block.size > self.peak_used:
            self.peak_used = self.used + block.size

    def empty_cache(self) -> None:
        """Segments with nothing in them go back to the driver."""
        for free in self._free:
            whole = [entry for entry in free if entry[2].before is None and entry[2].after is None]
            for entry in whole:
                free.remove(entry)
                self.reserved -= entry[0]

    def has_room(self, size: int) -> bool:
        """Whether the driver has ``size`` bytes more.

        Raises:
            OutOfMemory: it has not, and nothing is to be given back.
        """
        total = self.reserved + size
        if self.capacity_bytes is None or total <= self.capacity_bytes:
            self.served = max(self.served, total)
            return True
        self.refused = min(self.refused, total)
        if not self.gives_back:
            raise self._out_of_memory(size)
        return False

    def copy(
        self, taken: Mapping[int, Block], capacity_bytes: int | None
    ) -> tuple[CachingAllocator, dict[int, Block]]:
        """The same on a card of ``capacity_bytes``, with its copies of all blocks that are ``taken``."""
        other = copy(self)
        other.capacity_bytes, other.gives_back, other.refused = capacity_bytes, True, sys.maxsize
        blocks = [*taken.values(), *(block for free in self._free for _, _, block in free)]
        twins = {one: Block(one.size, one.pool, one.address, free=one.free) for one in blocks}
        for one, twin in twins.items():
            twin.before = twins[one.before] if one.before else None
            twin.after = twins[one.after] if one.after else None
        other._free = [[(size, at, twins[block]) for size, at, block in free] for free in self._free]
        return other, {number: twins[block] for number, block in taken.items()}

    def layout(self, taken: Mapping[int, Block]) -> list[tuple[int, int, int, bool, int]]:
        """Every block in order: pool, address, size, whether a segment begins with it, and its number.

        That is what it has in ``taken``, or 0 if it is free.
        """
        every = [(0, block) for free in self._free for _, _, block in free]
        every += taken.items()
        return sorted((one.pool, one.address, one.size, one.before is None, number) for number, one in every)

    def reset_peaks(self) -> None:
        """Start new peaks from what is there."""
        self.peak_allocated, self.peak_reserved = self.allocated, self.reserved
        self.peak_used = self.used

    def reading(self) -> Reading:
        """The statistics at this moment."""
        return Reading(
            allocated=self.allocated,
            peak_allocated=self.peak_allocated,
            reserved=self.reserved,
            peak_reserved=self.peak_reserved,
            peak_used=self.peak_used,
        )

    def _out_of_memory(self, size: int) -> OutOfMemory:
        return OutOfMemory(
            f"{size} bytes wanted, {self.reserved} of {self.capacity_bytes} reserved, "
            f"{self.allocated} allocated"
        )

    def _segment(self, size: int, pool: int) -> Block:
        if size <= SMALL_REQUEST:
            segment = SMALL_SEGMENT
        elif size < LARGE_REQUEST:
            segment = LARGE_SEGMENT
        else:
            segment = -(-size // LARGE_UNIT) * LARGE_UNIT
        if not self.has_room(segment):
            self.empty_cache()
            if not self.has_room(segment):
                raise self._out_of_memory(segment)
        self.reserved += segment
        if self.reserved > self.peak_reserved:
            self.peak_reserved = self.reserved
        self._address -= segment  # the driver hands out addresses from above
        return Block(segment, pool, self._address)


def settling(record: Sequence[int], second: int, third: int) -> list[int]:
    """``record`` with as many steps more as cutting up a card's memory goes on for.

    Its last two steps begin at ``second`` and ``third``.  On a full card it may take twenty until each finds
    all blocks as the one before did, or one no longer fits (bench/near_limit.py).  Nothing is added where the
    last step cannot be repeated: it requests more or less than the one before it, or ends what is older.
    """
    start, first, step = record[:second], list(record[second:third]), list(record[third:])
    older = _requests(start)
    if _requests(first) != _requests(step) or any(-older <= entry < 0 for entry in step):
        return list(record)
    alike = list(_repeated(first, 1)) == step
    # the blocks of two steps lie alike after a forward pass before they do so at an end
    marked = _marked(step)
    return [*start, *(_marked(first) if alike else first), *marked, *_repeated(marked, MORE_STEPS)]


def _requests(record: Sequence[int]) -> int:
    return sum(entry >= UNIT for entry in record)


def _repeated(step: Sequence[int], times: int) -> Iterator[int]:
    """A recorded step so many times more; what ends in it began in it, or in the one before."""
    requests = _requests(step)
    for turn in range(1, times + 1):
        yield from (entry - turn * requests if entry < 0 else entry for entry in step)


def _marked(step: Sequence[int]) -> list[int]:
    """A recorded step of which only repetitions follow, marked after its first forward pass."""
    at = step.index(NOTE)
    return [*step[:at], AGAIN, *step[at:]]


class Replay:
    """A `Meter`'s record on its way through an allocator.

    An entry of 512 and more is a request of that many bytes, with its stream in the low bits; a negative
    entry ``-n`` ends the ``n``-th request; the others are marks.
    """

    def __init__(self, record: Sequence[int], allocator: CachingAllocator) -> None:
        self.allocator = allocator
        self.readings: list[Reading] = []
        self._record = list(record)
        self._at = self._requests = 0
        self._blocks: dict[int, Block] = {}
        """By number of the request."""
        self._step: _Step | None = None

    def run(self) -> list[Reading]:
        """Go on to the end; the statistics at every ``NOTE``.

        Raises:
            OutOfMemory: a request does not fit; nothing of it was done.
        """
        allocator, blocks = self.allocator, self._blocks
        take, give = allocator.take, allocator.give
        at = start = self._at
        requests = self._requests
        try:
            for at, entry in enumerate(islice(self._record, start, None), start):
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
                elif entry == FLATTEN and not allocator.has_room(self._record[at + 1]):
                    self._postpone(at + 1)
                elif entry == AGAIN and self._goes_round(at, requests):
                    at = len(self._record)
                    break
        finally:
            self._at, self._requests = at, requests
        return self.readings

    def _postpone(self, at: int) -> None:
        """Move the request at ``at`` behind the ends that follow it."""
        record, after = self._record, at + 1
        while record[after] < 0:
            after += 1
        record[at:after] = [*record[at + 1 : after], record[at]]

    def _goes_round(self, at: int, requests: int) -> bool:
        """Whether all lies as it did a step ago: then the rest of the record changes nothing any more.

        It is read as it was in that step, but for peaks, which have all been seen.
        """
        allocator, last = self.allocator, self._step
        step = self._step = _Step(requests, len(self.readings), allocator.layout(self._blocks))
        if last is None or not step.found_as(last):
            return False
        now, read = allocator.reading(), self.readings[last.readings :]
        for number in range(self._record[at:].count(NOTE)):
            one = read[number % len(read)]
            self.readings.append(now._replace(allocated=one.allocated, reserved=one.reserved))
        return True

    def on(self, capacity_bytes: int | None) -> Replay:
        """The same from here on with a card of ``capacity_bytes``; this replay itself stays where it is."""
        allocator, blocks = self.allocator.copy(self._blocks, capacity_bytes)
        other = Replay(self._record, allocator)
        other.readings += self.readings
        other._at, other._requests, other._blocks = self._at, self._requests, blocks
        other._step = self._step
        return other


class _Step(NamedTuple):
    """A moment of a step: how much had been requested and read, and how all blocks lay."""

    requests: int
    readings: int
    layout: list[tuple[int, int, int, bool, int]]

    def found_as(self, before: _Step) -> bool:
        """Whether all lay ``before``, a step ago, as it does here: what comes finds what it found then.

        A block's request is the same, which lives on, or here a step later than there.  Of addresses only the
        order matters.
        """
        length = self.requests - before.requests
        return len(self.layout) == len(before.layout) and all(
            (pool, size, first) == (its_pool, its_size, its_first)
            and (number == its_number or 0 < its_number == number - length)
            for (pool, _, size, first, number), (its_pool, _, its_size, its_first, its_number) in zip(
                self.layout, before.layout, strict=True
            )
        )


class Course:
    """A record's way through an allocator without limit, and how far smaller cards go along with it.

    They part where they have no room for what is reserved then, and what happened before need not be done
    again.  Cards smaller than ``capacity_bytes`` must not be asked about.
    """

    def __init__(self, record: Sequence[int], capacity_bytes: int) -> None:
        allocator = CachingAllocator(capacity_bytes, gives_back=False)
        replay = Replay(record, allocator)
        self._partings: list[tuple[int, Replay]] = []
        """Where more is reserved than ever before: how much, and the replay up to there."""
        while True:
            try:
                self.readings = replay.run()
                break
            except OutOfMemory:
                self._partings.append((allocator.refused, replay.on(None)))
                allocator.capacity_bytes, allocator.refused = allocator.refused, sys.maxsize
        self._known = [(allocator.served, sys.maxsize, True)]
        """Capacities from and below which all goes alike, and whether it fits."""

    def fits(self, capacity_bytes: int) -> bool:
        """Whether a card of ``capacity_bytes`` serves every request."""
        for served, refused, fits in self._known:
            if served <= capacity_bytes < refused:
                return fits
        replay = next(one for needed, one in self._partings if needed > capacity_bytes).on(capacity_bytes)
        try:
            replay.run()
            fits = True
        except OutOfMemory:
            fits = False
        self._known.append((replay.allocator.served, replay.allocator.refused, fits))
        return fits
