"""A picture of GPU memory: by part against the card, and over one optimizer step.

Made from the JSON answer of `trimtab estimate` or `trimtab rehearse`, so a stored answer can be drawn too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trimtab.drawing.curve import ticks
from trimtab.drawing.shapes import Area, Drawing, Line, Rectangle, Shape, Words, width_of
from trimtab.units import GIB, format_bytes, format_count, format_dollars, format_seconds

# Okabe and Ito's colours, which the common kinds of colour blindness tell apart; greys for what is no tensor
COLOURS: Mapping[str, str] = {
    "parameters": "#0072b2",
    "master weights": "#56b4e9",
    "optimizer states": "#009e73",
    "gradients": "#e69f00",
    "buckets": "#cc79a7",
    "gathered parameters": "#7a5195",
    "activations": "#d55e00",
    "activations and the rest": "#d55e00",
    "logits and loss": "#f0e442",
    "temporaries": "#b8a07e",
    "workspace, slack": "#8c959f",
    "reserve, CUDA, NCCL": "#c4cad1",
}
"""Every part, in the order in which parts are drawn: what stays from step to step comes first."""
UNKNOWN, UNDIVIDED = "allocated", "#7d93ab"
"""Memory whose parts are not known, and its colour."""
OUTSIDE = "reserve, CUDA, NCCL"
"""What the card must have beyond the peak: fragmentation, the CUDA context, NCCL's buffers."""
METHODS = {
    "arithmetic": "predicted",
    "phantom": "phantom",
    "rehearsal": "on a GPU",
}
_HOW = {"arithmetic": "predicted", "phantom": "phantom rehearsal", "rehearsal": "rehearsed on a GPU"}
TRACE = 1e-4
"""Parts below this share of the peak are not drawn."""
WIDTH, MARGIN, LABEL, ROW, BAR = 860.0, 24.0, 88.0, 21.0, 32.0
CHART = 230.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Bar:
    """One way to know: its name, bytes by part, and what the card needs."""

    name: str
    parts: Mapping[str, int]
    needed: float
    document: Mapping[str, Any]


def _bar(document: Mapping[str, Any]) -> _Bar:
    gpu = document["gpu"]
    parts = {part["name"]: part["bytes"] for part in gpu["parts"]}
    needed = gpu["needed_bytes"]["expected"]
    peak = gpu["peak_allocated_bytes"]["expected"]
    if not parts:  # memory ran out before the engine's tensors could be told apart
        parts = {UNKNOWN: peak}
    parts[OUTSIDE] = max(0, round(needed - sum(parts.values())))
    return _Bar(
        name=METHODS[document["method"]],
        parts={name: parts[name] for name in _in_order(parts) if parts[name] > peak * TRACE},
        needed=needed,
        document=document,
    )


def _in_order(names: Iterable[str]) -> list[str]:
    known = list(COLOURS)
    return sorted(names, key=lambda name: known.index(name) if name in known else len(known))


def bars(document: Mapping[str, Any]) -> Sequence[_Bar]:
    """The prediction, if there is one, and what was seen, if anything was."""
    predicted = document.get("predicted")
    found = [document] if document["method"] == "arithmetic" else [predicted, document]
    return [_bar(one) for one in found if one is not None]


def title_of(document: Mapping[str, Any]) -> str:
    """The configuration and its machines."""
    gpu = document["gpu"]
    return f"{document['config']} on {gpu['gpus_per_node'] * gpu['nodes']} × {gpu['name']}"


def picture(document: Mapping[str, Any], *, heading: bool = True) -> Drawing:
    """The whole picture of one answer; without ``heading`` for a page that has one."""
    known = bars(document)
    title = title_of(document)
    drawing = Drawing(width=WIDTH, height=0, title=title, description=verdict(document))
    y = MARGIN + 8
    if heading:
        drawing.shapes.append(Words(x=MARGIN, y=y + 6, text=title, size=18, bold=True))
        colour = "good" if document["fits"] else "bad"
        drawing.shapes.append(Words(x=MARGIN, y=y + 28, text=verdict(document), fill=colour))
        y += 72
    y = _draw_bars(drawing.shapes, known, document, y)
    y = _draw_legend(drawing.shapes, known, document, y + 26)
    y = _draw_course(drawing.shapes, document, y + 40)
    drawing.height = y + MARGIN
    return drawing


def verdict(document: Mapping[str, Any]) -> str:
    """Whether it fits, and what it is that decides so."""
    gpu, host = document["gpu"], document["host"]
    needed, has = format_bytes(gpu["needed_bytes"]["expected"]), format_bytes(gpu["capacity_bytes"])
    short = document.get("out_of_memory")
    if short:
        memory = {"gpu": "GPU"}.get(short["memory"], short["memory"])
        return f"does not fit: {memory} memory ran out in {short['phase']}"
    how = _HOW[document["method"]]
    if document["fits"]:
        return f"fits: {needed} of {has} needed ({how})"
    reasons = []
    if gpu["needed_bytes"]["expected"] > gpu["capacity_bytes"]:
        reasons.append(f"{needed} of {has}")
    wanted, there = host["bytes_per_node"]["expected"], host["capacity_bytes_per_node"]
    if wanted > there:
        reasons.append(f"{format_bytes(wanted)} of {format_bytes(there)} host memory a node")
    return f"does not fit: {', '.join(reasons)} needed ({how})" if reasons else f"does not fit ({how})"


# -- by part --------------------------------------------------------------------------------------------


def _draw_bars(shapes: list[Shape], known: Sequence[_Bar], document: Mapping[str, Any], y: float) -> float:
    capacity = document["gpu"]["capacity_bytes"]
    left, right = MARGIN + LABEL, WIDTH - MARGIN
    most = max(capacity, *(sum(bar.parts.values()) for bar in known)) * 1.01
    scale = (right - left) / most
    edge = left + capacity * scale
    text = f"{document['gpu']['name']} has {format_bytes(capacity)}"
    anchor = "end" if edge - width_of(text, 12) > left else "start"
    shapes.append(Words(x=edge, y=y - 12, text=text, size=12, fill="soft", anchor=anchor))  # type: ignore[arg-type]
    top = y
    for bar in known:
        shapes.append(Words(x=MARGIN, y=y + BAR / 2 + 5, text=bar.name))
        shapes.append(Rectangle(x=left, y=y, width=edge - left, height=BAR, fill="line"))
        x = left
        for name, size in bar.parts.items():
            width = size * scale
            if width <= 0:
                continue
            said = f"{bar.name}: {name} {format_bytes(size)}"
            gap = 1.0 if width > 3 else 0.0
            fill = COLOURS.get(name, UNDIVIDED)
            shapes.append(Rectangle(x=x, y=y, width=width - gap, height=BAR, fill=fill, title=said))
            label = format_bytes(size)
            if width_of(label, 12) + 10 < width:
                shapes.append(
                    Words(
                        x=x + width / 2,
                        y=y + BAR / 2 + 4.5,
                        text=label,
                        size=12,
                        anchor="middle",
                        fill=_on(fill),
                    )
                )
            x += width
        y += BAR + 10
    over = any(bar.needed > capacity for bar in known)
    end = y - 10
    shapes.append(Line(points=((edge, top - 7), (edge, end + 5)), stroke="bad" if over else "ink", width=2.0))
    return end


def _on(fill: str) -> str:
    """Black or white, whichever stands out on ``fill`` (WCAG's relative luminance)."""

    def linear(part: str) -> float:
        value = int(part, 16) / 255
        return value / 12.92 if value <= 0.03928 else float(((value + 0.055) / 1.055) ** 2.4)

    red, green, blue = (linear(fill[at : at + 2]) for at in (1, 3, 5))
    light = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    return "#ffffff" if 1.05 / (light + 0.05) > (light + 0.05) / 0.05 else "#000000"


def _draw_legend(shapes: list[Shape], known: Sequence[_Bar], document: Mapping[str, Any], y: float) -> float:
    """What each colour is, with its bytes in each bar; beside it the figures that are no part."""
    names = _in_order(dict.fromkeys(name for bar in known for name in bar.parts))
    columns = [MARGIN + 270 + 100 * place for place in range(len(known))]
    for column, bar in zip(columns, known, strict=True):
        shapes.append(Words(x=column, y=y, text=bar.name, size=12, fill="soft", anchor="end"))
    start = y
    for name in names:
        y += ROW
        shapes.append(Rectangle(x=MARGIN, y=y - 11, width=13, height=13, fill=COLOURS.get(name, UNDIVIDED)))
        shapes.append(Words(x=MARGIN + 22, y=y, text=name))
        for column, bar in zip(columns, known, strict=True):
            size = bar.parts.get(name)
            text = format_bytes(size) if size else "–"
            shapes.append(Words(x=column, y=y, text=text, anchor="end"))
    left = max(columns) + 60
    row = start
    for name, value in _figures(document):
        row += ROW
        shapes.append(Words(x=left, y=row, text=name, fill="soft"))
        shapes.append(Words(x=WIDTH - MARGIN, y=row, text=value, anchor="end"))
    return max(y, row)


def _figures(document: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    gpu, time = document["gpu"], document["speed"]["step_seconds"]
    rates = document["speed"]
    yield "peak allocated", format_bytes(gpu["peak_allocated_bytes"]["expected"])
    yield "needed of the card", _span(gpu["needed_bytes"])
    yield "host memory a node", format_bytes(document["host"]["bytes_per_node"]["expected"])
    if document["nvme"]["bytes_per_node"]:
        yield "NVMe a node", format_bytes(document["nvme"]["bytes_per_node"])
    if time is not None:
        yield "a step", f"{format_seconds(time['low'])} to {format_seconds(time['high'])}"
        yield (
            "tokens/s per GPU, MFU",
            f"{format_count(rates['tokens_per_second_per_gpu'])}, {_share(rates['mfu'])}",
        )
    dollars = document["cost"]["usd_per_billion_tokens"]
    if dollars is not None:
        yield "a billion tokens", format_dollars(dollars)


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.0%}".replace("%", " %")


def _span(value: Mapping[str, float]) -> str:
    low, high = format_bytes(value["low"]), format_bytes(value["high"])
    return low if low == high else f"{low} to {high}"


# -- over the step ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """Memory over one optimizer step: bytes by part in rows from left to right, and its phases."""

    parts: Sequence[str]
    rows: Sequence[Sequence[int]]
    at: Sequence[float]
    """Where each row lies, from 0 to 1."""
    phases: Sequence[tuple[str, float, float]]
    """Name, begin and end of each phase, from 0 to 1."""
    said: str
    """What lies to the right."""

    @property
    def totals(self) -> Sequence[int]:
        """Bytes of each row."""
        return [sum(row) for row in self.rows]


def course_of(document: Mapping[str, Any]) -> Course | None:
    """What is known of memory over the step: every allocation, or each phase's peak and end; else None."""
    course = document.get("course")
    if course is not None:
        begins = [phase["begins_at"] for phase in course["phases"]]
        ends = [*begins[1:], 1.0]
        count = len(course["rows"])
        order = _in_order(course["parts"])
        places = [course["parts"].index(name) for name in order]
        return Course(
            parts=order,
            rows=[[row[place] for place in places] for row in course["rows"]],
            at=[(place + 0.5) / count for place in range(count)],
            phases=[
                (phase["name"], begin, end)
                for phase, begin, end in zip(course["phases"], begins, ends, strict=True)
            ],
            said="one optimizer step, allocation by allocation (no scale of time)",
        )
    phases = {phase["name"]: phase for phase in document["gpu"]["phases"]}
    steps = [phases.get(name) for name in ("forward", "backward", "step")]
    if any(phase is None or phase.get("end_allocated_bytes") is None for phase in steps):
        return None
    known = [phase for phase in steps if phase is not None]
    heights = [known[-1]["end_allocated_bytes"]]
    for phase in known:
        heights += [phase["peak_allocated_bytes"], phase["end_allocated_bytes"]]
    return Course(
        parts=[UNKNOWN],
        rows=[[height] for height in heights],
        at=[place / (len(heights) - 1) for place in range(len(heights))],
        phases=[(phase["name"], place / 3, (place + 1) / 3) for place, phase in enumerate(known)],
        said="one micro step: start, then peak and end of each phase (no scale of time)",
    )


def _draw_course(shapes: list[Shape], document: Mapping[str, Any], y: float) -> float:
    course = course_of(document)
    if course is None:
        return y - 40
    capacity = document["gpu"]["capacity_bytes"]
    left, right = MARGIN + 62, WIDTH - MARGIN
    highest = max(course.totals)
    # the card's line is worth its room only where memory comes near it
    most = max(highest * 1.12, capacity * 1.05 if highest > 0.6 * capacity else 0)
    shapes.append(Words(x=MARGIN, y=y, text="GPU memory over the step", bold=True))
    top, bottom = y + 34, y + 34 + CHART

    def across(at: float) -> float:
        return left + at * (right - left)

    def up(size: float) -> float:
        return bottom - size / most * CHART

    for tick in (size * GIB for size in ticks(0.0, most / GIB)):
        shapes.append(Line(points=((left, up(tick)), (right, up(tick)))))
        label = f"{tick / GIB:g} GiB"
        shapes.append(Words(x=left - 8, y=up(tick) + 4, text=label, size=11, fill="soft", anchor="end"))
    shapes += _areas(course, across, up)
    for name, begin, end in course.phases:
        if begin > 0:
            shapes.append(
                Line(points=((across(begin), top - 4), (across(begin), bottom)), stroke="soft", width=0.7)
            )
        if width_of(name, 12) + 6 < across(end) - across(begin):
            middle = (across(begin) + across(end)) / 2
            shapes.append(Words(x=middle, y=top - 10, text=name, size=12, fill="soft", anchor="middle"))
    if capacity <= most:
        shapes.append(
            Line(points=((left, up(capacity)), (right, up(capacity))), stroke="bad", width=1.5, dashed=True)
        )
        text = f"{document['gpu']['name']} has {format_bytes(capacity)}"
        words = Words(x=right, y=up(capacity) - 5, text=text, size=11, fill="bad", anchor="end")
        shapes += [words.backing(), words]
    _draw_peak(shapes, course, across, up, left, right)
    shapes.append(Line(points=((left, bottom), (right, bottom)), stroke="soft"))
    shapes.append(
        Words(x=(left + right) / 2, y=bottom + 18, text=course.said, size=11, fill="soft", anchor="middle")
    )
    return bottom + 18


def _areas(course: Course, across: Any, up: Any) -> Iterator[Shape]:
    """One area a part, the first below."""
    places = [across(at) for at in course.at]
    # the first and last rows reach to the edges
    places[0], places[-1] = across(0.0), across(1.0)
    below = [0] * len(course.rows)
    for number, name in enumerate(course.parts):
        above = [low + row[number] for low, row in zip(below, course.rows, strict=True)]
        if above != below:
            edge = [(x, up(size)) for x, size in zip(places, above, strict=True)]
            back = [(x, up(size)) for x, size in zip(places, below, strict=True)]
            fill = COLOURS.get(name, UNDIVIDED)
            yield Area(points=[*edge, *reversed(back)], fill=fill, title=name)
        below = above


def _draw_peak(shapes: list[Shape], course: Course, across: Any, up: Any, left: float, right: float) -> None:
    """A mark at the highest instant, its words on the side where they fit."""
    totals = course.totals
    place = max(range(len(totals)), key=lambda at: totals[at])
    x, y = across(course.at[place]), up(totals[place])
    text = f"peak {format_bytes(totals[place])}"
    half = width_of(text, 12) / 2
    shapes.append(Line(points=((x, y - 8), (x, y)), stroke="ink", width=1.5))
    centre = min(max(x, left + half), right - half)
    words = Words(x=centre, y=y - 12, text=text, size=12, bold=True, anchor="middle")
    shapes += [words.backing(), words]
