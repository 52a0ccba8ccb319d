"""Where the wishes cannot be had: which one breaks, and the nearest plan that could be run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from trimtab import moves
from trimtab.cluster import Cluster
from trimtab.estimate import estimate
from trimtab.model import Model
from trimtab.plan.answer import Choice, Nearest, Plan, Proven
from trimtab.plan.candidates import plain
from trimtab.plan.contender import Loser
from trimtab.plan.costs import Bill, bill
from trimtab.plan.counting import Arithmetic
from trimtab.plan.launching import launch_line
from trimtab.plan.machines import bigger_cards, larger, resized
from trimtab.plan.planning import (
    all_bills,
    notes,
    plan_for,
    row_of,
)
from trimtab.plan.reasons import summary, why_not_fits
from trimtab.plan.rows import rows
from trimtab.plan.search import Field, search
from trimtab.plan.shortfall import share
from trimtab.plan.wishes import Wishes, make_wishes
from trimtab.units import format_bytes

SHORTEST_SEQUENCE = 128


def nothing_fits(
    wishes: Wishes,
    clusters: Sequence[Cluster],
    fields: Sequence[Field],
    arithmetic: Arithmetic,
    *,
    file: str,
    proven: tuple[Proven, ...] = (),
) -> Plan:
    """The answer no: what is missing, and the nearest plan."""
    fitting = [each for each in fields if each.best() is not None]
    if fitting:
        return _limits(wishes, fields, file=file, proven=proven)
    dividing = [each for each in fields if each.divides]
    if not dividing:
        return _indivisible(wishes, clusters, arithmetic, file=file)
    return _short(wishes, dividing, arithmetic, file=file, proven=proven)


def without_adapters(
    said: str, model: Model | str, clusters: Sequence[Cluster], wishes: Mapping[str, Any], *, file: str
) -> Plan:
    """LoRA was asked for a model that peft has no modules for: all weights are the nearest."""
    full = make_wishes(model, **{**wishes, "objective": "finetune", "lora": None})
    found = plan_for(full, clusters, file=file, alternatives=False)
    nearest = found.nearest
    if found.chosen is not None:
        nearest = Nearest(change="all weights trained instead of adapters", missing=said, choice=found.chosen)
    return replace(found, chosen=None, why=(said,), broken=(f"lora: {said}",), nearest=nearest)


def _limits(wishes: Wishes, fields: Sequence[Field], *, file: str, proven: tuple[Proven, ...]) -> Plan:
    """Plans fit, and none keeps budget and deadline: the one that misses by least."""
    bills = [bill(one, wishes) for each in fields if (one := each.best())]
    best = min(bills, key=lambda one: _excess(one, wishes))
    broken = best.broken(wishes)
    choice = _choice(best, wishes, file)
    rows = tuple(
        row_of(one.contender, wishes, "; ".join(one.broken(wishes)))
        for one in sorted(bills, key=lambda one: _excess(one, wishes))
    )
    return Plan(
        wishes=wishes,
        chosen=None,
        considered=rows,
        why=tuple(f"no plan keeps the {text}" for text in broken),
        nearest=Nearest(
            change="more "
            + " and more ".join("money" if text.startswith("budget") else "time" for text in broken),
            missing="; ".join(broken),
            choice=choice,
        ),
        broken=broken,
        bills=all_bills(fields, wishes),
        proven=proven,
        notes=notes(wishes, choice.cluster, best),
    )


def _excess(one: Bill, wishes: Wishes) -> tuple[float, float]:
    """By how much a plan passes its limits: the worst of them as a share, then its time."""
    shares = [0.0]
    if wishes.budget_usd is not None:
        shares.append(float("inf") if one.usd is None else one.usd / wishes.budget_usd)
    if wishes.deadline_seconds is not None and one.seconds is not None:
        shares.append(one.seconds / wishes.deadline_seconds)
    return max(shares), one.contender.seconds_per_token


def _indivisible(wishes: Wishes, clusters: Sequence[Cluster], arithmetic: Arithmetic, *, file: str) -> Plan:
    cluster = clusters[0]
    batch, world = wishes.batch_for(cluster.world_size), cluster.world_size
    said = f"batch: {batch} samples do not divide by {world} GPUs"
    below, above = batch // world * world, -(-batch // world) * world
    nearest = None
    for size in sorted({below, above} - {0}, key=lambda size: (abs(size - batch), size)):
        other = replace(wishes, global_batch=size)
        found = _best(other, cluster, arithmetic)
        if found is not None:
            nearest = Nearest(
                change=f"a global batch of {size} instead of {batch}",
                missing=said,
                choice=_choice(found, other, file),
            )
            break
    return _no(wishes, (), (said,), nearest)


def _short(
    wishes: Wishes,
    fields: Sequence[Field],
    arithmetic: Arithmetic,
    *,
    file: str,
    proven: tuple[Proven, ...],
) -> Plan:
    """Nothing fits: the leanest configuration says what is missing, and ways out are tried."""
    losers = [lost for each in fields for lost in rows(each).losers]
    least = min(losers, key=lambda lost: share(lost.shortfall), default=None)
    missing = (
        "the proof refuted every candidate"
        if least is None
        else f"{format_bytes(least.shortfall.needed - least.shortfall.there)} of {least.shortfall.where}: "
        f"the leanest configuration ({summary(least.contender)}) {why_not_fits(least)}"
    )
    cluster = max((each.cluster for each in fields), key=lambda one: (one.gpu.usable_bytes, one.world_size))
    nearest = None
    for change, asked, other in _ways_out(wishes, cluster):
        found = _best(asked, other, arithmetic)
        if found is not None and not found.broken(asked):
            nearest = Nearest(change=change, missing=missing, choice=_choice(found, asked, file))
            break
    return _no(wishes, losers, (f"memory: {missing}",), nearest, proven)


def _ways_out(wishes: Wishes, cluster: Cluster) -> Iterator[tuple[str, Wishes, Cluster]]:
    """From the least change on: more GPUs, a bigger card, a shorter sequence, adapters alone."""
    double = next(larger(cluster), None)
    for card in bigger_cards(cluster)[:1]:
        other = resized(cluster, cluster.gpus_per_node, cluster.nodes, card)
        yield f"{card.name} instead of {cluster.gpu.name}", wishes, other
    if double is not None:
        yield _more(cluster, double), wishes, double
    for card in bigger_cards(cluster):
        other = resized(cluster, cluster.gpus_per_node, cluster.nodes, card)
        yield f"{card.name} instead of {cluster.gpu.name}", wishes, other
    for other in larger(cluster):
        yield _more(cluster, other), wishes, other
    length = wishes.job.sequence_length // 2
    while length >= SHORTEST_SEQUENCE:
        shorter = replace(wishes, job=replace(wishes.job, sequence_length=length))
        yield f"{length} tokens a sample instead of {wishes.job.sequence_length}", shorter, cluster
        length //= 2
    adapters = moves.lora(8)
    if (
        wishes.objective == "finetune"
        and adapters.applies(plain(wishes, cluster), wishes.model, cluster) is None
    ):
        yield "LoRA adapters instead of all weights", with_objective(wishes, "lora"), cluster


def _more(cluster: Cluster, other: Cluster) -> str:
    if other.nodes == cluster.nodes:
        return f"{other.gpus_per_node} GPUs instead of {cluster.gpus_per_node}"
    had = (
        f"{cluster.nodes} of {cluster.gpus_per_node}" if cluster.nodes > 1 else f"{cluster.gpus_per_node} GPU"
    )
    plural = "s" * (cluster.nodes == 1 < cluster.gpus_per_node)
    return f"{other.nodes} nodes of {other.gpus_per_node} GPUs instead of {had}{plural}"


def with_objective(wishes: Wishes, objective: str) -> Wishes:
    """The same wishes with another objective, and its recipe."""
    return make_wishes(
        wishes.model,
        objective=objective,
        task=wishes.job.task,
        sequence_length=wishes.job.sequence_length,
        target_length=wishes.job.target_length,
        global_batch=wishes.global_batch,
        tokens=wishes.tokens,
        budget_usd=wishes.budget_usd,
        deadline_seconds=wishes.deadline_seconds,
        optimize=wishes.optimize,
        attention=wishes.job.attention,
        kernels=wishes.job.kernels,
        sure=wishes.sure,
        spot=wishes.spot,
        price_file=wishes.price_file,
    )


def _best(wishes: Wishes, cluster: Cluster, arithmetic: Arithmetic) -> Bill | None:
    """The best plan there that the whole estimate confirms."""
    world = cluster.world_size
    if wishes.batch_for(world) % world:
        return None
    found = search(wishes, cluster, arithmetic)
    while (one := found.best()) is not None:
        if arithmetic.estimate(one.config, cluster).fits_probability >= wishes.sure:
            return bill(one, wishes)
        found.refute(one)
    return None


def _choice(best: Bill, wishes: Wishes, file: str) -> Choice:
    one = best.contender
    return Choice(
        bill=best,
        estimate=estimate(one.config, one.cluster, model=wishes.model),
        launch=launch_line(wishes, one.cluster, file),
    )


def _no(
    wishes: Wishes,
    losers: Sequence[Loser],
    broken: tuple[str, ...],
    nearest: Nearest | None,
    proven: tuple[Proven, ...] = (),
) -> Plan:
    ordered = sorted(losers, key=lambda lost: share(lost.shortfall))
    rows = tuple(row_of(lost.contender, wishes, why_not_fits(lost), fits=False) for lost in ordered)
    return Plan(
        wishes=wishes,
        chosen=None,
        considered=rows,
        why=broken,
        nearest=nearest,
        broken=broken,
        proven=proven,
        notes=() if nearest is None else notes(wishes, nearest.choice.cluster, nearest.choice.bill),
    )
