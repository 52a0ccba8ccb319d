"""What a probe measured, as tables to read between the points of.

`made_of` turns the rows of a probe (`trimtab.probe`) into plain tables, `Tables` reads them.  A table says
seconds by bytes, or by shape the share that a kernel reached of its ideal time by the datasheet, which is
what another GPU is expected to reach too.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from trimtab.cluster import Gpu, find_gpu

ALIGNMENT = 8
"""Elements: 16-bit operands whose rows are not aligned to 16 bytes take other, slower kernels."""
FLASH_BACKWARD = 2.5  # five products of the scores' size against two (arXiv 2307.08691, section 4.1)
NEIGHBOURS = 4
MOVING_KINDS = ("element-wise", "norm", "loss", "embedding", "optimizer")
Row = Mapping[str, Any]
Plain = dict[str, Any]


class Curve(NamedTuple):
    """Seconds by size, straight lines between measured points in the logarithm of both."""

    sizes: tuple[float, ...]
    seconds: tuple[float, ...]

    @classmethod
    def of(cls, points: Iterable[tuple[float, float]]) -> Curve:
        """A curve through the medians of ``(size, seconds)``; never falling, since more is never faster."""
        by_size: dict[float, list[float]] = {}
        for size, seconds in points:
            by_size.setdefault(size, []).append(seconds)
        found: list[float] = []
        for size in sorted(by_size):
            values = sorted(by_size[size])
            found.append(max(values[len(values) // 2], found[-1] if found else 0.0))
        return cls(tuple(sorted(by_size)), tuple(found))

    def at(self, size: float) -> float:
        """Seconds at ``size``: beyond the largest in proportion, below the smallest that one's."""
        sizes, seconds = self.sizes, self.seconds
        if size <= sizes[0]:
            return seconds[0]
        if size >= sizes[-1]:
            return seconds[-1] * size / sizes[-1]
        place = bisect_left(sizes, size)
        share = math.log(size / sizes[place - 1]) / math.log(sizes[place] / sizes[place - 1])
        return math.exp(math.log(seconds[place - 1]) * (1 - share) + math.log(seconds[place]) * share)


class Line(NamedTuple):
    """Values along one size, all others kept: of a layer, by tokens."""

    place: tuple[float, ...]
    """Logarithms of the sizes that are kept."""
    along: tuple[float, ...]
    """Logarithms of the size that varies, rising."""
    values: tuple[float, ...]

    def at(self, here: float) -> float:
        """The value at ``here``; level beyond the ends: what fills the GPU fills it when it is larger."""
        after = bisect_left(self.along, here)
        if after == 0 or after == len(self.along):
            return self.values[min(after, len(self.along) - 1)]
        (x0, x1), (y0, y1) = self.along[after - 1 : after + 1], self.values[after - 1 : after + 1]
        return y0 + (y1 - y0) * (here - x0) / (x1 - x0)


def between(lines: Iterable[tuple[Line, tuple[float, ...], float]]) -> float:
    """The value at a place: of its own line, or of the nearest ones by the inverse of their squared distance.

    Args:
        lines: each with the place asked for and the size along it, as logarithms.
    """
    near = sorted(
        [(_apart(line.place, place), number, line, here) for number, (line, place, here) in enumerate(lines)]
    )[:NEIGHBOURS]
    if near[0][0] == 0.0:
        return near[0][2].at(near[0][3])
    weights = [1 / distance for distance, *_ in near]
    values = [line.at(here) for _, _, line, here in near]
    return sum(map(float.__mul__, weights, values)) / sum(weights)


def _apart(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    """The squared distance; most places have two sizes, and that is quick to say."""
    if len(one) == 2:
        return (one[0] - other[0]) ** 2 + (one[1] - other[1]) ** 2
    return sum([(a - b) ** 2 for a, b in zip(one, other, strict=True)])


class Tables:
    """The tables of one GPU."""

    def __init__(self, plain: Mapping[str, Any]) -> None:
        self._plain = plain
        self._lines: dict[str, list[tuple[int, Line]]] = {}
        self._curves: dict[tuple[str, str], Curve] = {}
        self.made: str = plain["made"]
        self.gpu = find_gpu(plain["gpu"])
        self.issue: Mapping[str, float] = plain["issue"]

    def product(self, precision: str, rows: int, inner: int, columns: int) -> float | None:
        """The share of its ideal time that ``[rows, inner] @ [inner, columns]`` reaches."""
        known = self._plain["products"]
        form = "even" if is_even(rows, inner, columns) else "odd"
        kinds = (f"{precision} {form}", f"{precision} even", f"bf16 {form}", "bf16 even")
        kind = next((kind for kind in kinds if kind in known), None)
        if kind is None:
            return None
        high, deep, wide = math.log2(rows), math.log2(inner), math.log2(columns)
        # of a layer's products tokens are the rows, or what the gradient of its weight, either way, sums over
        tries = (((deep, wide), high),), (((high, wide), deep), ((wide, high), deep))
        return between(
            (line, place, along) for axis, line in self._of("products", kind) for place, along in tries[axis]
        )

    def batched(self, precision: str, batch: int, rows: int, inner: int, columns: int) -> float | None:
        """The share that ``batch`` products of these sizes at once reach."""
        known = self._plain["batched"]
        kind = next((kind for kind in (precision, "bf16") if kind in known), None)
        if kind is None:
            return None
        place = tuple(math.log2(size) for size in (rows, inner, columns))
        return between((line, place, math.log2(batch)) for _, line in self._of("batched", kind))

    def attention(
        self,
        length: float,
        width: int,
        calls: int,
        *,
        backward: bool,
        causal: bool,
        dropout: bool,
        masked: bool,
    ) -> float | None:
        """The share that fused attention reaches; ``calls`` is batch x heads."""
        known = self._plain["attention"]
        direction = "backward" if backward else "forward"
        tries = ((dropout, masked), (dropout, False), (False, masked), (False, False))
        kinds = (attention_kind(direction, causal, *flags) for flags in tries)
        kind = next((kind for kind in kinds if kind in known), None)
        if kind is None:
            return None
        place = math.log2(length), math.log2(width)
        return between((line, place, math.log2(calls)) for _, line in self._of("attention", kind))

    def norm(self, name: str, rows: int, columns: int) -> float | None:
        """Bytes a second of a norm."""
        if name not in self._plain["norms"]:
            return None
        place = (math.log2(columns),)
        return between((line, place, math.log2(rows)) for _, line in self._of("norms", name))

    def curve(self, table: str, name: str) -> Curve | None:
        """Seconds by bytes: ``moving``, ``copies`` or ``fresh copies``, and what of it."""
        key = (table, name)
        if key not in self._curves:
            points = self._plain[table].get(name)
            if points is None:
                return None
            self._curves[key] = Curve(tuple(points[0]), tuple(points[1]))
        return self._curves[key]

    def collective(self, name: str, near: int) -> tuple[int, Curve] | None:
        """Ranks of the group inside a node that is nearest in size, and seconds by bytes of the tensor."""
        known = self._plain["collectives"].get(name)
        if not known:
            return None
        ranks = min(known, key=lambda ranks: abs(math.log(int(ranks) / near)))
        sizes, seconds = known[ranks]
        return int(ranks), Curve(tuple(sizes), tuple(seconds))

    def _of(self, table: str, kind: str) -> list[tuple[int, Line]]:
        key = f"{table} {kind}"
        if key not in self._lines:
            self._lines[key] = [
                (axis, Line(tuple(map(math.log2, place)), tuple(map(math.log2, along)), tuple(values)))
                for axis, place, along, values in self._plain[table][kind]
            ]
        return self._lines[key]


def is_even(*sizes: int) -> bool:
    """Whether rows of these lengths are aligned."""
    return not any(size % ALIGNMENT for size in sizes)


def attention_kind(direction: str, causal: bool, dropout: bool, masked: bool) -> str:
    """The name of a table of attention."""
    return direction + " causal" * causal + " dropout" * dropout + " masked" * masked


# -- ideal times -------------------------------------------------------------------------------------------


def ideal_product(gpu: Gpu, precision: str, rows: int, inner: int, columns: int, batch: int) -> float:
    """Seconds by the datasheet: the longer of arithmetic and memory."""
    item = 2 if precision in ("bf16", "fp16") else 4
    flops = 2.0 * batch * rows * inner * columns
    moved = batch * item * (rows * inner + inner * columns + rows * columns)
    return max(flops / gpu.matrix_flops(precision), moved / gpu.memory_bytes_per_second)


def ideal_attention(
    gpu: Gpu, precision: str, calls: int, queries: int, keys: int, width: int, causal: bool, backward: bool
) -> float:
    """Seconds by the datasheet of fused attention; ``calls`` is batch x heads."""
    flops = 4.0 * calls * queries * keys * width
    if causal and queries == keys:
        flops /= 2
    item = 2 if precision in ("bf16", "fp16") else 4
    moved = 2 * item * calls * width * (queries + keys)
    if backward:
        flops, moved = flops * FLASH_BACKWARD, moved * 2
    return max(flops / gpu.matrix_flops(precision), moved / gpu.memory_bytes_per_second)


# -- out of a probe's rows ---------------------------------------------------------------------------------


def made_of(document: Mapping[str, Any]) -> Plain:
    """The tables of a probe's sheet; what it did not measure is left empty."""
    rows = [row for row in document["measurements"] if row["seconds"]]
    gpu = find_gpu(document["machine"]["gpu"])

    def of(kind: str) -> list[Row]:
        return [row for row in rows if row["kind"] == kind]

    most = document["machine"]["gpus_per_node"]
    copies = of("copy")
    together = max((row["ranks"] for row in copies), default=1)
    collectives: dict[str, dict[str, Any]] = {}
    for row in of("collective"):
        if row["group"] in ("world", "node") and row["ranks"] <= most:
            here = collectives.setdefault(row["name"], {})
            here.setdefault(str(row["ranks"]), []).append((row["bytes"], row["seconds"]))
    return {
        "gpu": document["machine"]["gpu"],
        "made": document["made"][:10],
        "products": _product_lines(gpu, of("matrix")),
        "batched": _batched_lines(gpu, of("batched matrix")),
        "attention": _attention_lines(gpu, of("attention")),
        "norms": _lines(
            (row["name"], 0, (row["columns"],), row["rows"], row["bytes"] / row["seconds"])
            for row in of("norm")
        ),
        "moving": _curves(
            row for row in rows if row["kind"] in MOVING_KINDS and row.get("cache", "cold") == "cold"
        ),
        "copies": _curves((row for row in copies if row["ranks"] == together), by="direction"),
        "fresh copies": _curves(of("fresh copy"), by="direction"),
        "collectives": {
            name: {ranks: list(Curve.of(points)) for ranks, points in groups.items()}
            for name, groups in collectives.items()
        },
        "issue": {row["name"]: row["seconds"] for row in of("issue")},
    }


def _curves(rows: Iterable[Row], by: str = "name") -> Plain:
    points: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        points.setdefault(row[by], []).append((row["bytes"], row["seconds"]))
    return {name: list(Curve.of(those)) for name, those in points.items()}


def _lines(points: Iterable[tuple[str, int, tuple[int, ...], int, float]]) -> Plain:
    """Lines by kind, of (kind, axis, place, where along it, value); means where a point is there twice."""
    found: dict[str, dict[tuple[int, tuple[int, ...]], dict[int, list[float]]]] = {}
    for kind, axis, place, along, value in points:
        line = found.setdefault(kind, {}).setdefault((axis, place), {})
        line.setdefault(along, []).append(value)
    return {
        kind: [
            [axis, list(place), sorted(line), [_mean(line[along]) for along in sorted(line)]]
            for (axis, place), line in lines.items()
        ]
        for kind, lines in found.items()
    }


def _mean(values: list[float]) -> float:
    return float(f"{sum(values) / len(values):.4g}")


def _product_lines(gpu: Gpu, rows: Iterable[Row]) -> Plain:
    points = []
    for row in rows:
        m, k, n, precision = row["m"], row["k"], row["n"], row["precision"]
        sizes = {"nt": (m, k, n), "nn": (m, n, k), "tn": (n, m, k)}[row["layout"]]
        axis = 1 if row["layout"] == "tn" else 0
        kind = f"{precision} {'even' if is_even(*sizes) else 'odd'}"
        share = ideal_product(gpu, precision, *sizes, 1) / row["seconds"]
        place = (sizes[0], sizes[2]) if axis else (sizes[1], sizes[2])
        points.append((kind, axis, place, m, share))
    return _lines(points)


def _batched_lines(gpu: Gpu, rows: Iterable[Row]) -> Plain:
    points = []
    for row in rows:
        m, k, n, precision = row["m"], row["k"], row["n"], row["precision"]
        sizes = {"nt": (m, k, n), "nn": (m, n, k), "tn": (n, m, k)}[row["layout"]]
        share = ideal_product(gpu, precision, *sizes, row["batch"]) / row["seconds"]
        points.append((precision, 0, sizes, row["batch"], share))
    return _lines(points)


def _attention_lines(gpu: Gpu, rows: Iterable[Row]) -> Plain:
    same = ("batch", "heads", "length", "width", "causal", "dropout", "masked")
    rows = list(rows)
    forward = {
        tuple(row[key] for key in same): row["seconds"] for row in rows if row["direction"] == "forward"
    }
    points = []
    for row in rows:
        backward = row["direction"] != "forward"
        seconds = row["seconds"] - (forward[tuple(row[name] for name in same)] if backward else 0.0)
        calls, length, width, causal = row["batch"] * row["heads"], row["length"], row["width"], row["causal"]
        ideal = ideal_attention(gpu, "bf16", calls, length, length, width, causal, backward)
        direction = "backward" if backward else "forward"
        kind = attention_kind(direction, causal, bool(row["dropout"]), row["masked"])
        points.append((kind, 0, (length, width), calls, ideal / max(seconds, 1e-7)))
    return _lines(points)
