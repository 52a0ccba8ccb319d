"""Ulysses' exchange around attention on the counting machine.

As deepspeed/runtime/sequence_parallel/ulysses_sp.py writes it (0.19.8), line beside each.
"""

from __future__ import annotations

from trimtab.cost import operators as ops
from trimtab.cost.attention import Shape
from trimtab.cost.machine import Machine, Tensor

PLACE_ITEM = 8


def whole_shape(shape: Shape, size: int) -> Shape:
    """What one of ``size`` ranks attends with: all tokens, its part of the heads, laid out head by head."""
    return Shape(
        batch=shape.batch,
        heads=shape.heads // size,
        kv_heads=max(1, shape.kv_heads // size),
        queries=shape.queries * size,
        keys=shape.keys * size,
        head_dim=shape.head_dim,
        dropout=shape.dropout,
        causal=shape.causal,
        by_head=True,
    )


def gathered_places(m: Machine, tokens: int, size: int) -> tuple[Tensor, Tensor]:
    """The positions of all ranks' tokens, part by part and laid together (:283)."""
    parts = m.tensor(tokens * size, PLACE_ITEM)
    m.communicates("all_gather", parts.bytes)
    return parts, m.tensor(tokens * size, PLACE_ITEM)


def to_heads(m: Machine, x: Tensor, heads: int, batch: int, size: int) -> Tensor:
    """``_combine_local_sequences`` (:186): all heads of some tokens become some heads of all tokens."""
    if heads < size:  # every key head copied to the ranks that share it
        x = m.op(x.numel * (size // heads), (x,), (x.bytes,), item=x.item)
    strided = batch * max(1, heads // size) > 1
    out = _exchanged(m, ops.copy(m, x), strided=strided)
    return ops.copy(m, out) if strided else out


def to_tokens(m: Machine, x: Tensor, batch: int) -> Tensor:
    """``_partition_global_sequence`` (:228), and the copies to the layout that the next layer reads."""
    given = ops.copy(m, x) if batch > 1 else x
    out = ops.copy(m, _exchanged(m, given, strided=True))
    return ops.copy(m, out) if batch > 1 else out


def _exchanged(m: Machine, x: Tensor, *, strided: bool) -> Tensor:
    """``dim_zero_all_to_all`` (sequence/layer.py:327), both ways; a ``strided`` gradient is copied first."""
    return m.op(x.numel, (x,), (x.bytes,), item=x.item, kernel="all_to_all", scratch=(x.bytes,) * strided)
