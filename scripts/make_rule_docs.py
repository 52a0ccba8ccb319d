"""Writes ``docs/rules.md`` from the rules' own pages."""

from __future__ import annotations

from pathlib import Path

from trimtab.report.rule_pages import markdown

TARGET = Path(__file__).parent.parent / "docs" / "rules.md"

if __name__ == "__main__":
    TARGET.write_text(markdown(), encoding="utf-8")
    print(TARGET)
