"""A phantom run's requests as PyTorch's caching allocator serves them (`trimtab.cost.allocator`)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from trimtab.cost.course import EMPTY, NOTE, RESET, Course, settling

CAPACITY_STEPS = 256
"""The smallest capacity is found to this share of what is allocated at the peak."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One allocation of a run: ticks of its birth and death on one clock, and the stream it was made on."""

    size: int
    """A multiple of the allocator's smallest block."""
    born: int
    died: int
    stream: str = ""


def record_of(
    requests: Iterable[Request],
    readings: Iterable[int],
    *,
    reset_at: int | None = None,
    cache_drops: Iterable[int] = (),
) -> list[int]:
    """``requests`` as a record for `Replay`, which ends with the last of the ``readings``.

    All others are ticks: when statistics are read, when the peaks start anew, and when the cache is emptied.
    What happens at one tick goes in the order of ends, births, readings, the reset, and the cache.
    """
    events: list[tuple[int, int, int, int]] = []
    streams: dict[str, int] = {}
    for index, request in enumerate(requests):
        if request.size:
            entry = request.size + streams.setdefault(request.stream, len(streams))
            events.append((request.born, 1, index, entry))
            events.append((request.died, 0, index, 0))
    events.extend((tick, 2, 0, NOTE) for tick in readings)
    if reset_at is not None:
        events.append((reset_at, 3, 0, RESET))
    events.extend((tick, 4, 0, EMPTY) for tick in cache_drops)
    events.sort()
    numbers: dict[int, int] = {}
    record, end = [], 0
    for _, kind, index, entry in events:
        if kind == 1:
            numbers[index] = len(numbers) + 1
        record.append(entry if kind else -numbers[index])
        if kind == 2:
            end = len(record)
    return record[:end]


def smallest_capacity(record: Sequence[int], low: int, *, step: int | None = None) -> int:
    """The least capacity that serves all of ``record`` and what `settling` adds, to ``step`` bytes.

    ``record`` is read where its last two steps begin, and at its end; ``low`` is where the search starts
    (what is allocated at the peak).
    """
    second, third, end = [place for place, entry in enumerate(record) if entry == NOTE]
    steps = settling(record[:end], second, third)
    course = Course(steps._replace(end=[*steps.end, NOTE]), low)
    high = max(reading.peak_reserved for reading in course.readings)
    step = low // CAPACITY_STEPS if step is None else step
    while high - low > step:
        middle = (low + high) // 2
        if course.fits(middle):
            high = middle
        else:
            low = middle
    return high
