"""Changes in a text that leave everything else as it stands: comments, order, indentation, line ends.

Every edit is checked before it is handed back: the new text must read as exactly the old value with the
change in it, or nothing is returned.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from trimtab.errors import UsageError
from trimtab.source.edit_block import BlockEditor
from trimtab.source.edit_flow import FlowEditor
from trimtab.source.read import read_text
from trimtab.source.tree import KeyPath, Node, Source
from trimtab.source.write import dump_json


@dataclass(frozen=True, slots=True, kw_only=True)
class SetValue:
    """Gives ``key_path`` a value; missing parents, and parents that are null, become objects.

    Where the key stood twice, the last place is kept and the earlier ones go.
    """

    key_path: KeyPath
    value: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoveKey:
    """Removes ``key_path``, everywhere it stands, with its comma and the comment behind it."""

    key_path: KeyPath


@dataclass(frozen=True, slots=True, kw_only=True)
class RenameKey:
    """Gives the key at ``key_path`` another name; its value and place stay."""

    key_path: KeyPath
    name: str


Edit: TypeAlias = SetValue | RemoveKey | RenameKey


def apply_edits(source: Source, edits: Iterable[Edit]) -> str:
    """The text of ``source`` after ``edits``, one after the other.

    Raises:
        UsageError: a path that is not there, a new name that is taken, a value that JSON has no form for,
            a text that was not read whole, or a place that cannot be changed alone (behind a YAML alias).
    """
    if not source.complete:
        raise UsageError(f"{source.file} cannot be read to its end: mend that before changing it")
    if any(problem.kind == "encoding" for problem in source.problems):
        raise UsageError(f"{source.file} is not UTF-8, and changing it would lose bytes: save it as UTF-8")
    wanted, current = copy.deepcopy(source.value), source
    for edit in edits:
        wanted = _changed(wanted, edit, source.file)
        if source.format == "dict":
            continue
        try:
            text = _edited(current, edit)
        except ValueError as error:
            raise UsageError(f"{_dotted(edit.key_path)} cannot hold this value: {error}") from error
        current = _read_again(source, text)
        if not current.complete or not _same(current.value, wanted):
            raise UsageError(
                f"{_dotted(edit.key_path)} cannot be changed in {source.file} without disturbing the rest"
                " of the file: change it by hand"
            )
    return dump_json(wanted) if source.format == "dict" else current.text


def set_value(source: Source, key_path: KeyPath, value: Any) -> str:
    """The text of ``source`` with ``value`` at ``key_path``; see `apply_edits`."""
    return apply_edits(source, [SetValue(key_path=key_path, value=value)])


def remove_key(source: Source, key_path: KeyPath) -> str:
    """The text of ``source`` without ``key_path``; see `apply_edits`."""
    return apply_edits(source, [RemoveKey(key_path=key_path)])


def rename_key(source: Source, key_path: KeyPath, name: str) -> str:
    """The text of ``source`` with the key at ``key_path`` called ``name``; see `apply_edits`."""
    return apply_edits(source, [RenameKey(key_path=key_path, name=name)])


def insert_key(source: Source, parent_path: KeyPath, key: str, value: Any) -> str:
    """The text of ``source`` with a new last ``key`` in the object at ``parent_path``; see `apply_edits`."""
    return apply_edits(source, [SetValue(key_path=(*parent_path, key), value=value)])


# -- on values ---------------------------------------------------------------------------------------------


def _changed(value: Any, edit: Edit, file: str) -> Any:
    """``value`` after ``edit``."""
    *parents, last = edit.key_path or (None,)
    if last is None:
        raise UsageError("a change needs a key path: the top itself cannot be set, renamed or removed")
    value = {} if value is None else value
    place = value
    for key in parents:
        if isinstance(edit, SetValue) and isinstance(place, dict) and place.get(key) is None:
            place[key] = {}
        place = _inside(place, key, edit.key_path, file)
    if isinstance(edit, SetValue) and isinstance(place, dict) and isinstance(last, str):
        place[last] = edit.value
        return value
    _inside(place, last, edit.key_path, file)
    if isinstance(edit, SetValue):
        place[last] = edit.value
    elif isinstance(edit, RemoveKey):
        del place[last]
    else:
        _rename(place, last, edit.name)
    return value


def _inside(place: Any, key: Any, path: KeyPath, file: str) -> Any:
    fits = isinstance(place, dict) if isinstance(key, str) else isinstance(place, list)
    if fits and (key in place if isinstance(key, str) else 0 <= key < len(place)):
        return place[key]
    raise UsageError(f"{file} has no {_dotted(path)}: '{key}' is not there")


def _rename(place: Any, old: Any, new: str) -> None:
    if not isinstance(place, dict):
        raise UsageError("only keys can be renamed, not places in a list")
    if new in place and new != old:
        raise UsageError(f"'{old}' cannot become '{new}': that key is there already")
    members = [(new if key == old else key, item) for key, item in place.items()]
    place.clear()
    place.update(members)


def _same(left: Any, right: Any) -> bool:
    """Whether two values are equal, true and 1 being two values."""
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(_same(left[key], right[key]) for key in left)
    if isinstance(left, list) and isinstance(right, (list, tuple)):
        return len(left) == len(right) and all(map(_same, left, right))
    return isinstance(left, bool) == isinstance(right, bool) and bool(left == right)


# -- on texts ----------------------------------------------------------------------------------------------


def _edited(source: Source, edit: Edit) -> str:
    """The text of ``source`` after ``edit``, whose path is known to fit."""
    path = edit.key_path
    while (twice := _first_of_two(source, path)) is not None:
        node, index = twice
        source = _read_again(source, _editor(source, node).removed(node, index))
    if source.root is None:
        assert isinstance(edit, SetValue)
        return _editor(source, None).begun(str(path[0]), _nested(path[1:], edit.value))
    node, entry = source.root, None
    for depth, key in enumerate(path):
        parent, entry = node, node.by_key.get(key)
        if entry is None or (entry.merged and depth == len(path) - 1):
            assert isinstance(edit, SetValue)
            return _editor(source, node).inserted(node, str(key), _nested(path[depth + 1 :], edit.value))
        node = entry.node
        if node.value is None and depth < len(path) - 1:
            assert isinstance(edit, SetValue)
            return _editor(source, parent).replaced(entry, _nested(path[depth + 1 :], edit.value))
    assert entry is not None
    editor = _editor(source, parent)
    if isinstance(edit, SetValue):
        return editor.replaced(entry, edit.value)
    if isinstance(edit, RenameKey):
        return editor.renamed(entry, edit.name)
    assert parent.entries is not None
    return editor.removed(parent, parent.entries.index(entry))


def _first_of_two(source: Source, path: KeyPath) -> tuple[Node, int] | None:
    """The object that holds the last key of ``path`` more than once, and the position of the first."""
    node = source.root
    for key in path[:-1]:
        entry = node.by_key.get(key) if node else None
        node = entry.node if entry else None
    entries = (node.entries if node else None) or []
    places = [index for index, entry in enumerate(entries) if entry.key == path[-1] and not entry.merged]
    return (node, places[0]) if node and len(places) > 1 else None


def _editor(source: Source, node: Node | None) -> FlowEditor | BlockEditor:
    in_block = node.style.startswith("block") if node is not None else True
    if source.format == "yaml" and in_block:
        return BlockEditor(source.text)
    return FlowEditor(source.text, yaml=source.format == "yaml", strict=source.strict_json)


def _read_again(source: Source, text: str) -> Source:
    return read_text(text, file=source.file, written="yaml" if source.format == "yaml" else "json")


def _nested(keys: Sequence[str | int], value: Any) -> Any:
    for key in reversed(keys):
        value = {key: value}
    return value


def _dotted(path: KeyPath) -> str:
    return ".".join(map(str, path)) or "the top"
