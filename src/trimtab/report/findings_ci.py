"""Findings as continuous-integration services read them: GitHub annotations, GitLab, JUnit."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape, quoteattr

from trimtab.findings import Finding

if TYPE_CHECKING:
    from trimtab.check import Report

GITHUB = {"error": "error", "warning": "warning", "info": "notice"}
GITLAB = {"error": "critical", "warning": "major", "info": "info"}


def github(report: Report) -> str:
    """One workflow command a finding, which GitHub shows beside the line."""
    return "".join(
        f"::{GITHUB[finding.severity]} title=trimtab {finding.code} ({finding.name}),"
        f"file={_property(finding.file)},line={finding.line},col={finding.column},"
        f"endLine={finding.end_line},endColumn={finding.end_column}::{_data(finding.message)}\n"
        for finding in report.findings
    )


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def gitlab(report: Report) -> str:
    """GitLab's code quality report."""
    seen: dict[str, int] = {}
    rows = []
    for finding in report.findings:
        rows.append(
            {
                "description": f"{finding.code}: {finding.message}",
                "check_name": finding.name,
                "fingerprint": _fingerprint(finding, seen),
                "severity": GITLAB[finding.severity],
                "location": {"path": finding.file, "lines": {"begin": finding.line}},
            }
        )
    return json.dumps(rows, indent=2, ensure_ascii=False) + "\n"


def _fingerprint(finding: Finding, seen: dict[str, int]) -> str:
    """The same for the same finding in another version of the file; lines may move."""
    text = f"{finding.file}|{finding.code}|{finding.dotted}"
    seen[text] = seen.get(text, 0) + 1
    return hashlib.sha256(f"{text}|{seen[text]}".encode()).hexdigest()[:32]


def junit(report: Report) -> str:
    """A test suite in JUnit's XML: one case a file, one failure a finding."""
    failures = sum(finding.severity != "info" for finding in report.findings)
    counts = f'tests="{len(report.files)}" failures="{failures}" errors="0"'
    lines = [
        '<?xml version="1.0" encoding="utf-8"?>',
        "<testsuites>",
        f'  <testsuite name="trimtab" {counts}>',
    ]
    for file in report.files:
        found = [finding for finding in report.findings if finding.file == file]
        lines.append(f'    <testcase classname="trimtab" name={_attribute(file)}>')
        for finding in found:
            tag = "system-out" if finding.severity == "info" else "failure"
            place = f"line {finding.line}, column {finding.column}"
            about = f" message={_attribute(finding.message)} type={_attribute(finding.code)}"
            body = _plain(f"{place}: {finding.code} {finding.message}")
            lines.append(f"      <{tag}{about if tag == 'failure' else ''}>{escape(body)}</{tag}>")
        lines.append("    </testcase>")
    return "\n".join([*lines, "  </testsuite>", "</testsuites>"]) + "\n"


def _plain(text: str) -> str:
    """Without the characters that XML has no form for."""
    return "".join(char if char in "\t\n" or ord(char) >= 32 else "?" for char in text)


def _attribute(text: str) -> str:
    return quoteattr(_plain(text))
