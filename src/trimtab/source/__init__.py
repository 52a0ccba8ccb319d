"""Configuration texts: read with positions, find what they point at, edit without disturbing the rest."""

from __future__ import annotations

from trimtab.source.edit import (
    Edit,
    RemoveKey,
    RenameKey,
    SetValue,
    apply_edits,
    insert_key,
    remove_key,
    rename_key,
    set_value,
)
from trimtab.source.pointer import OwnedValue, Pointer, find_pointer, refuse_pointer
from trimtab.source.read import read_bytes, read_dict, read_source, read_text
from trimtab.source.tree import Extent, Format, KeyPath, Problem, ProblemKind, Source, Span
from trimtab.source.write import dump_json, unified_diff, write_atomic

__all__ = [
    "Edit",
    "Extent",
    "Format",
    "KeyPath",
    "OwnedValue",
    "Pointer",
    "Problem",
    "ProblemKind",
    "RemoveKey",
    "RenameKey",
    "SetValue",
    "Source",
    "Span",
    "apply_edits",
    "dump_json",
    "find_pointer",
    "insert_key",
    "read_bytes",
    "read_dict",
    "read_source",
    "read_text",
    "refuse_pointer",
    "remove_key",
    "rename_key",
    "set_value",
    "unified_diff",
    "write_atomic",
]
