"""PyTorch's caching allocator, replayed: its rules by hand, and what must hold for any record."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.config import Config
from trimtab.cost.allocator import (
    AGAIN,
    EMPTY,
    FLATTEN,
    LARGE_SEGMENT,
    NOTE,
    RESET,
    SMALL_SEGMENT,
    WORKSPACE_BYTES,
    Block,
    CachingAllocator,
    Course,
    OutOfMemory,
    Reading,
    Replay,
)
from trimtab.cost.memory import profile
from trimtab.model import Model

KIB, MIB = 2**10, 2**20


def fresh(record: list[int], capacity_bytes: int | None = None) -> Replay:
    return Replay(record, CachingAllocator(capacity_bytes))


def replay(record: list[int], capacity_bytes: int | None = None) -> list[Reading]:
    return fresh(record, capacity_bytes).run()


def outcome(one: Replay) -> list[Reading] | None:
    try:
        return one.run()
    except OutOfMemory:
        return None


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


def test_a_record_is_replayed() -> None:
    record = [40 * MIB, NOTE, -1, 20 * MIB, RESET, 10 * MIB + 1, NOTE, -2, -3, EMPTY, NOTE]
    before, during, after = replay(record)
    assert (before.allocated, before.reserved) == (40 * MIB, 40 * MIB)
    assert (during.peak_allocated, during.peak_reserved) == (30 * MIB, 50 * MIB)
    assert (after.allocated, after.reserved) == (0, 0)


def test_what_does_not_fit_twice_is_flattened_on_the_host() -> None:
    record = [30 * MIB, 30 * MIB, FLATTEN, 60 * MIB, -1, -2, 2 * MIB, NOTE]
    assert replay(record)[0].peak_allocated == 120 * MIB
    assert replay(record, 100 * MIB)[0].peak_allocated == 62 * MIB
    with pytest.raises(OutOfMemory):
        replay(record, 70 * MIB)


def test_a_course_tells_what_a_whole_replay_on_each_card_would() -> None:
    record = [30 * MIB, 40 * MIB, -1, 2 * MIB, 35 * MIB, -2, -4, 60 * MIB, 3 * MIB, -3, -5, 5 * MIB, NOTE]
    course = Course(record, 70 * MIB)
    found = [course.fits(size) for size in range(70 * MIB, 200 * MIB, MIB)]
    assert found == [outcome(fresh(record, size)) is not None for size in range(70 * MIB, 200 * MIB, MIB)]
    assert {False, True} == set(found)
    assert course.readings == replay(record)


def test_a_course_parts_at_a_request_that_may_go_to_the_host() -> None:
    record = [30 * MIB, 30 * MIB, FLATTEN, 60 * MIB, -1, -2, 2 * MIB, NOTE]
    course = Course(record, 60 * MIB)
    for size in (61, 70, 83, 84, 100, 120, 122):
        assert course.fits(size * MIB) == (outcome(fresh(record, size * MIB)) is not None)


def replays_of(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Where each replay from here on begins in its record."""
    begins: list[int] = []
    run = Replay.run

    def counted(self: Replay) -> list[Reading]:
        begins.append(self._at)
        return run(self)

    monkeypatch.setattr(Replay, "run", counted)
    return begins


def test_capacities_among_which_nothing_differs_share_a_replay(monkeypatch: pytest.MonkeyPatch) -> None:
    course = Course([60 * MIB, -1, 80 * MIB, NOTE], 80 * MIB)
    assert course.readings[0].reserved == 140 * MIB
    begins = replays_of(monkeypatch)
    assert all(course.fits(size * MIB) for size in range(80, 200))
    assert begins == [2]


def test_a_replay_starts_where_cards_part(monkeypatch: pytest.MonkeyPatch) -> None:
    record = [50 * MIB, -1, 60 * MIB, -2, 80 * MIB, -3, NOTE]
    course = Course(record, 80 * MIB)
    begins = replays_of(monkeypatch)
    assert course.fits(120 * MIB)
    assert course.fits(80 * MIB)
    assert begins == [4, 2]


STEP = [20 * MIB, 3 * MIB, -1, NOTE, 5 * MIB, -2, -3, NOTE]


def steps(times: int, marked: bool) -> list[int]:
    """A step again and again, with marks or without."""
    found: list[int] = []
    for turn in range(times):
        found += [AGAIN] * marked
        found += [entry - 3 * turn if entry < 0 else entry for entry in STEP]
    return found


def test_a_step_that_leaves_all_as_it_found_it_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    take = CachingAllocator.take

    def counted(self: CachingAllocator, size: int, stream: int = 0) -> Block:
        taken.append(size)
        return take(self, size, stream)

    monkeypatch.setattr(CachingAllocator, "take", counted)
    once = replay(steps(9, marked=True))
    assert len(taken) == 6  # the second finds a cache where the first found none
    assert once[-2:] == replay(steps(9, marked=False))[-2:]


@given(st.lists(st.tuples(st.integers(1, 40_000), st.integers(0, 30)), min_size=1, max_size=25))
def test_repeated_steps_are_read_as_if_all_were_made(made: list[tuple[int, int]]) -> None:
    """Requests of a step that live for some entries, or on into the next step."""
    count, times = len(made), 5
    ends: dict[int, list[int]] = {}
    for turn in range(times):
        for index, (_, life) in enumerate(made):
            ends.setdefault(turn * count + min(index + life, index + count - 1), []).append(
                turn * count + index + 1
            )
    plain, marked = [], []
    for turn in range(times):
        step = []
        for index, (size, _) in enumerate(made):
            step += [512 * size, *(-number for number in ends.get(turn * count + index, ()))]
        plain += [*step, NOTE]
        marked += ([AGAIN] if turn else []) + [*step, NOTE]
    highest = replay(plain)[-1]
    assert replay(marked)[-1] == highest
    for share in (8, 9, 10):
        capacity = highest.peak_allocated + (highest.peak_reserved - highest.peak_allocated) * share // 10
        mine, theirs = outcome(fresh(marked, capacity)), outcome(fresh(plain, capacity))
        assert (mine and mine[-1]) == (theirs and theirs[-1])


SIZES = st.integers(1, 80_000).map(lambda units: 512 * units)


@given(st.lists(SIZES, min_size=1, max_size=60), st.integers(0, 2**32))
def test_statistics_hold_for_any_record(sizes: list[int], seed: int) -> None:
    pick = random.Random(seed)
    record: list[int] = []
    live: dict[int, int] = {}
    for number, size in enumerate(sizes, 1):
        record.append(size + pick.randrange(3))
        live[number] = size
        while live and pick.random() < 0.4:
            gone = pick.choice(list(live))
            del live[gone]
            record.append(-gone)
    reading = replay([*record, NOTE])[0]
    asked = sum(live.values())
    assert asked <= reading.allocated <= asked + MIB * len(live)
    assert reading.allocated <= reading.reserved <= reading.peak_reserved
    assert reading.peak_allocated <= reading.peak_reserved
    everything = replay([*record, *(-number for number in live), EMPTY, NOTE])[0]
    assert everything.allocated == everything.reserved == 0
    assert replay([*record, NOTE], reading.peak_reserved)[0] == reading


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


def small_job(stage: int) -> tuple[Config, Model]:
    config = Config.from_mapping(
        {
            "train_micro_batch_size_per_gpu": 2,
            "zero_optimization": {"stage": stage, "reduce_bucket_size": 2_000_000},
            "bf16": {"enabled": True},
            "optimizer": {"type": "AdamW", "params": {"lr": 1e-4}},
            "trimtab": {"sequence_length": 512},
        }
    )
    hf = {
        "model_type": "llama",
        "hidden_size": 512,
        "intermediate_size": 1408,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "vocab_size": 8000,
    }
    return config, Model.from_hf(hf, "small")


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_profile_with_the_allocator_is_the_same_and_more(stage: int) -> None:
    config, model = small_job(stage)
    plain, full = profile(config, model, 4), profile(config, model, 4, allocator=True)
    assert (plain.peak, plain.live, plain.work) == (full.peak, full.live, full.work)
    assert plain.readings == {}
    assert set(full.readings) == {"init", "forward", "backward", "step"}
    slack = full.allocated_peak - full.peak - 2 * WORKSPACE_BYTES[True]
    assert 0 <= slack < full.peak // 5
    assert full.reserved_peak >= full.allocated_peak
    smaller = profile(config, model, 4, allocator=True, workspace_bytes=WORKSPACE_BYTES[False])
    assert smaller.allocated_peak < full.allocated_peak


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_job_fits_from_some_capacity_on(stage: int) -> None:
    config, model = small_job(stage)
    found = profile(config, model, 4, allocator=True)
    most = max(found.reserved_peak, found.readings["init"].peak_reserved)
    assert found.fits(most)
    assert not found.fits(found.allocated_peak - MIB)
    answers = [found.fits(most * share // 16) for share in range(1, 17)]
    assert answers == sorted(answers)
