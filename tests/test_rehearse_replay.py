"""A phantom's requests as a record, and the smallest capacity for it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from trimtab.cost.allocator import CachingAllocator, Reading
from trimtab.cost.course import EMPTY, NOTE, RESET, Replay
from trimtab.rehearse.replay import Request, record_of, smallest_capacity
from trimtab.units import MIB


def replay(record: list[int], capacity_bytes: int | None = None) -> list[Reading]:
    return Replay(CachingAllocator(capacity_bytes)).run(record)


def test_what_happens_at_one_tick_goes_ends_first_and_the_cache_last() -> None:
    requests = [Request(size=32 * MIB, born=1, died=4), Request(size=16 * MIB, born=4, died=99)]
    record = record_of(requests, [4, 6], reset_at=4, cache_drops=[4])
    assert record == [32 * MIB, -1, 16 * MIB, NOTE, RESET, EMPTY, NOTE]


def test_statistics_are_read_between_events_and_peaks_count_from_the_reset() -> None:
    requests = [Request(size=32 * MIB, born=1, died=4), Request(size=16 * MIB, born=5, died=99)]
    early, late = replay(record_of(requests, [2, 6], reset_at=4))
    assert (early.allocated, early.peak_allocated) == (32 * MIB, 32 * MIB)
    assert (late.allocated, late.peak_allocated) == (16 * MIB, 16 * MIB)
    assert late.peak_reserved == 32 * MIB


def test_streams_are_numbered_as_they_come_and_nothing_is_no_request() -> None:
    requests = [
        Request(size=512, born=1, died=99, stream="compute"),
        Request(size=0, born=2, died=99, stream="compute"),
        Request(size=1024, born=3, died=4, stream="side 1"),
        Request(size=512, born=5, died=99, stream="compute"),
    ]
    assert record_of(requests, [6]) == [512, 1024 + 1, -2, 512, NOTE]


def test_the_smallest_capacity_gives_cached_segments_back() -> None:
    requests = [
        Request(size=600 * MIB, born=1, died=2),
        Request(size=800 * MIB, born=3, died=4),
        Request(size=200 * MIB, born=5, died=6),
    ]
    record = record_of(requests, [-1, 0, 7])
    assert replay(record)[-1].reserved == 1400 * MIB
    assert smallest_capacity(record, 800 * MIB, step=MIB) <= 801 * MIB


def test_the_smallest_capacity_is_that_of_steps_to_come() -> None:
    """Each step keeps what it makes until the next has made the same: a third needs what no first did."""

    def steps(count: int) -> list[Request]:
        return [Request(size=300 * MIB, born=10 * at + 1, died=10 * at + 15) for at in range(count)]

    low = 300 * MIB
    two = smallest_capacity(record_of(steps(2), [0, 10, 20]), low, step=MIB)
    assert two == smallest_capacity(record_of(steps(9), [0, 80, 90]), low, step=MIB) == 600 * MIB


SIZES = st.integers(1, 160).map(lambda count: count * MIB // 2)


@given(st.lists(st.tuples(SIZES, st.integers(1, 20)), min_size=1, max_size=40))
def test_the_smallest_capacity_is_enough(made: list[tuple[int, int]]) -> None:
    requests = [
        Request(size=size, born=2 * at, died=2 * at + 2 * life + 1) for at, (size, life) in enumerate(made)
    ]
    record = record_of(requests, [-2, -1, 1000])
    reading = replay(record)[-1]
    found = smallest_capacity(record, reading.peak_allocated, step=MIB)
    assert reading.peak_allocated <= found <= reading.peak_reserved
    assert replay(record, found)[-1].peak_allocated <= found
