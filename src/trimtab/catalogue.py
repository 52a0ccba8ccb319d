"""The thirteen ready configurations and their cards.

A configuration is one JSON file under ``data/configs/<family>/``; its card, the facts about it that are not
configuration, lies under ``data/cards/``.  Measured figures are rows of ``data/measured.jsonl``,
joined by name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from trimtab.config import Config
from trimtab.errors import NotFound, UnreadableFile

_DATA = Path(__file__).parent / "data"
FAMILIES = ("llama", "gpt", "bert", "t5")


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """The machines that a catalogue configuration was made for."""

    gpu: str
    gpus_per_node: int
    nodes: int
    host_memory_bytes: int
    """Per node."""
    inter_node_link: str | None = None

    @property
    def world_size(self) -> int:
        """GPUs in all."""
        return self.gpus_per_node * self.nodes


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """One statement of the guide about a configuration, with what is true."""

    quantity: str
    """``statement``, or what the claim is a number of, such as ``gpu_memory_bytes``."""
    claim: str
    low: float | None = None
    high: float | None = None
    truth: str | None = None
    holds: bool | None = None
    """None where nothing proves it either way."""
    source: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What was changed from the guide's file, and why."""

    before: str
    after: str
    why: str
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Alternative:
    """A variant of a configuration for other hardware or another task: dotted paths to set."""

    when: str
    changes: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One measured or predicted number about a configuration, with how it was got."""

    quantity: str
    value: float
    how: str
    """``measured`` (a real run), ``rehearsed`` (one GPU as rank 0), ``phantom`` or ``predicted``."""
    where: str
    """Hardware that it was got on, and how many ranks took part."""
    world_size: int | None = None
    gpu: str | None = None
    """The GPU's name in ``data/gpus.json``."""
    conditions: str | None = None
    """What was otherwise than in the file, such as ``accumulation 2 of 8``."""
    software: str | None = None
    date: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """What is known about a catalogue configuration beside its text."""

    name: str
    family: str
    title: str
    purpose: tuple[str, ...]
    hardware: Hardware
    claims: tuple[Claim, ...]
    changes: tuple[Change, ...]
    alternatives: tuple[Alternative, ...]
    figures: tuple[Figure, ...]


@cache
def _paths() -> Mapping[str, Path]:
    return {
        file.stem: file for family in FAMILIES for file in sorted((_DATA / "configs" / family).glob("*.json"))
    }


def names() -> tuple[str, ...]:
    """The names of all catalogue configurations, by family."""
    return tuple(_paths())


def path(name: str) -> Path:
    """The file of a catalogue configuration.

    Raises:
        NotFound: no configuration has this name; carries the nearest ones.
    """
    paths = _paths()
    if name not in paths:
        raise NotFound("configuration", name, paths, cure="`trimtab list` shows all.")
    return paths[name]


def load_config(name_or_path: str) -> Config:
    """The configuration of a catalogue name or of a file.

    Raises:
        NotFound: neither a catalogue name nor a file.
        UnreadableFile: the file is no readable configuration.
        UsageError: its ``"trimtab"`` block holds something it cannot.
    """
    file = _paths().get(name_or_path)
    if file is None:
        file = Path(name_or_path)
        looks_like_a_path = file.suffix or "/" in name_or_path
        if not file.exists() and not looks_like_a_path:
            path(name_or_path)
    return Config.from_mapping(_read(file), name=name_or_path)


def _read(file: Path) -> Mapping[str, Any]:
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UnreadableFile(
            f"{file}: no such file. `trimtab list` shows the ready configurations."
        ) from None
    except OSError as error:
        raise UnreadableFile(f"{file}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise UnreadableFile(f"{file}: not readable as a configuration: {error}") from None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        from trimtab.source import read_text  # comments and other forms that DeepSpeed reads, at more cost

        source = read_text(text, file=str(file))
        if not source.complete:
            raise UnreadableFile(f"{file}: not readable as a configuration: {error}") from None
        value = source.value
    if not isinstance(value, dict):
        raise UnreadableFile(f"{file}: a configuration is an object, not {type(value).__name__}")
    return value


@cache
def card(name: str) -> Card:
    """The card of a catalogue configuration.

    Raises:
        NotFound: no configuration has this name.
    """
    path(name)
    data = json.loads((_DATA / "cards" / f"{name}.json").read_text(encoding="utf-8"))
    return Card(
        name=name,
        family=data["family"],
        title=data["title"],
        purpose=tuple(data["purpose"]),
        hardware=Hardware(**data["hardware"]),
        claims=tuple(Claim(**claim) for claim in data["guide"]),
        changes=tuple(
            Change(before=row["from"], after=row["to"], why=row["why"], source=row["source"])
            for row in data["changes"]
        ),
        alternatives=tuple(Alternative(when=row["when"], changes=row["set"]) for row in data["alternatives"]),
        figures=tuple(Figure(**row) for row in _measured().get(name, ())),
    )


@cache
def _measured() -> Mapping[str, list[dict[str, Any]]]:
    rows: dict[str, list[dict[str, Any]]] = {}
    file = _DATA / "measured.jsonl"
    if file.exists():
        for line in file.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            rows.setdefault(row.pop("config"), []).append(row)
    return rows
