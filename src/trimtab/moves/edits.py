"""A change of values as edits of a text: comments, order and indentation of a user's file survive."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from trimtab.source.edit import Edit, RemoveKey, RenameKey, SetValue
from trimtab.source.tree import KeyPath

Changes = Mapping[tuple[str, ...], Any]
_FORMATS = (("bf16",), ("bfloat16",), ("fp16",))


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[tuple[str, ...], Any]:
    """The key paths that ``after`` sets or removes (None), each as deep as the two still agree on an object.

    >>> differences({"a": 1, "b": {"c": 2, "d": 3}}, {"b": {"c": 2, "d": 4}})
    {('a',): None, ('b', 'd'): 4}
    """
    found: dict[tuple[str, ...], Any] = {}
    for key in dict.fromkeys((*before, *after)):
        one, other = before.get(key), after.get(key)
        if isinstance(one, Mapping) and isinstance(other, Mapping) and other:
            found |= {(key, *rest): value for rest, value in differences(one, other).items()}
        elif key not in after:
            found[(key,)] = None
        elif key not in before or one != other or isinstance(one, bool) != isinstance(other, bool):
            found[(key,)] = other
    return found


def edits(before: Mapping[str, Any], after: Mapping[str, Any], base: KeyPath = ()) -> tuple[Edit, ...]:
    """The edits that make ``before`` into ``after``; ``base`` leads to the configuration within its file."""
    changes = differences(before, after)
    return tuple(_edits(changes, base))


def _edits(changes: Changes, base: KeyPath) -> Iterator[Edit]:
    old = next((path for path in _FORMATS if path in changes and changes[path] is None), None)
    new = next((path for path in _FORMATS if changes.get(path) is not None), None)
    moved = old is not None and new is not None
    if old is not None and new is not None:  # one number format in the place of the other
        yield RenameKey(key_path=(*base, *old), name=new[0])
    for path, value in changes.items():
        if value is not None:
            yield SetValue(key_path=(*base, *path), value=value)
        elif not (moved and path == old):
            yield RemoveKey(key_path=(*base, *path))
