"""Attention as CUDA runs it: the kernel that torch would choose, and what that kernel keeps and takes.

On a device without a kernel torch falls back to plain products and keeps the score matrices; on a GPU it does
not.  The choice follows ``aten/src/ATen/native/transformers/cuda/sdp_utils.cpp``, the buffers
``.../cuda/attention.cu``, ``attention_backward.cu`` and ``flash_attn/flash_api.cpp`` (torch 2.11).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from trimtab.rehearse.streams import note_kernel

LOW_PRECISION = (torch.float16, torch.bfloat16)
FLASH_HEAD_LIMIT = 256  # sdp_utils.cpp check_head_dim_size_flash
EFFICIENT_ALIGNMENT = {torch.float32: 4}  # minimum_gemm_alignment: 8 for 16-bit types on sm80 and later
BIAS_ALIGNMENT = 8  # transformers/attention.cpp preprocess_mask: mem_eff_alignment


def _up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


class Flash(torch.autograd.Function):
    """FlashAttention-2: keeps q, k, v, the output and its log-sum-exp; dropout is a seed.

    cuDNN's kernel, which a mask takes, is the same and keeps the mask (native/cudnn/MHA.cpp).
    """

    @staticmethod
    def forward(ctx: Any, query: Any, key: Any, value: Any, kind: str, bias: Any = None) -> Any:
        batch, heads, length, _ = query.shape
        ctx.kind = kind if bias is None else f"{kind}.masked"
        note_kernel(f"attention.flash.{ctx.kind}.forward", query, key, value)
        # flash_api.cpp mha_fwd: empty_like(q), so queries that lie head by head (partial rotary's
        # concatenation) give an output that does too, and that the model copies back
        out = torch.empty_like(query)
        log_sum_exp = query.new_empty(batch, heads, length, dtype=torch.float32)
        seed = query.new_empty(2, dtype=torch.int64)
        ctx.save_for_backward(query, key, value, out, log_sum_exp, seed, bias)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> Any:
        query, key, value, *_ = ctx.saved_tensors
        batch, heads, length, width = query.shape
        note_kernel(f"attention.flash.{ctx.kind}.backward", query, key, value)
        key_heads, key_length = key.shape[1], key.shape[2]

        d_query, d_key, d_value = (torch.empty_like(tensor) for tensor in (query, key, value))
        # flash_api.cpp mha_bwd: softmax_d, dq in fp32 over rounded sizes and, of grouped keys, one gradient
        # per query head before they are summed; an H200's kernel takes them as one block
        rounded, wide = _up(length, 128), _up(width, 32 if width <= 128 else 64)
        size = batch * heads * rounded * (wide + 1) * 4
        if key_heads != heads:
            size += 2 * batch * heads * key_length * width * query.element_size()
        workspace = query.new_empty(size, dtype=torch.uint8)
        del workspace
        return d_query, d_key, d_value, None, None


class Efficient(torch.autograd.Function):
    """The memory-efficient kernel: also keeps an additive mask, whose gradient it writes in full."""

    @staticmethod
    def forward(ctx: Any, query: Any, key: Any, value: Any, bias: Any, kind: str) -> Any:
        batch, heads, length, _ = query.shape
        ctx.kind = f"{kind}.masked" if bias is not None else kind
        note_kernel(f"attention.efficient.{ctx.kind}.forward", query, key, value)
        out = query.new_empty(batch, length, heads, value.shape[-1]).transpose(1, 2)
        log_sum_exp = query.new_empty(batch, heads, _up(length, 32), dtype=torch.float32)
        ctx.save_for_backward(query, key, value, bias, out, log_sum_exp)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> Any:
        query, key, value, bias, _, _ = ctx.saved_tensors
        batch, heads, length, width = query.shape
        note_kernel(f"attention.efficient.{ctx.kind}.backward", query, key, value)
        d_bias = None
        if bias is not None and ctx.needs_input_grad[3]:
            # attention_backward.cu: grad_bias has bias's expanded sizes, last one a multiple of 16
            *outer, last = bias.shape
            d_bias = bias.new_empty(*outer, _up(last, 16))[..., :last]
        gradients = [
            tensor.new_empty(batch, tensor.shape[2], heads, tensor.shape[3]).transpose(1, 2)
            for tensor in (query, key, value)
        ]
        # kernel_backward.h workspace_elements_gq: dq in fp32 for 16-bit types, here one block with delta
        sums = _up(length, 64) * _up(width, 64) if query.dtype in LOW_PRECISION else 0
        workspace = query.new_empty(batch, heads, _up(length, 32) + sums, dtype=torch.float32)
        del workspace
        return *gradients, d_bias, None


def _kernel(query: Any, key: Any, value: Any, mask: Any, grouped: bool, prefers_cudnn: bool) -> str:
    width = query.shape[-1]
    if not grouped and not query.shape[1] == key.shape[1] == value.shape[1]:
        return "math"  # sdp_utils_cpp.h check_batch_size_and_num_heads_dense
    same_width = width == key.shape[-1] == value.shape[-1]
    low = query.dtype in LOW_PRECISION and same_width and width <= FLASH_HEAD_LIMIT
    if low and mask is None:
        return "flash"
    # sdp_utils_cpp.h check_last_dim_stride_equals_1_dense; T5's bias is a permuted view and fails it
    straight = mask is None or mask.stride(-1) == 1
    shared = grouped and key.shape[1] != query.shape[1]
    if low and prefers_cudnn and straight and not shared and width % 8 == 0 and not mask.requires_grad:
        return "cudnn"
    alignment = EFFICIENT_ALIGNMENT.get(query.dtype, 8)
    if (
        query.dtype in (*LOW_PRECISION, torch.float32)
        and straight
        and not shared
        and width % alignment == 0
        and value.shape[-1] % alignment == 0
    ):
        return "efficient"
    return "math"


def _plain(
    query: Any, key: Any, value: Any, mask: Any, dropout: float, causal: bool, scale: Any, grouped: bool
) -> Any:
    """transformers/attention.cpp _scaled_dot_product_attention_math: in fp32, score matrices kept."""
    dtype = query.dtype
    if causal:
        mask = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device).tril()
    if mask is not None and mask.dtype == torch.bool:
        mask = _as_float(mask, dtype)
    if dtype in LOW_PRECISION:
        query, key, value = query.float(), key.float(), value.float()
    root = math.sqrt(1 / math.sqrt(query.shape[-1]) if scale is None else abs(scale))
    query = query * root
    if grouped and key.shape[1] != query.shape[1]:
        repeats = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    scores = torch.matmul(query, key.transpose(-2, -1) * root)
    if mask is not None:
        scores.add_(mask)
    scores = torch.ops.aten._safe_softmax(scores, -1)
    if dropout > 0:
        scores = torch.nn.functional.dropout(scores, dropout)
    weights = scores.to(dtype)  # the second result, made first and dropped by the caller
    out = torch.matmul(scores, value).to(dtype)
    del weights
    return out


def of_card(compute_capability: tuple[int, int]) -> Callable[..., Any]:
    """``torch.nn.functional.scaled_dot_product_attention`` as a GPU's build runs it on such a card."""
    # sdp_utils.cpp check_prefer_cudnn_attention, with the cuDNN 9.19 of torch 2.11's wheels
    prefers_cudnn = compute_capability in ((9, 0), (10, 0))

    def scaled_dot_product_attention(
        query: Any,
        key: Any,
        value: Any,
        attn_mask: Any = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Any:
        kernel = _kernel(query, key, value, attn_mask, enable_gqa, prefers_cudnn)
        if kernel == "math":
            return _plain(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)
        kind = ("causal" if is_causal else "full") + (".dropout" if dropout_p > 0 else "")
        if kernel == "flash":
            pad = -query.shape[-1] % 8  # transformers/attention.cpp pad_last_dim<8>
            if pad:
                width = query.shape[-1]
                query, key, value = (torch.nn.functional.pad(t, (0, pad)) for t in (query, key, value))
                return Flash.apply(query, key, value, kind)[..., :width]
            return Flash.apply(query, key, value, kind)
        if kernel == "cudnn":
            return Flash.apply(query, key, value, kind, _expanded(_as_numbers(attn_mask, query), query))
        if attn_mask is not None:
            attn_mask = _additive(attn_mask, query)
        return Efficient.apply(query, key, value, attn_mask, kind)

    return scaled_dot_product_attention


def _as_float(mask: Any, dtype: torch.dtype) -> Any:
    """transformers/attention.cpp convert_boolean_attn_mask."""
    zeros = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
    return zeros.masked_fill_(mask.logical_not(), -math.inf)


def _as_numbers(mask: Any, query: Any) -> Any:
    return _as_float(mask, query.dtype) if mask.dtype == torch.bool else mask


def _additive(mask: Any, query: Any) -> Any:
    mask = _as_numbers(mask, query)
    length = mask.shape[-1]
    if length % BIAS_ALIGNMENT:
        mask = torch.nn.functional.pad(mask, (0, -length % BIAS_ALIGNMENT))[..., :length]
    return _expanded(mask, query)


def _expanded(mask: Any, query: Any) -> Any:
    while mask.dim() < 4:
        mask = mask.unsqueeze(0)
    return mask.expand(query.shape[0], query.shape[1], query.shape[2], mask.shape[-1])


def flash_function(
    module: Any, query: Any, key: Any, value: Any, attention_mask: Any = None, **_: Any
) -> tuple[Any, None]:
    """transformers' ``flash_attention_2`` interface over the flash kernel (the ``flash-attn`` package)."""
    kind = "causal" if getattr(module, "is_causal", True) else "full"
    return Flash.apply(query, key, value, kind).transpose(1, 2), None
