"""Comments that silence findings: ``// trimtab: ignore[ZR003]`` on a line, or on the line above.

Without codes a comment silences everything on its line.  JSON that Transformers reads has no comments: there
``per-file-ignores`` in ``trimtab.toml`` does the same.
"""

from __future__ import annotations

import re
from functools import lru_cache

from trimtab.findings import Finding
from trimtab.rules.base import Rule
from trimtab.rules.registry import fits
from trimtab.source import Source

_COMMENT = re.compile(
    r"(?P<before>.*?)(?://|#|/\*)\s*trimtab:\s*ignore(?:\[(?P<codes>[\w\s,-]*)\])?", re.IGNORECASE
)


def suppressed(finding: Finding, source: Source, rule: Rule) -> bool:
    """Whether a comment in ``source`` silences ``finding``."""
    if source.format in ("json", "dict"):
        return False
    codes = _silenced(source.text).get(finding.line)
    return codes is not None and (not codes or fits(rule, codes))


@lru_cache(maxsize=16)
def _silenced(text: str) -> dict[int, tuple[str, ...]]:
    """Each silenced line with its selectors; none of them means all."""
    found: dict[int, tuple[str, ...]] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        match = _COMMENT.match(line)
        if match:
            codes = tuple(code.strip() for code in (match["codes"] or "").split(",") if code.strip())
            found[number if match["before"].strip() else number + 1] = codes
    return found
