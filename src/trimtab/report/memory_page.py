"""An answer about memory as one HTML page that needs nothing else: picture, figures, assumptions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from trimtab import __version__
from trimtab.report.drawing import INKS, to_svg
from trimtab.report.memory_picture import bars, picture, title_of, verdict
from trimtab.units import format_bytes, format_count, format_seconds

STYLE = (
    ":root{color-scheme:light dark}"
    f"body{{font:15px/1.5 system-ui,sans-serif;max-width:880px;margin:2rem auto;padding:0 1rem;"
    f"background:{INKS['ground'][0]};color:{INKS['ink'][0]}}}"
    "h1{font-size:1.5rem;margin:0}h2{font-size:1.1rem;margin:2rem 0 .5rem}"
    "svg{max-width:100%;height:auto;margin:1rem 0}"
    "table{border-collapse:collapse}td,th{padding:.25rem 1.5rem .25rem 0;text-align:left;font-weight:400;"
    f"border-bottom:1px solid {INKS['line'][0]}}}thead th{{font-weight:600}}"
    "td{text-align:right;font-variant-numeric:tabular-nums}tr.sum>*{font-weight:600}"
    "th{white-space:nowrap}.words td{text-align:left}"
    f".good{{color:{INKS['good'][0]}}}.bad{{color:{INKS['bad'][0]}}}"
    f"footer,.soft{{color:{INKS['soft'][0]}}}pre{{overflow:auto}}"
    "@media(prefers-color-scheme:dark){"
    f"body{{background:{INKS['ground'][1]};color:{INKS['ink'][1]}}}td,th{{border-color:{INKS['line'][1]}}}"
    f".good{{color:{INKS['good'][1]}}}.bad{{color:{INKS['bad'][1]}}}"
    f"footer,.soft{{color:{INKS['soft'][1]}}}}}"
)
Row = tuple[str, Sequence[str]]


def page(title: str, sections: Iterator[str] | Sequence[str]) -> str:
    """A whole page of ``sections``, in the look of all our pages."""
    body = "\n".join(sections)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n{body}\n"
        f"<footer><p>Trimtab {__version__}</p></footer>\n</body>\n</html>\n"
    )


def memory_page(document: Mapping[str, Any]) -> str:
    """The page of one answer of `trimtab estimate` or `trimtab rehearse`."""
    return page(title_of(document), memory_sections(document))


def memory_sections(document: Mapping[str, Any]) -> Iterator[str]:
    """Warnings, picture, shortage and way out, figures by part and phase, corrections, assumptions."""
    yield f"<h1>{escape(title_of(document))}</h1>"
    yield f'<p class="{"good" if document["fits"] else "bad"}">{escape(verdict(document))}</p>'
    yield from (f'<p class="bad">{escape(one)}</p>' for one in document.get("warnings") or ())
    yield to_svg(picture(document, heading=False))
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


def table(heads: Sequence[str], rows: Sequence[Row], *, sums: int = 0, words: bool = False) -> str:
    """A table with names on the left; the last ``sums`` rows stand out, ``words`` stand on the left too."""
    head = "".join(f"<td>{escape(name)}</td>" for name in heads)
    parts = [f"<thead><tr><th></th>{head}</tr></thead>"] if heads else []
    for place, (name, values) in enumerate(rows):
        kind = ' class="sum"' if place >= len(rows) - sums else ""
        cells = "".join(f"<td>{escape(value)}</td>" for value in values)
        parts.append(f'<tr{kind}><th scope="row">{escape(name)}</th>{cells}</tr>')
    return f"<table{' class=words' * words}>{''.join(parts)}</table>"


def items(lines: Any) -> str:
    """A list of lines."""
    return f"<ul>{''.join(f'<li>{escape(str(line))}</li>' for line in lines)}</ul>"
