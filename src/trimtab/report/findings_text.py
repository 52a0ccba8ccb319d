"""Findings for a reader: with the source line and a caret, or one line each."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from trimtab.findings import SEVERITIES, Finding, Severity
from trimtab.report.paint import Paint
from trimtab.source import Source

if TYPE_CHECKING:
    from trimtab.check import Report

WIDEST = 160  # characters of a source line that are shown


def full(report: Report, *, colour: bool = False) -> str:
    """Each finding with its line of the file, a caret under the place, and its fix."""
    paint = Paint(colour)
    blocks = [_block(finding, report.sources.get(finding.file), paint) for finding in report.findings]
    return "".join(f"{block}\n" for block in blocks) + summary(report, paint)


def concise(report: Report, *, colour: bool = False) -> str:
    """One line a finding: ``file:line:column: severity CODE message``."""
    paint = Paint(colour)
    lines = [
        f"{paint(finding.file, 'bold')}:{finding.line}:{finding.column}: "
        f"{paint(finding.severity, finding.severity)} {finding.code} {finding.message}"
        + (" [*]" if finding.fix and finding.fix.safety == "safe" else "")
        for finding in report.findings
    ]
    return "".join(f"{line}\n" for line in lines) + summary(report, paint)


def _block(finding: Finding, source: Source | None, paint: Paint) -> str:
    head = f"{finding.severity}[{finding.code}]"
    lines = [f"{paint(head, finding.severity)} {paint(finding.message, 'bold')}"]
    number = str(finding.line)
    margin = " " * len(number)
    arrow = paint("-->", "frame")
    where = (
        f"{finding.file}:{finding.line}:{finding.column}" if source is None or source.text else finding.file
    )
    lines.append(f"{margin}{arrow} {where}" + (f"  {finding.dotted}" if finding.key_path else ""))
    text = _line(source, finding.line)
    if text is not None:
        bar = paint("|", "frame")
        shown, column = _window(text, finding.column)
        length = finding.end_column - finding.column if finding.end_line == finding.line else len(text)
        caret = "^" * max(1, min(length, len(shown) - column + 1))
        lines += [f"{margin} {bar}", f"{paint(number, 'frame')} {bar} {shown}",
                  f"{margin} {bar} {' ' * (column - 1)}{paint(caret, finding.severity)}"]  # fmt: skip
    if finding.fix is not None:
        lines.append(f"{margin} = {paint('fix', 'fix')} ({finding.fix.safety}): {finding.fix.title}")
    return "\n".join(lines) + "\n"


def _line(source: Source | None, number: int) -> str | None:
    if source is None or not source.text:
        return None
    lines = source.text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n").split("\n")
    if number > len(lines):
        return None
    # control characters would move the terminal's cursor; a tab counts as one column, like the caret's
    return "".join(char if char.isprintable() else " " for char in lines[number - 1])


def _window(text: str, column: int) -> tuple[str, int]:
    """The part of a long line around ``column``, and the column in it."""
    if len(text) <= WIDEST:
        return text, column
    start = max(0, column - WIDEST // 2)
    return text[start : start + WIDEST], column - start


def summary(report: Report, paint: Paint) -> str:
    """The last line: how much was found, and how much of it can be fixed."""
    counts: Counter[Severity] = Counter(finding.severity for finding in report.findings)
    files = f"{len(report.files)} file{'s' * (len(report.files) != 1)}"
    if not report.findings:
        return f"{paint('Nothing found', 'fix')} in {files} (DeepSpeed {report.version.name}).\n"
    names = {"error": "error", "warning": "warning", "info": "note"}
    parts = [
        f"{counts[severity]} {names[severity]}{'s' * (counts[severity] != 1)}"
        for severity in SEVERITIES
        if counts[severity]
    ]
    safe = sum(1 for finding in report.findings if finding.fix and finding.fix.safety == "safe")
    unsafe = sum(1 for finding in report.findings if finding.fix and finding.fix.safety == "unsafe")
    fixes = f" {safe} fixable with --fix" if safe else ""
    fixes += f"{',' if safe else ''} {unsafe} with --unsafe-fixes" if unsafe else ""
    return f"{', '.join(parts)} in {files} (DeepSpeed {report.version.name}).{fixes}{'.' if fixes else ''}\n"
