"""The most that fits: the largest micro batch, the longest sequence, the largest model, the fewest GPUs.

Memory grows with each of them, so a bisection over the counted estimate finds the edge; every answer is an
`Estimate` that one can look into.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from trimtab.cluster import Cluster
from trimtab.config import Config
from trimtab.estimate import Estimate, estimate
from trimtab.model import Model, find_model

Question = Literal["micro-batch", "sequence-length", "gpus", "model"]
QUESTIONS: tuple[Question, ...] = ("micro-batch", "sequence-length", "gpus", "model")
SURE = 0.95
"""How probable "fits" must be for an answer."""
LARGEST_MICRO_BATCH = 4096
SEQUENCE_STEP, LONGEST_SEQUENCE = 128, 2**20
MOST_NODES = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Edge:
    """The largest value that fits and the estimate at it; None where nothing fits."""

    question: Question
    value: int | str | None
    answer: Estimate | None
    beyond: Estimate | None
    """The estimate one step further, which no longer fits."""


def largest_micro_batch(config: Config, cluster: Cluster) -> Edge:
    """The most samples per GPU and micro step, the accumulation left as it is."""

    def at(count: int) -> Estimate:
        accumulation = config.batch(cluster.world_size).accumulation
        changes = {
            "train_batch_size": None,
            "train_micro_batch_size_per_gpu": count,
            "gradient_accumulation_steps": accumulation,
        }
        return estimate(config.with_values(changes), cluster)

    return _edge("micro-batch", at, 1, LARGEST_MICRO_BATCH, 1)


def longest_sequence(config: Config, cluster: Cluster) -> Edge:
    """The most tokens of a sample, in steps of 128, and no more than the model has positions."""
    model = find_model(config.job.model) if config.job.model else None

    def at(tokens: int) -> Estimate:
        return estimate(config.with_values({"trimtab.sequence_length": tokens}), cluster)

    longest = (model and model.longest_sequence) or LONGEST_SEQUENCE
    return _edge("sequence-length", at, min(SEQUENCE_STEP, longest), longest, SEQUENCE_STEP)


def fewest_gpus(config: Config, cluster: Cluster) -> Edge:
    """The fewest GPUs of this kind: within one node first, then whole nodes, the micro batch kept."""
    micro = config.batch(cluster.world_size).micro
    kept = config.with_values({"train_batch_size": None, "train_micro_batch_size_per_gpu": micro})
    per_node = cluster.gpus_per_node
    inside = [(count, 1) for count in range(1, per_node + 1) if per_node % count == 0]
    beyond = None
    nodes = 2
    worlds = list(inside)
    while nodes <= MOST_NODES:
        worlds.append((per_node, nodes))
        nodes *= 2
    for count, machines in worlds:
        smaller = Cluster.of(cluster.gpu, count, machines, inter_link=cluster.inter_link)
        answer = estimate(kept, smaller)
        if answer.fits_probability >= SURE:
            return Edge(question="gpus", value=smaller.world_size, answer=answer, beyond=beyond)
        beyond = answer
    return Edge(question="gpus", value=None, answer=None, beyond=beyond)


def largest_model(config: Config, cluster: Cluster, models: Iterable[Model]) -> Edge:
    """The model with the most parameters that fits, of those given."""
    best: Estimate | None = None
    beyond: Estimate | None = None
    for model in models:
        answer = estimate(config.with_values({"trimtab.model": model.name}), cluster, model=model)
        if answer.fits_probability >= SURE:
            if best is None or answer.profile.parameters > best.profile.parameters:
                best = answer
        elif beyond is None or answer.profile.parameters < beyond.profile.parameters:
            beyond = answer
    value = None if best is None else best.model.name
    return Edge(question="model", value=value, answer=best, beyond=beyond)


def _edge(question: Question, at: Callable[[int], Estimate], low: int, high: int, step: int) -> Edge:
    """Doubles until it no longer fits, then bisects."""
    good: Estimate | None = None
    bad: Estimate | None = None
    best = 0
    size = low
    while best < high:
        answer = at(size)
        if answer.fits_probability < SURE:
            bad = answer
            break
        good, best, size = answer, size, min(size * 2, high)
    if good is None or bad is None:
        return Edge(question=question, value=best or None, answer=good, beyond=bad)
    floor, ceiling = best, size
    while ceiling - floor > step:
        middle = (floor + ceiling) // 2 // step * step
        answer = at(middle)
        if answer.fits_probability >= SURE:
            good, floor = answer, middle
        else:
            bad, ceiling = answer, middle
    return Edge(question=question, value=floor, answer=good, beyond=bad)
