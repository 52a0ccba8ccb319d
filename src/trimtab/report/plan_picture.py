"""The picture of a plan: time against money, or against memory where one cluster has one price."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from rich.text import Text

from trimtab.plan.frontier import Point
from trimtab.units import format_dollars, format_seconds

ROWS, COLUMNS = 9, 58
WIDTH, HEIGHT = 640, 340
LEFT, RIGHT, TOP, BOTTOM = 92, 16, 34, 44


@dataclass(frozen=True, slots=True)
class _Axis:
    name: str
    value: Callable[[Point], float]
    shown: Callable[[float], str]


_TIME = _Axis("a billion tokens take", lambda one: one.seconds_per_billion_tokens, format_seconds)
_MONEY = _Axis("a billion tokens cost", lambda one: one.usd_per_billion_tokens or 0.0, format_dollars)
_MEMORY = _Axis(
    "GPU memory left free", lambda one: one.headroom, lambda share: f"{share:.0%}".replace("%", " %")
)


def _axes(points: Sequence[Point]) -> tuple[_Axis, _Axis, list[Point]]:
    """What lies right and what goes up, and the points that have both."""
    priced = [one for one in points if one.usd_per_billion_tokens is not None]
    if len({one.machines for one in priced}) > 1:
        return _MONEY, _TIME, _within(priced)
    return _MEMORY, _TIME, _within(list(points))


def _within(points: list[Point]) -> list[Point]:
    """Those within ten times the fastest: slower ones would squeeze the picture."""
    fastest = min(one.seconds_per_billion_tokens for one in points)
    return [one for one in points if one.seconds_per_billion_tokens <= 10 * fastest or one.chosen]


def _scale(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if high > low else (low * 0.9, low * 1.1 or 1.0)


def _unbeaten(points: Sequence[Point], across: _Axis, up: _Axis) -> list[Point]:
    """Those that no other beats in the two figures that the picture shows."""
    sign = -1 if across is _MEMORY else 1
    found: list[Point] = []
    for one in sorted(points, key=lambda one: (sign * across.value(one), up.value(one))):
        if not found or up.value(one) < up.value(found[-1]):
            found.append(one)
    return found


def scatter_text(points: Sequence[Point]) -> Text:
    """The picture in characters: ● chosen, ○ beaten in nothing, · beaten."""
    across, up, shown = _axes(points)
    xs, ys = _scale([across.value(one) for one in shown]), _scale([up.value(one) for one in shown])
    cells = [[" "] * COLUMNS for _ in range(ROWS)]
    for one in sorted(shown, key=lambda one: (one.chosen, one.on_front)):
        column = round((across.value(one) - xs[0]) / (xs[1] - xs[0]) * (COLUMNS - 1))
        row = round((up.value(one) - ys[0]) / (ys[1] - ys[0]) * (ROWS - 1))
        cells[ROWS - 1 - row][column] = "●" if one.chosen else "○" if one.on_front else "·"
    text = Text(f"{up.name} (up), {across.name} (right)\n", style="bold")
    for index, line in enumerate(cells):
        label = up.shown(ys[1]) if index == 0 else up.shown(ys[0]) if index == ROWS - 1 else ""
        text.append(f"{label:>11} ┤", style="dim")
        text.append("".join(line).rstrip() + "\n", style="default not bold")
    left, right = across.shown(xs[0]), across.shown(xs[1])
    text.append(" " * 12 + "└" + "─" * COLUMNS + "\n", style="dim")
    text.append(" " * 13 + left + right.rjust(COLUMNS - len(left)) + "\n", style="dim")
    text.append("● chosen  ○ beaten in nothing (time, money, free memory)  · beaten", style="dim")
    return text


def scatter_svg(points: Sequence[Point]) -> str:
    """The picture as SVG; every point names its configuration when pointed at."""
    across, up, shown = _axes(points)
    xs, ys = _scale([across.value(one) for one in shown]), _scale([up.value(one) for one in shown])

    def place(one: Point) -> tuple[float, float]:
        x = LEFT + 10 + (across.value(one) - xs[0]) / (xs[1] - xs[0]) * (WIDTH - LEFT - RIGHT - 20)
        y = HEIGHT - BOTTOM - 10 - (up.value(one) - ys[0]) / (ys[1] - ys[0]) * (HEIGHT - TOP - BOTTOM - 20)
        return x, y

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(up.name)} against {escape(across.name)}" '
        'font-family="sans-serif" font-size="12">'
    ]
    for index in range(5):
        value = ys[0] + (ys[1] - ys[0]) * index / 4
        y = HEIGHT - BOTTOM - 10 - index / 4 * (HEIGHT - TOP - BOTTOM - 20)
        parts.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#8884"/>'
            f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end" fill="#777">'
            f"{escape(up.shown(value))}</text>"
        )
    for index in range(4):
        value = xs[0] + (xs[1] - xs[0]) * index / 3
        x = LEFT + 10 + index / 3 * (WIDTH - LEFT - RIGHT - 20)
        anchor = "start" if index == 0 else "end" if index == 3 else "middle"
        parts.append(
            f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 14}" text-anchor="{anchor}" fill="#777">'
            f"{escape(across.shown(value))}</text>"
        )
    front = sorted(map(place, _unbeaten(shown, across, up)))
    if len(front) > 1:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in front)
        parts.append(f'<polyline points="{path}" fill="none" stroke="#2a7de1" stroke-opacity="0.35"/>')
    for one in sorted(shown, key=lambda one: (one.chosen, one.on_front)):
        x, y = place(one)
        free = f"{one.headroom:.0%} of memory free".replace("%", " %")
        title = escape(f"{one.machines}: {one.summary}; {up.shown(up.value(one))}, {free}")
        radius = 4 + 8 * max(0.0, min(1.0, one.headroom))
        style = (
            'fill="#1a9850"'
            if one.chosen
            else 'fill="#2a7de1" fill-opacity="0.55"'
            if one.on_front
            else 'fill="#888" fill-opacity="0.45"'
        )
        parts.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}" {style}><title>{title}</title></circle>'
        )
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(
        f'<text x="{middle:.0f}" y="{HEIGHT - 8}" text-anchor="middle" fill="#777">'
        f"{escape(across.name)}</text>"
        f'<text x="6" y="16" fill="#777">{escape(up.name)}</text></svg>'
    )
    return "".join(parts)
