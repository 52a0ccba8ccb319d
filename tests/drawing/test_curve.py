"""Curves over a run's steps: they stay in their frame, and every word of them can be read."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

import pytest

from trimtab.drawing.curve import MOST_POINTS, loss_curves, smoothed, thinned, ticks
from trimtab.drawing.shapes import Line, Words, to_svg, width_of


def box(words: Words) -> tuple[float, float, float, float]:
    width = width_of(words.text, words.size)
    left = words.x - {"start": 0.0, "middle": width / 2, "end": width}[words.anchor]
    return left, words.y - 0.75 * words.size, left + width, words.y + 0.2 * words.size


def steps(count: int) -> list[dict[str, Any]]:
    return [{"step": n, "loss": 8 / n} for n in range(1, count + 1)]


@pytest.mark.parametrize("count", [1, 2, 30, 5000])
def test_curves_stay_in_their_frame_and_words_apart(count: int) -> None:
    drawing = loss_curves(steps(count), [{"step": count, "loss": 0.5}])
    ElementTree.fromstring(to_svg(drawing))
    words = [one for one in drawing.shapes if isinstance(one, Words)]
    boxes = [(one.text, box(one)) for one in words]
    for place, (one, a) in enumerate(boxes):
        assert a[0] >= 0, one
        for other, b in boxes[place + 1 :]:
            assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1], (one, other)
    lines = [one for one in drawing.shapes if isinstance(one, Line)]
    assert max(len(one.points) for one in lines) <= max(2, MOST_POINTS)
    for line in lines:
        assert all(0 <= x <= drawing.width and 0 <= y <= drawing.height for x, y in line.points)


def test_numbers_of_an_axis_differ() -> None:
    narrow = [{**row, "loss": 7.61 + row["step"] / 1000} for row in steps(5)]
    drawing = loss_curves(narrow, [])
    heights = [one.text for one in drawing.shapes if isinstance(one, Words) and one.anchor == "end"]
    assert len(heights) == len(set(heights)) > 4


def test_a_loss_that_is_no_number_is_left_out() -> None:
    rows = [*steps(4), {**steps(5)[-1], "loss": None}]
    assert "nan" not in to_svg(loss_curves(rows, []))


@pytest.mark.parametrize(("low", "high"), [(0, 1), (1, 300), (-5, 5), (7.6143, 7.6159), (0, 10**7)])
def test_ticks_are_few_and_inside(low: float, high: float) -> None:
    found = ticks(low, high)
    assert 2 <= len(found) <= 9
    assert low - 1e-6 <= found[0] < found[-1] <= high + 1e-6 * high


def test_thinning_keeps_the_mean_and_smoothing_the_level() -> None:
    points = [(float(n), 1.0 + n % 2) for n in range(6000)]
    thin = thinned(points, 100)
    assert len(thin) == 100
    assert sum(y for _, y in thin) / 100 == pytest.approx(1.5)
    assert smoothed(points)[-1][1] == pytest.approx(1.5, abs=0.01)
