"""What a check finds, as values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from trimtab.source.edit import Edit, RenameKey, SetValue
from trimtab.source.tree import KeyPath

Severity = Literal["error", "warning", "info"]
"""``error``: DeepSpeed refuses, or the result is wrong; ``warning``: it will hurt; ``info``: good to know."""
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "info")

Safety = Literal["safe", "unsafe", "shown"]
"""``safe``: the run stays what it was meant to be; ``unsafe``: it changes; ``shown``: never applied."""

Refusal = Literal["reading", "building", "running"]
"""When DeepSpeed stops: as it reads the configuration, as it builds the engine, or later."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fix:
    """A change that makes a finding go away: its edits, in order, and how far it may be trusted."""

    title: str
    safety: Safety
    edits: tuple[Edit, ...]

    def to_dict(self) -> dict[str, Any]:
        """The fix as it stands in `trimtab check --json`."""
        return {"title": self.title, "safety": self.safety, "edits": [_edit(edit) for edit in self.edits]}


def _edit(edit: Edit) -> dict[str, Any]:
    path = list(edit.key_path)
    if isinstance(edit, SetValue):
        return {"action": "set", "key_path": path, "value": edit.value}
    if isinstance(edit, RenameKey):
        return {"action": "rename", "key_path": path, "name": edit.name}
    return {"action": "remove", "key_path": path}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is wrong, doubtful or worth knowing, with the place it stands at.

    Lines and columns count from 1, in characters; they are 1 for a dict, which has no text.  ``key_path``
    leads from the top of the file.  ``refused`` says when DeepSpeed stops because of it; None where it
    does not.
    """

    code: str
    name: str
    severity: Severity
    message: str
    file: str
    line: int
    column: int
    end_line: int
    end_column: int
    key_path: KeyPath
    fix: Fix | None = None
    refused: Refusal | None = None

    @property
    def dotted(self) -> str:
        """The key path as people write it: ``zero_optimization.stage``."""
        return ".".join(map(str, self.key_path))

    def to_dict(self) -> dict[str, Any]:
        """The finding as it stands in `trimtab check --json`."""
        return {
            "code": self.code,
            "name": self.name,
            "severity": self.severity,
            "message": self.message,
            "file": self.file,
            "line": self.line,
            "column": self.column,
            "end_line": self.end_line,
            "end_column": self.end_column,
            "key_path": self.dotted,
            "refused": self.refused,
            "fix": self.fix.to_dict() if self.fix else None,
        }
