"""One stored run, and what it tells an estimate."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from trimtab import __version__
from trimtab.corrections import Measurement, Traits
from trimtab.estimate import Range

OUTCOMES = ("ended", "out of memory", "stopped", "failed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One rehearsal or training; ``id`` is 0 until it is stored."""

    id: int = 0
    seconds_since_epoch: float = field(default_factory=time.time)
    how: str
    """``training``, ``rehearsal`` or ``phantom``."""
    config: str
    """The configuration's name."""
    model: str
    gpu: str
    """The catalogue's name of the card; ``cpu``."""
    gpus_per_node: int
    nodes: int
    outcome: str
    """One of `OUTCOMES`."""
    tool_version: str = __version__
    traits: Traits | None
    """None for what no estimate is asked about: shrunken models, the CPU."""
    figures: Mapping[str, Any] = field(default_factory=dict)
    """Those of `trimtab.corrections.Measurement`, by name; ranges as ``{"low", "expected", "high"}``."""
    document: Mapping[str, Any] = field(default_factory=dict)
    """All of it: ``config``, ``versions``, ``answer`` and, where there is one, ``predicted``."""

    @property
    def date(self) -> str:
        """The day, as people write it; local time."""
        return time.strftime("%Y-%m-%d", time.localtime(self.seconds_since_epoch))

    def measurement(self) -> Measurement | None:
        """What it tells an estimate; None if nothing."""
        if self.traits is None:
            return None
        ranges = {
            name: None if self.figures.get(name) is None else Range(**self.figures[name]) for name in _RANGES
        }
        if self.tool_version != __version__:
            ranges["predicted_alone"] = None  # another arithmetic's
        return Measurement(
            id=self.id,
            how=self.how,
            date=self.date,
            traits=self.traits,
            fits_probability=self.figures.get("fits_probability"),
            **ranges,
        )


_RANGES = tuple(
    one.name
    for one in dataclasses.fields(Measurement)
    if one.name not in ("id", "how", "date", "traits", "fits_probability")
)


def as_figure(value: Range | None) -> dict[str, float] | None:
    """A range as it is stored."""
    return None if value is None else dataclasses.asdict(value)
