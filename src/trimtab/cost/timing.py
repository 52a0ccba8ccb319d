"""Seconds of the kernels that the counting machine ran, by kind and stretch by stretch."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

from trimtab.cluster import Cluster, Gpu
from trimtab.cost.backward import CUT
from trimtab.cost.meter import COLLECTIVES, Kernel, Work
from trimtab.cost.operators import LOOKED_UP
from trimtab.cost.rates import Rates
from trimtab.cost.tables import Tables


class Tally(NamedTuple):
    """What a micro step runs, by phase."""

    flops: Mapping[str, int]
    kernels: Mapping[str, int]
    collectives: Mapping[str, int]


@lru_cache(maxsize=512)
def tally(work: Work) -> Tally:
    """The sums over ``work``."""
    flops, kernels, collectives = ({"forward": 0, "recompute": 0, "backward": 0} for _ in range(3))
    for kernel, runs in work.items():
        flops[kernel.phase] += kernel.flops * runs
        (collectives if kernel.name in COLLECTIVES else kernels)[kernel.phase] += runs
    return Tally(flops, kernels, collectives)


@lru_cache(maxsize=64)
def of_a_card(gpu: Gpu, tables: Tables) -> Rates:
    """Of its kernels alone, which are the same in every cluster of the card."""
    return Rates(cluster=Cluster.of(gpu, 1), tables=tables, source="")


class Stretch(NamedTuple):
    """A part of a micro step whose kernels are much alike all the way."""

    phase: str
    kernels: int
    seconds: float


@lru_cache(maxsize=4096)
def timed(
    stretches: tuple[Work, ...], precision: str, rates: Rates
) -> tuple[Mapping[str, float], tuple[Stretch, ...]]:
    """Seconds of the kernels by kind, and by stretch."""
    sums = {"products": 0.0, "attention": 0.0, "memory-bound kernels": 0.0}
    names = {"product": "products", "attention": "attention"}
    found = []
    for work in stretches:
        whole = 0.0
        for kernel, runs in work.items():
            if kernel.name not in COLLECTIVES:
                seconds = runs * _seconds(kernel, precision, rates)
                sums[names.get(kernel.name, "memory-bound kernels")] += seconds
                whole += seconds
        kernels = tally(work).kernels
        phase = "forward" if kernels["forward"] else "backward"
        found.append(Stretch(phase, sum(kernels.values()), whole))
    return sums, tuple(found)


def _seconds(kernel: Kernel, precision: str, rates: Rates) -> float:
    if kernel.name == "product":
        batch, rows, inner, columns, item = kernel.shape
        return rates.product(precision if item == 2 else "fp32", rows, inner, columns, batch)
    if kernel.name == "attention":
        calls, queries, keys, width, causal, dropout, masked = kernel.shape
        return rates.attention(
            precision,
            calls,
            queries,
            keys,
            width,
            causal=bool(causal),
            backward=kernel.phase == "backward",
            dropout=bool(dropout),
            masked=bool(masked),
        )
    if kernel.name == LOOKED_UP:
        return rates.moving(kernel.moved, None, kernel.shape[0])
    if kernel.name == CUT:
        elements, item = kernel.shape
        copied = 2 * elements * item
        return rates.moving(kernel.moved - copied, "zero_") + rates.moving(copied, "clone", elements)
    if kernel.name.startswith("native_layer_norm"):
        rows, columns = kernel.shape
        return rates.norm(kernel.name, rows, columns, kernel.moved)
    return rates.moving(kernel.moved, None if kernel.name == "moving" else kernel.name)
