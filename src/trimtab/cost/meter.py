"""Live bytes on a device: what is there, what it is, and the most there ever was."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple, Protocol

from trimtab.cost.allocator import UNIT, Block, CachingAllocator, Reading
from trimtab.cost.course import EMPTY, NOTE, RESET

PARTS = (
    "parameters",
    "gradients",
    "master weights",
    "optimizer states",
    "buckets",
    "gathered parameters",
    "activations",
    "logits and loss",
    "temporaries",
)
COLLECTIVES = ("all_reduce", "all_gather", "all_to_all")
"""Kernels over the ranks that share a model's layers or a sample's tokens."""
PART = {name: index for index, name in enumerate(PARTS)}


class Kernel(NamedTuple):
    """A kernel as its time sees it: equal ones take equally long."""

    phase: str
    """``forward``, ``backward`` or ``recompute``."""
    name: str
    """``product``, ``attention``, one of `COLLECTIVES`, ``looked up`` for element-wise work on tensors that
    lie differently in memory, the name by which a probe measures it, or ``moving`` for the rest, which memory
    alone bounds."""
    moved: int
    """Bytes read and written; of a collective those of its whole tensor."""
    flops: int = 0
    shape: tuple[int, ...] = ()
    """Of a product: batch, rows, inner size, columns, and bytes of an element.  Of attention: batch x heads,
    queries, keys, width, and whether it is causal, drops out, has a mask.  Of a norm: rows and columns; of
    what is looked up: elements."""


class Work(Counter[Kernel]):
    """How often each kernel ran; known by its identity, so that what is summed over it is kept."""

    def __hash__(self) -> int:  # type: ignore[override]
        return id(self)


class Account(Protocol):
    """Whoever is told of storages and of work: a `Meter`, or a tape that a meter plays later."""

    work: Work

    def add(self, count: int, part: int, stream: int = 0) -> int:
        """``count`` bytes are taken as ``part``; the number returned stands for them."""

    def add_sum(self, count: int, part: int) -> int:
        """The same of a sum of gradients, which of equal layers only some may make."""

    def drop(self, count: int, part: int, number: int) -> None:
        """They end."""

    def move(self, count: int, part: int, new: int) -> None:
        """They count as another part from now on."""

    def product(self) -> None:
        """A product of matrices runs, and its output is there."""

    def layers(self, path: str, first: int, end: int) -> Iterator[int]:
        """Those that are to be run of the equal layers from ``first`` to before ``end`` at ``path``."""

    def turn_to(self, place: object) -> None:
        """What follows belongs to ``place``: the present one when an operator was recorded."""

    place: object


class Meter:
    """Live bytes by part, with the peak since the last reset and what it was made of."""

    __slots__ = (
        "live", "now", "parts", "peak", "peak_at", "peak_parts", "place", "work", "workspace_bytes",
    )  # fmt: skip

    def __init__(self) -> None:
        self.live = 0
        self.peak = 0
        self.parts = [0] * len(PARTS)
        self.peak_parts = list(self.parts)
        self.now = self.peak_at = 0
        """A moment, counted by whoever plays a tape, and that of the peak."""
        self.work = Work()
        self.place: object = None
        self.workspace_bytes = 0
        """What cuBLAS takes at a thread's first product; 0 where it has it."""

    def product(self) -> None:
        """Nothing of it counts; an allocator serves cuBLAS's workspace."""

    def add(self, count: int, part: int, stream: int = 0) -> int:
        """Count an allocation of ``count`` bytes, a multiple of `UNIT`; its request's number or 0."""
        self.parts[part] += count
        self.live += count
        if self.live > self.peak:
            self.peak = self.live
            self.peak_parts = self.parts.copy()
            self.peak_at = self.now
        return 0

    def add_sum(self, count: int, part: int) -> int:
        """The same."""
        return self.add(count, part)

    def drop(self, count: int, part: int, number: int = 0) -> None:
        """Count the end of ``count`` bytes."""
        self.parts[part] -= count
        self.live -= count

    def momentary(self, count: int, part: int, stream: int = 0) -> None:
        """Count ``count`` bytes that end as soon as they are there."""
        self.drop(count, part, self.add(count, part, stream))

    def move(self, count: int, part: int, new: int) -> None:
        """Count ``count`` bytes of ``part`` as ``new`` from now on."""
        self.parts[part] -= count
        self.parts[new] += count

    def mark(self, kind: int) -> None:
        """One of the allocator's marks, which mean nothing to bytes alone."""

    def reset_peak(self) -> None:
        """Start a new peak from what is live."""
        self.peak = self.live
        self.peak_parts = self.parts.copy()
        self.peak_at = self.now

    def layers(self, path: str, first: int, end: int) -> Iterator[int]:
        """All of them."""
        return iter(range(first, end))

    def turn_to(self, place: object) -> None:
        """A meter does not ask what belongs where."""


class RequestingMeter(Meter):
    """A meter of which an allocator hears; what a tape brings is not asked what it is (`take`, `give`)."""

    __slots__ = ("hidden",)
    sees_all = True
    """Whether it hears of everything, or in long stacks only of what outlives its layer."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = 0
        """Live bytes of which no allocator hears."""

    def take(self, count: int, moment: int) -> int:
        """As `add` for bytes that a tape brings; a peak is at ``moment`` then."""
        raise NotImplementedError

    def give(self, count: int, number: int) -> None:
        """As `drop` for bytes that a tape brought."""
        raise NotImplementedError

    def request(self, size: int, stream: int = 0) -> int:
        """A request for ``size`` bytes that count for nothing; its number, 0 for none."""
        raise NotImplementedError

    def product(self) -> None:
        """Request cuBLAS's workspace."""
        self.request(self.workspace_bytes)


class Recorder(RequestingMeter):
    """Counts nothing: writes down every request and its end for `trimtab.cost.course.Replay`."""

    __slots__ = ("record", "requests")

    def __init__(self) -> None:
        super().__init__()
        self.record: list[int] = []
        self.requests = 0

    def add(self, count: int, part: int, stream: int = 0) -> int:
        """Write down a request; its number."""
        return self.request(count, stream)

    def take(self, count: int, moment: int) -> int:
        """The same."""
        if not count:
            return 0
        self.requests += 1
        self.record.append(count)
        return self.requests

    def drop(self, count: int, part: int, number: int = 0) -> None:
        """Write down its end."""
        if number:
            self.record.append(-number)

    def give(self, count: int, number: int) -> None:
        """The same."""
        if number:
            self.record.append(-number)

    def request(self, size: int, stream: int = 0) -> int:
        """Write down a request; its number."""
        if not size:
            return 0
        self.requests += 1
        self.record.append(size + stream)
        return self.requests

    def mark(self, kind: int) -> None:
        """Write down one of a record's marks."""
        self.record.append(kind)


class AllocatingMeter(RequestingMeter):
    """A meter whose requests PyTorch's allocator serves at once, on a card without limit."""

    __slots__ = ("allocator", "blocks", "readings", "served_peak")
    sees_all = False

    def __init__(self) -> None:
        super().__init__()
        self.allocator = CachingAllocator()
        self.blocks: list[Block] = []
        """By request, less one."""
        self.readings: list[Reading] = []
        self.served_peak = 0
        """Of the live bytes that are not hidden."""

    def add(self, count: int, part: int, stream: int = 0) -> int:
        """Count and request ``count`` bytes; the request's number."""
        self.parts[part] += count
        live = self.live = self.live + count
        if live > self.peak or live - self.hidden > self.served_peak:
            self._rise(live, self.now)
        if not count:
            return 0
        self.blocks.append(self.allocator.take(count, stream))
        return len(self.blocks)

    def take(self, count: int, moment: int) -> int:
        """The same for bytes that a tape brings; a peak is at ``moment`` then."""
        live = self.live = self.live + count
        if live > self.peak or live - self.hidden > self.served_peak:
            self._rise(live, moment)
        if not count:
            return 0
        self.blocks.append(self.allocator.take(count))
        return len(self.blocks)

    def _rise(self, live: int, moment: int) -> None:
        if live > self.peak:
            self.peak = live
            self.peak_parts = self.parts.copy()
            self.peak_at = moment
        self.served_peak = max(self.served_peak, live - self.hidden)

    def momentary(self, count: int, part: int, stream: int = 0) -> None:
        """Count and request ``count`` bytes that end as soon as they are there."""
        live = self.live + count
        if live > self.peak or live - self.hidden > self.served_peak:
            self.parts[part] += count
            self._rise(live, self.now)
            self.parts[part] -= count
        if count:
            self.allocator.lend(count, stream)

    def drop(self, count: int, part: int, number: int = 0) -> None:
        """Count the end of ``count`` bytes, and give them back."""
        self.parts[part] -= count
        self.live -= count
        if number:
            self.allocator.give(self.blocks[number - 1])

    def give(self, count: int, number: int) -> None:
        """The same for bytes that a tape brought."""
        self.live -= count
        if number:
            self.allocator.give(self.blocks[number - 1])

    def request(self, size: int, stream: int = 0) -> int:
        """Take a block for ``size`` bytes that count for nothing; its number, 0 for none."""
        if not size:
            return 0
        self.blocks.append(self.allocator.take(size, stream))
        return len(self.blocks)

    def mark(self, kind: int) -> None:
        """Do what one of a record's marks says."""
        if kind == NOTE:
            self.readings.append(self.allocator.reading())
        elif kind == RESET:
            self.allocator.reset_peaks()
        elif kind == EMPTY:
            self.allocator.empty_cache()

    def reset_peak(self) -> None:
        """Start new peaks from what is live."""
        super().reset_peak()
        self.served_peak = self.live - self.hidden


class Storage:
    """Bytes on the device; they end when nothing refers to them any more."""

    __slots__ = ("account", "bytes", "number", "part")

    def __init__(self, account: Account, count: int, part: int, stream: int = 0) -> None:
        self.account, self.part = account, part
        self.bytes = size = count + -count % UNIT
        self.number = account.add(size, part, stream)

    @classmethod
    def summed(cls, account: Account, count: int, part: int) -> Storage:
        """A sum of gradients of ``count`` bytes, a multiple of `UNIT`."""
        return cls.adopted(account, count, part, account.add_sum(count, part))

    @classmethod
    def adopted(cls, account: Account, count: int, part: int, number: int) -> Storage:
        """Bytes that ``account`` already counts."""
        storage = cls.__new__(cls)
        storage.account, storage.bytes, storage.part, storage.number = account, count, part, number
        return storage

    def __del__(self) -> None:
        self.account.drop(self.bytes, self.part, self.number)

    def move(self, part: int) -> None:
        """Count these bytes as ``part`` from now on."""
        self.account.move(self.bytes, self.part, part)
        self.part = part
