"""The replay of the caching allocator."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.rehearse.allocator import CachingAllocator, CapacityError, Request, replay
from trimtab.units import MIB


def test_a_small_request_takes_a_whole_unit_of_a_small_segment() -> None:
    allocator = CachingAllocator()
    allocator.take(1)
    assert (allocator.allocated, allocator.reserved) == (512, 2 * MIB)


@pytest.mark.parametrize(
    ("asked", "segment"),
    [
        (MIB, 2 * MIB),
        (MIB + 1, 20 * MIB),
        (10 * MIB, 10 * MIB),
        (11 * MIB, 12 * MIB),
        (20 * MIB + 1, 22 * MIB),
    ],
)
def test_segments_follow_the_size_that_is_asked(asked: int, segment: int) -> None:
    allocator = CachingAllocator()
    allocator.take(asked)
    assert allocator.reserved == segment


def test_a_rest_of_a_mebibyte_stays_with_the_block() -> None:
    allocator = CachingAllocator()
    allocator.take(11 * MIB)  # a segment of 12 MiB
    assert allocator.allocated == 12 * MIB
    allocator.take(19 * MIB - 512)  # a segment of 20 MiB: more than a mebibyte is left
    assert allocator.allocated == 31 * MIB - 512


def test_a_freed_block_joins_its_neighbours_and_is_used_again() -> None:
    allocator = CachingAllocator()
    blocks = [allocator.take(4 * MIB) for _ in range(5)]
    assert allocator.reserved == 20 * MIB
    for block in blocks:
        allocator.give(block)
    allocator.take(19 * MIB)
    assert (allocator.allocated, allocator.reserved) == (20 * MIB, 20 * MIB)


def test_streams_do_not_share_blocks() -> None:
    allocator = CachingAllocator()
    allocator.give(allocator.take(16 * MIB, "compute"))
    allocator.take(16 * MIB, "side")
    assert allocator.reserved == 32 * MIB


def test_a_full_device_gives_cached_segments_back_before_it_fails() -> None:
    allocator = CachingAllocator(capacity_bytes=40 * MIB)
    allocator.give(allocator.take(30 * MIB))
    allocator.take(36 * MIB)
    assert allocator.reserved == 36 * MIB
    with pytest.raises(CapacityError, match="of 41943040 reserved"):
        allocator.take(16 * MIB)


def test_replay_reads_between_events_and_counts_peaks_from_the_reset() -> None:
    requests = [
        Request(size=32 * MIB, born=1, died=4),
        Request(size=16 * MIB, born=5, died=99),
    ]
    early, late = replay(requests, [2, 6], reset_at=4)
    assert (early.allocated_bytes, early.peak_allocated_bytes) == (32 * MIB, 32 * MIB)
    assert (late.allocated_bytes, late.peak_allocated_bytes) == (16 * MIB, 16 * MIB)
    assert late.peak_reserved_bytes == 32 * MIB


@given(st.lists(st.tuples(st.integers(1, 64 * MIB), st.booleans()), max_size=60))
def test_what_is_given_back_adds_up(steps: list[tuple[int, bool]]) -> None:
    allocator = CachingAllocator()
    held = []
    for size, give in steps:
        held.append((allocator.take(size), size))
        if give:
            allocator.give(held.pop(len(held) // 2)[0])
        assert sum(size for _, size in held) <= allocator.allocated <= allocator.reserved
    for block, _ in held:
        allocator.give(block)
    allocator.give_back_cached()
    assert (allocator.allocated, allocator.reserved) == (0, 0)
