"""The cards of the ready configurations: what is known about each beside its text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from trimtab.catalogue import Hardware


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


def read(name: str, described: Mapping[str, Any], hardware: Hardware, figures: str) -> Card:
    """The card that ``described``, the content of its file, makes; ``figures`` are measured rows by name."""
    return Card(
        name=name,
        family=described["family"],
        title=described["title"],
        purpose=tuple(described["purpose"]),
        hardware=hardware,
        claims=tuple(Claim(**claim) for claim in described["guide"]),
        changes=tuple(
            Change(before=row["from"], after=row["to"], why=row["why"], source=row["source"])
            for row in described["changes"]
        ),
        alternatives=tuple(
            Alternative(when=row["when"], changes=row["set"]) for row in described["alternatives"]
        ),
        figures=tuple(Figure(**row) for row in _measured(figures).get(name, ())),
    )


@cache
def _measured(path: str) -> Mapping[str, list[dict[str, Any]]]:
    rows: dict[str, list[dict[str, Any]]] = {}
    file = Path(path)
    if file.exists():
        for line in file.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            rows.setdefault(row.pop("config"), []).append(row)
    return rows
