"""AutoTP's layers on the counting machine, as deepspeed/module_inject/layers.py writes them (0.19.8)."""

from __future__ import annotations

from trimtab.cost import operators as ops
from trimtab.cost.backward import PASS
from trimtab.cost.machine import Machine, Tensor, Weight
from trimtab.parameters.tensor_parallel import Style

INDEX_ITEM = 8


def linear(m: Machine, x: Tensor, weight: Weight, bias: Weight | None, style: Style, size: int) -> Tensor:
    """A linear layer of which ``size`` ranks hold a part each: a matmul, and the bias in a kernel of its own.

    ``LinearLayer`` sums the gradient of its input in the backward pass, one all-reduce a layer although
    several read the same input (:287); ``LinearAllreduce`` sums its output (:204).
    """
    if style != "row":
        x = m.op(x.numel, (x,), (PASS,), item=x.item, view_of=x, kernel="all_reduce")
    out = ops.linear(m, x, weight)
    if style == "row":
        out = _summed(m, out)
    if bias is not None:
        out = ops.add_bias(m, out, bias)
    return _gathered(m, out, size) if style == "gathered" else out


def _summed(m: Machine, x: Tensor) -> Tensor:
    """``RowParallel`` (:204): an all-reduce in place; backward passes the gradient on."""
    m.communicates("all_reduce", x.bytes)
    return m.op(x.numel, (x,), (PASS,), item=x.item, view_of=x)


def _gathered(m: Machine, x: Tensor, size: int) -> Tensor:
    """``GatherFromTensorParallelRegion`` (:317): a buffer of all parts, then laid side by side."""
    buffer = m.tensor(size * x.numel, x.item)
    m.communicates("all_gather", buffer.bytes)
    return m.op(buffer.numel, (x,), (x.bytes,), item=x.item)


def embedding(m: Machine, tokens: int, weight: Weight) -> Tensor:
    """``VocabParallelEmbedding`` (:1101): rows that others hold are zeros here, and all are summed."""
    mask = m.tensor(tokens, ops.MASK)
    rows = m.tensor(tokens, INDEX_ITEM)
    found = m.op(tokens * weight.columns, (weight,), (weight.bytes,), item=weight.item, keep=(rows.storage,))
    own = m.op(found.numel, (found,), (found.bytes,), item=found.item, keep=(mask.storage,))
    del found
    return _summed(m, own)


def cross_entropy(m: Machine, logits: Tensor, samples: int, length: int) -> Tensor:
    """``VocabParallelCausalLMLoss`` (sequence/cross_entropy.py:61-105): logits stay with their ranks.

    Keeps the exponentials in fp32; the last token's logits are cut off first, by a copy.
    """
    with m.counted_as("logits and loss"):
        tokens = samples * (length - 1)
        columns = logits.numel // (samples * length)
        cut = m.op(tokens * columns, (logits,), (logits.bytes,), item=logits.item)
        wide = ops.FLOAT * cut.numel
        logits_wide, shifted = m.new(wide), m.new(wide)
        out = m.op(
            tokens,
            (cut,),
            (cut.bytes,),
            item=ops.FLOAT,
            extra=(wide,),
            scratch=(wide,),
        )
        for _ in range(3):  # the maximum, the sum of the exponentials, the targets' logits
            m.communicates("all_reduce", tokens * ops.FLOAT)
        m.adds(2 * wide)
        del logits_wide, shifted
        return m.op(1, (out,), (out.bytes,), item=ops.FLOAT)
