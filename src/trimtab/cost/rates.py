"""How fast a GPU, its links and its host really are: tables of measurements, read between their points.

The tables (`trimtab.cost.tables`) are those of a `trimtab probe` that this machine keeps for the GPU in
question; what it did not measure, and all where there is none, comes from those of H200s that come with
Trimtab (``data/rates_h200.json``).  On another GPU every kernel keeps its share of the roofline: the ideal
time by that card's datasheet over the share that was measured.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from functools import cache, lru_cache
from typing import Any, NamedTuple

from trimtab.cluster import Cluster, Gpu, gpu_name
from trimtab.cost.tables import Curve, Tables, ideal_attention, ideal_product, made_of
from trimtab.folders import cache_folder, read_shipped
from trimtab.frozen import dataclass, field

SHIPPED = "rates_h200.json"
USUAL = "mul"
"""The kernel that stands for all that no probe measures: two operands read, one written."""
LOOKED_UP, LOOKED_UP_BYTES = "mul by rows fp32", 8
"""The kernel that looks up where each element lies, and the bytes of one."""
ISSUED = ("add", "cast", "empty", "view", "linear", "layer_norm", "attention", "mul backward",
          "linear backward", "python loop")  # fmt: skip
"""What a probe lets the host issue that models do too."""
NETWORK_EFFICIENCY = 0.70  # assumed: no network was measured


class Host(NamedTuple):
    """Seconds of the host for what it does: Python, autograd and the engine's hooks.

    At the pace of the host that came with the shipped tables.  Least squares over the phases of
    bench/data/paced_steps.jsonl, each begun with the GPU idle and divided by the host's pace at that moment;
    made and held by bench/fit_host.py.  Views and what it takes to call a module are in a kernel's and a
    module's.
    """

    forward: float = 16.5e-6
    """A kernel of the forward pass."""
    module: float = 20.7e-6
    """A module of the forward pass."""
    backward: float = 24.1e-6
    """A kernel of the model's backward pass, or of what it recomputes."""
    engine: float = 14.8e-6
    """A kernel of the engine's own in the backward pass, or a copy over the host link."""
    gradient: float = 30.7e-6
    """The way of a finished gradient through the hooks of stages 1 and 2 when they reduce."""
    step: float = 6.5e-6
    """An operator or a view of the optimizer's step."""
    fetch: float = 265e-6
    """ZeRO-3's hooks around one use of a module in the forward pass."""
    fetch_back: float = 160e-6
    """A fetch, or a finished gradient's way, in the backward pass."""
    function: float = 128e-6
    """ZeRO-3's linear function, which runs in Python (zero/linear.py:41), in the forward pass."""
    collective: float = 96.4e-6
    checkpoint: float = 491e-6
    """What PyTorch's checkpoint adds to a layer's forward pass: random states, hooks of saved tensors."""
    recompute: float = 561e-6
    """The same where the backward pass recomputes the layer."""
    exchange: float = 238e-6
    """An all-to-all of Ulysses, with what lays heads and tokens beside each other around it.

    Not fitted with the others: with 251e-6 and 225e-6 the simulated steps of llama-1b-sp2-z2 and
    qwen2-0.5b-sp2-z1 of bench/data/shared_x2.jsonl (``-paced``) are as long as measured (bench/fit_host.py).
    """

    def times(self, factor: float) -> Host:
        """The same host, slower by ``factor``."""
        return Host(*(seconds * factor for seconds in self))


HOST = Host()
USUAL_PACES = (1.23, 1.37, 1.51, 1.62)
"""What single calls take the slowest host of 1, 2, 4 and 8 ranks, over those of the shipped tables.

A step waits for its slowest rank.  The greatest of so many of the 3,938 moments that jobs of bench/data
sampled beside their steps, on machines of two days (bench/fit_host.py): a host goes back and forth between
1.0 and 1.5 within seconds, each by itself.  Of two ranks 1.33 was measured; of more than two nothing was.
"""


def usual_pace(ranks: int) -> float:
    """The pace that is expected of hosts that nobody probed; beyond 8 ranks that of 8."""
    return USUAL_PACES[min(ranks.bit_length(), len(USUAL_PACES)) - 1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Seconds of kernels, copies and collectives on one cluster."""

    cluster: Cluster
    tables: Tables
    source: str
    """Where the figures come from, for the assumptions."""
    pace: float = USUAL_PACES[0]
    """How much longer than `HOST` says the host needs."""
    _memo: dict[Any, float] = field(default_factory=dict, repr=False, compare=False)

    @property
    def gpu(self) -> Gpu:
        """The GPU whose kernels are timed."""
        return self.cluster.gpu

    @property
    def host(self) -> Host:
        """What the host needs to issue work."""
        return HOST.times(self.pace)

    def product(self, precision: str, rows: int, inner: int, columns: int, batch: int = 1) -> float:
        """Seconds of ``[rows, inner] @ [inner, columns]``, ``batch`` of them at once."""
        key = (precision, rows, inner, columns, batch)
        if key not in self._memo:
            ideal = ideal_product(self.gpu, precision, rows, inner, columns, batch)
            share = None
            for tables in (self.tables, _shipped()):
                if share is None and batch > 1:
                    share = tables.batched(precision, batch, rows, inner, columns)
                if share is None:
                    share = tables.product(precision, rows, inner, columns)
            assert share is not None
            self._memo[key] = ideal / share
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
            length = math.sqrt(queries * keys)
            flags = {"backward": backward, "causal": causal, "dropout": dropout, "masked": masked}
            share = self.tables.attention(length, width, calls, **flags)
            share = share or _shipped().attention(length, width, calls, **flags)
            assert share is not None
            ideal = ideal_attention(self.gpu, precision, calls, queries, keys, width, causal, backward)
            self._memo[key] = ideal / share
        return self._memo[key]

    def _curve(self, table: str, name: str) -> tuple[Curve, Gpu] | None:
        """Seconds by bytes, and the GPU where they were measured."""
        for tables in (self.tables, _shipped()):
            curve = tables.curve(table, name)
            if curve is not None:
                return curve, tables.gpu
        return None

    def moving(self, moved: float, name: str | None = None, repeated: int = 0) -> float:
        """Seconds of a kernel that moves ``moved`` bytes: the operator ``name`` if that was measured.

        Args:
            repeated: elements, if its operands lie differently in memory and each has to be looked up.
        """
        seconds = self._scaled(name or USUAL, moved)
        return max(seconds, self._scaled(LOOKED_UP, LOOKED_UP_BYTES * repeated)) if repeated else seconds

    def _scaled(self, name: str, moved: float) -> float:
        """Seconds of a measured kernel, on a memory as fast as this GPU's."""
        key = (name, moved)
        if key not in self._memo:
            found = self._curve("moving", name) or self._curve("moving", USUAL)
            assert found is not None
            curve, there = found
            here = self.gpu.memory_bytes_per_second
            self._memo[key] = curve.at(moved * there.memory_bytes_per_second / here)
        return self._memo[key]

    def norm(self, name: str, rows: int, columns: int, moved: float) -> float:
        """Seconds of a layer norm, forward or backward, over ``rows`` of ``columns``."""
        for tables in (self.tables, _shipped()):
            rate = tables.norm(name, rows, columns)
            if rate is not None:
                return moved / rate * tables.gpu.memory_bytes_per_second / self.gpu.memory_bytes_per_second
        return self.moving(moved)

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
        if ranks < 2:
            return 0.0
        here = max(2, ranks // nodes)
        tables, (measured, curve) = next(
            (each, found)
            for each in (self.tables, _shipped())
            for kind in (name, "all_reduce")
            if (found := each.collective(kind, here)) is not None
        )
        share = (ranks - 1) / ranks
        link = tables.gpu.intra_link.bytes_per_second / self.cluster.intra_link.bytes_per_second
        inside = curve.at(size * share / ((measured - 1) / measured) * link)
        return inside + max(0, ranks // nodes - measured) * self.cluster.intra_link.latency_seconds

    def copy(self, direction: str, size: float, *, pinned: bool = True) -> float:
        """Seconds of a copy ``to device`` or ``to host``, through fresh memory of the host if not pinned."""
        found = self._curve("copies" if pinned else "fresh copies", direction)
        assert found is not None
        curve, there = found
        if not pinned:
            fresh = curve.at(size) * min(1.0, size / curve.sizes[0])  # each page is as dear in a small one
            return max(fresh, self.copy(direction, size))
        link = there.host_link.bytes_per_second / self.gpu.host_link.bytes_per_second
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


def rates_of(cluster: Cluster) -> Rates:
    """The rates for ``cluster``: of this machine's own probe if it measured that GPU, else of the H200's."""
    kept, usual = _kept(cluster.gpu.name), usual_pace(cluster.world_size)
    if kept is not None:
        tables = _read(kept, os.path.getmtime(kept))
        source = f"kernels at the rates of this machine's probe ({tables.made})"
        return _rates(cluster, tables, source, pace_of(tables.issue) or usual)
    tables = _shipped()
    source = f"kernels at the rates of a probed H200 ({tables.made})"
    if tables.gpu.name != cluster.gpu.name:
        source += ", scaled by the datasheets"
    return _rates(cluster, tables, source, usual)


def pace_of(issued: Mapping[str, float]) -> float | None:
    """How much longer single calls, by `ISSUED`'s names in seconds, take than with the shipped tables.

    The middle one of all, of an even number the upper; None where none was measured.
    """
    there = _shipped().issue
    shares = sorted(issued[name] / there[name] for name in ISSUED if name in issued and name in there)
    return shares[len(shares) // 2] if shares else None


@lru_cache(maxsize=64)
def _rates(cluster: Cluster, tables: Tables, source: str, pace: float) -> Rates:
    return Rates(cluster=cluster, tables=tables, source=source, pace=pace)


def sheet_folder() -> str:
    """Where `trimtab probe` keeps its sheets."""
    return os.path.join(cache_folder(), "probe")


def _kept(gpu: str) -> str | None:
    """This machine's own sheet of a GPU, the one of most ranks."""
    best: tuple[int, str] | None = None
    for file in os.listdir(sheet_folder()) if os.path.isdir(sheet_folder()) else ():
        stem, suffix = os.path.splitext(file)
        name, _, ranks = stem.rpartition("-x")
        if suffix == ".json" and gpu_name(name) == gpu and ranks.isdigit():
            best = max(best or (0, file), (int(ranks), file))
    return os.path.join(sheet_folder(), best[1]) if best else None


@cache
def _shipped() -> Tables:
    return Tables(read_shipped(SHIPPED))


@lru_cache(maxsize=4)
def _read(file: str, _changed: float) -> Tables:
    with open(file, encoding="utf-8") as sheet:
        return Tables(made_of(json.load(sheet)))
