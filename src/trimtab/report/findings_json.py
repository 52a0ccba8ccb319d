"""Findings as one JSON object a line; the one object for all is the report's own `to_dict`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trimtab.check import Report


def lines(report: Report) -> str:
    """One JSON object a finding, each on its own line."""
    rows = (json.dumps(finding.to_dict(), ensure_ascii=False, allow_nan=False) for finding in report.findings)
    return "".join(f"{text}\n" for text in rows)
