"""The page beside other estimators is what the data says, and the data is what `estimate` says now."""

from __future__ import annotations

import rivals
from sources import ROOT

VERSIONS, ROWS = rivals.read()


def test_the_page_is_what_the_data_says() -> None:
    assert rivals.PAGE.read_text(encoding="utf-8") == rivals.page(VERSIONS, ROWS), "run bench/rivals.py"


def test_the_readme_says_the_same() -> None:
    read = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert rivals.sentence(ROWS) in read


def test_every_measured_job_is_there() -> None:
    jobs = {row["id"]: (file, row["gib"].get("end")) for file, row in rivals.measured()}
    assert [row["id"] for row in ROWS] == list(jobs)
    for row in ROWS:
        file, end = jobs[row["id"]]
        assert (row["file"], row["measured_gib"]) == (file, end and end["peak_alloc"])


def test_estimate_still_says_what_is_kept() -> None:
    kept = {row["id"]: row["says"][rivals.OURS] for row in ROWS}
    some = [row for _, row in rivals.measured()][::12]
    assert {row["id"]: rivals.ours(row) for row in some} == {row["id"]: kept[row["id"]] for row in some}, (
        "run bench/rivals.py and look at what changed"
    )


def test_a_tool_that_cannot_take_a_job_has_no_error_and_no_verdict() -> None:
    mute = [(row, tool) for row in ROWS for tool in rivals.SHOWN if "cannot" in row["says"][tool]]
    assert len(mute) > 100
    for row, tool in mute:
        assert rivals.fits(row, tool) is None
        assert row["measured_gib"] is None or rivals.error(row, tool) is None


def test_errors_are_relative_to_what_was_measured() -> None:
    row = {"measured_gib": 2.0, "says": {rivals.OURS: {"bytes": 3 * rivals.GIB}}}
    assert rivals.errors([row], rivals.OURS) == [0.5]
    assert rivals.largest([0.5, -0.75]) == "-75 %"
    assert rivals.median([0.001, -0.002, 0.003]) == "0.20 %"
