"""The closing report of a run: its numbers, its loss as a picture, and the prediction beside the
measurement.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trimtab.drawing.curve import loss_curves
from trimtab.drawing.shapes import to_svg
from trimtab.train.folder import RunFolder
from trimtab.train.metrics import read_events, read_steps
from trimtab.units import format_bytes, format_count, format_seconds


def closing_report(
    folder: RunFolder, *, facts: Mapping[str, Any], prediction: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The run's numbers as one JSON object, also written to ``RUN/report.json`` and drawn to
    ``RUN/loss.svg``.

    ``prediction`` is an estimate's JSON form (``trimtab estimate --json``); its figures stand beside ours.
    """
    steps = read_steps(folder.events)
    losses = [row["loss"] for row in steps if row["loss"] is not None]
    # the first step pays for compiling, first allocations and warming up
    settled = steps[1:] or steps
    report: dict[str, Any] = {
        "schema_version": 1,
        "run": str(folder.path),
        "steps": steps[-1]["step"] if steps else 0,
        "tokens": steps[-1]["tokens"] if steps else 0,
        "first_loss": losses[0] if losses else None,
        "final_loss": losses[-1] if losses else None,
        "step_seconds": statistics.median(row["seconds"] for row in settled) if settled else None,
        "tokens_per_second": statistics.median(row["tokens_per_second"] for row in settled)
        if settled
        else None,
        "peak_memory_bytes": max((row["memory_peak_bytes"] for row in steps), default=None),
        "step_peak_memory_bytes": max((row["memory_peak_bytes"] for row in settled), default=None),
        "training_seconds": sum(row["seconds"] for row in steps),
        "validation": [
            {"step": row["step"], "loss": row["loss"]}
            for row in read_events(folder.events)
            if row["event"] == "evaluation"
        ],
        **facts,
    }
    if prediction is not None:
        report["predicted"] = beside(prediction, report)
    if losses:
        draw_loss(steps, report["validation"], folder.plot)
        report["plot"] = str(folder.plot)
    folder.report.write_text(json.dumps(report, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    return report


def beside(prediction: Mapping[str, Any], report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each predicted figure with what was measured and their ratio."""
    pairs = (
        ("peak memory bytes", ("gpu", "peak_allocated_bytes", "expected"), report["step_peak_memory_bytes"]),
        ("step seconds", ("speed", "step_seconds", "expected"), report["step_seconds"]),
    )
    rows = []
    for name, path, measured in pairs:
        value: Any = prediction
        for key in path:
            value = value.get(key) if isinstance(value, Mapping) else None
        if value and measured:
            rows.append(
                {"quantity": name, "predicted": value, "measured": measured, "ratio": measured / value}
            )
    return rows


def draw_loss(
    steps: Sequence[Mapping[str, Any]], validation: Sequence[Mapping[str, Any]], path: Path
) -> None:
    """Draw the loss over the steps as SVG."""
    path.write_text(to_svg(loss_curves(steps, validation)), encoding="utf-8")


def describe(report: Mapping[str, Any]) -> str:
    """The report for a reader."""
    lines = [f"{report['steps']} steps, {format_count(report['tokens'])} tokens in "
             f"{format_seconds(report['training_seconds'])}"]  # fmt: skip
    if report["final_loss"] is not None:
        lines.append(f"loss          {report['first_loss']:.4f} → {report['final_loss']:.4f}")
    if report["validation"]:
        lines.append(f"validation    {report['validation'][-1]['loss']:.4f}")
    if report["step_seconds"]:
        lines.append(
            f"speed         {format_seconds(report['step_seconds'])} a step, "
            f"{format_count(report['tokens_per_second'])} tokens/s"
        )
        lines.append(f"memory        {format_bytes(report['peak_memory_bytes'])} at most, each rank")
    for row in report.get("predicted", ()):
        show = format_bytes if row["quantity"].endswith("bytes") else format_seconds
        lines.append(
            f"predicted     {row['quantity'].rsplit(' ', 1)[0]} {show(row['predicted'])}, "
            f"measured {show(row['measured'])} ({row['ratio']:.2f} x)"
        )
    if report.get("sample"):
        lines += [
            "",
            "a sample of what it writes:",
            *(f"    {line}" for line in report["sample"].splitlines()),
            "",
        ]
    for key, label in (("checkpoint", "checkpoint"), ("model", "model"), ("plot", "loss plot")):
        if report.get(key):
            lines.append(f"{label:14}{report[key]}")
    return "\n".join(lines)
