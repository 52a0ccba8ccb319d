"""The host and the GPU, one ahead of the other."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.cost.race import LAUNCH_QUEUE, Race

STRETCHES = st.lists(
    st.tuples(st.integers(1, 4000), st.floats(1e-6, 50e-6), st.floats(1e-6, 500e-6)), min_size=1, max_size=8
)


def raced(stretches: list[tuple[int, float, float]]) -> Race:
    """A race over stretches of kernels, seconds of the host and of the GPU for each kernel."""
    race = Race()
    for kernels, issuing, running in stretches:
        race.run(kernels, issuing=kernels * issuing, running=kernels * running)
    return race


def one_by_one(stretches: list[tuple[int, float, float]]) -> float:
    """When the GPU is done if every kernel is launched by itself."""
    host = device = 0.0
    begins: list[float] = []
    for kernels, issuing, running in stretches:
        for _ in range(kernels):
            if len(begins) >= LAUNCH_QUEUE:
                host = max(host, begins[-LAUNCH_QUEUE])
            host += issuing
            begins.append(max(host, device))
            device = begins[-1] + running
    return device


@given(STRETCHES)
def test_stretches_take_what_their_kernels_take_one_by_one(stretches: list[tuple[int, float, float]]) -> None:
    assert raced(stretches).device == pytest.approx(one_by_one(stretches), rel=0.1)


@given(STRETCHES)
def test_neither_is_quicker_than_its_own_work(stretches: list[tuple[int, float, float]]) -> None:
    race = raced(stretches)
    assert race.host >= sum(kernels * issuing for kernels, issuing, _ in stretches) * (1 - 1e-9)
    assert race.device >= sum(kernels * running for kernels, _, running in stretches) * (1 - 1e-9)
    assert race.lead >= 0.0


def test_the_host_is_no_further_ahead_than_a_full_queue() -> None:
    race = raced([(5000, 1e-6, 100e-6)])
    assert race.lead == pytest.approx(LAUNCH_QUEUE * 100e-6, rel=0.001)
    few = raced([(500, 1e-6, 100e-6)])
    assert few.lead == pytest.approx(500 * 99e-6, rel=0.01)


def test_a_full_queue_makes_short_kernels_wait_for_the_host() -> None:
    long, short = (4000, 10e-6, 100e-6), (4000, 10e-6, 1e-6)
    assert raced([long, short]).device == pytest.approx(0.4 + (4000 - LAUNCH_QUEUE) * 10e-6, rel=0.01)
    assert raced([short, long]).device == pytest.approx(0.04 + 0.4, rel=0.01)


def test_what_has_no_kernels_adds_to_both() -> None:
    race = Race()
    race.run(0, issuing=0.5, running=0.25)
    assert (race.host, race.device) == (0.5, 0.25)
