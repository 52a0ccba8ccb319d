"""Fixes applied: each edit of a finding goes into the text, and stays only if it leaves fewer findings."""

from __future__ import annotations

from dataclasses import dataclass, replace

from trimtab.check import check_sources
from trimtab.errors import TrimtabError
from trimtab.findings import SEVERITIES, Finding, Safety
from trimtab.judging import Options
from trimtab.source import Source, apply_edits, read_text, unified_diff

MOST_FIXES = 200  # of one file; beyond it something goes in circles
SLOW = "AD"  # these rules run the memory arithmetic, and no safe fix is theirs


@dataclass(frozen=True, slots=True, kw_only=True)
class Fixed:
    """A text after its fixes, and the findings that were fixed."""

    source: Source
    text: str
    applied: tuple[Finding, ...]

    @property
    def changed(self) -> bool:
        """Whether any fix was applied."""
        return bool(self.applied)

    def diff(self) -> str:
        """The change as a unified diff."""
        return unified_diff(self.source, self.text)


def fixed(source: Source, options: Options, *, unsafe: bool = False) -> Fixed:
    """``source`` with every safe fix applied, and the unsafe ones too if asked for.

    A fix that would leave as many findings as before is not applied, so fixing ends, and fixing again
    changes nothing.  A text that cannot be read to its end is left alone.
    """
    allowed: tuple[Safety, ...] = ("safe", "unsafe") if unsafe else ("safe",)
    if not unsafe:
        options = replace(options, rules=tuple(rule for rule in options.rules if rule.family != SLOW))
    current, applied = source, list[Finding]()
    refused: set[tuple[str, str, str]] = set()
    found = check_sources([current], options).findings if source.complete else ()
    while len(applied) < MOST_FIXES:
        step = _step(current, found, options, allowed, refused)
        if step is None:
            break
        current, found, finding = step
        applied.append(finding)
    return Fixed(source=source, text=current.text, applied=tuple(applied))


def _step(
    source: Source,
    found: tuple[Finding, ...],
    options: Options,
    allowed: tuple[Safety, ...],
    refused: set[tuple[str, str, str]],
) -> tuple[Source, tuple[Finding, ...], Finding] | None:
    """The first fix that helps: the text after it, what is then found, and what it fixed."""
    for finding in sorted(found, key=lambda finding: SEVERITIES.index(finding.severity)):
        mark = (finding.code, finding.dotted, finding.fix.title if finding.fix else "")
        if finding.fix is None or finding.fix.safety not in allowed or mark in refused:
            continue
        if finding.file != source.file:
            continue
        refused.add(mark)
        try:
            text = apply_edits(source, finding.fix.edits)
        except TrimtabError:
            continue
        after = read_text(text, file=source.file, written="yaml" if source.format == "yaml" else "json")
        left = check_sources([after], options).findings
        if len(left) < len(found):
            return after, left, finding
    return None
