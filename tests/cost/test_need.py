"""The search for the smallest capacity goes no further than a question needs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from trimtab.cost.allocator import Reading
from trimtab.cost.memory import Profile
from trimtab.cost.need import REPLAY_RATIOS, REPLAY_STEPS, SURE, CapacitySearch, Need, SearchedNeed

PEAK, MOST = 10_000, 42_000


@dataclass
class Job:
    """Fits from ``enough`` bytes on but for a ``gap``, and remembers what was tried."""

    enough: int
    gap: tuple[int, int] = (0, 0)
    tried: list[int] = field(default_factory=list)
    readings: dict[str, Any] = field(default_factory=dict)

    def fits(self, capacity_bytes: int) -> bool:
        self.tried.append(capacity_bytes)
        first, end = self.gap
        return capacity_bytes >= self.enough and not first <= capacity_bytes < end

    def passes(self, capacity_bytes: int) -> bool:
        return capacity_bytes < MOST


def search(enough: int, room: int) -> tuple[Job, CapacitySearch]:
    reading = Reading(PEAK, PEAK, MOST, MOST, MOST)
    job = Job(enough, readings={"step": reading})
    return job, CapacitySearch(cast(Profile, job), room)


def test_the_room_is_tried_first_and_the_span_halved_five_times() -> None:
    job, found = search(enough=20_000, room=18_000)
    assert found.smallest() == 20_250
    assert job.tried == [18_000, 30_000, 24_000, 21_000, 19_500, 20_250]
    assert len(job.tried) == 1 + REPLAY_STEPS


def test_somewhat_less_than_a_room_that_is_enough_is_tried_too() -> None:
    job, found = search(enough=25_500, room=26_000)
    assert 25_500 <= found.smallest() < 25_520
    assert job.tried[:3] == [26_000, 25_844, 25_480]
    assert min(job.tried) == 25_480


def test_a_room_that_is_enough_by_luck_alone_is_known_by_what_is_less() -> None:
    job, found = search(enough=20_000, room=26_000)
    job.gap = (25_400, 25_900)
    assert 25_900 <= found.smallest() < 25_910


def test_what_the_first_tries_settle_needs_no_more() -> None:
    job, found = search(enough=20_000, room=26_000)
    need = SearchedNeed(found)
    assert need.decided(lambda smallest: smallest <= 18_000) is False
    tried = [26_000, 25_844, 25_480, 25_090, 17_544, 21_317, 19_430]
    assert job.tried == tried
    assert need.decided(lambda smallest: smallest // 8_000) == 2
    assert job.tried == tried


@pytest.mark.parametrize(
    ("enough", "fits", "tries"), [(25_700, True, 2), (25_900, False, 1), (27_000, False, 1)]
)
def test_two_tries_say_whether_a_room_is_enough_with_the_usual_probability(
    enough: int, fits: bool, tries: int
) -> None:
    job, found = search(enough, room=26_000)
    assert SearchedNeed(found).fits(26_000, SURE) is fits
    assert len(job.tried) == tries


@given(st.integers(PEAK, MOST), st.integers(PEAK, MOST), st.sampled_from((0.5, SURE, 0.99)))
def test_whether_a_room_is_enough_is_what_the_smallest_says(enough: int, room: int, sure: float) -> None:
    found = search(enough, room)[1]
    fits = SearchedNeed(found).fits(room, sure)
    assert fits is (found.smallest() <= room / Need(1.0, REPLAY_RATIOS).at(sure))
    assert found.smallest() == search(enough, room)[1].smallest()


@example(10_000, 10_060, 500)
@given(st.integers(PEAK, MOST), st.integers(PEAK, MOST), st.integers(500, 20_000))
def test_deciding_early_is_deciding_by_the_smallest(enough: int, room: int, step: int) -> None:
    smallest = search(enough, room)[1].smallest()
    need = SearchedNeed(search(enough, room)[1])
    assert need.decided(lambda size: -(size // step)) == -(smallest // step)
    need = SearchedNeed(search(enough, room)[1])
    if need.fits(room, 0.9):
        assert need.probability_within(room) >= 0.9
