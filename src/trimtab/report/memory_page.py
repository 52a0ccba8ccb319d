"""An answer about memory as one HTML page that needs nothing else: picture, figures, assumptions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from trimtab.drawing.shapes import to_svg
from trimtab.report.memory_picture import bars, picture, title_of, verdict
from trimtab.report.page import Row, items, page, table, wide
from trimtab.units import format_bytes, format_count, format_seconds


def memory_page(document: Mapping[str, Any]) -> str:
    """The page of one answer of `trimtab estimate` or `trimtab rehearse`."""
    return page(title_of(document), memory_sections(document))


def memory_sections(document: Mapping[str, Any]) -> Iterator[str]:
    """Warnings, picture, shortage and way out, figures by part and phase, corrections, assumptions."""
    yield f"<h1>{escape(title_of(document))}</h1>"
    yield f'<p class="{"good" if document["fits"] else "bad"}">{escape(verdict(document))}</p>'
    yield from (f'<p class="bad">{escape(one)}</p>' for one in document.get("warnings") or ())
    yield wide(to_svg(picture(document, heading=False)))
    yield from _shortage(document)
    yield from _by_part(document)
    yield from _by_phase(document)
    yield from _time(document)
    corrections = document.get("corrections") or ()
    if corrections:
        yield "<h2>Corrected by what was measured</h2>" + items(
            f"{one['what']}: {one['from']} (before: {one['uncorrected']:g})" for one in corrections
        )
    yield "<h2>How this was got</h2>" + items((*document["assumptions"], *document.get("notes", ())))
    versions = document.get("versions")
    if versions:
        said = ", ".join(f"{name} {version}" for name, version in versions.items())
        yield f'<p class="soft">{escape(said)}</p>'


def _shortage(document: Mapping[str, Any]) -> Iterator[str]:
    short, out = document.get("out_of_memory"), document.get("way_out")
    if short:
        rows: list[Row] = [("when", [f"step {short['step']}, {short['phase']}"])]
        if short["module"]:
            rows.append(("module", [f"{short['module']} ({short['module_class']})"]))
        if short["frame"]:
            rows.append(("line", [short["frame"]]))
        if short["asked_bytes"] is not None:
            rows.append(("asked for", [format_bytes(short["asked_bytes"])]))
        rows.append(("held by tensors", [format_bytes(short["allocated_bytes"])]))
        yield "<h2>Where memory ran out</h2>" + table((), rows, words=True)
    if out:
        titles = "; then ".join(move["title"] for move in out["moves"])
        yield (
            f"<h2>What would fit</h2><p>{escape(titles)}: {format_bytes(out['needed_bytes'])} needed, "
            f"{format_seconds(out['step_seconds'])} a step, both predicted.</p>"
        )


def _by_part(document: Mapping[str, Any]) -> Iterator[str]:
    known = bars(document)
    names = list(dict.fromkeys(name for bar in known for name in bar.parts))
    rows: list[Row] = [
        (name, [format_bytes(bar.parts[name]) if name in bar.parts else "–" for bar in known])
        for name in names
    ]
    rows.append(("needed of the card", [format_bytes(bar.needed) for bar in known]))
    yield "<h2>GPU memory at the peak</h2>" + table([bar.name for bar in known], rows, sums=1)


def _by_phase(document: Mapping[str, Any]) -> Iterator[str]:
    known = [
        (bar.name, {one["name"]: one for one in bar.document["gpu"]["phases"]}) for bar in bars(document)
    ]
    names = list(dict.fromkeys(name for _, phases in known for name in phases))
    rows: list[Row] = [
        (
            name,
            [
                format_bytes(phases[name]["peak_allocated_bytes"]) if name in phases else "–"
                for _, phases in known
            ],
        )
        for name in names
    ]
    yield "<h2>Peak by phase</h2>" + table([name for name, _ in known], rows)


def _time(document: Mapping[str, Any]) -> Iterator[str]:
    measured = (document.get("measured") or {}).get("phase_seconds") or {}
    if measured:
        rows: list[Row] = [(name, [format_seconds(seconds)]) for name, seconds in measured.items()]
        rows.append(("without communication", [format_seconds(sum(measured.values()))]))
        yield f"<h2>A step on this {escape(document['measured']['gpu'])}</h2>" + table((), rows, sums=1)
    speed = document["speed"]
    if speed["step_seconds"] is None:
        return
    rows = [("a step", [format_seconds(speed["step_seconds"]["expected"])])]
    for name in ("compute", "communication", "offload"):
        seconds = speed[f"{name}_seconds"]
        if seconds is not None:
            rows.append((name, [format_seconds(seconds)]))
    rows.append(("tokens/s per GPU", [format_count(speed["tokens_per_second_per_gpu"])]))
    yield "<h2>Time</h2>" + table((), rows)
