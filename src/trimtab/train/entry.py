"""A training run as an entry of the history, read from the run's own folder once it has ended."""

from __future__ import annotations

import json
import platform
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trimtab.cluster import Cluster
from trimtab.corrections import RAN, Traits, traits
from trimtab.errors import TrimtabError
from trimtab.estimate import Range
from trimtab.model import find_model
from trimtab.store.database import keep
from trimtab.store.entry import Entry, as_figure
from trimtab.train.folder import RunFolder
from trimtab.train.metrics import read_events, read_steps
from trimtab.train.settings import Settings, as_mapping, effective_config

ENOUGH = 2
"""Settled steps after which a run tells memory and time."""
TAIL = 0.05
"""Of the slowest and of the fastest steps, this part is left out of the spread."""


def keep_run(
    settings: Settings,
    *,
    ranks: int,
    nodes: int = 1,
    outcome: str,
    error: str | None = None,
    prediction: Mapping[str, Any] | None = None,
) -> int | None:
    """Store the run that ``settings`` started, on ``ranks`` GPUs a node; ``outcome`` is one of `OUTCOMES`.

    Nothing is stored of a run that never came to its first step.  Never raises: the run's own end matters.
    """
    try:
        entry = _entry(settings, ranks, nodes, outcome, error, prediction)
    except (TrimtabError, OSError, LookupError, TypeError, ValueError):
        return None  # the files of the run, or the one that it was started with, are not what they were
    return None if entry is None else keep(entry)


def _entry(
    settings: Settings,
    ranks: int,
    nodes: int,
    outcome: str,
    error: str | None,
    prediction: Mapping[str, Any] | None,
) -> Entry | None:
    folder = RunFolder(Path(settings.run))
    events = list(read_events(folder.events))
    steps = read_steps(folder.events)
    start = next((row for row in reversed(events) if row["event"] == "start"), None)
    if start is None or (not steps and outcome != "out of memory"):
        return None
    # the first step of each start makes the states and warms up
    first = {row["step"] + 1 for row in events if row["event"] == "resume"} | {
        row["step"] for row in steps[:1]
    }
    settled = [row for row in steps if row["step"] not in first]
    cluster = None if prediction is None else Cluster.of(prediction["gpu"]["name"], ranks, nodes)
    config, _ = effective_config(settings, world=ranks * nodes)
    return Entry(
        how="training",
        config=config.name,
        model=str(config.job.model),
        gpu="cpu" if settings.device == "cpu" else "unknown" if cluster is None else cluster.gpu.name,
        gpus_per_node=ranks,
        nodes=nodes,
        outcome=outcome,
        traits=None if cluster is None else _traits(settings, config, cluster, start, prediction),
        figures=_figures(settled, outcome, cluster, prediction),
        document={
            "config": dict(config.raw),
            "settings": as_mapping(settings),
            "run": str(folder.path.absolute()),
            "host": platform.node(),
            "versions": start["versions"],
            "error": error,
            "answer": _report(folder),
            "predicted": prediction,
        },
    )


def _traits(
    settings: Settings, config: Any, cluster: Cluster, start: Mapping[str, Any], prediction: Any
) -> Traits | None:
    parameters = prediction["parameters"]["total"]
    if start["parameters"] != parameters:  # another vocabulary: another model than the estimate's
        return None
    model = find_model(config.job.model)
    return traits(config, model.hf, cluster, parameters, extra=sorted(settings.freeze) or None)


def _figures(
    settled: list[dict[str, Any]], outcome: str, cluster: Cluster | None, prediction: Mapping[str, Any] | None
) -> dict[str, Any]:
    if outcome == "out of memory":
        return {"fits_probability": 0.0}
    if len(settled) < ENOUGH:
        return {}
    seconds = sorted(row["seconds"] for row in settled)
    edge = int(len(seconds) * TAIL)
    spread = Range(
        low=seconds[edge], expected=statistics.median(seconds), high=seconds[len(seconds) - 1 - edge]
    )
    figures: dict[str, Any] = {"step_seconds": as_figure(spread)}
    if cluster is None or prediction is None:
        return figures
    peak = max(row["memory_peak_bytes"] for row in settled)
    figures |= {
        "fits_probability": RAN,
        "peak_allocated": as_figure(Range(low=peak, expected=peak, high=peak)),
    }
    if cluster.world_size == 1:
        speed = prediction["speed"]
        alone = speed["compute_seconds"] + speed["offload_seconds"]
        scale = alone / speed["step_seconds"]["expected"]
        said = Range(
            low=speed["step_seconds"]["low"] * scale,
            expected=alone,
            high=speed["step_seconds"]["high"] * scale,
        )
        figures |= {"alone_seconds": as_figure(spread), "predicted_alone": as_figure(said)}
    return figures


def _report(folder: RunFolder) -> dict[str, Any] | None:
    """The closing report, if the run came so far."""
    try:
        found: dict[str, Any] = json.loads(folder.report.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found
