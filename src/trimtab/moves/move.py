"""What a move is: one named change to a configuration, as a value."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from trimtab.cluster import Cluster
from trimtab.config import Config
from trimtab.model import Model
from trimtab.moves.edits import differences

Effect = Literal["same", "rounding", "training"]
"""What becomes of the training: ``same`` but for the order of sums, the same in a coarser number format
(``rounding``), or another training (other optimizer, fewer trained weights)."""

ALREADY = "the configuration has it already"
Value = int | str | bool | None
Applies = Callable[[Config, Model, Cluster], str | None]
Apply = Callable[[Config, Cluster], Config]


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """One named change to a configuration.

    ``applies(config, model, cluster)`` is None where the move may be made, else why not, as a sentence; a
    configuration that has it already is a reason too.  ``apply(config, cluster)`` is the configuration after
    it: pure, the global batch kept, and the same when applied again.
    """

    name: str
    """Stable, in kebab case: ``zero-stage-3``."""
    kind: str
    """What it sets, without the value: ``zero-stage``.  A later move of one kind overrides an earlier one."""
    value: Value
    title: str
    saves: str
    costs: str
    needs: str
    source: str
    """DeepSpeed 0.19.8's file and line, or a paper's section."""
    effect: Effect = "same"
    counted: bool = True
    """Whether `trimtab.estimate` counts what it changes; where not, its figures stay those of before."""
    applies: Applies = field(repr=False, compare=False)
    apply: Apply = field(repr=False, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A family of moves that set one thing to different values."""

    name: str
    title: str
    make: Callable[[Any], Move] = field(repr=False)
    """The move for one value."""
    options: Callable[[Config, Model, Cluster], tuple[Value, ...]] = field(repr=False)
    """The values worth trying, in the order of what they cost; some of them may not apply."""
    read: Callable[[str], Any] = field(repr=False)
    """The value of a move's name; ValueError where the text is none."""


def single(name: str, title: str, make: Callable[[], Move]) -> Kind:
    """A kind with one move, which is there or not."""

    def read(text: str) -> None:
        raise ValueError(text)

    return Kind(name=name, title=title, make=lambda value: make(), options=lambda *where: (None,), read=read)


def switch(name: str, title: str, make: Callable[[bool], Move]) -> Kind:
    """A kind with two moves, on and off."""

    def read(text: str) -> bool:
        if text not in ("on", "off"):
            raise ValueError(text)
        return text == "on"

    return Kind(name=name, title=title, make=make, options=lambda *where: (False, True), read=read)


def choice(name: str, title: str, make: Callable[[str], Move], values: tuple[str, ...]) -> Kind:
    """A kind with one move a word."""

    def read(text: str) -> str:
        return {value.lower(): value for value in values}.get(text) or _no(text)

    return Kind(name=name, title=title, make=make, options=lambda *where: values, read=read)


def _no(text: str) -> str:
    raise ValueError(text)


def already(config: Config, after: Config) -> str | None:
    """A reason where a change changes nothing."""
    return None if differences(config.raw, after.raw) else ALREADY


def moved(
    kind: str,
    value: Value,
    *,
    title: str,
    saves: str,
    costs: str,
    source: str,
    apply: Apply,
    refuses: Applies | None = None,
    needs: str = "nothing",
    effect: Effect = "same",
    counted: bool = True,
) -> Move:
    """A move of ``kind``; its name is the kind and the value, and it does not apply where it does nothing."""

    def applies(config: Config, model: Model, cluster: Cluster) -> str | None:
        reason = refuses(config, model, cluster) if refuses else None
        return reason or already(config, apply(config, cluster))

    return Move(
        name=kind if value is None else f"{kind}-{spelled(value)}",
        kind=kind,
        value=value,
        title=title,
        saves=saves,
        costs=costs,
        needs=needs,
        source=source,
        effect=effect,
        counted=counted,
        applies=applies,
        apply=apply,
    )


def spelled(value: Value) -> str:
    """A value as it stands in a move's name."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return str(value).lower()
