"""What the table of keys is made of, as values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Policy = Literal["ignored", "refused", "passed"]
"""What becomes of an unknown key: never looked at, an error, or handed on to something else."""
Behaviour = Literal["read", "ignored", "refused", "passed"]
Kind = Literal["optimizer", "scheduler"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """A DeepSpeed release that the table knows, and what was asked for."""

    name: str
    asked: str
    problem: str | None = None
    """Why ``name`` is not ``asked``; None when it is."""

    @property
    def exact(self) -> bool:
        return self.problem is None


@dataclass(frozen=True, slots=True, kw_only=True)
class Default:
    """A default and the release it came with (None: older than the table)."""

    since: str | None
    value: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """When a key does nothing, or what else it needs, with the place in DeepSpeed that shows it."""

    text: str
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """One configuration key as one release reads it.

    ``types`` are JSON Schema's names.  ``validated`` tells whether the engine itself checks type and bounds:
    where it does not, a wrong value surfaces later or never.
    """

    path: str
    description: str
    types: tuple[str, ...]
    has_default: bool
    default: Any
    defaults: tuple[Default, ...]
    choices: tuple[Any, ...]
    any_case: bool
    item_choices: tuple[Any, ...]
    bounds: Mapping[str, float]
    """``ge``, ``gt``, ``le``, ``lt``, as far as they are set."""
    unit: str | None
    aliases: tuple[str, ...]
    validated: bool
    required: bool
    only: str | None
    """The switch that a parameter needs to be accepted, such as ``torch_adam``."""
    deprecated: bool
    replacement: str | None
    since: str | None
    """The release that brought the key; None when it is older than the table."""
    removed: str | None
    """The first release that no longer reads the key."""
    refused_since: str | None
    """The first release that stops a run because the key is there."""
    auto: tuple[str, ...]
    """Who replaces the value ``"auto"``: ``transformers``, ``accelerate``."""
    notes: tuple[Note, ...]
    source: str
    """File and line in the ``deepspeed`` package of the newest release that has the key."""
    by_hand: Mapping[str, str]
    """Facts that no program read, each with the place where it was found."""

    @property
    def name(self) -> str:
        return self.path.rpartition(".")[2]

    @property
    def parent(self) -> str:
        return self.path.rpartition(".")[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A block of the file ("" is the whole file), the keys in it, and what becomes of other keys."""

    path: str
    unknown: Policy
    keys: tuple[Key, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Component:
    """An optimizer or scheduler that DeepSpeed builds by name, with its parameters."""

    kind: Kind
    name: str
    description: str
    unknown: Policy
    params: Mapping[str, Key]
    since: str | None
    removed: str | None
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Nearest:
    """The key that was probably meant."""

    path: str
    reason: Literal["misspelt", "moved", "synonym"]
    others: tuple[str, ...] = ()
    """Further places that have a key of this name."""

    @property
    def parent(self) -> str:
        return self.path.rpartition(".")[0]

    @property
    def name(self) -> str:
        return self.path.rpartition(".")[2]
