"""Memory over the step in characters, for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.text import Text

from trimtab.report.memory_picture import course_of
from trimtab.units import format_bytes

EIGHTHS = " ▁▂▃▄▅▆▇█"
COLUMNS, ROWS, LABEL = 66, 8, 10


def course_text(document: Mapping[str, Any]) -> Text | None:
    """Rows of bars under the phases' names, 76 columns wide; None where the allocations are not known."""
    course = course_of(document)
    if course is None or document.get("course") is None:  # two points a phase make no chart
        return None
    totals, count = course.totals, len(course.rows)
    highest = [
        max(totals[at * count // COLUMNS : max(at * count // COLUMNS + 1, (at + 1) * count // COLUMNS)])
        for at in range(COLUMNS)
    ]
    most = max(highest)
    names = [" "] * COLUMNS
    for name, begin, end in course.phases:
        first, last = round(begin * COLUMNS), round(end * COLUMNS)
        if len(name) + 1 <= last - first:
            names[first : first + len(name) + 1] = f"│{name}"
        elif first < COLUMNS:
            names[first] = "│"
    text = Text("GPU memory over the step\n", style="bold")
    text.append(" " * LABEL + "".join(names).rstrip() + "\n", style="dim not bold")
    for row in range(ROWS, 0, -1):
        label = {ROWS: format_bytes(most), ROWS // 2: format_bytes(most / 2)}.get(row, "")
        text.append(f"{label:>{LABEL - 1}} ", style="dim not bold")
        cells = (round((size / most * ROWS - row + 1) * 8) for size in highest)
        text.append("".join(EIGHTHS[min(8, max(0, cell))] for cell in cells) + "\n", style="cyan not bold")
    text.append(" " * LABEL + course.said, style="dim not bold")
    return text
