"""Memory over the measured step: what was alive, by part, from its first allocation to its last."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from trimtab.rehearse.request import Course

if TYPE_CHECKING:
    from trimtab.rehearse.ledger import Allocation

POINTS = 160
"""Spans that the step is cut into; each shows its highest instant, so no peak is lost."""


def course(
    allocations: Iterable[Allocation],
    part_of: Callable[[Allocation], str],
    *,
    first: int,
    last: int,
    borders: Sequence[tuple[str, int]],
    points: int = POINTS,
) -> Course:
    """The device's memory between the ticks ``first`` and ``last`` of the ledger's clock.

    ``borders`` are the phases with the tick at which each begins.  Ticks are allocations and their ends, not
    time: a phantom has none.
    """
    changes: list[tuple[int, str, int]] = []
    alive: dict[str, int] = {}
    for one in allocations:
        if one.host or one.died <= first or one.born > last:
            continue
        part = part_of(one)
        if one.born <= first:
            alive[part] = alive.get(part, 0) + one.size
        else:
            changes.append((one.born, part, one.size))
        if one.died <= last:
            changes.append((one.died, part, -one.size))
    changes.sort(key=lambda change: change[0])
    spans = max(1, min(points, last - first))
    rows: list[dict[str, int]] = []
    position, total = 0, sum(alive.values())
    for span in range(spans):
        end = first + (last - first) * (span + 1) // spans
        highest, most = dict(alive), total
        while position < len(changes) and changes[position][0] <= end:
            _, part, size = changes[position]
            alive[part] = alive.get(part, 0) + size
            total += size
            position += 1
            if total > most:
                highest, most = dict(alive), total
        rows.append(highest)
    names = tuple(dict.fromkeys(name for row in rows for name in row))
    width = max(1, last - first)
    return Course(
        parts=names,
        rows=tuple(tuple(row.get(name, 0) for name in names) for row in rows),
        phases=tuple((name, max(0.0, (tick - first) / width)) for name, tick in borders),
    )
