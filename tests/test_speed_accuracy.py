"""The page of step times is what the measured data says, and what it claims of itself holds."""

from __future__ import annotations

import statistics
from typing import Any

import pytest

import speed_accuracy


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """Every measured step with the closed form run now; no machine's own probe counts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRIMTAB_CACHE", str(tmp_path_factory.mktemp("cache")))
        return list(speed_accuracy.rows())


def test_the_page_is_what_the_data_says(
    found: list[Any], tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path))
    assert speed_accuracy.PAGE.read_text(encoding="utf-8") == speed_accuracy.page(found), (
        "run bench/speed_accuracy.py and look at what changed"
    )


def test_real_runs_alone_on_their_host_lie_within_a_tenth_and_inside_the_bounds(found: list[Any]) -> None:
    real = [row for row in found if row[0].group in ("nccl", "single") and not row[0].beside]
    errors = [abs(speed.step_seconds / case.seconds - 1) for case, speed, _ in real]
    inside = [speed.low_seconds <= case.seconds <= speed.high_seconds for case, speed, _ in real]
    replayed = [abs(replay / case.seconds - 1) for case, _, replay in real]
    assert len(real) >= 30
    assert statistics.median(errors) <= 0.11
    assert statistics.median(replayed) <= 0.12
    assert statistics.mean(inside) >= 0.9


def test_steps_that_the_gpu_bounds_lie_within_a_fifth(found: list[Any]) -> None:
    bound = [
        abs(speed.step_seconds / case.seconds - 1)
        for case, speed, _ in found
        if case.group in ("nccl", "single")
        and not case.beside
        and speed.host_seconds + speed.offload_seconds < 0.1 * speed.step_seconds
    ]
    assert len(bound) >= 8
    assert max(bound) <= 0.2


def test_other_peoples_records_are_met_within_a_fifth() -> None:
    for record, rate in speed_accuracy.against_records():
        assert rate == pytest.approx(record.tokens_per_second, rel=0.2), record.name
