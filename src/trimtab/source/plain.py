"""A configuration that a program hands over as a dict, made plain: JSON's types only, copied, limited."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from trimtab.source.tree import INT64, MAX_ALIKE, MAX_DEPTH, MAX_NODES, KeyPath, Problem, ProblemKind


def plain_value(given: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[Problem, ...]]:
    """``given`` in plain dicts, lists, texts, numbers, booleans and None, and what had to be replaced.

    >>> plain_value({"train_batch_size": 8, "lr": float("nan")})[0]
    {'train_batch_size': 8, 'lr': 'nan'}
    """
    copier = _Copier()
    return copier.mapping(given, ()), tuple(copier.problems)


class _Copier:
    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self.node_count = 0

    def note(self, kind: ProblemKind, message: str, path: KeyPath) -> None:
        if sum(problem.kind == kind for problem in self.problems) < MAX_ALIKE:
            self.problems.append(Problem(kind=kind, message=message, line=1, column=1, key_path=path))

    def mapping(self, given: Mapping[Any, Any], path: KeyPath) -> dict[str, Any]:
        copied = {}
        for key, value in given.items():
            if not isinstance(key, str):
                self.note("key-not-text", f"the key {_shown(key)} is not a text", path)
                key = _shown(key)
            copied[str(key)] = self.value(value, (*path, str(key)))
        return copied

    def value(self, given: Any, path: KeyPath) -> Any:
        self.node_count += 1
        if self.node_count > MAX_NODES:
            self.note("too-many-nodes", f"more than {MAX_NODES:,} keys and values: not a configuration", path)
            return None
        if isinstance(given, (Mapping, list, tuple)):
            if len(path) >= MAX_DEPTH:
                self.note("too-deep", f"nested more than {MAX_DEPTH} deep, or holding itself", path)
                return None
            if isinstance(given, Mapping):
                return self.mapping(given, path)
            return [self.value(item, (*path, index)) for index, item in enumerate(given)]
        return self.single(given, path)

    def single(self, given: Any, path: KeyPath) -> Any:
        if given is None or isinstance(given, bool):
            return given
        if isinstance(given, str):
            return str(given).encode("utf-8", "replace").decode("utf-8")
        if isinstance(given, int):
            whole = int(given)
            if -INT64 <= whole < INT64:
                return whole
            self.note("huge-number", "an integer that does not fit in 64 bits", path)
            return hex(whole)[:40]
        if isinstance(given, float):
            if math.isfinite(given):
                return float(given)
            self.note("not-finite", f"{given} is no finite number", path)
            return str(float(given))
        self.note("not-json", f"a {type(given).__name__} is no JSON value", path)
        return _shown(given)


def _shown(given: object) -> str:
    """A name for something that JSON cannot hold; its own ``repr`` is not asked, since it may do anything."""
    return str(given) if given is None or isinstance(given, (bool, float)) else f"<{type(given).__name__}>"
