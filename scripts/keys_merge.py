"""From one table a release to one table for all: when each key came, went, and changed."""

from __future__ import annotations

from typing import Any

Entry = dict[str, Any]
UNTIMED = ("source",)


def merge(versions: list[str], tables: dict[str, dict[str, Entry]]) -> dict[str, Entry]:
    """One entry a path over all versions (oldest first).

    ``since`` is left out where the path is in the oldest release already.  Attributes that never changed
    stand in the entry; the others stand in ``history``, a list of eras each with the release that began it.
    A path that went and came back has an era that is ``absent``.
    """
    paths = dict.fromkeys(path for version in reversed(versions) for path in tables[version])
    return {path: merge_one(versions, tables, path) for path in paths}


def merge_one(versions: list[str], tables: dict[str, dict[str, Entry]], path: str) -> Entry:
    present = [version for version in versions if path in tables[version]]
    first, last = versions.index(present[0]), versions.index(present[-1])
    eras: list[tuple[str, Entry]] = []
    for version in versions[first : last + 1]:
        read = tables[version].get(path, {"absent": True})
        timed = {name: value for name, value in read.items() if name not in UNTIMED}
        if not eras or eras[-1][1] != timed:
            eras.append((version, timed))
    entry = fold(eras)
    entry["source"] = tables[present[-1]][path].get("source")
    if first:
        entry["since"] = present[0]
    if last + 1 < len(versions):
        entry["removed"] = versions[last + 1]
    return {name: value for name, value in entry.items() if value is not None or name == "default"}


def fold(eras: list[tuple[str, Entry]]) -> Entry:
    """Split what all eras share from what changed."""
    newest = eras[-1][1]
    present = [era for _, era in eras if "absent" not in era]
    constant = {
        name: value
        for name, value in newest.items()
        if all(name in era and era[name] == value for era in present)
    }
    if len(eras) == 1:
        return constant
    history = []
    for since, era in eras:
        changed = {name: value for name, value in era.items() if name not in constant}
        history.append({"since": since, **changed})
    return {**constant, "history": history}
