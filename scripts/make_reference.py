"""Writes ``docs/rules.md`` and ``docs/moves.md`` from the pages of the rules and the moves."""

from __future__ import annotations

from pathlib import Path

from trimtab.report import move_pages, rule_pages

DOCS = Path(__file__).parent.parent / "docs"

if __name__ == "__main__":
    for name, pages in (("rules.md", rule_pages), ("moves.md", move_pages)):
        (DOCS / name).write_text(pages.markdown(), encoding="utf-8")
        print(DOCS / name)
