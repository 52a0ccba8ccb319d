"""What to run for a model on these GPUs: every configuration weighed, the best one with its reasons.

>>> from trimtab.plan import plan
>>> answer = plan("gpt2", gpu="h100", gpus_per_node=1, objective="pretrain", global_batch=64)
>>> answer.chosen.config.get("train_batch_size"), answer.chosen.estimate.fits
(64, True)
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from trimtab.cluster import Gpu
from trimtab.model import Model
from trimtab.plan.answer import Choice, Plan, Proof, Prover
from trimtab.plan.machines import clusters
from trimtab.plan.nearest import without_adapters
from trimtab.plan.planning import plan_for
from trimtab.plan.wishes import OBJECTIVES, OPTIMIZE, NothingToAdapt, Wishes, make_wishes

__all__ = [
    "OBJECTIVES",
    "OPTIMIZE",
    "Choice",
    "Plan",
    "Proof",
    "Prover",
    "Wishes",
    "clusters",
    "make_wishes",
    "plan",
    "plan_for",
]


def plan(
    model: Model | str,
    *,
    gpu: str | Gpu | Iterable[str],
    gpus_per_node: int | None = None,
    nodes: int | None = None,
    max_gpus: int | None = None,
    link: str | None = None,
    host_memory_bytes: int | None = None,
    prove: int = 0,
    prover: Prover | None = None,
    alternatives: bool = True,
    file: str = "plan.json",
    **wishes: Any,
) -> Plan:
    """The best configuration for ``model`` on these GPUs, with what else was weighed and why.

    ``gpu`` is a name, several, or ``"any"``; counts that are left out stay open up to ``max_gpus``.
    ``wishes`` are those of `make_wishes`: ``objective``, ``task``, ``sequence_length``, ``global_batch``,
    ``tokens``, ``budget_usd``, ``deadline_seconds``, ``optimize`` and others.

    Raises:
        NotFound: an unknown model, GPU, objective or way to optimize; carries the nearest names.
        UsageError: wishes that no training can have.
        UnknownArchitecture: a model that the arithmetic does not know.
    """
    machines = clusters(gpu, gpus_per_node, nodes, max_gpus, link, host_memory_bytes)
    try:
        asked = make_wishes(model, **wishes)
    except NothingToAdapt as error:
        return without_adapters(str(error), model, machines, wishes, file=file)
    answer = plan_for(asked, machines, file=file, prove=prove, prover=prover, alternatives=alternatives)
    largest = max(one.world_size for one in machines)
    if largest == min(one.world_size for one in machines):
        return answer
    note = f"the number of GPUs was left open, up to {largest}: --gpus-per-node and --nodes say what is there"
    return replace(answer, notes=(note, *answer.notes))
