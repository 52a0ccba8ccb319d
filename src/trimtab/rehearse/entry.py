"""A rehearsal as an entry of the history."""

from __future__ import annotations

import platform

from trimtab.corrections import Traits, traits
from trimtab.estimate import Estimate, Range
from trimtab.model import find_hf
from trimtab.rehearse.answer import Answer
from trimtab.rehearse.document import to_json
from trimtab.store.entry import Entry, as_figure

MODULES_KEPT = 20
"""Of the modules that keep most activations, so many are stored."""


def entry_of(answer: Answer) -> Entry | None:
    """What of ``answer`` is kept; None where nothing was rehearsed."""
    seen, cluster = answer.seen, answer.cluster
    if seen is None:
        return None
    document = to_json(answer)
    document["modules"] = document["modules"][:MODULES_KEPT]
    short = seen.out_of_memory is not None
    return Entry(
        how=seen.method,
        config=answer.config.name,
        model=answer.model.name,
        gpu=cluster.gpu.name,
        gpus_per_node=cluster.gpus_per_node,
        nodes=cluster.nodes,
        outcome="out of memory" if short else "ended",
        traits=_traits(answer),
        figures={
            "fits_probability": answer.fits_probability,
            "peak_allocated": None if short else as_figure(seen.peak),
            "needed": None if short else as_figure(answer.needed),
            "host_bytes_per_node": None if short else as_figure(answer.host_bytes_per_node),
            "alone_seconds": as_figure(answer.alone_seconds),
            "predicted_alone": as_figure(predicted_alone(answer.predicted)),
        },
        document={
            "config": dict(answer.config.raw),
            "host": platform.node(),
            "rank": answer.rank,
            "versions": dict(seen.versions),
            "answer": document,
        },
    )


def _traits(answer: Answer) -> Traits | None:
    if answer.predicted is not None:
        hf, parameters = answer.predicted.model.hf, answer.predicted.profile.parameters
    else:  # no estimate is ever asked about it, but the next rehearsal finds the older one
        assert answer.seen is not None
        hf, parameters = find_hf(answer.config.job.model or "").hf, answer.seen.parameters
    # rank 0 is the one that an estimate speaks of
    return traits(answer.config, hf, answer.cluster, parameters, extra=answer.rank or None)


def predicted_alone(predicted: Estimate | None) -> Range | None:
    """What the arithmetic says of a step without its communication."""
    if predicted is None:
        return None
    speed = predicted.speed
    alone = speed.compute_seconds + speed.offload_seconds
    return Range(
        low=alone * speed.low_seconds / speed.step_seconds,
        expected=alone,
        high=alone * speed.high_seconds / speed.step_seconds,
    )
