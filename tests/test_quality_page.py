"""The page of the plan's quality is what the measured data says, and what it claims in words holds."""

from __future__ import annotations

import re
from typing import Any

import near_limit
import pytest
import quality_page
import stock_section
from plan_quality import TARGET

from sources import ROOT

PROBED_TARGET = 0.99


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """Every grid with the plan asked now; no machine's own probe counts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRIMTAB_CACHE", str(tmp_path_factory.mktemp("cache")))
        return quality_page.searched()


def test_the_page_is_what_the_data_says(
    found: list[Any], tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path))
    assert quality_page.PAGE.read_text(encoding="utf-8") == quality_page.page(found), (
        "run bench/quality_page.py and look at what changed"
    )


def test_choices_are_near_the_best_and_none_ran_out_of_memory(found: list[Any]) -> None:
    chosen = [each for one in found for each in (one.predicted, one.replayed) if each]
    probed = {one.name: one.probed for one in found if one.probed}
    assert not any(one.choice_out_of_memory for one in (*chosen, *probed.values()))
    shares = [one.share for one in chosen if one.share is not None]
    assert len(shares) == 12
    assert min(shares) >= TARGET
    assert len(probed) == 3
    assert min(one.share for one in probed.values()) >= PROBED_TARGET
    assert not any(one.wrongly_fitting for one in found)


def test_the_grid_that_was_run_whole_is_the_one_that_is_said(found: list[Any]) -> None:
    assert [one.name for one in found if one.fastest_left is None] == ["gpt2, 1"]


def test_the_tie_decides_the_job_that_it_is_said_to_decide(found: list[Any]) -> None:
    gpt2 = next(one.predicted for one in found if one.name == "gpt2, 1")
    assert gpt2.first != gpt2.choice
    assert gpt2.first_seconds != gpt2.choice_seconds


def test_no_stock_file_was_faster() -> None:
    rows = stock_section.stock_rows()
    assert rows[0].is_plan
    assert rows[0].precision == "bf16"
    assert min(one.ratio for one in rows[1:]) > 1


def test_no_fresh_job_ran_out_where_it_was_called_fitting() -> None:
    fresh = list(near_limit.tried([quality_page.AFTERWARDS]))
    assert len(fresh) == 36
    assert all(one.ran for one in fresh if one.replayed or one.probability >= quality_page.SURE)


def test_the_readme_and_the_guide_say_the_pages_figures() -> None:
    page = quality_page.PAGE.read_text(encoding="utf-8")
    for name in ("README.md", "docs/plan.md"):
        told = (ROOT / name).read_text(encoding="utf-8").split("plan-quality.md")[0].rsplit("\n\n", 1)[1]
        figures = re.findall(r"\d+\.\d+", told)
        assert figures, name
        assert all(figure in page for figure in figures), (name, figures)
