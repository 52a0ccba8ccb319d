"""What is shown of a cluster: the best of every family that fits, and of each other what it lacks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from trimtab.plan.contender import TIE, Contender, Loser
from trimtab.plan.search import Field
from trimtab.plan.shortfall import Needed, share


class Rows(NamedTuple):
    """What fits, the fastest first, and what does not, the leanest first."""

    fitting: Sequence[Contender]
    losers: Sequence[Loser]


def rows(field: Field) -> Rows:
    """The fastest that fits of each family, and for each family without one what the smallest lacks."""
    fitting: list[Contender] = []
    losers: list[Loser] = []
    for members in _families(field):
        best = _likely(field, members) or _fitting(field, members)
        lost = None if best is not None else _least(field, members)
        if best is not None:
            fitting.append(best)
        elif lost is not None:
            losers.append(lost)
    losers += field.impossible()
    fitting += field.partial()
    fitting.sort(key=lambda one: (one.careful_seconds, one.family.complexity))
    losers.sort(key=lambda one: share(one.shortfall))
    return Rows(fitting, losers)


def _families(field: Field) -> Iterable[Sequence[Contender]]:
    """The members of each family, the fastest first."""
    found: dict[tuple[str, ...], list[Contender]] = {}
    for one in field.every():
        found.setdefault(one.family.name, []).append(one)
    return found.values()


def _likely(field: Field, members: Sequence[Contender]) -> Contender | None:
    """The simplest of those that are likely to fit and as fast as the fastest."""
    close: list[Contender] = []
    for one in members:
        if close and one.careful_seconds > close[0].careful_seconds * (1 + TIE):
            break
        fit = field.likely(one)
        if fit is not None:
            close.append(fit)
    return min(close, key=field.preference, default=None)


def _fitting(field: Field, members: Sequence[Contender]) -> Contender | None:
    """The fastest that fits, the allocator replayed.

    What the smallest lacks the others lack, so that comes first, unless a quick replay finds room for it.
    """
    for line in {one.line: None for one in members}:
        first, second = field.smallest(line)
        if second is not None and not field.may_fit(first):
            field.fitting(first)
    return next((fit for one in members if (fit := field.fitting(one)) is not None), None)


def _least(field: Field, members: Sequence[Contender]) -> Loser | None:
    """The one that needs the least, and what it lacks."""
    lost = [(short, one) for one in members if (short := field.shortfall(one)) is not None]
    short, least = min(lost, key=lambda lost: (Needed(lost[0]), lost[1].micro), default=(None, None))
    return None if short is None or least is None else Loser(contender=least, shortfall=short)
