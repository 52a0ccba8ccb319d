"""The difference of two configurations, for a reader."""

from __future__ import annotations

import json
from typing import Any

from trimtab.compare import ABSENT, Change, Difference


def text(difference: Difference) -> str:
    """One line a key that differs in effect, then what is only written differently."""
    effective = [change for change in difference.changes if not change.ignored]
    ignored = [change for change in difference.changes if change.ignored]
    lines = [f"{difference.before} → {difference.after} (DeepSpeed {difference.version.name})", ""]
    width = max((len(change.path) for change in effective), default=0)
    lines += [f"  {change.path:<{width}}  {_values(change)}" for change in effective]
    if not effective:
        lines.append("  The same in effect.")
    if difference.same_in_effect:
        lines += ["", f"Written differently, the same in effect: {', '.join(difference.same_in_effect)}."]
    if ignored:
        lines += ["", f"Ignored by DeepSpeed: {', '.join(change.path for change in ignored)}."]
    return "\n".join(lines) + "\n"


def _values(change: Change) -> str:
    return f"{_value(change.before, change.written[0])} → {_value(change.after, change.written[1])}"


def _value(value: Any, written: bool) -> str:
    if value is ABSENT:
        return ABSENT
    shown: str = json.dumps(value)
    if isinstance(value, int) and not isinstance(value, bool):
        shown = f"{value:,}"
    return shown if written else f"{shown} (default)"
