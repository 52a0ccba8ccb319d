"""What a plan says, as values: the choice, what else was weighed, the proof, the nearest that would run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from trimtab.cluster import Cluster
from trimtab.config import Config
from trimtab.estimate import Estimate
from trimtab.plan.contender import TIE, Contender
from trimtab.plan.costs import Bill
from trimtab.plan.reasons import summary
from trimtab.plan.wishes import Wishes


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """What a rehearsal says of a configuration."""

    how: str
    """``phantom`` or ``rehearsal``."""
    fits: bool
    fits_probability: float
    needed_bytes: int | None
    step_seconds: float | None = None
    """Measured, with the communication that was predicted; None where no time was seen."""
    said: str = ""
    """The engine's own words where it refused or ran out of memory."""


Prover = Callable[[Config, Cluster], Proof]
"""Runs the real engine on a configuration; never raises for one that does not fit or is refused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Proven:
    """A contender and what its proof said."""

    contender: Contender
    proof: Proof


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A configuration with its figures, ready to be started."""

    bill: Bill
    estimate: Estimate
    launch: str

    @property
    def config(self) -> Config:
        """The complete file."""
        return self.bill.contender.config

    @property
    def cluster(self) -> Cluster:
        """The machines it is for."""
        return self.bill.contender.cluster

    @property
    def summary(self) -> str:
        """One line."""
        return summary(self.bill.contender)


@dataclass(frozen=True, slots=True, kw_only=True)
class Considered:
    """One row of what was weighed."""

    summary: str
    machines: str
    fits: bool
    step_seconds: float | None
    seconds_per_billion_tokens: float | None
    usd_per_billion_tokens: float | None
    why_not: str | None
    """None for the chosen one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Nearest:
    """The nearest thing that would run where the wishes cannot be had."""

    change: str
    """What would have to change, as a wish: ``2 nodes instead of 1``."""
    missing: str
    """What is missing as things are."""
    choice: Choice


@dataclass(frozen=True, slots=True, kw_only=True)
class Counterfactual:
    """What another machine or a package would change."""

    change: str
    summary: str
    seconds_ratio: float
    """Time for the same tokens over the chosen plan's: below 1 is faster."""
    usd_ratio: float | None
    bill: Bill

    @property
    def sentence(self) -> str:
        """The change and its effect in words."""
        speed = _ratio(self.seconds_ratio, "slower", "faster")
        money = "" if self.usd_ratio is None else f", {_ratio(self.usd_ratio, 'dearer', 'cheaper')}"
        return f"{self.change}: {speed}{money} ({self.summary})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The answer: the chosen plan or None, what else was weighed, why, and what would be nearest."""

    wishes: Wishes
    chosen: Choice | None
    considered: tuple[Considered, ...]
    why: tuple[str, ...]
    nearest: Nearest | None = None
    broken: tuple[str, ...] = ()
    """The wishes that cannot be had together, each with its numbers."""
    counterfactuals: tuple[Counterfactual, ...] = ()
    bills: tuple[Bill, ...] = field(default=(), repr=False)
    """Every fitting contender that was weighed, for pictures."""
    proven: tuple[Proven, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def config(self) -> Config | None:
        """The chosen file."""
        return None if self.chosen is None else self.chosen.config


def _ratio(ratio: float, more: str, less: str) -> str:
    if abs(ratio - 1) <= TIE:
        return f"not {more}"
    return f"{ratio:.2g}× {more}" if ratio > 1 else f"{1 / ratio:.2g}× {less}"
