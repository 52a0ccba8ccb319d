"""What a configuration lacks, found out no further than it is asked about."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from trimtab.cost.need import Need

T = TypeVar("T")
ENDLESS = 1 << 62
"""More bytes than anything has."""


class AtLeast(Need):
    """Bytes of which there are at least so many; they are counted once somebody asks for more."""

    def __init__(self, least: float, count: Callable[[], float]) -> None:
        self._least, self._count = least, count
        self._counted: float | None = None

    @property
    def expected(self) -> float:
        """As counted."""
        if self._counted is None:
            self._counted = self._count()
        return self._counted

    @property
    def within(self) -> tuple[float, float]:
        """The least, and no end before they are counted."""
        return (self._least, ENDLESS) if self._counted is None else (self._counted, self._counted)

    def narrow(self) -> None:
        """Count."""
        self._counted = self.expected


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Shortfall:
    """Bytes that a configuration needs of something, and what is there."""

    where: str
    there: int
    close: bool = False
    """Whether the tensors would fit, and only the allocator's losses or the certainty asked for do not."""
    need: Need
    """What is known, and how much closer it may be known."""
    needing: Callable[[float], int]
    """`needed` by what is expected; the more the more."""
    lacking: Callable[[float], int]
    """`lack` by the same."""

    @property
    def needed(self) -> int:
        """Bytes that it needs."""
        return self.needing(self.need.expected)

    @property
    def lack(self) -> int:
        """By how much less it would fit, with the probability asked for."""
        return self.lacking(self.need.expected)

    @property
    def least_lack(self) -> int:
        """`lack` or less: what is known of it."""
        return self.lacking(self.need.within[0])

    def by_lack(self, decide: Callable[[int], T]) -> T:
        """``decide(lack)``, where that rises with it and changes in steps."""
        return self.need.decided(lambda expected: decide(self.lacking(expected)))


class Needed:
    """What is needed, in units of ``each`` bytes, to be put in order: known as closely as the others ask."""

    def __init__(self, short: Shortfall, each: int = 1) -> None:
        self._short, self._each = short, each

    def __lt__(self, other: Needed) -> bool:
        while True:
            (low, high), (others_low, others_high) = self._within(), other._within()
            if high < others_low:
                return True
            if low >= others_high:
                return False
            closer = self if high - low >= others_high - others_low else other
            closer._short.need.narrow()

    def __eq__(self, other: object) -> bool:
        assert isinstance(other, Needed)
        return self._short is other._short or not (self < other or other < self)

    def _within(self) -> tuple[float, float]:
        low, high = (self._short.needing(expected) / self._each for expected in self._short.need.within)
        return low, high


def share(short: Shortfall) -> Needed:
    """What is needed over what is there."""
    return Needed(short, short.there)


def lacking(where: str, needed: int, there: int) -> Shortfall:
    """The shortfall of what is counted without a replay."""
    return Shortfall(
        where=where,
        there=there,
        need=Need(needed, ()),
        needing=int,
        lacking=lambda needed: int(needed) - there,
    )
