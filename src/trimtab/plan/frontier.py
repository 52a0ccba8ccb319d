"""Time against money against headroom: which contenders are beaten in nothing."""

from __future__ import annotations

from dataclasses import dataclass

from trimtab.cost.need import outside_allocator
from trimtab.plan.answer import Plan
from trimtab.plan.costs import Bill
from trimtab.plan.reasons import machines, summary


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One contender in the picture."""

    machines: str
    summary: str
    seconds_per_billion_tokens: float
    usd_per_billion_tokens: float | None
    headroom: float
    """Share of the card's memory that tensors, CUDA and NCCL leave free at the peak."""
    chosen: bool = False
    on_front: bool = False
    """Whether no other is at least as good in time, money and headroom, and better in one."""


def points(plan: Plan) -> tuple[Point, ...]:
    """Every contender of the plan and its counterfactuals' best, the chosen one first."""
    chosen = None if plan.chosen is None else plan.chosen.bill.contender
    bills = [*plan.bills, *(one.bill for one in plan.counterfactuals)]
    made = [_point(one, one.contender is chosen) for one in bills]
    known = [one for one in made if one.usd_per_billion_tokens is not None] or made
    marked = [
        Point(
            machines=one.machines,
            summary=one.summary,
            seconds_per_billion_tokens=one.seconds_per_billion_tokens,
            usd_per_billion_tokens=one.usd_per_billion_tokens,
            headroom=one.headroom,
            chosen=one.chosen,
            on_front=one in known and not any(_beats(other, one) for other in known),
        )
        for one in made
    ]
    return tuple(sorted(marked, key=lambda one: (not one.chosen, one.seconds_per_billion_tokens)))


def _point(one: Bill, chosen: bool) -> Point:
    contender, each = one.contender, one.usd_per_token
    cluster = contender.cluster
    taken = contender.peak_bytes + outside_allocator(cluster.world_size, contender.config.stage)
    return Point(
        machines=machines(cluster),
        summary=summary(contender),
        seconds_per_billion_tokens=contender.seconds_per_token * 1e9,
        usd_per_billion_tokens=None if each is None else each * 1e9,
        headroom=1 - taken / cluster.gpu.usable_bytes,
        chosen=chosen,
    )


def _beats(one: Point, other: Point) -> bool:
    mine, theirs = _losses(one), _losses(other)
    return mine != theirs and all(a <= b for a, b in zip(mine, theirs, strict=True))


def _losses(one: Point) -> tuple[float, float, float]:
    return one.seconds_per_billion_tokens, one.usd_per_billion_tokens or 0.0, -one.headroom
