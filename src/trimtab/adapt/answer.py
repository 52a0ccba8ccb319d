"""What an adaptation answers with: the steps, what they come to, or what is missing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trimtab.cluster import Cluster
from trimtab.config import BLOCK, Config
from trimtab.estimate import Estimate
from trimtab.moves import Move, edits
from trimtab.source import Source, apply_edits
from trimtab.units import format_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One move of an adaptation: why, which keys it changes, and the estimates around it."""

    move: Move
    reason: str
    changes: Mapping[tuple[str, ...], Any]
    """Key paths and their new values; None removes a key."""
    before: Estimate | None
    """None where the configuration could not run at all."""
    after: Estimate | None

    @property
    def title(self) -> str:
        """What is done: the move's own title, but for a batch of which the accumulation alone changes."""
        if set(self.changes) == {("gradient_accumulation_steps",)}:
            return f"{self.changes[('gradient_accumulation_steps',)]} micro steps of the same size"
        return self.move.title


@dataclass(frozen=True, slots=True, kw_only=True)
class Nearest:
    """The closest that would fit: other machines for the same job, with the moves that are made there."""

    cluster: Cluster
    answer: Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class Adaptation:
    """A configuration made to fit other machines, step by step."""

    before: Config
    after: Config | None
    """None where nothing fits."""
    cluster: Cluster
    home: Cluster | None
    """The machines that a ready configuration is made for."""
    steps: tuple[Step, ...]
    answer: Estimate | None
    """Of ``after``, or of what came nearest."""
    missing: str | None
    """What is lacking where nothing fits."""
    nearest: tuple[Nearest, ...]
    faster: tuple[Step, ...]
    """Single further moves that would save time and still fit, the best first."""
    notes: tuple[str, ...]

    @property
    def fits(self) -> bool:
        """Whether there is an answer."""
        return self.after is not None

    def written(self, source: Source) -> str:
        """The text of ``source``, which ``before`` was read from, after the moves; all else stays as it is.

        Where moves begin a "trimtab" block, it says of the job all that is known.

        Raises:
            UsageError: a place that cannot be changed alone; names the key.
        """
        if self.after is None or self.after is self.before:
            return source.text
        stated = dict(self.before.raw)
        if BLOCK not in source.mapping and stated.get(BLOCK) != self.after.raw.get(BLOCK):
            stated.pop(BLOCK, None)
        return apply_edits(source, edits(stated, self.after.raw))


def missing(answer: Estimate, sure: float) -> str | None:
    """What an estimate lacks, in words; None where it lacks nothing."""
    for what, needed, capacity in (
        (f"a {answer.cluster.gpu.name}", answer.needed.expected, answer.capacity_bytes),
        ("a node's memory", answer.host_bytes_per_node.expected, answer.cluster.host_memory_bytes),
        ("a node's NVMe", answer.nvme_bytes_per_node, answer.cluster.nvme_bytes),
    ):
        if needed > capacity:
            return f"{format_bytes(needed)} are needed of {what}, which has {format_bytes(capacity)}"
    if answer.fits_probability < sure:
        needed, capacity = answer.needed.expected, answer.capacity_bytes
        return f"{format_bytes(needed)} are needed of {format_bytes(capacity)}: too near the limit to be sure"
    return None
