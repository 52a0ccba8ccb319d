"""The table itself: ``data/keys.json``, loaded once, and its entries as one release sees them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, cast

from trimtab.errors import UsageError
from trimtab.folders import read_shipped
from trimtab.schema.values import Component, Default, Key, Kind, Note, Version

Release = tuple[int, ...]


@cache
def table() -> dict[str, Any]:
    return cast(dict[str, Any], read_shipped("keys.json"))


def known_versions() -> tuple[str, ...]:
    """The releases in the table, oldest first."""
    return tuple(table()["versions"])


def resolve_version(text: str | None = None) -> Version:
    """The release of the table to judge by: the one asked for, else the next older one.

    None means the newest.  A release that is older than the table is judged as its oldest.

    Raises:
        UsageError: ``text`` is no version number.

    >>> resolve_version("0.18.9").exact
    True
    >>> resolve_version("99.0").problem.startswith("DeepSpeed 99.0 is newer")
    True
    """
    versions = known_versions()
    if text is None:
        return Version(name=versions[-1], asked=versions[-1])
    asked = _release(text)
    fitting = [version for version in versions if order(version) <= asked]
    if not fitting:
        problem = f"DeepSpeed {text} is older than the oldest release known here; judged as {versions[0]}"
        return Version(name=versions[0], asked=text, problem=problem)
    name = fitting[-1]
    if order(name) == asked:
        return Version(name=name, asked=text)
    age = "newer than any release known here" if name == versions[-1] else "not a release known here"
    return Version(name=name, asked=text, problem=f"DeepSpeed {text} is {age}; judged as {name}")


@cache
def order(version: str) -> Release:
    """A key to sort release numbers by."""
    return tuple(int(part) for part in version.split("."))


def _release(text: str) -> Release:
    plain = text.strip().removeprefix("v").partition("+")[0]
    parts = [part for part in plain.split(".") if not part.startswith(("dev", "post"))]
    if not parts or not all(part.isdecimal() and part.isascii() and len(part) < 6 for part in parts):
        raise UsageError(f"'{text}' is not a DeepSpeed version; give one such as {known_versions()[-1]}")
    return (*(int(part) for part in parts), 0, 0)[: max(3, len(parts))]


def accepts(entry: Mapping[str, Any], at: Release) -> bool:
    if "since" in entry and order(entry["since"]) > at:
        return False
    if "removed" in entry and order(entry["removed"]) <= at:
        return False
    if "refused" in entry and order(entry["refused"]) <= at:
        return False
    return "absent" not in attributes(entry, at)


def attributes(entry: Mapping[str, Any], at: Release) -> Mapping[str, Any]:
    """The entry with the values of the era that ``at`` lies in (the first era, for older releases)."""
    eras = entry.get("history")
    if not eras:
        return entry
    fitting = [era for era in eras if order(era["since"]) <= at]
    era = fitting[-1] if fitting else eras[0]
    return {**entry, **{name: value for name, value in era.items() if name != "since"}}


def make_key(path: str, entry: Mapping[str, Any], at: Release) -> Key:
    values = attributes(entry, at)
    return Key(
        path=path,
        description=values.get("does", ""),
        types=tuple(values["types"]),
        has_default="default" in values,
        default=values.get("default"),
        defaults=dated_defaults(entry),
        choices=tuple(values.get("choices", ())),
        any_case=values.get("any_case", False),
        item_choices=tuple(values.get("item_choices", ())),
        bounds={bound: values[bound] for bound in ("ge", "gt", "le", "lt") if bound in values},
        unit=values.get("unit"),
        aliases=tuple(values.get("aliases", ())),
        validated=values.get("typed", False),
        required=values.get("required", False),
        only=values.get("only"),
        deprecated=values.get("deprecated", False),
        replacement=values.get("replacement"),
        since=entry.get("since"),
        removed=entry.get("removed"),
        refused_since=entry.get("refused"),
        auto=tuple(values.get("auto", ())),
        notes=tuple(Note(text=text, source=source) for text, source in values.get("notes", ())),
        source=values["source"],
        by_hand=values.get("by_hand", {}),
    )


def dated_defaults(entry: Mapping[str, Any]) -> tuple[Default, ...]:
    if "default" in entry:
        return (Default(since=entry.get("since"), value=entry["default"]),)
    found: list[Default] = []
    oldest = known_versions()[0]
    for era in entry.get("history", ()):
        if "default" in era and (not found or found[-1].value != era["default"]):
            since = era["since"] if era["since"] != oldest else None
            found.append(Default(since=since, value=era["default"]))
    return tuple(found)


def make_component(kind: Kind, entry: Mapping[str, Any], at: Release, *, gone: bool = False) -> Component:
    lifetime = {name: entry[name] for name in ("since", "removed") if name in entry}
    params = {
        name: make_key(f"{kind}.params.{name}", {**lifetime, **parameter}, at)
        for name, parameter in entry["params"].items()
        if gone or accepts(parameter, at)
    }
    return Component(
        kind=kind,
        name=entry["name"],
        description=entry["does"],
        unknown=entry.get("unknown", "refused"),
        params=params,
        since=entry.get("since"),
        removed=entry.get("removed"),
        source=entry["source"],
    )
