"""What other machines, or a package, would change."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from trimtab import moves
from trimtab.cluster import Cluster
from trimtab.plan.answer import Counterfactual
from trimtab.plan.costs import Bill, bill
from trimtab.plan.counting import Arithmetic
from trimtab.plan.machines import bigger_cards, larger, resized, smaller
from trimtab.plan.reasons import summary
from trimtab.plan.search import search
from trimtab.plan.wishes import Wishes


def counterfactuals(
    best: Bill, wishes: Wishes, clusters: Sequence[Cluster], arithmetic: Arithmetic
) -> tuple[Counterfactual, ...]:
    """A bigger card, twice and half the GPUs, and Liger's kernels, each with its own best configuration."""
    if len(clusters) > 1:
        return ()  # the clusters were compared already
    return tuple(
        found
        for change, asked, cluster in _changes(best, wishes)
        if (found := _weighed(change, asked, cluster, best, arithmetic)) is not None
    )


def _changes(best: Bill, wishes: Wishes) -> Iterator[tuple[str, Wishes, Cluster]]:
    cluster = best.contender.cluster
    kept = replace(wishes, global_batch=best.contender.config.batch(cluster.world_size).train)
    for card in bigger_cards(cluster)[:1]:
        yield f"with {card.name}", kept, resized(cluster, cluster.gpus_per_node, cluster.nodes, card)
    double = next(larger(cluster), None)
    if double is not None:
        yield f"with {double.world_size} GPUs", kept, double
    half = smaller(cluster)
    if half is not None:
        yield f"with {half.world_size} GPU{'s' * (half.world_size > 1)}", kept, half
    fused = moves.fused_kernels(True)
    if fused.applies(best.contender.config, wishes.model, cluster) is None:
        yield "with Liger's kernels", replace(kept, job=replace(wishes.job, kernels="fused")), cluster


def _weighed(
    change: str, wishes: Wishes, cluster: Cluster, best: Bill, arithmetic: Arithmetic
) -> Counterfactual | None:
    found = search(wishes, cluster, arithmetic, exact=False).best()
    if found is None:
        return None
    other = bill(found, wishes)
    mine, theirs = best.usd_per_token, other.usd_per_token
    return Counterfactual(
        change=change,
        summary=summary(found),
        seconds_ratio=found.seconds_per_token / best.contender.seconds_per_token,
        usd_ratio=None if mine is None or theirs is None or not mine else theirs / mine,
        bill=other,
    )
