"""The host's costs and its usual pace are what the measured phases say (bench/fit_host.py)."""

from __future__ import annotations

import statistics
import sys
from pathlib import Path

import pytest

from trimtab.cost.rates import HOST, USUAL_PACES, usual_pace
from trimtab.cost.speed import HOOKS, SLOW_HOST, STEP_DISPATCHES, STEP_REST, STEP_STRETCHES

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "bench"))

import fit_host

GPT2_TENSORS, LLAMA_TENSORS = 148, 201


def test_costs_are_the_fit_of_the_measured_phases() -> None:
    fitted = fit_host.fitted(list(fit_host.phases()))
    for name, seconds in fitted._asdict().items():
        assert getattr(HOST, name) == pytest.approx(seconds, rel=0.01), name


def test_the_usual_pace_is_that_of_the_slowest_of_so_many_sampled_moments() -> None:
    moments = fit_host.paces()
    for power, pace in enumerate(USUAL_PACES):
        assert fit_host.greatest(moments, 2**power) == pytest.approx(pace, abs=0.005)
    assert statistics.mean(pace for _, pace in fit_host.of_jobs(2)) == pytest.approx(1.33, abs=0.005)
    assert [usual_pace(ranks) for ranks in (1, 2, 3, 4, 7, 8, 64)] == [
        USUAL_PACES[power] for power in (0, 1, 1, 2, 2, 3, 3)
    ]


def test_all_but_two_jobs_were_quicker_than_a_slow_host() -> None:
    jobs = fit_host.of_jobs()
    assert len(jobs) == 323
    assert sum(pace > SLOW_HOST * usual_pace(ranks) for ranks, pace in jobs) == 2


def test_costs_explain_half_of_the_phases_within_an_eighth() -> None:
    told = [one for one in fit_host.phases() if one.tells]
    off = [abs(fit_host.expected(one, HOST) / one.seconds - 1) for one in told]
    assert len(told) >= 70
    assert statistics.median(off) < 0.12


def test_a_step_dispatches_for_a_tensor_what_gpt2s_records_have() -> None:
    steps = {one.row: one.counts["step"] for one in fit_host.phases() if one.name == "step"}
    sharded = sum(issued for issued, _ in STEP_STRETCHES) + STEP_REST
    assert round(steps["gpt2-z0-m16-x1-paced"] / GPT2_TENSORS) == STEP_DISPATCHES[0]
    assert round(steps["gpt2-z1-m4-x1-paced"] / GPT2_TENSORS) == sharded
    assert round(steps["gpt2-z3-m16-x1-paced"] / GPT2_TENSORS) == STEP_DISPATCHES[3]


@pytest.mark.parametrize(
    ("row", "stage", "offloads", "adds"),
    [
        ("gpt2-z0-m16-x1-paced", 0, False, False),
        ("gpt2-z1-m4-x1-paced", 1, False, True),
        ("gpt2-z3-m16-x1-paced", 3, False, True),
        ("gpt2-z1-m4-offload-x1-paced", 1, True, True),
        ("gpt2-z2-m4-offload-x1-paced", 2, True, True),
        ("llama-1b-z3-m4-both-x1-paced", 3, True, False),
    ],
)
def test_the_last_backward_pass_has_the_engines_kernels_of_its_record(
    row: str, stage: int, offloads: bool, adds: bool
) -> None:
    told = {one.row: one.counts["engine"] for one in fit_host.phases() if one.name == "backward"}
    hooks = HOOKS[stage, offloads]
    tensors = LLAMA_TENSORS if row.startswith("llama") else GPT2_TENSORS
    assert round(told[row] / tensors) == 1 + hooks.kept + hooks.added * adds + hooks.handed


def test_a_modules_fetches_of_the_backward_pass_take_about_what_one_of_the_forward_pass_does() -> None:
    told = {(one.row, one.name): one.counts for one in fit_host.phases()}
    shares = [
        counts["fetch_back"] * HOST.fetch_back / (told[row, "forward"]["fetch"] * HOST.fetch)
        for (row, name), counts in told.items()
        if name == "backward" and "fetch_back" in counts and "recompute" not in row
    ]
    assert len(shares) >= 4
    assert statistics.median(shares) == pytest.approx(1, abs=0.1)
