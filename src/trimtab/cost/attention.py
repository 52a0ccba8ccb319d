"""Attention by implementation: what each kernel keeps and what its backward pass needs.

``sdpa`` takes the kernel that ``scaled_dot_product_attention`` takes on CUDA (aten
``native/transformers/cuda/sdp_utils.cpp``): flash for 16-bit tensors without a mask, cuDNN's with one, the
memory-efficient kernel in fp32, plain mathematics where none can.  cuDNN's is taken on Hopper's and
Blackwell's data center cards alone (``check_prefer_cudnn_attention``), on others the memory-efficient one,
whose output needs no copy after partial rotary: what is counted is then too much by an output a layer.
"""

from __future__ import annotations

from collections.abc import Callable

from trimtab.cost import operators as ops
from trimtab.cost.backward import PASS, Summed
from trimtab.cost.machine import Machine, Tensor
from trimtab.cost.meter import Storage

FLASH_HEAD_LIMIT = 256  # sdp_utils.cpp, check_head_dim_size_flash
HEAD_ALIGNMENT = 8  # transformers/attention.cpp, pad_last_dim<8>
BIAS_ALIGNMENT = 8  # attention.cpp, pad_bias: the last dimension of a bias, in elements


class Shape:
    """Sizes of one attention call.

    ``by_head``: queries lie head by head in memory, so that flash's output does too and is copied back.
    """

    __slots__ = (
        "batch", "by_head", "causal", "dropout", "head_dim", "heads", "keys", "kv_heads", "queries",
    )  # fmt: skip

    def __init__(
        self,
        *,
        batch: int,
        heads: int,
        kv_heads: int,
        queries: int,
        keys: int,
        head_dim: int,
        dropout: float = 0.0,
        causal: bool = True,
        by_head: bool = False,
    ) -> None:
        self.batch, self.queries, self.keys = batch, queries, keys
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, head_dim
        self.dropout, self.causal, self.by_head = dropout, causal, by_head

    @property
    def scores(self) -> int:
        """Elements of the score matrix."""
        return self.batch * self.heads * self.queries * self.keys

    @property
    def flops(self) -> int:
        """Both products of the forward pass; a causal mask skips half."""
        full = 4 * self.scores * self.head_dim
        return full // 2 if self.causal and self.queries == self.keys else full

    @property
    def scoring(self) -> tuple[int, int, int, int]:
        """Sizes of the product of queries and keys."""
        return (self.batch * self.heads, self.queries, self.head_dim, self.keys)

    @property
    def weighting(self) -> tuple[int, int, int, int]:
        """Sizes of the product of scores and values."""
        return (self.batch * self.heads, self.queries, self.keys, self.head_dim)

    def kernel(self, *, masked: bool) -> tuple[int, ...]:
        """The sizes that a fused kernel's time depends on."""
        calls = self.batch * self.heads
        causal = self.causal and not masked
        return (calls, self.queries, self.keys, self.head_dim, causal, self.dropout > 0, masked)


def padded_flash(m: Machine, q: Tensor, k: Tensor, v: Tensor, shape: Shape) -> Tensor:
    """`flash` for a width of heads that the kernel does not take: all padded, its output cut."""
    width = _up(shape.head_dim, HEAD_ALIGNMENT)
    wide = Shape(
        batch=shape.batch,
        heads=shape.heads,
        kv_heads=shape.kv_heads,
        queries=shape.queries,
        keys=shape.keys,
        head_dim=width,
        dropout=shape.dropout,
        causal=shape.causal,
    )
    q, k, v = (_resized(m, one, one.numel // shape.head_dim * width) for one in (q, k, v))
    out = flash(m, q, k, v, wide)
    cut = out.numel // width * shape.head_dim
    return ops.copy(m, m.op(cut, (out,), (out.bytes,), item=out.item, view_of=out))


def _resized(m: Machine, x: Tensor, numel: int) -> Tensor:
    return m.op(numel, (x,), (x.bytes,), item=x.item)


def flash(m: Machine, q: Tensor, k: Tensor, v: Tensor, shape: Shape) -> Tensor:
    """``_flash_attention_forward``: keeps q, k, v, the output and the log-sum-exp (fp32)."""
    rows = shape.batch * shape.heads * shape.queries
    rounded = -(-shape.queries // 128) * 128 * shape.batch * shape.heads
    # flash_api.cpp, mha_bwd: an fp32 accumulator for dq and the row sums; expanded dk and dv for shared keys
    workspace = rounded * shape.head_dim * ops.FLOAT + rounded * ops.FLOAT
    if shape.kv_heads != shape.heads:
        workspace += 2 * shape.batch * shape.keys * shape.heads * shape.head_dim * q.item
    return m.op(
        q.numel,
        (q, k, v),
        (q.bytes, k.bytes, v.bytes),
        item=q.item,
        keep=_storages(q, k, v),
        keep_output=True,
        extra=(rows * ops.FLOAT,),
        scratch=_unwanted(q, k, v),
        workspace=workspace,
        flops=shape.flops,
        kernel="attention",
        shape=shape.kernel(masked=False),
    )


def efficient(
    m: Machine,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    shape: Shape,
    bias: Tensor | None = None,
    *,
    strided: bool = False,
) -> Tensor:
    """``_efficient_attention_forward``: as flash, and the bias.

    A bias whose rows are not aligned, or that is a permuted view (``strided``), is copied with its last
    dimension padded to the next multiple of 8 (``pad_bias``); one that trains gets a gradient of the whole
    score matrix.
    """
    calls = shape.batch * shape.heads
    rows = calls * (-(-shape.queries // 32) * 32)
    # kernel_backward.h, workspace_elements_gq: the queries' gradient is summed in fp32
    sums = calls * _up(shape.queries, 64) * _up(shape.head_dim, 64) * ops.FLOAT if q.item < ops.FLOAT else 0
    inputs: tuple[Tensor | None, ...] = (q, k, v)
    gradients: tuple[int, ...] = (q.bytes, k.bytes, v.bytes)
    keep = _storages(q, k, v)
    if bias is not None:
        if strided or shape.keys % BIAS_ALIGNMENT:
            padded = shape.keys - shape.keys % BIAS_ALIGNMENT + BIAS_ALIGNMENT
            bias = m.op(bias.numel // shape.keys * padded, (bias,), (bias.bytes,), item=bias.item)
        keep += _storages(bias)
        if bias.edge is not None:  # expand over the batch: its gradient is summed over it again
            aligned = -(-shape.keys // 16) * 16
            whole = shape.scores // shape.keys * aligned
            expanded = m.op(whole, (bias,), (bias.bytes,), item=bias.item, view_of=bias)
            inputs, gradients = (*inputs, expanded), (*gradients, whole * bias.item)
    return m.op(
        q.numel,
        inputs,
        gradients,
        item=q.item,
        keep=keep,
        keep_output=True,
        extra=(rows * ops.FLOAT,),
        scratch=_unwanted(q, k, v),
        workspace=rows * ops.FLOAT + sums,
        flops=shape.flops,
        kernel="attention",
        shape=shape.kernel(masked=bias is not None),
    )


def cudnn(m: Machine, q: Tensor, k: Tensor, v: Tensor, shape: Shape, bias: Tensor) -> Tensor:
    """``_cudnn_attention_forward`` (native/cudnn/MHA.cpp): as `flash`, and the bias; as many key heads."""
    rows = shape.batch * shape.heads * shape.queries
    return m.op(
        q.numel,
        (q, k, v),
        (q.bytes, k.bytes, v.bytes),
        item=q.item,
        keep=_storages(q, k, v, bias),
        keep_output=True,
        extra=(rows * ops.FLOAT,),
        scratch=_unwanted(q, k, v),
        workspace=rows * (shape.head_dim + 1) * ops.FLOAT,  # dq in fp32 and the row sums
        flops=shape.flops,
        kernel="attention",
        shape=shape.kernel(masked=True),
    )


def masked(m: Machine, q: Tensor, k: Tensor, v: Tensor, shape: Shape) -> Tensor:
    """Attention under a boolean mask of every pair of tokens, such as a sliding window's.

    sdpa_attention.py, ``use_gqa_in_sdpa``: with a mask shared keys are repeated first.
    """
    if shape.kv_heads != shape.heads:
        view = shape.kv_heads == 1
        k, v = repeat_keys(m, k, shape, view=view), repeat_keys(m, v, shape, view=view)
    bias = _mask_of_numbers(m, shape)
    out = biased(m, q, k, v, shape, bias)
    return ops.copy(m, out) if shape.by_head and _suits_cudnn(q, shape) else out


def biased(m: Machine, q: Tensor, k: Tensor, v: Tensor, shape: Shape, bias: Tensor) -> Tensor:
    """Attention with a contiguous bias: cuDNN's kernel, or the memory-efficient one where that cannot.

    cuDNN's takes keys of any number, and no bias that trains (sdp_utils.cpp).
    """
    kernel = cudnn if _suits_cudnn(q, shape) and bias.edge is None else efficient
    return kernel(m, q, k, v, shape, bias)


def _suits_cudnn(q: Tensor, shape: Shape) -> bool:
    return q.item < ops.FLOAT and shape.head_dim % HEAD_ALIGNMENT == 0 and shape.head_dim <= FLASH_HEAD_LIMIT


def plain(
    m: Machine,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    shape: Shape,
    bias: Tensor | None = None,
    *,
    broadcast: bool = False,
    unseen: str = "qkv",
) -> Tensor:
    """``_scaled_dot_product_attention_math``: everything written out in fp32.

    aten native/transformers/attention.cpp.  Taken where no fused kernel can: a bias whose last dimension is
    strided, as T5's (sdp_utils.cpp, ``check_last_dim_stride_equals_1_dense``), or one key head that is left
    to ``broadcast``, as Falcon's under its boolean mask (``check_batch_size_and_num_heads_dense``).
    ``unseen``: as in `eager`.
    """
    item = v.item
    q, k, v = _by_head(m, unseen, q=q, k=k, v=v)
    wide_q, wide_k, wide_v = (ops.cast(m, x, ops.FLOAT) for x in (q, k, v))
    scaled_q = ops.scale(m, wide_q)
    del wide_q
    if broadcast:
        mask: Tensor | None = _mask_of_numbers(m, shape)
    else:
        mask = m.tensor(shape.queries * shape.keys, ops.FLOAT) if shape.causal else None
    shared = shape.kv_heads != shape.heads and not broadcast
    if shared:  # pre_process_group_query_attention_input: contiguous copies
        wide_k, wide_v = repeat_keys(m, wide_k, shape), repeat_keys(m, wide_v, shape)
    scaled_k = ops.scale(m, wide_k)
    if broadcast:
        scaled_k = repeat_keys(m, scaled_k, shape, view=True)
    several = shape.batch > 1  # as in `eager`
    copies = (several, several and not shared)
    scores = _product(m, scaled_q, scaled_k, shape.scores, shape.scoring, copies=copies)
    del scaled_k
    if bias is not None:  # added in place; its gradient is summed over the batch in fp32
        scores = m.op(
            scores.numel,
            (scores, bias),
            (PASS, Summed(bias.numel * ops.FLOAT, bias.bytes, kernel="to bf16")),
            item=ops.FLOAT,
            view_of=scores,
        )
        m.works(ops.LOOKED_UP, 2 * scores.bytes, shape=(scores.numel,))
    if mask is not None:  # added in place too
        m.works(ops.LOOKED_UP, 2 * scores.bytes, shape=(scores.numel,))
    softmaxed = ops.safe_softmax(m, scores)
    del scores
    probabilities = ops.dropout(m, softmaxed, shape.dropout)
    del softmaxed
    returned = m.tensor(probabilities.numel, item) if item != ops.FLOAT else None  # the weights, cast
    if returned is not None:
        m.works("to bf16", probabilities.bytes + returned.bytes)
    rows = shape.batch * shape.heads * shape.queries
    if broadcast:
        wide_v = repeat_keys(m, wide_v, shape, view=True)
    wide = _product(
        m,
        probabilities,
        wide_v,
        rows * shape.head_dim,
        shape.weighting,
        copies=(False, copies[1]),
    )
    out = ops.cast(m, ops.by_head(m, wide), item)
    del wide, returned, wide_k, wide_v, scaled_q, mask
    return ops.copy(m, out)


def eager(
    m: Machine,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    shape: Shape,
    *,
    softmax_item: int | None = None,
    score_item: int | None = None,
    bias: Tensor | None = None,
    mask: bool = True,
    softcap: bool = False,
    chosen: bool = False,
    unseen: str = "qkv",
    dropout: Callable[[Tensor, float], Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Scores, softmax, dropout and product one by one, as ``eager_attention_forward`` of the model's file.

    ``chosen``: whether ``torch.where`` takes scores or a number by a mask that all heads share, and nothing
    scales them.  ``unseen``: which of queries, keys and values nothing has looked at head by head before.
    ``dropout``: the model's module for it; a function if there is none.  Returns the output and the attention
    weights.
    """
    q, k, v = _by_head(m, unseen, q=q, k=k, v=v)
    if shape.kv_heads != shape.heads:  # repeat_kv: expanded, and copied by reshape unless one head is shared
        view = shape.kv_heads == 1
        k, v = repeat_keys(m, k, shape, view=view), repeat_keys(m, v, shape, view=view)
    if score_item is not None:
        q, k = ops.cast(m, q, score_item), ops.cast(m, k, score_item)
    scores = raw_scores(m, q, k, shape)
    scores = ops.scale(m, scores, kernel=ops.LOOKED_UP if chosen else "moving")
    if softcap:
        scores = ops.scale(m, ops.tanh(m, ops.scale(m, scores)))
    if bias is not None:
        scores = m.op(
            scores.numel,
            (scores, bias),
            (PASS, bias.bytes),
            item=scores.item,
            kernel=ops.LOOKED_UP,
            shape=(scores.numel,),
        )
    if mask:
        scores = ops.masked(m, scores)
    item = v.item
    if softmax_item is None:
        probabilities = ops.softmax(m, scores)
    else:  # one expression, after which the scores' name is free
        probabilities = ops.cast(m, _softmax_in(m, scores, softmax_item), item)
    del scores
    probabilities = ops.cast(m, probabilities, item)
    if dropout is None:
        probabilities = ops.dropout(m, probabilities, shape.dropout)
    else:
        probabilities = dropout(probabilities, shape.dropout)
    out = ops.by_head(m, weighted(m, probabilities, v, shape))
    return ops.copy(m, out), probabilities


def _by_head(m: Machine, unseen: str, **given: Tensor) -> list[Tensor]:
    """What batched products read head by head."""
    return [ops.by_head(m, one) if name in unseen else one for name, one in given.items()]


def raw_scores(m: Machine, q: Tensor, k: Tensor, shape: Shape) -> Tensor:
    """``q @ k.transpose(-1, -2)``."""
    several = shape.batch > 1  # of a single sample all are views of three dimensions
    return _product(m, q, k, shape.scores, shape.scoring, copies=(several, several))


def weighted(m: Machine, probabilities: Tensor, v: Tensor, shape: Shape) -> Tensor:
    """``probabilities @ v``, head by head."""
    numel = shape.batch * shape.heads * shape.queries * shape.head_dim
    copies = (False, shape.batch > 1)
    return _product(m, probabilities, v, numel, shape.weighting, item=v.item, copies=copies)


def _softmax_in(m: Machine, scores: Tensor, item: int) -> Tensor:
    """``softmax(scores, dtype=...)``: for fp16 alone one kernel casts too (SoftMax.cpp, ``softmax``)."""
    return ops.softmax(m, scores if m.fp16 else ops.cast(m, scores, item), item)


def repeat_keys(m: Machine, x: Tensor, shape: Shape, *, view: bool = False) -> Tensor:
    """Every key head repeated for the query heads that share it: copied, or a ``view``."""
    numel = x.numel * (shape.heads // shape.kv_heads)
    view_of = x if view else None
    return m.op(numel, (x,), (x.bytes,), item=x.item, kernel=ops.LOOKED_UP, shape=(numel,), view_of=view_of)


def _product(
    m: Machine,
    a: Tensor,
    b: Tensor,
    numel: int,
    sizes: tuple[int, int, int, int],
    *,
    item: int | None = None,
    copies: tuple[bool, bool],
) -> Tensor:
    """``matmul`` of four dimensions: what is no view of three is copied, and the copy is kept (``bmm``).

    ``sizes`` are its batch, rows, inner size and columns.
    """
    left = ops.copy(m, a) if copies[0] else a
    right = ops.copy(m, b) if copies[1] else b
    keep = (*((left.storage,) if right.edge else ()), *((right.storage,) if left.edge else ()))
    batch, rows, inner, columns = sizes
    return m.op(
        numel,
        (left, right),
        (left.bytes, right.bytes),
        item=item or left.item,
        keep=keep,
        flops=2 * batch * rows * inner * columns,
        kernel="product",
        shape=(*sizes, left.item),
    )


def _mask_of_numbers(m: Machine, shape: Shape) -> Tensor:
    """A boolean mask made one of numbers for each sample (attention.cpp, ``convert_boolean_attn_mask``)."""
    pairs = shape.batch * shape.queries * shape.keys
    mask = m.tensor(pairs)
    m.tensor(pairs, ops.MASK)  # logical_not
    return mask


def _unwanted(*tensors: Tensor) -> tuple[int, ...]:
    """Bytes of the gradients that a fused kernel makes though nobody needs them: of frozen projections."""
    return tuple(tensor.bytes for tensor in tensors if tensor.edge is None)


def _up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def _storages(*tensors: Tensor) -> tuple[Storage, ...]:
    return tuple(tensor.storage for tensor in tensors)
