"""The page of step times is what the measured data says, and what it claims of itself holds."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable
from typing import Any

import pytest

import speed_accuracy
from sources import ROOT


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


def errors(found: list[Any], belongs: Callable[[Any], bool]) -> tuple[list[float], list[float]]:
    """Of the closed form and of the simulator."""
    chosen = [row for row in found if belongs(row)]
    return [abs(row.closed_error) for row in chosen], [abs(row.replayed_error) for row in chosen]


def at(errors: list[float], share: float) -> float:
    """The error that this share of them does not pass."""
    return sorted(errors)[int(len(errors) * share)]


SOME_LAYERS = re.compile(r"^llama-7b-.*-11-layers-recomputed-")
"""Two rows that were measured later: bounds of their own."""
SLOW_DAY = "llama-1b-lora-z2-m4-x1-settled"
LAST = ("choices.jsonl", "families.jsonl", "fused.jsonl", "quantized_x2.jsonl")
SHARED = "shared_x2.jsonl"


def earlier(row: Any) -> bool:
    """Whether it is none of those that were measured last, and its GPUs share nothing."""
    return row.case.file not in (*LAST, SHARED)


def test_steps_whose_gpu_works(found: list[Any]) -> None:
    """All but one of a slow day, a job that took a quarter less on another, and those of the next test."""
    closed, replayed = errors(
        found,
        lambda row: (
            row.case.real
            and not row.case.beside
            and not row.case.sampled
            and earlier(row)
            and row.busy >= speed_accuracy.BUSY
            and row.case.name != SLOW_DAY
        ),
    )
    assert len(closed) >= 50
    assert statistics.median(closed) <= 0.02
    assert statistics.median(replayed) <= 0.015
    assert at(closed, 0.9) <= 0.05
    assert at(replayed, 0.9) <= 0.045
    assert max(closed) <= 0.1
    assert max(replayed) <= 0.11
    seconds = {row.case.name: row.case.seconds for row in found}
    assert seconds[SLOW_DAY] > 1.25 * seconds[SLOW_DAY.replace("settled", "paced")]


def test_steps_whose_gpu_works_and_whose_hosts_pace_was_sampled(found: list[Any]) -> None:
    def works(row: Any) -> bool:
        return earlier(row) and row.case.sampled and not row.case.brief and row.busy >= speed_accuracy.BUSY

    closed, replayed = errors(found, lambda row: works(row) and not SOME_LAYERS.search(row.case.name))
    assert len(closed) >= 18
    assert max(closed) <= 0.06
    assert max(replayed) <= 0.08
    closed, replayed = errors(found, lambda row: works(row) and SOME_LAYERS.search(row.case.name))
    assert len(closed) == 2
    assert max(closed) <= 0.09
    assert max(replayed) <= 0.095


def test_steps_of_the_grids(found: list[Any]) -> None:
    """Their files tell no pace."""
    grids = [
        row
        for row in found
        if row.case.apart
        and row.case.pace is None
        and any(how in row.case.name for how in ("-none-", "-param-", "-optimizer-"))
    ]
    assert len(grids) >= 40
    closed, replayed = errors(grids, lambda row: True)
    assert statistics.median(closed) <= 0.05
    assert statistics.median(replayed) <= 0.025
    assert max(closed) <= 0.25
    assert max(replayed) <= 0.17


def test_steps_on_a_host_of_known_pace(found: list[Any]) -> None:
    closed, replayed = errors(found, lambda row: row.case.pace is not None)
    assert len(closed) >= 45
    assert statistics.median(closed) <= 0.15
    assert statistics.median(replayed) <= 0.15
    inside = [
        row.closed.low_seconds <= row.case.seconds <= row.closed.high_seconds
        for row in found
        if row.case.pace is not None
    ]
    assert statistics.mean(inside) >= 0.95


def test_steps_whose_hosts_pace_was_sampled_beside_each(found: list[Any]) -> None:
    closed, replayed = errors(found, lambda row: row.case.name.endswith("-paced") and earlier(row))
    assert len(closed) >= 50
    assert statistics.median(closed) <= 0.07
    assert statistics.median(replayed) <= 0.06
    assert at(replayed, 0.9) <= 0.14
    missed = sorted(replayed)
    assert missed[-2] <= 0.21
    assert missed[-1] <= 0.26  # bert-large-z2-m16-recompute-x2, whose single steps took 0.22 to 0.33 s


def test_steps_of_sampled_pace_that_nothing_is_fitted_to(found: list[Any]) -> None:
    closed, replayed = errors(
        found,
        lambda row: earlier(row) and row.case.sampled and not row.case.fitted and not row.case.brief,
    )
    assert len(closed) >= 34
    assert statistics.median(closed) <= 0.06
    assert statistics.median(replayed) <= 0.05
    assert at(closed, 0.9) <= 0.1
    assert at(replayed, 0.9) <= 0.13
    assert sorted(closed)[-2] <= 0.25
    assert max(closed) <= 0.315  # llama-1b-lora-z2-m4-x2, which took 0.14 s on another day and not 0.24


def test_steps_that_were_timed_briefly(found: list[Any]) -> None:
    closed, replayed = errors(found, lambda row: row.case.brief)
    assert len(closed) >= 70
    assert statistics.median(closed) <= 0.065
    assert statistics.median(replayed) <= 0.035
    assert at(closed, 0.9) <= 0.16
    assert at(replayed, 0.9) <= 0.16
    assert max(*closed, *replayed) <= 0.33


def test_steps_of_the_plans_choices_for_models_that_nobody_had_measured(found: list[Any]) -> None:
    closed, replayed = errors(found, lambda row: row.case.file == "choices.jsonl")
    assert len(closed) == 35
    assert statistics.median(closed) <= 0.025
    assert statistics.median(replayed) <= 0.02
    assert sorted(closed)[-2] <= 0.06
    assert sorted(replayed)[-2] <= 0.08
    assert max(closed) <= 0.21  # t5-large with all offloaded
    assert max(replayed) <= 0.15


def test_steps_with_quantized_collectives(found: list[Any]) -> None:
    closed, replayed = errors(found, lambda row: row.case.file == "quantized_x2.jsonl")
    assert len(closed) == 6
    assert statistics.median(closed) <= 0.12
    assert max(closed) <= 0.225
    assert sorted(replayed)[-2] <= 0.1
    assert max(replayed) <= 0.112


def test_steps_of_model_types_that_nobody_had_measured(found: list[Any]) -> None:
    closed, replayed = errors(found, lambda row: row.case.file == "families.jsonl")
    assert len(closed) == 26
    assert statistics.median(closed) <= 0.07
    assert statistics.median(replayed) <= 0.06
    assert max(closed) <= 0.3
    assert max(replayed) <= 0.21


def test_steps_whose_gpus_share_samples_or_layers_come_out_short(found: list[Any]) -> None:
    """What Ulysses' exchanges take the host comes from two of them; AutoTP's own Python is not counted."""
    closed, replayed = errors(found, lambda row: row.case.file == SHARED)
    assert len(closed) == 12
    assert statistics.median(replayed) <= 0.14
    assert max(closed) <= 0.22
    assert max(replayed) <= 0.19
    closed, replayed = errors(found, lambda row: row.case.name in speed_accuracy.EXCHANGING)
    assert len(closed) == 2
    assert max(closed) <= 0.045
    assert max(replayed) <= 0.02


def test_steps_with_fused_kernels_come_out_short(found: list[Any]) -> None:
    """At stage 3 beside a host that waits, by a third: Liger's own Python is not counted."""
    closed, replayed = errors(found, lambda row: row.case.file == "fused.jsonl" and row.busy > 0.5)
    assert len(closed) >= 4
    assert max(replayed) <= 0.11
    closed, replayed = errors(found, lambda row: row.case.file == "fused.jsonl")
    assert max(*closed, *replayed) <= 0.38


def test_other_peoples_records_are_met_within_a_fifth() -> None:
    for record, rate in speed_accuracy.against_records():
        assert rate == pytest.approx(record.tokens_per_second, rel=0.2), record.name


def test_the_readme_says_the_pages_figures(found: list[Any]) -> None:
    table = (
        (ROOT / "README.md").read_text(encoding="utf-8").split("### How near it comes")[1].split("\n\n")[1]
    )
    told = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    rows = [cells for cells in told if cells[0].startswith("step time")]
    groups = dict(speed_accuracy.GROUPS)
    works = groups["1 to 4 GPUs, no other jobs on the host"]
    belongs: list[Callable[[Any], bool]] = [
        lambda row: works(row.case) and row.busy >= speed_accuracy.BUSY,
        lambda row: row.case.file == "choices.jsonl",
        lambda row: groups[
            "1 and 2 GPUs, cores of its own, pace sampled beside each step, nothing fitted to it"
        ](row.case),
    ]
    assert len(rows) == 2 * len(belongs)
    for place, one in enumerate(belongs):
        for cells, each in zip(rows[2 * place : 2 * place + 2], errors(found, one), strict=True):
            assert cells[2:] == [f"{statistics.median(each) * 100:.0f} %", f"{max(each) * 100:.0f} %"]
        assert rows[2 * place][1].startswith(f"{len(each)} steps")
