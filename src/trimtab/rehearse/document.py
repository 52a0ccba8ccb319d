"""A rehearsal as one JSON object, under the estimate's keys."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from trimtab.errors import NotFound
from trimtab.estimate import Range, speed_to_json
from trimtab.estimate import to_json as estimate_to_json
from trimtab.moves import differences
from trimtab.prices import price
from trimtab.rehearse.answer import Answer
from trimtab.rehearse.request import Course
from trimtab.rehearse.seen import OnGpu
from trimtab.rehearse.way_out import WayOut


def to_json(answer: Answer) -> dict[str, Any]:
    """The answer under the estimate's keys, the arithmetic's own object under ``predicted`` (or null)."""
    predicted = None if answer.predicted is None else dict(estimate_to_json(answer.predicted))
    head = {
        "config": answer.config.name,
        "model": answer.model.name,
        "fits": answer.fits,
        "fits_probability": answer.fits_probability,
        "method": "arithmetic" if answer.seen is None else answer.seen.method,
        "assumptions": list(answer.assumptions),
        "warnings": list(answer.warnings),
        # the estimate's own keys: a measurement is not corrected, and nobody asks it for a whole run
        "corrections": [],
        "run": None,
    }
    if answer.seen is None:
        return {**(predicted or {}), **head, "predicted": predicted}
    seen, cluster = answer.seen, answer.cluster
    return {
        **head,
        "parameters": {"total": seen.parameters, "trainable": seen.trainable},
        "gpu": {
            "name": cluster.gpu.name,
            "gpus_per_node": cluster.gpus_per_node,
            "nodes": cluster.nodes,
            "capacity_bytes": answer.capacity_bytes,
            "peak_allocated_bytes": _range(seen.peak),
            "needed_bytes": _range(answer.needed),
            "parts": [{"name": name, "bytes": size} for name, size in seen.parts.items() if size],
            "phases": [
                {"name": name, "peak_allocated_bytes": size, "end_allocated_bytes": seen.live.get(name)}
                for name, size in seen.phases.items()
            ],
        },
        "host": {
            "bytes_per_node": _range(answer.host_bytes_per_node),
            "capacity_bytes_per_node": cluster.host_memory_bytes,
        },
        "nvme": {"bytes_per_node": answer.nvme_bytes_per_node},
        "speed": _speed(answer, predicted),
        "cost": _cost(answer, predicted),
        "modules": [dataclasses.asdict(module) for module in seen.modules],
        "course": None if seen.course is None else _course(seen.course),
        "out_of_memory": None if seen.out_of_memory is None else dataclasses.asdict(seen.out_of_memory),
        "way_out": None if answer.way_out is None else _way_out(answer, answer.way_out),
        "measured": None if seen.on_gpu is None else _measured(seen.on_gpu),
        "versions": dict(seen.versions),
        "rehearsal_seconds": seen.seconds,
        "predicted": predicted,
    }


_SPEED_KEYS = (
    "compute_seconds",
    "communication_seconds",
    "offload_seconds",
    "tokens_per_second_per_gpu",
    "samples_per_second_per_gpu",
    "mfu",
)


def _speed(answer: Answer, predicted: Mapping[str, Any] | None) -> dict[str, Any]:
    """Measured where it was timed on the very card, else simulated, else the arithmetic's, else null."""
    time, arithmetic = answer.step_seconds, answer.predicted
    if time is None and answer.seen is not None and answer.seen.speed is not None:
        return speed_to_json(answer.seen.speed, answer.config, answer.cluster)
    if time is None:
        return {
            "step_seconds": None,
            **dict.fromkeys(_SPEED_KEYS),
            **(predicted["speed"] if predicted else {}),
        }
    assert answer.seen is not None
    assert answer.seen.on_gpu is not None
    offloads = answer.config.offload_optimizer != "none" or answer.config.offload_param != "none"
    batch, job = answer.config.batch(answer.cluster.world_size), answer.config.job
    samples = batch.micro * batch.accumulation
    return {
        "step_seconds": dataclasses.asdict(time),
        # the GPU's phases hold what offload they wait for
        "compute_seconds": None if offloads else answer.seen.on_gpu.seconds,
        "communication_seconds": 0.0 if arithmetic is None else arithmetic.speed.communication_seconds,
        "offload_seconds": None if offloads else 0.0,
        "tokens_per_second_per_gpu": samples * job.sequence_length / time.expected,
        "samples_per_second_per_gpu": samples / time.expected,
        "mfu": arithmetic and arithmetic.mfu * arithmetic.speed.step_seconds / time.expected,
    }


def _course(course: Course) -> dict[str, Any]:
    return {
        "parts": list(course.parts),
        "rows": [list(row) for row in course.rows],
        "phases": [{"name": name, "begins_at": at} for name, at in course.phases],
    }


def _way_out(answer: Answer, out: WayOut) -> dict[str, Any]:
    changes = differences(answer.config.raw, out.config.raw)
    return {
        "moves": [{"name": move.name, "title": move.title, "costs": move.costs} for move in out.moves],
        "changes": [{"key_path": list(path), "value": value} for path, value in changes.items()],
        "needed_bytes": round(out.needed_bytes),
        "step_seconds": out.predicted.speed.step_seconds,
    }


def _measured(on_gpu: OnGpu) -> dict[str, Any]:
    """What only a GPU tells."""
    return {
        "gpu": on_gpu.gpu,
        "allocator_bytes": on_gpu.allocator_bytes,
        "outside_allocator_bytes": on_gpu.outside_bytes,
        "host_peak_bytes": on_gpu.host_peak_bytes,
        "step_seconds_without_communication": on_gpu.seconds,
        "phase_seconds": dict(on_gpu.phase_seconds),
        "steps_timed": len(on_gpu.step_seconds),
        "loss": on_gpu.loss,
    }


def _cost(answer: Answer, predicted: Mapping[str, Any] | None) -> dict[str, Any]:
    """Money for the step time that the answer holds; without one, what is known of the price."""
    if predicted is not None:
        cost, time = dict(predicted["cost"]), answer.step_seconds
        if time is None and answer.seen is not None and answer.seen.speed is not None:
            seconds = answer.seen.speed.step_seconds
            time = Range(low=seconds, expected=seconds, high=seconds)
        if time is not None and answer.predicted is not None and cost["usd_per_billion_tokens"] is not None:
            cost["usd_per_billion_tokens"] *= time.expected / answer.predicted.speed.step_seconds
        return cost
    try:
        found = price(answer.cluster.gpu)
    except NotFound:
        found = None
    return {
        "usd_per_hour": found and found.usd_per_gpu_hour * answer.cluster.world_size,
        "usd_per_billion_tokens": None,
        "price_source": found and found.source,
        "price_date": found and found.date,
    }


def _range(value: Range) -> dict[str, int]:
    return {"low": round(value.low), "expected": round(value.expected), "high": round(value.high)}
