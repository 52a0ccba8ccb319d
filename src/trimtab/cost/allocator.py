"""PyTorch's caching allocator for CUDA: what it takes from a card, and what its statistics show.

Tensors ask for bytes; the allocator hands out blocks cut from segments that it takes from the driver,
sometimes larger than asked, and keeps what is freed.  The rules are those of
``c10/cuda/CUDACachingAllocator.cpp`` in PyTorch 2.11 with its default settings (no ``max_split_size``, no
expandable segments).  A block that another stream used counts as free at once; on a GPU it waits for that
stream.
"""

from __future__ import annotations

import sys
from bisect import bisect_left, insort
from collections.abc import Mapping
from typing import NamedTuple

UNIT = 512  # kMinBlockSize: every request is rounded up to it
SMALL_REQUEST = 1 << 20  # kSmallSize: the largest request of the small pool
SMALL_SEGMENT = 2 << 20  # kSmallBuffer
LARGE_SEGMENT = 20 << 20  # kLargeBuffer: for requests below LARGE_REQUEST
LARGE_REQUEST = 10 << 20  # kMinLargeAlloc: from here on a request gets a segment of its own
LARGE_UNIT = 2 << 20  # kRoundLarge
LARGE_REST = SMALL_REQUEST + 1  # should_split: what must be left of a large block for it to be cut

STREAMS = 64
"""A request's low bits tell its stream: torch has pools of 32 at two priorities (c10/cuda/CUDAStream.cpp)."""
WORKSPACE_BYTES = {True: 32 << 20, False: (4096 * 2 + 16 * 8) << 10}
"""What one cuBLAS handle takes at its first product, on Hopper and later, and before.

aten/src/ATen/cuda/CublasHandlePool.cpp, ``parseChosenWorkspaceSize``.  The forward and the backward pass run
in threads of their own, and each has a handle.
"""


Layout = tuple[tuple[int, int, bool, int | None], ...]
"""Blocks pool by pool in the order of their addresses: pool, size, whether a segment begins with it, and a
number, None of a free one.  What an allocator does next depends on nothing else, and its capacity."""


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

    @property
    def is_whole(self) -> bool:
        """Whether it is all of its segment."""
        return self.before is None and self.after is None


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
            whole = [entry for entry in free if entry[2].is_whole]
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

    def layout(self, taken: Mapping[int, Block]) -> Layout:
        """Every block in order, with the number that it has in ``taken``."""
        every: list[tuple[int | None, Block]] = [(None, block) for free in self._free for _, _, block in free]
        every += taken.items()
        ordered = sorted(
            (one.pool, one.address, one.size, one.before is None, number) for number, one in every
        )
        return tuple([(pool, size, first, number) for pool, _, size, first, number in ordered])

    @classmethod
    def laid_out(cls, layout: Layout, capacity_bytes: int) -> tuple[CachingAllocator, dict[int, Block]]:
        """One on a card of ``capacity_bytes`` in which all lies so, and its taken blocks by their numbers."""
        found, taken = cls(capacity_bytes), {}
        found.reserved = found.used = sum(size for _, size, _, _ in layout)
        found._address = address = -found.reserved
        last: Block | None = None
        for pool, size, first, number in layout:
            block = Block(size, pool, address, None if first else last, free=number is None)
            if block.before is not None:
                block.before.after = block
            if number is None:
                found._free[pool].append((size, address, block))
            else:
                taken[number] = block
                found.allocated += size
            address, last = address + size, block
        for free in found._free:
            free.sort()
            found.used -= sum(size for size, _, block in free if block.is_whole)
        found.reset_peaks()
        return found, taken

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
