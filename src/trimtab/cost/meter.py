"""Live bytes on a device: what is there, what it is, and the most there ever was."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple, Protocol

BLOCK_BYTES = 512

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
    """``product``, ``attention``, one of `COLLECTIVES`, or ``moving`` for what memory alone bounds."""
    moved: int
    """Bytes read and written; of a collective those of its whole tensor."""
    flops: int = 0
    shape: tuple[int, ...] = ()
    """Of a product: batch, rows, inner size, columns, and bytes of an element.  Of attention: batch x heads,
    queries, keys, width, and whether it is causal, drops out, has a mask."""


Work = Counter[Kernel]
"""How often each kernel ran."""


class Account(Protocol):
    """Whoever is told of storages and of work: a `Meter`, or a tape that a meter plays later."""

    work: Work

    def add(self, count: int, part: int, stream: int = 0) -> int:
        """``count`` bytes are taken as ``part``; the number returned stands for them."""

    def drop(self, count: int, part: int, number: int) -> None:
        """They end."""

    def move(self, count: int, part: int, new: int) -> None:
        """They count as another part from now on."""

    def layers(self, path: str, count: int) -> Iterator[int]:
        """The layers of a stack of ``count`` equal ones that are to be run."""

    def turn_to(self, place: object) -> None:
        """What follows belongs to ``place``: the present one when an operator was recorded."""

    place: object


class Meter:
    """Live bytes by part, with the peak since the last reset and what it was made of.

    ``record``, if there is one, lists every request and its end for `trimtab.cost.allocator.replay`.
    """

    __slots__ = (
        "live", "now", "parts", "peak", "peak_at", "peak_parts", "place", "record", "requests", "work",
    )  # fmt: skip

    def __init__(self, record: list[int] | None = None) -> None:
        self.record, self.requests = record, 0
        self.live = 0
        self.peak = 0
        self.parts = [0] * len(PARTS)
        self.peak_parts = list(self.parts)
        self.now = self.peak_at = 0
        """A moment, counted by whoever plays a tape, and that of the peak."""
        self.work: Work = Counter()
        self.place: object = None

    def add(self, count: int, part: int, stream: int = 0) -> int:
        """Count an allocation of ``count`` bytes, a multiple of `BLOCK_BYTES`; its request's number."""
        self.parts[part] += count
        self.live += count
        if self.live > self.peak:
            self.peak = self.live
            self.peak_parts = self.parts.copy()
            self.peak_at = self.now
        return 0 if self.record is None else self.request(count, stream)

    def drop(self, count: int, part: int, number: int = 0) -> None:
        """Count the end of ``count`` bytes."""
        self.parts[part] -= count
        self.live -= count
        if number and self.record is not None:
            self.record.append(-number)

    def move(self, count: int, part: int, new: int) -> None:
        """Count ``count`` bytes of ``part`` as ``new`` from now on."""
        self.parts[part] -= count
        self.parts[new] += count

    def request(self, size: int, stream: int = 0) -> int:
        """Record a request of ``size`` bytes and return its number, 0 where nothing is recorded."""
        if self.record is None or not size:
            return 0
        self.requests += 1
        self.record.append(size + stream)
        return self.requests

    def mark(self, kind: int) -> None:
        """Record one of the allocator's marks."""
        if self.record is not None:
            self.record.append(kind)

    def reset_peak(self) -> None:
        """Start a new peak from what is live."""
        self.peak = self.live
        self.peak_parts = self.parts.copy()
        self.peak_at = self.now

    def layers(self, path: str, count: int) -> Iterator[int]:
        """All of them."""
        return iter(range(count))

    def turn_to(self, place: object) -> None:
        """A meter does not ask what belongs where."""


class Recorder(Meter):
    """A meter that records, and does not ask what the bytes are."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__([])

    def add(self, count: int, part: int, stream: int = 0) -> int:
        """Record a request of ``count`` bytes; its number."""
        assert self.record is not None
        self.live += count
        if self.live > self.peak:
            self.peak = self.live
        if not count:
            return 0
        self.requests += 1
        self.record.append(count + stream)
        return self.requests

    def drop(self, count: int, part: int, number: int = 0) -> None:
        """Record its end."""
        self.live -= count
        if number and self.record is not None:
            self.record.append(-number)

    def move(self, count: int, part: int, new: int) -> None:
        """Nothing moves."""


class Storage:
    """Bytes on the device; they end when nothing refers to them any more."""

    __slots__ = ("account", "bytes", "number", "part")

    def __init__(self, account: Account, count: int, part: int, stream: int = 0) -> None:
        self.account, self.part = account, part
        self.bytes = (count + BLOCK_BYTES - 1) // BLOCK_BYTES * BLOCK_BYTES
        self.number = account.add(self.bytes, part, stream)

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
