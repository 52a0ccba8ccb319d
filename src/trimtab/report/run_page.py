"""A training run as one HTML page: what was predicted beside what was measured, its curves, how it went."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from trimtab.drawing.curve import SMOOTH, Curve, curves, loss_curves, smoothed
from trimtab.drawing.shapes import to_svg
from trimtab.report.memory_page import memory_page
from trimtab.report.page import Row, items, page, table, wide
from trimtab.store.entry import Entry
from trimtab.train.folder import RunFolder
from trimtab.train.metrics import read_events, read_steps
from trimtab.units import format_bytes, format_count, format_seconds

NOT_SHOWN = ("step", "end", "start", "evaluation")
"""Events that the page shows in another form."""


def run_page(folder: RunFolder) -> str:
    """The page of the run in ``folder``, whether it has ended or not."""
    title = folder.path.absolute().name
    return page(f"Run {title}", _sections(folder, title))


def entry_page(entry: Entry) -> str:
    """The page of a run of the history: of a rehearsal its answer, of a training what is stored of it."""
    if entry.how != "training":
        return memory_page(entry.document["answer"])
    return page(f"Run {entry.id}", _stored(entry))


def _sections(folder: RunFolder, title: str) -> Iterator[str]:
    events, steps = list(read_events(folder.events)), read_steps(folder.events)
    start = next((row for row in events if row["event"] == "start"), {})
    report = _json(folder.report)
    ended = any(row["event"] == "end" for row in events)
    wanted = start.get("steps")
    yield f"<h1>{escape(title)}</h1>"
    if steps:
        how = "ended" if ended else "has not ended"
        of = f" of {wanted}" if wanted and wanted != steps[-1]["step"] else ""
        yield f'<p class="{"good" if ended else "bad"}">{how}, {steps[-1]["step"]}{of} steps</p>'
    else:
        yield '<p class="bad">no step has run</p>'
    yield from _figures(steps, start, report)
    yield from _beside(report.get("predicted") or ())
    if steps:
        validation = [row for row in events if row["event"] == "evaluation"]
        yield "<h2>Loss</h2>" + wide(to_svg(loss_curves(steps, validation)))
        yield "<h2>Speed</h2>" + wide(to_svg(_speed_curves(steps)))
    if report.get("sample"):
        yield f"<h2>A sample of what it writes</h2><pre>{escape(report['sample'])}</pre>"
    yield from _course(events)
    config = _json(folder.config)
    if config:
        yield f"<h2>The configuration that ran</h2><pre>{escape(json.dumps(config, indent=2))}</pre>"
    yield from _versions(start.get("versions") or {})


def _figures(
    steps: Sequence[Mapping[str, Any]], start: Mapping[str, Any], report: Mapping[str, Any]
) -> Iterator[str]:
    rows: list[Row] = []
    if start.get("parameters"):
        trained = start["trainable"]
        more = "" if trained == start["parameters"] else f", {format_count(trained)} trained"
        rows.append(("parameters", [format_count(start["parameters"]) + more]))
    if start.get("world_size"):
        rows.append(("ranks", [str(start["world_size"])]))
    losses = [row["loss"] for row in steps if row["loss"] is not None]
    if losses:
        settled = steps[1:] or steps
        rows.append(("loss", [f"{losses[0]:.4f} → {losses[-1]:.4f}"]))
        if report.get("validation"):
            rows.append(("validation", [f"{report['validation'][-1]['loss']:.4f}"]))
        rows.append(("tokens", [format_count(steps[-1]["tokens"])]))
        rows.append(("a step", [format_seconds(statistics.median(row["seconds"] for row in settled))]))
        speed = statistics.median(row["tokens_per_second"] for row in settled)
        rows.append(("tokens/s", [format_count(speed)]))
        rows.append(("memory at most", [format_bytes(max(row["memory_peak_bytes"] for row in steps))]))
    for key in ("checkpoint", "model"):
        if report.get(key):
            rows.append((key, [str(report[key])]))
    if rows:
        yield table((), rows, words=True)


def _beside(predicted: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    if not predicted:
        return
    rows: list[Row] = []
    for one in predicted:
        show = format_bytes if one["quantity"].endswith("bytes") else format_seconds
        name = one["quantity"].rsplit(" ", 1)[0]
        rows.append((name, [show(one["predicted"]), show(one["measured"]), f"{one['ratio'] - 1:+.1%}"]))
    yield "<h2>Predicted and measured</h2>" + table(("predicted", "measured", "difference"), rows)


def _speed_curves(steps: Sequence[Mapping[str, Any]]) -> Any:
    points = [(row["step"], row["tokens_per_second"]) for row in steps[1:] or steps]
    shown = [Curve(name="tokens/s, smoothed", points=smoothed(points), colour=SMOOTH)]
    return curves("Speed", "step", "tokens/s of all ranks", shown, lambda value, _: format_count(value))


def _course(events: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Resumes, checkpoints and stops, and the notes of the start."""
    lines = [note for row in events if row["event"] == "start" for note in row.get("notes", ())]
    for row in events:
        if row["event"] not in NOT_SHOWN:
            where = row.get("path") or row.get("checkpoint") or ""
            lines.append(f"step {row.get('step', '?')}: {row['event']} {where}".rstrip())
    if lines:
        yield "<h2>What happened</h2>" + items(dict.fromkeys(lines))


def _versions(versions: Mapping[str, str]) -> Iterator[str]:
    if versions:
        said = ", ".join(f"{name} {version}" for name, version in versions.items())
        yield f'<p class="soft">{escape(said)}</p>'


def _stored(entry: Entry) -> Iterator[str]:
    """A training whose folder is gone: the figures that the history keeps."""
    report = entry.document.get("answer") or {}
    yield f"<h1>{escape(entry.config)}</h1>"
    kind = "good" if entry.outcome == "ended" else "bad"
    machines = f"{entry.gpus_per_node * entry.nodes} × {entry.gpu}"
    yield f'<p class="{kind}">{escape(entry.outcome)}, {escape(machines)}, {entry.date}</p>'
    rows: list[Row] = [
        (name, [f"{value:g}" if isinstance(value, float) else str(value)])
        for name, value in report.items()
        if isinstance(value, (int, float, str)) and name not in ("schema_version", "sample")
    ]
    if rows:
        yield table((), rows, words=True)
    yield from _beside(report.get("predicted") or ())
    if entry.document.get("error"):
        yield f"<pre>{escape(str(entry.document['error']))}</pre>"
    yield from _versions(entry.document.get("versions") or {})


def _json(path: Any) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
