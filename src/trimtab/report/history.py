"""The history for a reader: one line a run, and one run in full."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from trimtab.store.entry import Entry
from trimtab.units import format_bytes, format_seconds

HOW = {"training": "training", "rehearsal": "on a GPU", "phantom": "phantom"}
_LABELS = (
    ("peak_allocated", "peak allocated", format_bytes),
    ("needed", "needed of the card", format_bytes),
    ("host_bytes_per_node", "host memory a node", format_bytes),
    ("step_seconds", "a step", format_seconds),
    ("alone_seconds", "without communication", format_seconds),
)


def list_text(entries: Sequence[Entry], file: str | None) -> RenderableType:
    """A table of runs, newest first, 80 columns wide."""
    if file is None:
        return Text("No history is kept: TRIMTAB_HISTORY is empty.")
    if not entries:
        return Text(f"No run is stored in {file}.")
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("", justify="right")
    table.add_column("day")
    table.add_column("how")
    table.add_column("configuration", overflow="fold")
    table.add_column("on")
    table.add_column("peak", justify="right", no_wrap=True)
    table.add_column("a step", justify="right", no_wrap=True)
    for entry in entries:
        peak = _figure(entry, "peak_allocated", format_bytes)
        seconds = _figure(entry, "step_seconds", format_seconds)
        seconds = seconds or _figure(entry, "alone_seconds", format_seconds)
        short = entry.outcome == "out of memory"
        table.add_row(
            str(entry.id), entry.date[2:], HOW[entry.how], entry.config, _machines(entry),
            Text("ran out", style="red") if short else peak,
            Text(entry.outcome, style="red") if entry.outcome in ("failed", "stopped") else seconds,
        )  # fmt: skip
    return table


def entry_text(entry: Entry) -> RenderableType:
    """One run: what it was, what was predicted and what was measured."""
    text = Text()
    text.append(f"{entry.id}  {HOW[entry.how]}, {entry.config}", style="bold")
    text.append(f"  {entry.outcome}\n", style="green" if entry.outcome == "ended" else "red")
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.seconds_since_epoch))
    text.append(f"{when}, {entry.model} on {_machines(entry)}, trimtab {entry.tool_version}\n")
    versions = entry.document.get("versions") or {}
    text.append(", ".join(f"{name} {version}" for name, version in versions.items()))
    if entry.document.get("run"):
        text.append(f"\n{entry.document['run']}")
    if entry.document.get("error"):
        text.append(f"\n{entry.document['error']}", style="red")
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("", min_width=22)
    for name in ("predicted", "measured", "spread"):
        table.add_column(name, justify="right")
    predicted = _predicted(entry.document)
    for name, label, show in _LABELS:
        measured = entry.figures.get(name)
        if measured is None:
            continue
        said = predicted.get(name)
        even = measured["low"] == measured["high"]
        spread = "" if even else f"{show(measured['low'])} to {show(measured['high'])}"
        table.add_row(label, "" if said is None else show(said), show(measured["expected"]), spread)
    return Group(text, Text(), table) if table.row_count else text


def entry_document(entry: Entry, *, whole: bool = False) -> dict[str, Any]:
    """One run as JSON values; ``whole`` with all that is stored of it."""
    head = {
        "id": entry.id,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(entry.seconds_since_epoch)),
        "how": entry.how,
        "config": entry.config,
        "model": entry.model,
        "gpu": entry.gpu,
        "gpus_per_node": entry.gpus_per_node,
        "nodes": entry.nodes,
        "outcome": entry.outcome,
        "trimtab": entry.tool_version,
        "figures": dict(entry.figures),
    }
    return {**head, "run": dict(entry.document)} if whole else head


def _machines(entry: Entry) -> str:
    return f"{entry.gpus_per_node * entry.nodes} × {entry.gpu}"


def _figure(entry: Entry, name: str, show: Any) -> str:
    value = entry.figures.get(name)
    return "" if value is None else str(show(value["expected"]))


def _predicted(document: Mapping[str, Any]) -> Mapping[str, float | None]:
    """The arithmetic's figures beside the measured ones; of rehearsals they stand inside the answer."""
    said = document.get("predicted") or (document.get("answer") or {}).get("predicted")
    if not isinstance(said, Mapping) or "gpu" not in said:
        return {}
    speed = said["speed"]
    return {
        "peak_allocated": said["gpu"]["peak_allocated_bytes"]["expected"],
        "needed": said["gpu"]["needed_bytes"]["expected"],
        "host_bytes_per_node": said["host"]["bytes_per_node"]["expected"],
        "step_seconds": speed["step_seconds"]["expected"],
        "alone_seconds": speed["compute_seconds"] + speed["offload_seconds"],
    }
