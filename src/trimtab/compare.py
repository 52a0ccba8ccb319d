"""Two configurations compared by what they do: defaults filled in, aliases and types resolved."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from trimtab import schema
from trimtab.config import AUTO, BLOCK
from trimtab.errors import UnreadableFile
from trimtab.rules.coercion import Misfit, coerced
from trimtab.rules.subject import Subject, walk
from trimtab.source import Source, refuse_pointer

ABSENT: Final = "(absent)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One key with two values; ``written`` says which of the two files state it."""

    path: str
    before: Any
    after: Any
    written: tuple[bool, bool]
    ignored: bool = False
    """DeepSpeed does not read the key, so the change has no effect."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """How two configurations differ in effect, and which keys are written differently to the same effect."""

    before: str
    after: str
    version: schema.Version
    changes: tuple[Change, ...]
    same_in_effect: tuple[str, ...]

    @property
    def equal(self) -> bool:
        """Whether DeepSpeed does the same with both."""
        return not any(not change.ignored for change in self.changes)

    def to_dict(self) -> dict[str, Any]:
        """The difference as `trimtab diff --json` prints it."""
        return {
            "before": self.before,
            "after": self.after,
            "deepspeed": self.version.name,
            "equal": self.equal,
            "changes": [
                {
                    "key_path": change.path,
                    "before": None if change.before is ABSENT else change.before,
                    "after": None if change.after is ABSENT else change.after,
                    "written": {"before": change.written[0], "after": change.written[1]},
                    "ignored": change.ignored,
                }
                for change in self.changes
            ],
            "same_in_effect": list(self.same_in_effect),
        }


def compare(before: Source, after: Source, *, deepspeed: str | None = None) -> Difference:
    """How ``after`` differs from ``before`` in effect, by the keys of one release (default: the newest).

    Raises:
        UnreadableFile: one of them is no configuration, or cannot be read to its end.
    """
    for source in (before, after):
        if not source.complete or not isinstance(source.value, Mapping):
            said = source.problems[0].message if source.problems else "not a configuration"
            raise UnreadableFile(f"{source.file}: {said}. `trimtab check {source.file}` shows the place")
        refuse_pointer(source)
    keys = schema.load(deepspeed)
    left, right = _Effect(before, keys), _Effect(after, keys)
    changes, same = [], []
    for path in dict.fromkeys((*left.written, *right.written)):
        one, other = left.value(path), right.value(path)
        written = (path in left.written, path in right.written)
        if _equal(one, other):
            if left.written.get(path, ABSENT) != right.written.get(path, ABSENT):
                same.append(path)
        else:
            ignored = keys.behaviour(path) == "ignored" and not path.startswith(f"{BLOCK}.")
            changes.append(Change(path=path, before=one, after=other, written=written, ignored=ignored))
    return Difference(
        before=before.file,
        after=after.file,
        version=keys.version,
        changes=tuple(changes),
        same_in_effect=tuple(same),
    )


def _equal(one: Any, other: Any) -> bool:
    return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)


class _Effect:
    """What one configuration makes of every key."""

    def __init__(self, source: Source, keys: schema.Schema) -> None:
        self.keys = keys
        self.subject = Subject(source=source, raw=source.mapping, schema=keys)
        self.written = dict(self._written())

    def _written(self) -> Iterator[tuple[str, Any]]:
        """The keys that stand in the file, under their lasting names."""
        for place, value in walk(self.subject.raw):
            path = self.keys.canonical(".".join(map(str, place)))
            if isinstance(value, Mapping) and value and not self._opaque(path):
                continue
            if any(self._opaque(above) for above in _above(path)):
                continue
            yield from self._lasting(path, value)

    def _opaque(self, path: str) -> bool:
        """A block that DeepSpeed hands on as it is: it is compared as a whole."""
        return path not in ("optimizer.params", "scheduler.params") and (
            self.keys.section(path) is not None and self.keys.unknown_key_behaviour(path) == "passed"
        )

    def _lasting(self, path: str, value: Any) -> Iterator[tuple[str, Any]]:
        if path == "zero_optimization" and isinstance(value, bool):
            yield "zero_optimization.stage", int(value)  # runtime/zero/config.py:60-75
        elif path == "zero_optimization.cpu_offload":
            yield "zero_optimization.offload_optimizer.device", "cpu" if value is True else "none"
        elif path == "zero_optimization.cpu_offload_param":
            yield "zero_optimization.offload_param.device", "cpu" if value is True else "none"
        else:
            key = self.keys.key(path)
            if key is not None and key.deprecated and key.replacement:
                path = self.keys.canonical(f"{key.parent}.{key.replacement}")
            yield path, value

    def value(self, path: str) -> Any:
        """What DeepSpeed works with: the value written, converted, or the default."""
        key = self.keys.key(path)
        given = self.written.get(path, ABSENT)
        if path == "optimizer.type" and isinstance(given, str):
            return self._optimizer(given)
        component = self._component(path)
        if component is not None:
            key = component.params.get(key.name if key else path.rpartition(".")[2], key)
        if given is ABSENT or (given is None and (key is None or "null" not in key.types)):
            return self._default(path, key)
        if key is None or given == AUTO or "object" in key.types:
            return given
        try:
            return coerced(key, given) if key.validated else given
        except Misfit:
            return given

    def _default(self, path: str, key: schema.Key | None) -> Any:
        if path == "zero_optimization.overlap_comm":
            return self.subject.stage == 3  # runtime/zero/config.py:382-387
        return key.default if key is not None and key.has_default else ABSENT

    def _optimizer(self, name: str) -> str:
        """The optimizer that runs: Adam is AdamW unless adam_w_mode is off (runtime/engine.py:2486)."""
        component = self.keys.component("optimizer", name)
        plain = component.name if component else name
        adam_w = self.subject.block("optimizer.params").get("adam_w_mode", True)
        return "AdamW" if plain == "Adam" and adam_w is not False else plain

    def _component(self, path: str) -> schema.Component | None:
        kind, _, rest = path.partition(".")
        name = self.subject.written(f"{kind}.type")
        if (
            kind not in ("optimizer", "scheduler")
            or not rest.startswith("params.")
            or not isinstance(name, str)
        ):
            return None
        return self.keys.component(kind, name)  # type: ignore[arg-type]


def _above(path: str) -> Iterator[str]:
    while "." in path:
        path = path.rpartition(".")[0]
        yield path
