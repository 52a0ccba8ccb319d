"""The configuration keys of one DeepSpeed release."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache, cached_property
from typing import Any, cast

from trimtab.schema.table import (
    accepts,
    attributes,
    known_versions,
    make_component,
    make_key,
    order,
    resolve_version,
    table,
)
from trimtab.schema.values import Behaviour, Component, Key, Kind, Nearest, Policy, Section, Version

MOST_REMEMBERED = 10_000  # paths whose canonical name is kept; the table has some five hundred
ANY_PARAMETER = {"optimizer.params": "optimizer", "scheduler.params": "scheduler"}


@cache
def load(version: str | None = None) -> Schema:
    """The keys as one release reads them; None is the newest release known.

    Raises:
        UsageError: ``version`` is no version number.
    """
    return Schema(resolve_version(version))


class Schema:
    """The configuration keys of one DeepSpeed release."""

    def __init__(self, version: Version) -> None:
        self.version = version
        self._order = order(version.name)
        self._entries: dict[str, dict[str, Any]] = table()["keys"]
        self._made: dict[str, Key] = {}
        self._components: dict[tuple[Kind, str], Component | None] = {}
        self._canonical: dict[str, str] = {}
        self._parameters: dict[Kind, Mapping[str, Key]] = {}

    # ---- keys

    def key(self, path: str) -> Key | None:
        """The key at a dotted path (aliases are fine); None when this release does not accept it."""
        path = self.canonical(path)
        if path not in self._accepted:
            return self._any_parameter(path)
        if path not in self._made:
            self._made[path] = make_key(path, self._entries[path], self._order)
        return self._made[path]

    def any_version(self, path: str) -> Key | None:
        """The key as the last release that knew it read it, whatever this release does with it."""
        path = self.canonical(path)
        if path in self._accepted:
            return self.key(path)
        entry = self._entries.get(path)
        return make_key(path, entry, order(known_versions()[-1])) if entry is not None else None

    def paths(self) -> tuple[str, ...]:
        """Every path that this release accepts, parameters of optimizers and schedulers left out."""
        return tuple(self._accepted)

    def canonical(self, path: str) -> str:
        """The path with every alias replaced by the table's name."""
        if path in self._canonical:
            return self._canonical[path]
        done = ""
        for part in path.split("."):
            step = f"{done}.{part}" if done else part
            done = step if step in self._accepted else self._aliases.get(step, step)
        if len(self._canonical) < MOST_REMEMBERED:
            self._canonical[path] = done
        return done

    @cached_property
    def _accepted(self) -> dict[str, None]:
        return {path: None for path, entry in self._entries.items() if accepts(entry, self._order)}

    @cached_property
    def _aliases(self) -> dict[str, str]:
        found = {}
        for path in self._accepted:
            above = path.rpartition(".")[0]
            for alias in attributes(self._entries[path], self._order).get("aliases", ()):
                found[f"{above}.{alias}" if above else alias] = path
        return found

    # ---- sections

    def section(self, path: str) -> Section | None:
        """The block at ``path``; None when there is none, or the key holds no block."""
        path = self.canonical(path)
        if path and path not in self._accepted:
            return None
        keys = tuple(key for name in self.children(path) if (key := self.key(name)))
        entry = table()["sections"].get(path)
        if entry is None:
            return None
        return Section(path=path, unknown=self.unknown_key_behaviour(path), keys=keys)

    def is_section(self, path: str) -> bool:
        """Whether there is a block of keys at ``path``."""
        path = self.canonical(path)
        return (not path or path in self._accepted) and path in table()["sections"]

    def children(self, path: str) -> tuple[str, ...]:
        """The paths of the keys directly in a block."""
        return tuple(other for other in self._accepted if other.rpartition(".")[0] == path)

    def unknown_key_behaviour(self, section: str) -> Policy:
        """What this release does with a key that it does not know in ``section`` ("" is the whole file)."""
        path = self.canonical(section)
        while True:
            entry = table()["sections"].get(path)
            policy = attributes(entry, self._order).get("unknown") if entry is not None else None
            if policy is not None:
                return cast(Policy, policy)
            if not path:
                return "ignored"
            path = path.rpartition(".")[0]

    def behaviour(self, path: str) -> Behaviour:
        """What this release does with the key at ``path``.

        Raised errors about removed keys count as ``refused``, and so do the errors of typed sections.
        """
        path = self.canonical(path)
        if path in self._accepted:
            return "read"
        known = self._entries.get(path, {})
        if "refused" in known and order(known["refused"]) <= self._order:
            return "refused"
        above = path.rpartition(".")[0]
        if above and self.behaviour(above) in ("refused", "ignored"):
            return self.behaviour(above)
        return self.unknown_key_behaviour(above)

    # ---- optimizers and schedulers

    def component(self, kind: Kind, name: str) -> Component | None:
        """The built-in optimizer (in any case) or scheduler of that name; None when this release has none."""
        wanted = name.lower() if kind == "optimizer" else name
        entry = table()[f"{kind}s"].get(wanted)
        if entry is None:
            return None
        if (kind, wanted) not in self._components:
            made = make_component(kind, entry, self._order) if accepts(entry, self._order) else None
            self._components[kind, wanted] = made
        return self._components[kind, wanted]

    def components(self, kind: Kind) -> Iterator[Component]:
        """All optimizers or schedulers that this release builds by name."""
        for name in table()[f"{kind}s"]:
            found = self.component(kind, name)
            if found is not None:
                yield found

    def component_any_version(self, kind: Kind, name: str) -> Component | None:
        """The optimizer or scheduler as the last release that had it built it."""
        entry = table()[f"{kind}s"].get(name.lower() if kind == "optimizer" else name)
        last = order(known_versions()[-1])
        return make_component(kind, entry, last, gone=True) if entry is not None else None

    def components_any_version(self, kind: Kind) -> Iterator[Component]:
        """All optimizers or schedulers that any release built by name, as the last one that had them did."""
        for name in table()[f"{kind}s"]:
            found = self.component_any_version(kind, name)
            if found is not None:
                yield found

    def parameters(self, kind: Kind) -> Mapping[str, Key]:
        """Each parameter's name with the first built-in component's view of it."""
        if kind not in self._parameters:
            found: dict[str, Key] = {}
            for component in self.components(kind):
                for name, key in component.params.items():
                    found.setdefault(name, key)
            self._parameters[kind] = found
        return self._parameters[kind]

    def _any_parameter(self, path: str) -> Key | None:
        above, _, name = path.rpartition(".")
        kind = ANY_PARAMETER.get(above)
        return self.parameters(cast(Kind, kind)).get(name) if kind else None

    # ---- what is built on top

    def nearest(self, path: str) -> Nearest | None:
        """The key that a wrong path probably means; see `trimtab.schema.nearest`."""
        from trimtab.schema.nearest import nearest

        return nearest(self, path)

    def json_schema(self) -> dict[str, Any]:
        """A draft-07 JSON Schema of the file, for editors; see `trimtab.schema.json_schema`."""
        from trimtab.schema.json_schema import json_schema

        return json_schema(self)

    def page(self, path: str) -> str:
        """All that is known of a key, an optimizer or a scheduler, as text; see `trimtab.schema.page`."""
        from trimtab.schema.page import page

        return page(self, path)

    @staticmethod
    def synonyms() -> Mapping[str, str]:
        """What other tools call a key, and the path of the key."""
        return cast(Mapping[str, str], table()["synonyms"])
