"""PyTorch's caching allocator: its rules by hand, and what must hold whatever is asked of it."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.cost.allocator import LARGE_SEGMENT, SMALL_SEGMENT, Block, CachingAllocator, OutOfMemory

KIB, MIB = 2**10, 2**20


def test_small_requests_share_a_segment_and_are_cut_exactly() -> None:
    allocator = CachingAllocator()
    blocks = [allocator.take(512), allocator.take(MIB)]
    assert (allocator.allocated, allocator.reserved) == (MIB + 512, SMALL_SEGMENT)
    assert [block.size for block in blocks] == [512, MIB]


@pytest.mark.parametrize(
    ("size", "reserved"),
    [(MIB + 512, LARGE_SEGMENT), (10 * MIB, 10 * MIB), (11 * MIB, 12 * MIB), (33 * MIB - 512, 34 * MIB)],
)
def test_large_requests_get_segments_by_size(size: int, reserved: int) -> None:
    allocator = CachingAllocator()
    allocator.take(size)
    assert allocator.reserved == reserved


def test_a_large_block_is_cut_only_if_more_than_a_mebibyte_would_remain() -> None:
    allocator = CachingAllocator()
    assert allocator.take(11 * MIB).size == 12 * MIB
    assert allocator.take(13 * MIB - 512).size == 13 * MIB - 512
    assert allocator.allocated == 25 * MIB - 512


def test_freed_neighbours_join_and_are_used_again() -> None:
    allocator = CachingAllocator()
    first, second, third = (allocator.take(5 * MIB) for _ in range(3))
    assert allocator.reserved == LARGE_SEGMENT
    allocator.give(first)
    allocator.give(second)
    assert allocator.take(9 * MIB).address == -LARGE_SEGMENT
    allocator.give(third)
    assert allocator.reserved == LARGE_SEGMENT


def test_the_smallest_block_that_fits_is_taken() -> None:
    allocator = CachingAllocator()
    large, small = allocator.take(40 * MIB), allocator.take(20 * MIB)
    allocator.give(large)
    allocator.give(small)
    assert allocator.take(18 * MIB).address == -60 * MIB


def test_a_later_segment_has_a_lower_address() -> None:
    """So that of equal free blocks the one in the segment that came last is taken."""
    allocator = CachingAllocator()
    first, second = allocator.take(40 * MIB), allocator.take(40 * MIB)
    addresses = (first.address, second.address)
    allocator.give(first)
    allocator.give(second)
    assert allocator.take(40 * MIB).address == min(addresses) == addresses[1]


def test_of_equal_blocks_the_one_at_the_lowest_address_is_taken() -> None:
    """BlockComparatorSize in CUDACachingAllocator.cpp; which was cut last does not matter."""
    allocator = CachingAllocator()
    first, _, second, _ = (allocator.take(4 * MIB) for _ in range(4))
    allocator.give(second)
    allocator.give(first)
    third, fourth = (allocator.take(4 * MIB) for _ in range(2))
    assert (third.address, fourth.address) == (-LARGE_SEGMENT, 8 * MIB - LARGE_SEGMENT)


def test_streams_have_pools_of_their_own() -> None:
    allocator = CachingAllocator()
    allocator.give(allocator.take(40 * MIB, 0))
    allocator.take(40 * MIB, 1)
    assert allocator.reserved == 80 * MIB


def test_cached_segments_go_back_before_memory_runs_out() -> None:
    allocator = CachingAllocator(100 * MIB)
    allocator.give(allocator.take(60 * MIB, 1))
    allocator.take(60 * MIB, 0)
    assert allocator.reserved == 60 * MIB
    with pytest.raises(OutOfMemory, match="62914560 allocated"):
        allocator.take(60 * MIB, 0)


@given(st.randoms(use_true_random=False))
def test_lending_is_taking_and_giving_back(dice: random.Random) -> None:
    one, other = CachingAllocator(), CachingAllocator()
    held = []
    for _ in range(60):
        size = 512 * int(2 ** dice.uniform(0, 16))
        if held and dice.random() < 0.4:
            mine, theirs = held.pop(dice.randrange(len(held)))
            one.give(mine)
            other.give(theirs)
        elif dice.random() < 0.5:
            held.append((one.take(size), other.take(size)))
        else:
            one.lend(size)
            other.give(other.take(size))
        assert one.reading() == other.reading()
        assert [mine.address for mine, _ in held] == [theirs.address for _, theirs in held]


@given(st.randoms(use_true_random=False))
def test_one_laid_out_as_another_goes_on_as_that_does(dice: random.Random) -> None:
    one = CachingAllocator(400 * MIB)
    held: dict[int, Block] = {}

    def either(number: int, allocator: CachingAllocator, held: dict[int, Block], size: int) -> None:
        if size:
            held[number] = allocator.take(size, number % 3)
        else:
            allocator.give(held.pop(number))

    def some(first: int) -> list[tuple[int, int]]:
        steps, live = [], list(held)
        for number in range(first, first + 30):
            if live and dice.random() < 0.5:
                steps.append((live.pop(dice.randrange(len(live))), 0))
            else:
                steps.append((number, 512 * int(2 ** dice.uniform(0, 14))))
        return steps

    for number, size in some(1):
        either(number, one, held, size)
    other, twins = CachingAllocator.laid_out(one.layout(held), 400 * MIB)
    one.reset_peaks()
    assert (other.reading(), other.layout(twins)) == (one.reading(), one.layout(held))
    for number, size in some(100):
        either(number, one, held, size)
        either(number, other, twins, size)
        assert (other.reading(), other.layout(twins)) == (one.reading(), one.layout(held))
