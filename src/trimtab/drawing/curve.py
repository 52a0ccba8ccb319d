"""Curves over the steps of a run, drawn: the loss, the speed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trimtab.drawing.shapes import Drawing, Line, Rectangle, Words, width_of

WIDTH, HEIGHT = 720.0, 380.0
LEFT, RIGHT, TOP, BOTTOM = 64.0, 20.0, 44.0, 52.0
EACH, SMOOTH, MARKED = "#8fb4dc", "#2a6fb8", "#d55e00"
"""Colours of every step, of its smoothed course and of marks; each stands out on light and dark ground."""
SMOOTHED_PART = 0.05
"""Part of the steps that a smoothed curve averages over."""
MOST_POINTS = 600
"""More would lie on one another; each span of steps then shows its mean."""
Points = Sequence[tuple[float, float]]
Show = Callable[[float, float], str]
"""Writes a number of an axis, given the distance of two."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """Points from left to right, as a line or, ``dotted``, as marks."""

    name: str
    points: Points
    colour: str
    width: float = 1.8
    dotted: bool = False


def curves(title: str, across: str, up: str, shown: Sequence[Curve], show: Show) -> Drawing:
    """The curves in one frame, with a key; ``across`` and ``up`` name the axes, ``show`` writes heights."""
    known = [point for curve in shown for point in curve.points if math.isfinite(point[1])]
    drawing = Drawing(width=WIDTH, height=HEIGHT, title=title, description=f"{up} over {across}")
    if not known:
        return drawing
    xs, ys = _span([x for x, _ in known]), _span([y for _, y in known])

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            LEFT + (x - xs[0]) / (xs[1] - xs[0]) * (WIDTH - LEFT - RIGHT),
            HEIGHT - BOTTOM - (y - ys[0]) / (ys[1] - ys[0]) * (HEIGHT - TOP - BOTTOM),
        )

    heights = ticks(*ys)
    apart = heights[1] - heights[0] if len(heights) > 1 else ys[1] - ys[0]
    for tick in heights:
        _, y = place(xs[0], tick)
        drawing.shapes.append(Line(points=((LEFT, y), (WIDTH - RIGHT, y))))
        drawing.shapes.append(
            Words(x=LEFT - 8, y=y + 4, text=show(tick, apart), size=11, fill="soft", anchor="end")
        )
    for tick in ticks(*xs):
        x, y = place(tick, ys[0])
        drawing.shapes.append(Line(points=((x, y), (x, y + 4)), stroke="soft"))
        drawing.shapes.append(
            Words(x=x, y=y + 17, text=f"{tick:,.0f}", size=11, fill="soft", anchor="middle")
        )
    for curve in shown:
        points = [place(x, y) for x, y in thinned(curve.points)]
        if curve.dotted:
            drawing.shapes += [
                Rectangle(x=x - 3, y=y - 3, width=6, height=6, fill=curve.colour) for x, y in points
            ]
        elif points:
            drawing.shapes.append(Line(points=points, stroke=curve.colour, width=curve.width))
    base = HEIGHT - BOTTOM
    drawing.shapes.append(Line(points=((LEFT, base), (WIDTH - RIGHT, base)), stroke="soft"))
    middle = (LEFT + WIDTH - RIGHT) / 2
    drawing.shapes.append(Words(x=middle, y=HEIGHT - 12, text=across, fill="soft", anchor="middle"))
    drawing.shapes += _key(up, shown)
    return drawing


def loss_curves(steps: Sequence[Mapping[str, Any]], validation: Sequence[Mapping[str, Any]]) -> Drawing:
    """The loss of a run's steps (rows of ``events.jsonl``), smoothed, and of its validation."""
    points = [(row["step"], row["loss"]) for row in steps if row["loss"] is not None]
    shown = [
        Curve(name="each step", points=points, colour=EACH, width=1.0),
        Curve(name="smoothed", points=smoothed(points), colour=SMOOTH, width=2.2),
    ]
    marks = [(row["step"], row["loss"]) for row in validation if row["loss"] is not None]
    if marks:
        shown.append(Curve(name="validation", points=marks, colour=MARKED, dotted=True))
    return curves("Loss", "step", "loss", shown, plainly)


def plainly(value: float, apart: float) -> str:
    """A number with as many decimals as tell it from its neighbours.

    >>> plainly(7.6, 0.5), plainly(7.615, 0.005), plainly(300.0, 50.0)
    ('7.6', '7.615', '300')
    """
    return f"{value:.{max(0, -math.floor(math.log10(apart) + 1e-9))}f}"


def smoothed(points: Points, part: float = SMOOTHED_PART) -> Points:
    """The exponential mean of the points, over ``part`` of them."""
    weight = 1 / max(1, round(len(points) * part))
    found: list[tuple[float, float]] = []
    for x, y in points:
        before = found[-1][1] if found else y
        found.append((x, before + weight * (y - before)))
    return found


def _key(up: str, shown: Sequence[Curve]) -> Iterator[Line | Words]:
    """What goes up on the left, and the names of the curves in a row from the right, above the frame."""
    x, y = WIDTH - RIGHT, TOP - 20
    for curve in reversed(shown):
        yield Words(x=x, y=y, text=curve.name, size=12, anchor="end")
        x -= width_of(curve.name, 12) + 8
        thick = 6.0 if curve.dotted else max(2.0, curve.width)
        length = 6 if curve.dotted else 18
        yield Line(points=((x - length, y - 4), (x, y - 4)), stroke=curve.colour, width=thick)
        x -= length + 18
    yield Words(x=LEFT - 8, y=y, text=up, size=12, fill="soft")


def thinned(points: Points, most: int = MOST_POINTS) -> Points:
    """At most ``most`` of the finite points, each the mean of its span."""
    known = [point for point in points if math.isfinite(point[1])]
    if len(known) <= most:
        return known
    spans = [known[at * len(known) // most : (at + 1) * len(known) // most] for at in range(most)]
    return [(sum(x for x, _ in span) / len(span), sum(y for _, y in span) / len(span)) for span in spans]


def ticks(low: float, high: float) -> Sequence[float]:
    """Three to eight round numbers from ``low`` to ``high``.

    >>> ticks(0.0, 100.0), ticks(2.1, 3.9)
    ([0.0, 20.0, 40.0, 60.0, 80.0, 100.0], [2.5, 3.0, 3.5])
    """
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = min((1, 2, 5, 10), key=lambda size: abs(math.log(size * power / rough))) * power
    return [
        number * step for number in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
    ]


def _span(values: Sequence[float]) -> tuple[float, float]:
    """From the least to the greatest with some room, never nothing."""
    low, high = min(values), max(values)
    if low == high:
        return low - (abs(low) * 0.1 or 1.0), high + (abs(high) * 0.1 or 1.0)
    return low, high
