"""The plan: what to run for a model on these machines, with reasons, or the nearest thing that would run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from trimtab.cluster import Cluster
from trimtab.config import Config
from trimtab.estimate import Estimate, estimate
from trimtab.plan.candidates import number_format
from trimtab.plan.costs import Bill, bill, rank
from trimtab.plan.counting import Arithmetic
from trimtab.plan.launching import launch_line
from trimtab.plan.machines import price_of
from trimtab.plan.reasons import machines, summary, why, why_not_fits, why_other_cluster, why_slower
from trimtab.plan.search import TIE, Contender, Field, search
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
        one = self.bill.contender
        return summary(one.family, one.micro, one.accumulation)


@dataclass(frozen=True, slots=True, kw_only=True)
class Considered:
    """One row of what was weighed."""

    summary: str
    machines: str
    fits: bool
    step_seconds: float | None
    needed_bytes: int | None
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


def plan_for(
    wishes: Wishes,
    clusters: Sequence[Cluster],
    *,
    file: str = "plan.json",
    prove: int = 0,
    prover: Prover | None = None,
    alternatives: bool = True,
) -> Plan:
    """The plan for ``wishes`` on the best of ``clusters``.

    Args:
        file: the name of the file in the launch line.
        prove: how many of the best candidates go through ``prover``, which re-ranks them.
        prover: runs the real engine; the answers themselves never do.
        alternatives: also say what other machines would change.
    """
    arithmetic = Arithmetic(wishes.model, wishes.sure)
    fields = explore(wishes, clusters, arithmetic)
    proven: list[Proven] = []
    answer: Estimate | None = None
    best: Bill | None = None
    while (best := pick(fields, wishes)) is not None:
        known = {id(one.contender): one.proof for one in proven}
        one = best.contender
        proof = known.get(id(one))
        if prover is not None and proof is None and len(proven) < prove:
            proof = prover(one.config, one.cluster)
            proven.append(Proven(contender=one, proof=proof))
            if proof.fits_probability >= wishes.sure and proof.step_seconds is not None:
                fields = _retimed(fields, one, proof.step_seconds)
                continue
        answer = estimate(one.config, one.cluster, model=wishes.model)
        sure = answer.fits_probability if proof is None else proof.fits_probability
        if sure >= wishes.sure:
            break
        fields = tuple(each.without(one) if each.cluster == one.cluster else each for each in fields)
    if best is None or answer is None:
        from trimtab.plan.nearest import nothing_fits

        return nothing_fits(wishes, clusters, fields, arithmetic, file=file, proven=tuple(proven))
    own = next(each for each in fields if each.cluster == best.contender.cluster)
    from trimtab.plan.alternatives import counterfactuals

    return Plan(
        wishes=wishes,
        chosen=Choice(
            bill=best,
            estimate=answer,
            launch=launch_line(wishes, best.contender.cluster, file),
        ),
        considered=considered(fields, best, wishes),
        why=why(best, answer, own, wishes),
        counterfactuals=counterfactuals(best, wishes, clusters, arithmetic) if alternatives else (),
        bills=all_bills(fields, wishes),
        proven=tuple(proven),
        notes=notes(wishes, best.contender.cluster, best),
    )


def explore(
    wishes: Wishes, clusters: Iterable[Cluster], arithmetic: Arithmetic
) -> tuple[Field, ...]:
    """The search on every cluster that may still win."""
    return tuple(search(wishes, cluster, arithmetic) for cluster in clusters)


def pick(fields: Iterable[Field], wishes: Wishes) -> Bill | None:
    """The best plan that keeps the limits: the fastest of each cluster, compared as the wishes ask."""
    best = (each.best for each in fields)
    bills = [bill(one, price_of(one.cluster, wishes), wishes) for one in best if one is not None]
    allowed = [one for one in bills if not one.broken(wishes)]
    return None if not allowed else choose_bill(allowed, wishes)


def choose_bill(bills: Sequence[Bill], wishes: Wishes) -> Bill:
    """The best by what the wishes ask for; among those within `TIE` of it the fewest GPUs, then the cheapest."""
    first = min(rank(one, wishes)[0] for one in bills)
    close = [one for one in bills if rank(one, wishes)[0] <= first + abs(first) * TIE or len(bills) == 1]
    return min(
        close or list(bills),
        key=lambda one: (
            one.contender.cluster.world_size,
            rank(one, wishes),
            one.contender.cluster.gpu.name,
            one.contender.cluster.nodes,
        ),
    )


def _retimed(fields: Iterable[Field], proven: Contender, step_seconds: float) -> tuple[Field, ...]:
    """The fields with a contender's time as it was measured."""
    speed = replace(proven.speed, step_seconds=step_seconds)
    return tuple(
        replace(
            each, every=tuple(replace(one, speed=speed) if one is proven else one for one in each.every)
        )
        for each in fields
    )


def considered(fields: Sequence[Field], best: Bill, wishes: Wishes) -> tuple[Considered, ...]:
    """Every family on the chosen cluster, then the best of every other cluster, with what each lost by."""
    chosen = best.contender
    rows: list[Considered] = []
    for each in fields:
        if each.cluster != chosen.cluster:
            continue
        for one in sorted(each.contenders(), key=lambda one: one is not chosen):
            rows.append(_row(one, wishes, None if one is chosen else why_slower(one, chosen)))
        fitting = {one.family.name for one in each.every}
        for lost in each.losers:
            if lost.family.name in fitting:
                continue
            rows.append(
                Considered(
                    summary=summary(
                        lost.family, lost.micro, lost.config.batch(each.cluster.world_size).accumulation
                    ),
                    machines=machines(lost),
                    fits=False,
                    step_seconds=None,
                    needed_bytes=lost.shortfall.needed,
                    seconds_per_billion_tokens=None,
                    usd_per_billion_tokens=None,
                    why_not=why_not_fits(lost),
                )
            )
    for each in fields:
        one = each.best
        if each.cluster == chosen.cluster or one is None:
            continue
        other = bill(one, price_of(one.cluster, wishes), wishes)
        rows.append(_row(one, wishes, why_other_cluster(other, best, wishes)))
    return tuple(rows)


def _row(one: Contender, wishes: Wishes, why_not: str | None) -> Considered:
    each = bill(one, price_of(one.cluster, wishes), wishes).usd_per_token
    return Considered(
        summary=summary(one.family, one.micro, one.accumulation),
        machines=machines(one),
        fits=True,
        step_seconds=one.step_seconds,
        needed_bytes=one.peak_bytes,
        seconds_per_billion_tokens=one.seconds_per_token * 1e9,
        usd_per_billion_tokens=None if each is None else each * 1e9,
        why_not=why_not,
    )


def all_bills(fields: Iterable[Field], wishes: Wishes) -> tuple[Bill, ...]:
    """The bill of every family's best on every cluster."""
    return tuple(
        bill(one, price_of(one.cluster, wishes), wishes) for each in fields for one in each.contenders()
    )


def notes(wishes: Wishes, cluster: Cluster, best: Bill | None) -> tuple[str, ...]:
    """What the plan stands on beside the arithmetic."""
    said = [f"assumed: {text}" for text in cluster.assumptions]
    if best is not None and best.price is not None:
        said.append(
            f"${best.price.usd_per_gpu_hour:g} a GPU and hour{' spot' if best.price.spot else ''}: "
            f"{best.price.source}, {best.price.date}"
        )
    elif best is not None:
        said.append(f"no price is known for {cluster.gpu.name}; --prices FILE names one")
    if number_format(wishes, cluster) == "fp16" and best is not None:
        said.append("the file is right for this card; on one with bf16 use bf16 instead")
    return tuple(said)


def _ratio(ratio: float, more: str, less: str) -> str:
    if abs(ratio - 1) <= TIE:
        return f"not {more}"
    return f"{ratio:.2g}× {more}" if ratio > 1 else f"{1 / ratio:.2g}× {less}"
