"""A change of values as edits of a text: comments, order and indentation of a user's file survive."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from trimtab.source.edit import Edit, RemoveKey, RenameKey, SetValue
from trimtab.source.tree import KeyPath

Changes = Mapping[tuple[str, ...], Any]
_FORMATS = ("bf16", "bfloat16", "fp16")


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
    gone = next((name for name in _FORMATS if name in before and name not in after), None)
    come = next((name for name in _FORMATS if name in after and name not in before), None)
    if gone is None or come is None or not isinstance(before[gone], Mapping):
        return tuple(_edits(differences(before, after), base))
    # one number format takes the place of the other
    renamed = {(come if key == gone else key): value for key, value in before.items()}
    first = RenameKey(key_path=(*base, gone), name=come)
    return (first, *_edits(differences(renamed, after), base))


def _edits(changes: Changes, base: KeyPath) -> Iterator[Edit]:
    for path, value in changes.items():
        place = (*base, *path)
        yield RemoveKey(key_path=place) if value is None else SetValue(key_path=place, value=value)
