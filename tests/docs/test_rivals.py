"""The table of other tools is what their rows say."""

from __future__ import annotations

from rivals import DATA, TOOLS, summary

from sources import ROOT


def test_the_table_is_made_of_the_rows() -> None:
    table = summary(DATA / "rivals.jsonl")
    assert table in (ROOT / "docs/rivals.md").read_text(encoding="utf-8")
    assert len(table.splitlines()) == len(TOOLS) + 2


def test_the_readme_says_what_the_table_says() -> None:
    row = next(line for line in summary(DATA / "rivals.jsonl").splitlines() if "EleutherAI" in line)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"{row.split('|')[3].strip()} at the median" in " ".join(readme.split())
