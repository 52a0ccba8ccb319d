"""The host's costs and its usual pace are what the measured phases say (bench/fit_host.py)."""

from __future__ import annotations

import statistics
import sys
from pathlib import Path

import pytest

from trimtab.cost.rates import HOST, USUAL_PACE

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "bench"))

import fit_host


def test_costs_are_the_fit_of_the_measured_phases() -> None:
    fitted = fit_host.fitted(list(fit_host.phases()))
    for name, seconds in fitted._asdict().items():
        assert getattr(HOST, name) == pytest.approx(seconds, rel=0.01), name


def test_the_usual_pace_is_the_median_of_the_measured_processes() -> None:
    assert statistics.median(fit_host.paces()) == pytest.approx(USUAL_PACE, rel=0.005)


def test_costs_explain_half_of_the_phases_within_a_seventh() -> None:
    told = [one for one in fit_host.phases() if one.tells]
    off = [abs(fit_host.expected(one, HOST) / one.seconds - 1) for one in told]
    assert len(told) >= 60
    assert statistics.median(off) < 0.15
