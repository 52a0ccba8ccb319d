"""Records on their way through the allocator: what each card comes to, and what need not be done again."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.config import Config
from trimtab.cost.allocator import WORKSPACE_BYTES, CachingAllocator, OutOfMemory, Reading
from trimtab.cost.course import EMPTY, FLATTEN, NOTE, RESET, Course, Replay, Steps, settling
from trimtab.cost.memory import profile
from trimtab.model import Model

KIB, MIB = 2**10, 2**20


def replay(record: list[int], capacity_bytes: int | None = None) -> list[Reading]:
    return Replay(CachingAllocator(capacity_bytes)).run(record)


def outcome(record: list[int], capacity_bytes: int | None = None) -> list[Reading] | None:
    try:
        return replay(record, capacity_bytes)
    except OutOfMemory:
        return None


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
    course = Course(Steps(record), 70 * MIB)
    found = [course.fits(size) for size in range(70 * MIB, 200 * MIB, MIB)]
    assert found == [outcome(record, size) is not None for size in range(70 * MIB, 200 * MIB, MIB)]
    assert {False, True} == set(found)
    assert course.readings == replay(record)


def test_a_course_parts_at_a_request_that_may_go_to_the_host() -> None:
    record = [30 * MIB, 30 * MIB, FLATTEN, 60 * MIB, -1, -2, 2 * MIB, NOTE]
    course = Course(Steps(record), 60 * MIB)
    for size in (61, 70, 83, 84, 100, 120, 122):
        assert course.fits(size * MIB) == (outcome(record, size * MIB) is not None)


def replays_of(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Where each replay from here on begins in what it replays."""
    begins: list[int] = []
    run = Replay.run

    def counted(self: Replay, record: list[int], start: int = 0) -> list[Reading]:
        if record:
            begins.append(start)
        return run(self, record, start)

    monkeypatch.setattr(Replay, "run", counted)
    return begins


def test_capacities_among_which_nothing_differs_share_a_replay(monkeypatch: pytest.MonkeyPatch) -> None:
    course = Course(Steps([60 * MIB, -1, 80 * MIB, NOTE]), 80 * MIB)
    assert course.readings[0].reserved == 140 * MIB
    begins = replays_of(monkeypatch)
    assert all(course.fits(size * MIB) for size in range(80, 200))
    assert begins == [2]


def test_a_replay_starts_where_cards_part(monkeypatch: pytest.MonkeyPatch) -> None:
    record = [50 * MIB, -1, 60 * MIB, -2, 80 * MIB, -3, NOTE]
    course = Course(Steps(record), 80 * MIB)
    begins = replays_of(monkeypatch)
    assert course.fits(120 * MIB)
    assert course.fits(80 * MIB)
    assert begins == [0, 2, 4, 2]
    assert course.readings[0].reserved == 190 * MIB
    assert begins == [0, 2, 4, 2, 4]


def test_without_a_limit_no_further_than_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    record = [50 * MIB, -1, 60 * MIB, -2, 80 * MIB, -3, NOTE]
    course = Course(Steps(record), 80 * MIB)
    begins = replays_of(monkeypatch)
    assert course.passes(100 * MIB)
    assert begins == [0]
    assert course.passes(189 * MIB)
    assert not course.passes(190 * MIB)
    assert not Course(Steps(record), 80 * MIB).passes(190 * MIB)
    assert course.fits(190 * MIB)


STEP = [20 * MIB, 3 * MIB, -1, NOTE, 5 * MIB, -2, -3, NOTE]


def repeated(step: list[int], times: int) -> list[int]:
    requests = sum(entry > 0 and entry != NOTE for entry in step)
    return [entry - turn * requests if entry < 0 else entry for turn in range(times) for entry in step]


def three(step: list[int]) -> Steps:
    """What `settling` makes of three equal steps."""
    return settling(repeated(step, 3), len(step), 2 * len(step))


def unrolled(steps: Steps) -> list[int]:
    requests = sum(entry >= 512 for entry in steps.step)
    record = [*steps.start]
    for turn in range(steps.times + 1):
        part = steps.step if turn < steps.times else steps.end
        record += [entry - turn * requests if entry < 0 else entry for entry in part]
    return record


def test_settling_adds_steps_that_go_on_as_the_last() -> None:
    assert unrolled(three(STEP)) == repeated(STEP, 20)


def test_settling_adds_nothing_to_a_step_that_ends_what_is_older() -> None:
    record = [2 * MIB, 3 * MIB, NOTE, -2, 3 * MIB, NOTE, -1]
    assert settling(record, 3, 6) == Steps(record)


def test_a_step_is_replayed_until_it_leaves_all_as_one_found_it(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = three(STEP)
    begins = replays_of(monkeypatch)
    readings = Course(steps, 40 * MIB).readings
    assert len(begins) == 2  # what comes before it, and once the step
    assert readings[-2:] == replay(unrolled(steps))[-2:]


def test_what_lies_in_two_places_by_turns_goes_round_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step keeps what it makes until the next has made the same."""
    steps = settling([300 * MIB, NOTE, 300 * MIB, -1, NOTE, 300 * MIB, -2, NOTE], 2, 5)
    begins = replays_of(monkeypatch)
    readings = Course(steps, 600 * MIB).readings
    assert len(begins) == 3  # what comes before it, and twice the step
    assert readings[-1] == replay(unrolled(steps))[-1]


def test_cards_whose_ways_join_share_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    course = Course(three([40 * MIB, -1, 60 * MIB, -2, NOTE, 80 * MIB, -3]), 80 * MIB)
    assert course.readings
    begins = replays_of(monkeypatch)
    assert course.fits(80 * MIB)
    assert len(begins) == 2  # to the next moment between steps, and the step from there
    assert course.fits(100 * MIB)
    assert len(begins) == 3


@given(st.lists(st.tuples(st.integers(1, 40_000), st.integers(0, 30)), min_size=1, max_size=25))
def test_a_course_of_steps_tells_what_all_of_them_would(made: list[tuple[int, int]]) -> None:
    """Requests of a step that live for some entries, or on into the next step."""
    count, times = len(made), 3
    ends: dict[int, list[int]] = {}
    for turn in range(times):
        for index, (_, life) in enumerate(made):
            at = turn * count + min(index + life, index + count - 1)
            ends.setdefault(at, []).append(turn * count + index + 1)
    record: list[int] = []
    begins = []
    for turn in range(times):
        begins.append(len(record))
        for index, (size, _) in enumerate(made):
            record += [512 * size, *(-number for number in ends.get(turn * count + index, ()))]
        record.append(NOTE)
    steps = settling(record, *begins[1:])
    plain = unrolled(steps)
    highest = replay(plain)[-1]
    course, asked = (Course(steps, highest.peak_allocated) for _ in range(2))
    assert course.readings[-1] == highest
    for share in (0, 3, 1, 5, 8, 9, 10):
        capacity = highest.peak_allocated + (highest.peak_reserved - highest.peak_allocated) * share // 10
        fits = outcome(plain, capacity) is not None
        assert course.fits(capacity) == asked.fits(capacity) == fits
        assert course.passes(capacity) == asked.passes(capacity) == (highest.peak_reserved > capacity)
    assert asked.readings == course.readings


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
