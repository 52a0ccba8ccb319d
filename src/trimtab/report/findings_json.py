"""Findings as one JSON object, or one object a line."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from trimtab.findings import Finding, Fix
from trimtab.source.edit import Edit, RenameKey, SetValue

if TYPE_CHECKING:
    from trimtab.check import Report


def document(report: Report) -> dict[str, Any]:
    """The report's object, without the frame that `trimtab.report.document` adds."""
    counts = dict.fromkeys(("error", "warning", "info"), 0)
    for finding in report.findings:
        counts[finding.severity] += 1
    return {
        "deepspeed": report.version.name,
        "deepspeed_asked": report.version.asked,
        "files": list(report.files),
        "ok": report.ok,
        "counts": counts,
        "suppressed": report.suppressed,
        "findings": [row(finding) for finding in report.findings],
    }


def lines(report: Report) -> str:
    """One JSON object a finding, each on its own line."""
    rows = (json.dumps(row(finding), ensure_ascii=False, allow_nan=False) for finding in report.findings)
    return "".join(f"{text}\n" for text in rows)


def row(finding: Finding) -> dict[str, Any]:
    """One finding."""
    return {
        "code": finding.code,
        "name": finding.name,
        "severity": finding.severity,
        "message": finding.message,
        "file": finding.file,
        "line": finding.line,
        "column": finding.column,
        "end_line": finding.end_line,
        "end_column": finding.end_column,
        "key_path": finding.dotted,
        "refused": finding.refused,
        "fix": _fix(finding.fix) if finding.fix else None,
    }


def _fix(fix: Fix) -> dict[str, Any]:
    return {"title": fix.title, "safety": fix.safety, "edits": [_edit(edit) for edit in fix.edits]}


def _edit(edit: Edit) -> dict[str, Any]:
    path = list(edit.key_path)
    if isinstance(edit, SetValue):
        return {"action": "set", "key_path": path, "value": edit.value}
    if isinstance(edit, RenameKey):
        return {"action": "rename", "key_path": path, "name": edit.name}
    return {"action": "remove", "key_path": path}
