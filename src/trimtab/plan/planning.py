"""The plan: what to run for a model on these machines, with reasons, or the nearest thing that would run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from trimtab.cluster import Cluster
from trimtab.estimate import Estimate
from trimtab.plan.answer import (
    Choice,
    Considered,
    Plan,
    Proven,
    Prover,
)
from trimtab.plan.candidates import number_format, plain
from trimtab.plan.contender import TIE, Contender
from trimtab.plan.costs import Bill, Pace, bill, pace
from trimtab.plan.counting import Arithmetic
from trimtab.plan.launching import launch_line
from trimtab.plan.reasons import machines, summary, why, why_not_fits, why_other_cluster, why_slower
from trimtab.plan.rows import Rows, rows
from trimtab.plan.search import Field, search
from trimtab.plan.wishes import Wishes


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
        prove: how many of the best candidates go through ``prover``, which re-ranks them; once the first is
            timed, those that may be as fast.
        prover: runs the real engine; the answers themselves never do.
        alternatives: also say what other machines would change.
    """
    arithmetic = Arithmetic(wishes.model, wishes.sure)
    fields = tuple(search(wishes, cluster, arithmetic) for cluster in _same_batch(wishes, clusters))
    proven: list[Proven] = []
    answer: Estimate | None = None
    best: Bill | None = None
    while (best := pick(fields, wishes)) is not None:
        one = best.contender
        own = next(each for each in fields if each.cluster == one.cluster)
        proof = next((each.proof for each in proven if each.contender.config == one.config), None)
        if prover is not None and len(proven) < prove:
            timed = proof is not None and proof.step_seconds is not None
            tried = one if proof is None else own.rival(one) if timed else None
            if tried is not None:
                found = prover(tried.config, tried.cluster)
                proven.append(Proven(contender=tried, proof=found))
                if found.fits_probability < wishes.sure:
                    own.refute(tried)
                elif found.step_seconds is not None:
                    own.retime(tried, found.step_seconds)
                own.settled = len(proven) == prove
                continue
        answer = arithmetic.estimate(one.config, one.cluster)
        if (answer if proof is None else proof).fits_probability >= wishes.sure:
            break
        own.refute(one)
    if best is None or answer is None:
        from trimtab.plan.nearest import nothing_fits

        return nothing_fits(wishes, clusters, fields, arithmetic, file=file, proven=tuple(proven))
    own = next(each for each in fields if each.cluster == best.contender.cluster)
    shown = rows(own)
    from trimtab.plan.alternatives import counterfactuals

    return Plan(
        wishes=wishes,
        chosen=Choice(
            bill=best,
            estimate=answer,
            launch=launch_line(wishes, best.contender.cluster, file),
        ),
        considered=considered(fields, best, shown, wishes),
        why=why(best, answer, own, shown, wishes),
        counterfactuals=counterfactuals(best, wishes, clusters, arithmetic) if alternatives else (),
        bills=all_bills(fields, wishes, best.contender, shown.fitting),
        proven=tuple(proven),
        notes=(*_left_out(fields), *notes(wishes, best.contender.cluster, best)),
    )


def _same_batch(wishes: Wishes, clusters: Sequence[Cluster]) -> Sequence[Cluster]:
    """The clusters whose global batch is the published one within a factor of two, where that is left open.

    More GPUs than a batch has samples would train with another batch, and that is another training.
    """
    batches = [wishes.batch_for(cluster.world_size) for cluster in clusters]
    smallest = min(batches)
    return [one for one, batch in zip(clusters, batches, strict=True) if batch <= 2 * smallest]


def _left_out(fields: Sequence[Field]) -> tuple[str, ...]:
    count = sum(not each.weighed for each in fields)
    if not count:
        return ()
    return (
        f"{count} of {len(fields)} clusters could not win at their cards' full rate and were not weighed",
    )


def pick(fields: Iterable[Field], wishes: Wishes) -> Bill | None:
    """The best plan that keeps the limits.

    Clusters come by the best that they could do at all, and the search ends where that no longer beats what
    was found: exact, because no cluster is faster than its cards' whole rate.
    """
    bills: list[Bill] = []
    for bound, each in sorted(((_bound(each).rank(wishes), each) for each in fields), key=_order):
        if bills and bound[0] > _within_tie(min(one.rank(wishes)[0] for one in bills)):
            break
        one = each.best()
        if one is None:
            continue
        made = bill(one, wishes)
        if not made.broken(wishes):
            bills.append(made)
    return None if not bills else choose_bill(bills, wishes)


def _bound(one: Field) -> Pace:
    """What a cluster could do at the very best: the model's operations at its cards' whole rate."""
    gpu = one.cluster.gpu
    form = number_format(one.wishes, one.cluster)
    rate = gpu.matrix_flops("tf32" if form == "fp32" else form) * one.cluster.world_size
    operations = one.arithmetic.operations_per_token(plain(one.wishes, one.cluster))
    return pace(one.cluster, operations / rate, one.wishes)


def _order(one: tuple[tuple[float, ...], Field]) -> tuple[object, ...]:
    bound, each = one
    return bound, each.cluster.world_size, each.cluster.gpu.name, each.cluster.nodes


def _within_tie(value: float) -> float:
    return value + abs(value) * TIE


def choose_bill(bills: Sequence[Bill], wishes: Wishes) -> Bill:
    """The best as the wishes ask; of those within `TIE` of it the fewest GPUs, then the next wish.

    So of machines that are as fast the cheapest is taken, and of those that are as cheap the fastest.
    """
    first = min(one.rank(wishes)[0] for one in bills)
    close = [one for one in bills if one.rank(wishes)[0] <= _within_tie(first)]
    return min(
        close,
        key=lambda one: (
            one.contender.cluster.world_size,
            one.rank(wishes)[1:],
            one.rank(wishes)[0],
            one.contender.cluster.gpu.name,
            one.contender.cluster.nodes,
        ),
    )


def considered(fields: Sequence[Field], best: Bill, shown: Rows, wishes: Wishes) -> tuple[Considered, ...]:
    """Every family on the chosen cluster, then the best of every other cluster, with what each lost by."""
    chosen = best.contender
    own = next(each for each in fields if each.cluster == chosen.cluster)
    fitting, losers = shown
    found = [row_of(chosen, wishes, None)]
    found += [
        row_of(one, wishes, why_slower(one, chosen))
        for one in fitting
        if one.family.name != chosen.family.name
    ]
    found += [row_of(lost.contender, wishes, why_not_fits(lost), fits=False) for lost in losers]
    others = [
        bill(one, wishes)
        for each in fields
        if each is not own and each.weighed and (one := each.best()) is not None
    ]
    for other in sorted(others, key=lambda other: (bool(other.broken(wishes)), other.rank(wishes))):
        found.append(row_of(other.contender, wishes, why_other_cluster(other, best, wishes)))
    return tuple(found)


def row_of(one: Contender, wishes: Wishes, why_not: str | None, *, fits: bool = True) -> Considered:
    """A contender as a row; its time only where it fits."""
    each = bill(one, wishes).usd_per_token
    return Considered(
        summary=summary(one),
        machines=machines(one.cluster),
        fits=fits,
        step_seconds=one.step_seconds if fits else None,
        seconds_per_billion_tokens=one.seconds_per_token * 1e9 if fits else None,
        usd_per_billion_tokens=None if each is None or not fits else each * 1e9,
        why_not=why_not,
    )


def all_bills(
    fields: Iterable[Field],
    wishes: Wishes,
    chosen: Contender | None = None,
    fitting: Sequence[Contender] = (),
) -> tuple[Bill, ...]:
    """The bills of what the picture shows: each family on the chosen cluster, the best of the others."""
    shown: list[Contender] = []
    for each in fields:
        if chosen is not None and each.cluster == chosen.cluster:
            shown += [chosen, *(one for one in fitting if one.family.name != chosen.family.name)]
        elif each.weighed and (one := each.best()) is not None:
            shown.append(one)
    return tuple(bill(one, wishes) for one in shown)


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
