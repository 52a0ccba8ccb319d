"""How fast a GPU, its links and its host really are: tables of measurements, read between their points.

The tables are sheets of `trimtab probe`: one that this machine keeps for the GPU in question, else the one
that comes with Trimtab (``data/probe_h200.json``, four H200s of one host), which tells collectives and
copies; for kernels the shares below, of measured steps, stand in.  For another GPU every kernel keeps its
share of the roofline: the ideal time by that card's datasheet over the share that an H200 reaches.
"""

from __future__ import annotations

import json
import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from trimtab.cluster import Cluster, Gpu, find_gpu
from trimtab.errors import NotFound
from trimtab.folders import cache_folder

SHIPPED = "probe_h200.json"
ALIGNMENT = 8
"""Elements: 16-bit operands whose rows are not aligned to 16 bytes take other, slower kernels."""
NEIGHBOURS = 4
FEW = 20
"""With fewer rows of a kind than this a sheet does not tell how shapes matter: the shares below stand in."""
NETWORK_EFFICIENCY = 0.70  # assumed: no network was measured

# Shares of the datasheet's rates.  An 8192-cube ran at 793 TFLOP/s; the other three, and MOVING_SHARE, are a
# least-squares fit over the device-bound phases of fourteen measured steps with those kernels' shapes (GPT-2
# and LLaMA 7B of bench/data/grid_x1.jsonl, LLaMA 7B, its LoRA and GPT-J of catalogue_proof.jsonl)
EVEN_SHARE = 793 / 989.4
ODD_COLUMNS_SHARE = 0.11  # results whose rows are not aligned: GPT-2's logits over 50257 words
ODD_INNER_SHARE = 0.24  # operands whose rows are not aligned: the gradients of those
FP32_SHARE = 0.89  # without tensor cores: GPT-J's attention
BATCHED_SHARE = 0.42  # assumed: no step is bound by written-out attention in 16 bits
MOVING_SHARE = 0.54
KERNEL_SECONDS = 2e-6  # assumed: the least that a kernel takes
COPY_SECONDS = 10e-6  # assumed: the least that a copy over the host link takes
ATTENTION_SHARE = (
    335 / 989.4
)  # FlashAttention-2 on an H100 (arXiv 2307.08691, section 4.1), where none is measured
FLASH_BACKWARD = 2.5  # five products of the scores' size against two (arXiv 2307.08691, section 4.1)
Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Curve:
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


Points = list[tuple[tuple[float, ...], float]]
"""Places (logarithms of shapes) and the share of the roofline that was measured there."""


def _nearest(points: Points, here: tuple[float, ...]) -> float:
    """The share at ``here``: of the nearest measured places, by the inverse of their squared distance."""
    near = sorted(
        (sum((a - b) ** 2 for a, b in zip(here, place, strict=True)), share) for place, share in points
    )[:NEIGHBOURS]
    weights = [1 / (distance + 1e-6) for distance, _ in near]
    return sum(w * share for w, (_, share) in zip(weights, near, strict=True)) / sum(weights)


class Sheet:
    """The tables of one probe."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self.machine: Mapping[str, Any] = document["machine"]
        self.made: str = document["made"][:10]
        self.gpu = find_gpu(self.machine["gpu"])
        self.rows: list[Row] = [row for row in document["measurements"] if row["seconds"]]
        self.issue: Mapping[str, float] = {row["name"]: row["seconds"] for row in self.of("issue")}

    def of(self, kind: str, **only: Any) -> list[Row]:
        """The rows of one kind with these values."""
        return [row for row in self.rows if row["kind"] == kind and only.items() <= row.items()]

    @lru_cache  # noqa: B019 - sheets live as long as the process
    def products(self, precision: str, batched: bool, even: bool) -> Points:
        """Shares by (rows, inner, columns, batch) of one precision."""
        points: Points = []
        for row in self.of("batched matrix" if batched else "matrix", precision=precision):
            rows, inner, columns = _as_product(row)
            if _is_even(rows, inner, columns) == even:
                batch = row.get("batch", 1)
                place = tuple(math.log2(size) for size in (rows, inner, columns, batch))
                ideal = ideal_product(self.gpu, precision, rows, inner, columns, batch)
                points.append((place, ideal / row["seconds"]))
        return points

    @lru_cache  # noqa: B019
    def attention(self, backward: bool, causal: bool, dropout: bool, masked: bool) -> Points:
        """Shares by (length, width, batch x heads)."""
        points: Points = []
        same = ("batch", "heads", "length", "width", "causal", "dropout", "masked")
        forward = {
            tuple(row[key] for key in same): row["seconds"]
            for row in self.of("attention", direction="forward")
        }
        for row in self.of("attention", causal=causal, masked=masked):
            key = tuple(row[name] for name in same)
            if (row["direction"] == "forward") is backward or bool(row["dropout"]) is not dropout:
                continue
            seconds = row["seconds"] - (forward[key] if backward else 0.0)
            calls = row["batch"] * row["heads"]
            place = tuple(math.log2(size) for size in (row["length"], row["width"], calls))
            ideal = ideal_attention(
                self.gpu, "bf16", calls, row["length"], row["length"], row["width"], causal, backward
            )
            points.append((place, ideal / max(seconds, 1e-7)))
        return points

    @lru_cache  # noqa: B019
    def moving(self, name: str | None) -> Curve | None:
        """Seconds by bytes of a kernel that memory bounds; of all of them together for None."""
        rows = [
            row
            for row in self.rows
            if row["kind"] in ("element-wise", "norm", "loss", "embedding", "optimizer")
            and row.get("cache", "cold") == "cold"
            and (row["kind"] == "element-wise" if name is None else row["name"] == name)
        ]
        return Curve.of((row["bytes"], row["seconds"]) for row in rows) if rows else None

    @lru_cache  # noqa: B019
    def collective(self, name: str) -> tuple[int, Curve] | None:
        """Ranks of the largest group inside a node, and seconds by bytes of the whole tensor there."""
        rows = [row for row in self.of("collective", name=name) if row["group"] in ("world", "node")]
        rows = [row for row in rows if row["ranks"] <= self.machine["gpus_per_node"]]
        if not rows:
            return None
        ranks = max(row["ranks"] for row in rows)
        return ranks, Curve.of((row["bytes"], row["seconds"]) for row in rows if row["ranks"] == ranks)

    @lru_cache  # noqa: B019
    def copies(self, direction: str) -> Curve:
        """Seconds by bytes of pinned copies, with as many ranks at it as were measured together."""
        rows = self.of("copy", direction=direction)
        ranks = max(row["ranks"] for row in rows)
        return Curve.of((row["bytes"], row["seconds"]) for row in rows if row["ranks"] == ranks)


def _as_product(row: Row) -> tuple[int, int, int]:
    """(rows, inner, columns) of a measured layer's product."""
    m, k, n = row["m"], row["k"], row["n"]
    return {"nt": (m, k, n), "nn": (m, n, k), "tn": (n, m, k)}[row["layout"]]


def _is_even(*sizes: int) -> bool:
    return not any(size % ALIGNMENT for size in sizes)


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


def _usual_share(precision: str, rows: int, inner: int, columns: int, batch: int) -> float:
    """The share of the roofline that a product reaches where no sheet tells."""
    if precision not in ("bf16", "fp16"):
        return FP32_SHARE
    if batch > 1:
        return BATCHED_SHARE
    if not _is_even(columns):
        return ODD_COLUMNS_SHARE
    return EVEN_SHARE if _is_even(rows, inner) else ODD_INNER_SHARE


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Seconds of kernels, copies and collectives on one cluster."""

    cluster: Cluster
    sheet: Sheet
    source: str
    """Where the figures come from, for the assumptions."""
    _memo: dict[Any, float] = field(default_factory=dict, repr=False, compare=False)

    @property
    def gpu(self) -> Gpu:
        """The GPU whose kernels are timed."""
        return self.cluster.gpu

    def product(self, precision: str, rows: int, inner: int, columns: int, batch: int = 1) -> float:
        """Seconds of ``[rows, inner] @ [inner, columns]``, ``batch`` of them at once."""
        key = (precision, rows, inner, columns, batch)
        if key not in self._memo:
            even, batched = _is_even(rows, inner, columns), batch > 1
            kinds = ((precision, batched, even), ("bf16", batched, even), ("bf16", False, even))
            points = next((found for kind in kinds if len(found := self.sheet.products(*kind)) >= FEW), None)
            here = tuple(math.log2(size) for size in (rows, inner, columns, batch))
            ideal = ideal_product(self.gpu, precision, rows, inner, columns, batch)
            if points is None:
                share = _usual_share(precision, rows, inner, columns, batch)
                self._memo[key] = KERNEL_SECONDS + ideal / share
            else:
                self._memo[key] = ideal / _nearest(points, here)
        return self._memo[key]

    def attention(
        self,
        precision: str,
        calls: int,
        queries: int,
        keys: int,
        width: int,
        *,
        causal: bool,
        backward: bool,
        dropout: bool = False,
        masked: bool = False,
    ) -> float:
        """Seconds of fused attention; ``calls`` is batch x heads."""
        key = (precision, calls, queries, keys, width, causal, backward, dropout, masked)
        if key not in self._memo:
            points = (
                self.sheet.attention(backward, causal, dropout, masked)
                or self.sheet.attention(backward, causal, dropout, False)
                or self.sheet.attention(backward, causal, False, masked)
                or self.sheet.attention(backward, causal, False, False)
            )
            here = (math.log2(math.sqrt(queries * keys)), math.log2(width), math.log2(calls))
            ideal = ideal_attention(self.gpu, precision, calls, queries, keys, width, causal, backward)
            self._memo[key] = ideal / (_nearest(points, here) if points else ATTENTION_SHARE)
        return self._memo[key]

    def moving(self, moved: float, name: str | None = None) -> float:
        """Seconds of a kernel that moves ``moved`` bytes: the operator ``name`` if that was measured."""
        curve = (name and self.sheet.moving(name)) or self.sheet.moving(None)
        if curve is None or len(curve.sizes) < 4:
            return KERNEL_SECONDS + moved / (self.gpu.memory_bytes_per_second * MOVING_SHARE)
        return curve.at(moved * self.sheet.gpu.memory_bytes_per_second / self.gpu.memory_bytes_per_second)

    def collective(self, name: str, size: float, ranks: int, nodes: int = 1, groups: int = 1) -> float:
        """Seconds of a collective over ``ranks`` on ``nodes``; ``size`` is the whole tensor's bytes.

        Inside a node the measured curve, at the size that puts as many bytes on a link; between nodes a ring
        at the network's rate, which ``groups`` that run it at once share, and a tree's hops.
        """
        inside = self.beside(name, size, ranks, nodes)
        if nodes == 1 or ranks < 2:
            return inside
        share = (ranks - 1) / ranks
        twice = 2 if name == "all_reduce" else 1
        network = self.cluster.node_bytes_per_second * NETWORK_EFFICIENCY
        hops = 2 * math.ceil(math.log2(nodes)) * self.cluster.inter_link.latency_seconds
        return max(inside, groups * twice * size * share / network) + hops

    def beside(self, name: str, size: float, ranks: int, nodes: int = 1) -> float:
        """Seconds that a collective takes from the kernels that run beside it: its work inside the node.

        llama-7b-z3 and neox-20b-z3 took 0.24 and 0.30 s longer on four GPUs than on one in their place, and
        their collectives take 0.11 and 0.28 s: what overlaps inside a node is not hidden.  Of a network's
        transfer the GPU has little to do.
        """
        found = self.sheet.collective(name) or self.sheet.collective("all_reduce")
        if ranks < 2 or found is None:
            return 0.0
        measured, curve = found
        share = (ranks - 1) / ranks
        here = self.cluster.intra_link.bytes_per_second
        link = self.sheet.gpu.intra_link.bytes_per_second / here
        inside = curve.at(size * share / ((measured - 1) / measured) * link)
        return inside + max(0, ranks // nodes - measured) * self.cluster.intra_link.latency_seconds

    def copy(self, direction: str, size: float) -> float:
        """Seconds of a pinned copy ``to device`` or ``to host``."""
        link = self.sheet.gpu.host_link.bytes_per_second / self.gpu.host_link.bytes_per_second
        curve = self.sheet.copies(direction)
        if len(curve.sizes) < 4:
            return COPY_SECONDS + size * link * curve.seconds[-1] / curve.sizes[-1]
        return curve.at(size * link)

    def host_moving(self, moved: float, ranks: int = 1) -> float:
        """Seconds of work on the host that moves ``moved`` bytes for each of ``ranks`` at it on one node."""
        cores = max(1.0, self.cluster.cpu_cores / self.cluster.gpus_per_node)
        alone = moved / min(HOST_RANK_BYTES_PER_SECOND, cores * HOST_CORE_BYTES_PER_SECOND)
        return max(alone, ranks * moved / HOST_NODE_BYTES_PER_SECOND)

    def disk(self, direction: str, size: float) -> float:
        """Seconds of ``to_disk`` or ``from_disk``, all ranks of the node at it."""
        node = self.cluster
        rate = node.nvme_write_bytes_per_second if direction == "to_disk" else node.nvme_read_bytes_per_second
        return size * node.gpus_per_node / rate


# the steps of llama-z2-offload in real_worlds.jsonl, whose norms, copies and Adam move 42 bytes a parameter:
# one rank alone 275M in 0.11 s, four together 0.28 s, two of twice as many 0.30 s. A core's share is assumed
HOST_RANK_BYTES_PER_SECOND = 100e9
HOST_NODE_BYTES_PER_SECOND = 170e9
HOST_CORE_BYTES_PER_SECOND = 10e9


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """Seconds of the host for what it does, by what it is.

    A least-squares fit over the host-bound phases of measured steps (bench/data/real_worlds.jsonl: llama,
    bert and t5 on two and four ranks); single steps of these differ by 15 %, machines by more.
    """

    forward: float = 10e-6
    """An operator or a view of the forward pass."""
    module: float = 35e-6
    """A module's forward, beside its operators."""
    backward: float = 20e-6
    """An operator or a view of the backward pass, its share of the autograd node included."""
    engine: float = 5.6e-6
    """An operator or a view of the engine's own in the backward pass."""
    step: float = 9e-6
    """An operator or a view of the optimizer's step."""
    hook: float = 70e-6
    """What ZeRO-1 and 2 do with a finished gradient: 12 of the engine's operators and views (llama-z1)."""
    fetch: float = 400e-6
    """ZeRO-3's hooks around one use of a module, and what it does with a finished gradient."""
    collective: float = 95e-6


HOST = Host()


def rates_of(cluster: Cluster) -> Rates:
    """The rates for ``cluster``: of this machine's own probe if it measured that GPU, else of the H200's."""
    kept = _kept(cluster.gpu.name)
    if kept is not None:
        sheet = _read(kept, kept.stat().st_mtime)
        return _rates(cluster, sheet, f"kernels at the rates of this machine's probe ({sheet.made})")
    sheet = _shipped()
    if sheet.gpu.name == cluster.gpu.name:
        return _rates(cluster, sheet, f"kernels at the rates of measured H200 steps ({sheet.made})")
    return _rates(
        cluster,
        sheet,
        f"kernels at the rates of measured H200 steps ({sheet.made}), scaled by the datasheets",
    )


@lru_cache(maxsize=64)
def _rates(cluster: Cluster, sheet: Sheet, source: str) -> Rates:
    return Rates(cluster=cluster, sheet=sheet, source=source)


def sheet_folder() -> Path:
    """Where `trimtab probe` keeps its sheets."""
    return cache_folder() / "probe"


def _kept(gpu: str) -> Path | None:
    """This machine's own sheet of a GPU, the one of most ranks."""
    best: tuple[int, Path] | None = None
    for file in sheet_folder().glob("*-x*.json"):
        name, _, ranks = file.stem.rpartition("-x")
        try:
            if find_gpu(name).name == gpu and ranks.isdigit():
                best = max(best or (0, file), (int(ranks), file))
        except NotFound:
            continue
    return best[1] if best else None


@cache
def _shipped() -> Sheet:
    return Sheet(json.loads((Path(__file__).parent.parent / "data" / SHIPPED).read_text("utf-8")))


@lru_cache(maxsize=4)
def _read(file: Path, _changed: float) -> Sheet:
    return Sheet(json.loads(file.read_text("utf-8")))
