"""The page of accuracy is what the measured data says, and the bounds that answers state hold for it."""

from __future__ import annotations

import importlib.util
import statistics
import sys
from types import ModuleType

import pytest

from sources import ROOT
from trimtab.estimate import PEAK_HIGH, PEAK_LOW
from trimtab.rehearse.seen import PHANTOM_HIGH, PHANTOM_LOW


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """scripts/make_accuracy.py as a module."""
    spec = importlib.util.spec_from_file_location("make_accuracy", ROOT / "scripts" / "make_accuracy.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def cases(script: ModuleType) -> list[object]:
    """Every measured case, with the arithmetic run now."""
    found: list[object] = script.cases()
    return found


def test_the_page_is_what_the_data_says(script: ModuleType, cases: list[object]) -> None:
    assert script.PAGE.read_text(encoding="utf-8") == script.page(cases), (
        "run scripts/make_accuracy.py and look at what changed"
    )


@pytest.mark.parametrize(
    ("method", "low", "high"),
    [("phantom", PHANTOM_LOW, PHANTOM_HIGH), ("arithmetic", PEAK_LOW, PEAK_HIGH)],
)
def test_the_stated_bounds_hold_19_cases_of_20(
    cases: list[object], method: str, low: float, high: float
) -> None:
    errors = [error for case in cases if (error := case.error(method)) is not None]  # type: ignore[attr-defined]
    # the truth lies between low and high times what was said
    inside = [low <= 1 / (1 + error) <= high for error in errors]
    assert len(inside) > 40
    assert sum(inside) / len(inside) >= 0.95


def test_a_large_error_is_listed(script: ModuleType, cases: list[object]) -> None:
    listed = script.page(cases).partition("## Off by more")[2].partition("## What")[0]
    far = [c.name for c in cases if abs(c.error("arithmetic")) > script.NOTABLE]  # type: ignore[attr-defined]
    assert all(f"| {name} |" in listed for name in far)


def test_the_phantom_is_within_two_percent_of_every_measured_peak(cases: list[object]) -> None:
    errors = [abs(error) for case in cases if (error := case.error("phantom")) is not None]  # type: ignore[attr-defined]
    assert len(errors) > 100
    assert statistics.median(errors) <= 0.005
    assert max(errors) <= 0.02


@pytest.mark.parametrize("file", ["sweep.jsonl", "held_out.jsonl"])
def test_drawn_jobs_are_those_of_their_numbers_and_counted_as_now(script: ModuleType, file: str) -> None:
    rows = script.rows(file)
    numbers = [row["number"] for row in rows]
    assert numbers == sorted(set(numbers))
    for row in rows[:: max(1, len(rows) // 40)]:
        one = script.sweep.draw(row["number"])
        assert row["case"] == script.sweep.fingerprint(one)
        counted = script.sweep.arithmetic(one)
        assert counted.items() <= row.items(), "run bench/sweep.py --recount and scripts/make_accuracy.py"
