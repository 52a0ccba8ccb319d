"""Configuration texts: read with positions, find what they point at, edit without disturbing the rest."""

from __future__ import annotations

from trimtab.source.read import read_bytes, read_dict, read_source, read_text
from trimtab.source.tree import Extent, Format, KeyPath, Problem, ProblemKind, Source, Span

__all__ = [
    "Extent",
    "Format",
    "KeyPath",
    "Problem",
    "ProblemKind",
    "Source",
    "Span",
    "read_bytes",
    "read_dict",
    "read_source",
    "read_text",
]
