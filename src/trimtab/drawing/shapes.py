"""A flat drawing of rectangles, areas, lines and words, as SVG by hand or as PNG by matplotlib.

Lengths are pixels, the origin is the upper left corner.  A colour is ``#rrggbb`` or one of `INKS`: those
follow the reader's light or dark background, in SVG.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any, Literal

from trimtab.errors import MissingExtra

INKS: Mapping[str, tuple[str, str]] = {
    "ground": ("#ffffff", "#0d1117"),
    "ink": ("#1f2328", "#e6edf3"),
    "soft": ("#59636e", "#9198a1"),
    "line": ("#d1d9e0", "#3d444d"),
    "good": ("#1a7f37", "#3fb950"),
    "bad": ("#cf222e", "#f85149"),
}
"""On light and on dark background."""
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"
CHARACTER_WIDTH = 0.58
"""Of a character in ems: the mean of DejaVu Sans, the widest of the fonts above."""
Anchor = Literal["start", "middle", "end"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rectangle:
    """A filled rectangle; ``title`` is shown when it is pointed at."""

    x: float
    y: float
    width: float
    height: float
    fill: str
    title: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Area:
    """A filled polygon."""

    points: Sequence[tuple[float, float]]
    fill: str
    title: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A line through ``points``."""

    points: Sequence[tuple[float, float]]
    stroke: str = "line"
    width: float = 1.0
    dashed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    """One line of text; ``y`` is its base line."""

    x: float
    y: float
    text: str
    fill: str = "ink"
    size: float = 13.0
    anchor: Anchor = "start"
    bold: bool = False

    def backing(self) -> Rectangle:
        """The ground behind these words, so that what lies there does not run through them."""
        width = width_of(self.text, self.size)
        x = self.x - {"start": 0.0, "middle": width / 2, "end": width}[self.anchor]
        return Rectangle(
            x=x - 2, y=self.y - self.size, width=width + 4, height=self.size * 1.25, fill="ground"
        )


Shape = Rectangle | Area | Line | Words


@dataclass(slots=True, kw_only=True)
class Drawing:
    """Shapes in the order in which they are drawn."""

    width: float
    height: float
    title: str
    description: str = ""
    shapes: list[Shape] = field(default_factory=list)


def width_of(text: str, size: float = 13.0) -> float:
    """About how wide ``text`` is, and seldom wider."""
    return len(text) * size * CHARACTER_WIDTH


# -- SVG ------------------------------------------------------------------------------------------------


def to_svg(drawing: Drawing) -> str:
    """The drawing as one SVG element without anything from elsewhere."""
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {drawing.width:g} {drawing.height:g}" '
        f'width="{drawing.width:g}" height="{drawing.height:g}" role="img" font-family="{FONT}">'
    )
    told = f"<title>{escape(drawing.title)}</title><desc>{escape(drawing.description)}</desc>"
    ground = Rectangle(x=0, y=0, width=drawing.width, height=drawing.height, fill="ground")
    shapes = "\n".join(_svg(shape) for shape in (ground, *drawing.shapes))
    return f"{head}\n{told}\n<style>{_style()}</style>\n{shapes}\n</svg>\n"


def _style() -> str:
    def rules(which: int) -> str:
        return "".join(
            f".tt-{name}{{fill:{colours[which]}}}.tt-{name}-stroke{{stroke:{colours[which]}}}"
            for name, colours in INKS.items()
        )

    return f"{rules(0)}@media (prefers-color-scheme:dark){{{rules(1)}}}"


def _svg(shape: Shape) -> str:
    if isinstance(shape, Words):
        weight = ' font-weight="600"' if shape.bold else ""
        return (
            f'<text x="{shape.x:.1f}" y="{shape.y:.1f}" font-size="{shape.size:g}" '
            f'text-anchor="{shape.anchor}"{weight}{_paint("fill", shape.fill)}>{escape(shape.text)}</text>'
        )
    if isinstance(shape, Line):
        dash = ' stroke-dasharray="5 4"' if shape.dashed else ""
        return (
            f'<polyline points="{_points(shape.points)}" fill="none" stroke-width="{shape.width:g}"{dash}'
            f"{_paint('stroke', shape.stroke)}/>"
        )
    title = f"<title>{escape(shape.title)}</title>" if shape.title else ""
    if isinstance(shape, Area):
        return f'<polygon points="{_points(shape.points)}"{_paint("fill", shape.fill)}>{title}</polygon>'
    return (
        f'<rect x="{shape.x:.1f}" y="{shape.y:.1f}" width="{shape.width:.1f}" height="{shape.height:.1f}"'
        f"{_paint('fill', shape.fill)}>{title}</rect>"
    )


def _points(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def _paint(kind: Literal["fill", "stroke"], colour: str) -> str:
    """A named ink as a class, with the light one as what remains where styles are not read."""
    if colour not in INKS:
        return f' {kind}="{colour}"'
    name = f"tt-{colour}" if kind == "fill" else f"tt-{colour}-stroke"
    return f' {kind}="{INKS[colour][0]}" class="{name}"'


# -- PNG ------------------------------------------------------------------------------------------------


def write_png(drawing: Drawing, file: Path, *, dark: bool = False, dots_per_inch: int = 200) -> None:
    """Write the drawing as PNG.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtra("matplotlib", "pictures", "a PNG picture") from None

    inch = 96.0  # CSS's pixels
    figure = Figure(figsize=(drawing.width / inch, drawing.height / inch), dpi=dots_per_inch)
    FigureCanvasAgg(figure)
    figure.patch.set_facecolor(INKS["ground"][dark])
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, drawing.width), ylim=(drawing.height, 0))
    axes.autoscale(False)
    axes.axis("off")
    for place, shape in enumerate(drawing.shapes, 1):
        _paint_on(axes, shape, dark).set_zorder(place)
    figure.savefig(file, facecolor=figure.get_facecolor(), format="png")


def _paint_on(axes: Any, shape: Shape, dark: bool) -> Any:
    from matplotlib.patches import Polygon
    from matplotlib.patches import Rectangle as Box

    def colour(name: str) -> str:
        return INKS[name][dark] if name in INKS else name

    points_per_pixel = 0.75
    if isinstance(shape, Words):
        return axes.text(
            shape.x, shape.y, shape.text.replace("$", r"\$"), color=colour(shape.fill),
            fontsize=shape.size * points_per_pixel * 0.94, va="baseline",
            ha={"start": "left", "middle": "center", "end": "right"}[shape.anchor],
            fontweight="bold" if shape.bold else "normal",
        )  # fmt: skip
    if isinstance(shape, Line):
        xs, ys = zip(*shape.points, strict=True)
        style = (0, (5, 4)) if shape.dashed else "-"
        width = shape.width * points_per_pixel
        return axes.plot(xs, ys, color=colour(shape.stroke), linewidth=width, linestyle=style)[0]
    paint: dict[str, Any] = {"facecolor": colour(shape.fill), "linewidth": 0}
    if isinstance(shape, Area):
        return axes.add_patch(Polygon(list(shape.points), closed=True, **paint))
    return axes.add_patch(Box((shape.x, shape.y), shape.width, shape.height, **paint))
