"""What a check finds, as values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from trimtab.source.edit import Edit
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
