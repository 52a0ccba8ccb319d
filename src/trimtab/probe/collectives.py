"""Collectives over the ranks of this run: by kind, size and group, and beside a matrix product."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from trimtab.probe.notes import Notes

SIZES = (8, 64 * 2**10, 256 * 2**10, 2**20, 4 * 2**20, 16 * 2**20, 64 * 2**20, 256 * 2**20, 2**30)
CPU_SIZES = SIZES[:3]
KINDS = ("all_reduce", "all_gather", "reduce_scatter", "broadcast", "all_to_all")
SAMPLES = 3
SAMPLE_SECONDS = 5e-3


def groups(world_size: int, local_size: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Groups to measure: everyone, one node, two of a node, and one rank of each node."""
    yield "world", tuple(range(world_size))
    if local_size < world_size:
        yield "node", tuple(range(local_size))
        if local_size > 1:
            yield "across", tuple(range(0, world_size, local_size))
    if local_size > 2:
        yield "pair", (0, 1)


def measure(notes: Notes, *, rank: int, world_size: int, local_size: int) -> None:
    """Rows of kind ``collective``: ``bytes`` are those of the whole tensor, gathered or reduced."""
    import torch.distributed as dist

    for name, members in groups(world_size, local_size):
        group = dist.new_group(list(members)) if name != "world" else dist.group.WORLD
        if rank in members:
            for kind in KINDS:
                for size in SIZES if notes.on_gpu else CPU_SIZES:
                    _collective(notes, kind, size, name, len(members), group)
        dist.barrier()
    if notes.on_gpu:
        _beside(notes)


def _collective(notes: Notes, kind: str, size: int, name: str, ranks: int, group: Any) -> None:
    what = {"name": kind, "bytes": size, "group": name, "ranks": ranks}
    try:
        call = _call(kind, size, ranks, group, notes.device)
    except RuntimeError as error:
        notes.skip("collective", str(error).partition("\n")[0], **what)
        return
    call()
    notes.wait()
    once = _seconds(notes, call, 3, group)
    repeats = max(1, min(50, round(SAMPLE_SECONDS / max(once, 1e-6))))
    samples = [_seconds(notes, call, repeats, group) for _ in range(SAMPLES)]
    notes.add("collective", samples, **what)


def _seconds(notes: Notes, call: Callable[[], Any], repeats: int, group: Any) -> float:
    """Seconds of one call, the same on every rank of the group, so that all repeat equally often."""
    import torch
    import torch.distributed as dist

    dist.barrier(group=group)
    notes.wait()
    began = time.perf_counter()
    for _ in range(repeats):
        call()
    notes.wait()
    seconds = torch.tensor([(time.perf_counter() - began) / repeats], device=notes.device)
    dist.all_reduce(seconds, op=dist.ReduceOp.MAX, group=group)
    return float(seconds.item())


def _call(kind: str, size: int, ranks: int, group: Any, device: str) -> Callable[[], Any]:
    import torch
    import torch.distributed as dist

    elements = max(ranks, size // 2 // ranks * ranks)
    whole = torch.zeros(elements, dtype=torch.bfloat16, device=device)
    part = torch.zeros(elements // ranks, dtype=torch.bfloat16, device=device)
    if kind == "all_reduce":
        return lambda: dist.all_reduce(whole, group=group)
    if kind == "all_gather":  # torch 2.13 calls it by another name
        gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
        return lambda: gather(whole, part, group=group)
    if kind == "reduce_scatter":
        scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
        return lambda: scatter(part, whole, group=group)
    if kind == "all_to_all":
        other = torch.zeros_like(whole)
        return lambda: dist.all_to_all_single(other, whole, group=group)
    source = dist.get_global_rank(group, 0)
    return lambda: dist.broadcast(whole, source, group=group)


def _beside(notes: Notes) -> None:
    """A product and a collective on two streams: what each loses to the other."""
    import torch
    import torch.distributed as dist

    x = torch.randn(8192, 4096, device="cuda", dtype=torch.bfloat16)
    weight = torch.randn(4096, 8192, device="cuda", dtype=torch.bfloat16)
    message = torch.zeros(128 * 2**20, dtype=torch.bfloat16, device="cuda")
    products, messages = 24, 8

    def multiply() -> None:
        for _ in range(products):
            torch.mm(x, weight)

    def send() -> None:
        for work in [dist.all_reduce(message, async_op=True) for _ in range(messages)]:
            work.wait()

    def together() -> None:
        works = [dist.all_reduce(message, async_op=True) for _ in range(messages)]
        multiply()
        for work in works:
            work.wait()

    for name, body in (("product", multiply), ("collective", send), ("both", together)):
        body()
        samples = [_seconds(notes, body, 1, dist.group.WORLD) for _ in range(SAMPLES)]
        notes.add("overlap", samples, name=name, ranks=dist.get_world_size())
