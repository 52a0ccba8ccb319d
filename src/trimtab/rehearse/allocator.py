"""PyTorch's caching allocator for CUDA, replayed: what it hands out, and what it takes from the driver.

Tensors ask for bytes; the allocator hands out blocks cut from segments, sometimes larger than asked, and
keeps freed ones.  The rules are those of ``c10/cuda/CUDACachingAllocator.cpp`` (torch 2.11, its defaults).
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterable
from dataclasses import dataclass

UNIT = 512  # kMinBlockSize
SMALL = 1 << 20  # kSmallSize: largest request of the small pool
SMALL_SEGMENT = 2 << 20  # kSmallBuffer
LARGE_SEGMENT = 20 << 20  # kLargeBuffer
LARGE_REQUEST = 10 << 20  # kMinLargeAlloc: requests from here on get a segment of their own
LARGE_UNIT = 2 << 20  # kRoundLarge


class _Block:
    __slots__ = ("after", "before", "free", "pool", "serial", "size")

    def __init__(self, size: int, pool: tuple[str, bool], serial: int) -> None:
        self.size, self.pool, self.serial = size, pool, serial
        self.before: _Block | None = None
        self.after: _Block | None = None
        self.free = True


class CapacityError(Exception):
    """The capacity is too small, even after giving cached segments back."""


class CachingAllocator:
    """One device's allocator, with a capacity or without."""

    def __init__(self, capacity_bytes: int | None = None) -> None:
        self.capacity_bytes = capacity_bytes
        self.allocated = self.peak_allocated = 0
        self.reserved = self.peak_reserved = 0
        self._free: dict[tuple[str, bool], list[tuple[int, int, _Block]]] = {}
        self._serial = 0

    def take(self, size: int, stream: str = "") -> _Block:
        """A block of at least ``size`` bytes.

        Raises:
            CapacityError: no free block fits and no segment may be added.
        """
        size = max(UNIT, -(-size // UNIT) * UNIT)
        pool = (stream, size <= SMALL)
        free = self._free.setdefault(pool, [])
        place = bisect.bisect_left(free, (size, 0))
        block = free.pop(place)[2] if place < len(free) else self._segment(size, pool)
        left = block.size - size
        if left >= UNIT if pool[1] else left > SMALL:
            rest = self._new(left, pool)
            rest.before, rest.after = block, block.after
            if block.after is not None:
                block.after.before = rest
            block.after, block.size = rest, size
            self._put(rest)
        block.free = False
        self.allocated += block.size
        self.peak_allocated = max(self.peak_allocated, self.allocated)
        return block

    def give(self, block: _Block) -> None:
        """Return ``block``; it joins its free neighbours."""
        self.allocated -= block.size
        for other in (block.before, block.after):
            if other is not None and other.free:
                self._remove(other)
                first, second = (other, block) if other is block.before else (block, other)
                first.size += second.size
                first.after = second.after
                if second.after is not None:
                    second.after.before = first
                block = first
        block.free = True
        self._put(block)

    def reset_peaks(self) -> None:
        """Start counting peaks from now."""
        self.peak_allocated, self.peak_reserved = self.allocated, self.reserved

    def give_back_cached(self) -> None:
        """``torch.cuda.empty_cache``: segments with nothing in them go back to the driver."""
        for free in self._free.values():
            for entry in list(free):
                block = entry[2]
                if block.before is None and block.after is None:
                    free.remove(entry)
                    self.reserved -= block.size

    def _segment(self, size: int, pool: tuple[str, bool]) -> _Block:
        if pool[1]:
            segment = SMALL_SEGMENT
        elif size < LARGE_REQUEST:
            segment = LARGE_SEGMENT
        else:
            segment = -(-size // LARGE_UNIT) * LARGE_UNIT
        if self.capacity_bytes is not None and self.reserved + segment > self.capacity_bytes:
            self.give_back_cached()
            if self.reserved + segment > self.capacity_bytes:
                raise CapacityError(
                    f"{segment} bytes wanted, {self.reserved} of {self.capacity_bytes} reserved, "
                    f"{self.allocated} allocated"
                )
        self.reserved += segment
        self.peak_reserved = max(self.peak_reserved, self.reserved)
        return self._new(segment, pool)

    def _new(self, size: int, pool: tuple[str, bool]) -> _Block:
        self._serial += 1
        return _Block(size, pool, self._serial)

    def _put(self, block: _Block) -> None:
        bisect.insort(self._free[block.pool], (block.size, block.serial, block))

    def _remove(self, block: _Block) -> None:
        free = self._free[block.pool]
        free.pop(bisect.bisect_left(free, (block.size, block.serial)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One allocation of a run: ticks of its birth and death on one clock, and the stream it was made on."""

    size: int
    born: int
    died: int
    stream: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What the allocator's statistics show at one tick; peaks since the last reset."""

    allocated_bytes: int
    peak_allocated_bytes: int
    reserved_bytes: int
    peak_reserved_bytes: int


def smallest_capacity(run: Callable[[int], object], low: int, high: int, *, step: int = 64 << 20) -> int:
    """The least capacity at which ``run(capacity)`` raises no `CapacityError`, to ``step`` bytes.

    ``high`` must be enough; ``low`` is where the search starts (what is allocated at the peak).
    """
    while high - low > step:
        middle = (low + high) // 2
        try:
            run(middle)
        except CapacityError:
            low = middle
        else:
            high = middle
    return high


def replay(
    requests: Iterable[Request],
    readings: Iterable[int],
    *,
    reset_at: int | None = None,
    cache_drops: Iterable[int] = (),
    capacity_bytes: int | None = None,
) -> list[Reading]:
    """Replay ``requests`` and read the statistics at each tick of ``readings`` (ascending).

    Raises:
        CapacityError: a request does not fit in ``capacity_bytes``.
    """
    allocator = CachingAllocator(capacity_bytes)
    blocks: dict[int, _Block] = {}
    events: list[tuple[int, int, int, Request | None]] = []
    for index, request in enumerate(requests):
        if request.size:
            events.append((request.born, 1, index, request))
            events.append((request.died, 0, index, None))
    marks = list(readings)
    events.extend((tick, 2, place, None) for place, tick in enumerate(marks))
    events.extend((tick, 4, 0, None) for tick in cache_drops)
    if reset_at is not None:
        events.append((reset_at, 3, 0, None))
    events.sort(key=lambda event: event[:3])
    read: list[Reading] = []
    for _, kind, index, asked in events:
        if asked is not None:
            blocks[index] = allocator.take(asked.size, asked.stream)
        elif kind == 0:
            allocator.give(blocks.pop(index))
        elif kind == 3:
            allocator.reset_peaks()
        elif kind == 4:
            allocator.give_back_cached()
        else:
            read.append(
                Reading(
                    allocated_bytes=allocator.allocated,
                    peak_allocated_bytes=allocator.peak_allocated,
                    reserved_bytes=allocator.reserved,
                    peak_reserved_bytes=allocator.peak_reserved,
                )
            )
            if len(read) == len(marks):
                break
    return read
