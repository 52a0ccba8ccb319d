"""How long one recorded operator takes, on the device or on the host."""

from __future__ import annotations

import math
from collections.abc import Sequence

from trimtab.cost.rates import FLASH_BACKWARD, Rates
from trimtab.rehearse.request import Operator

ITEMS = {
    "bfloat16": 2, "float16": 2, "float32": 4, "float64": 8, "int64": 8, "int32": 4, "int16": 2,
    "int8": 1, "uint8": 1, "bool": 1,
}  # fmt: skip
PRECISIONS = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
PRODUCTS = ("mm", "addmm", "bmm", "baddbmm")
NO_KERNEL = frozenset(
    (
        "_unsafe_view", "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "detach",
        "alias", "lift_fresh", "resize_", "set_", "_record_function_enter_new", "_record_function_exit",
    )
)  # fmt: skip
"""Operators that move no data although the dispatcher does not call them views."""
NAMED = {
    "mul": "mul", "add": "add", "add_": "add_", "silu": "silu", "silu_backward": "silu_backward",
    "gelu": "gelu", "gelu_backward": "gelu_backward", "tanh": "tanh", "tanh_backward": "tanh_backward",
    "native_dropout": "native_dropout", "native_dropout_backward": "native_dropout_backward",
    "native_layer_norm": "native_layer_norm", "native_layer_norm_backward": "native_layer_norm_backward",
    "_log_softmax": "_log_softmax", "_log_softmax_backward_data": "_log_softmax_backward_data",
    "_softmax": "_softmax", "_softmax_backward_data": "_softmax_backward_data",
    "embedding": "embedding", "embedding_dense_backward": "embedding_dense_backward",
    "zero_": "zero_", "fill_": "zero_", "clone": "clone", "copy_": "clone", "cat": "cat",
    "multi_tensor_adam": "FusedAdam",
}  # fmt: skip
"""Recorded operators that a probe measures, and what it calls them."""
SILU_BACKWARD = ("sigmoid", "empty_like", "fill_", "sub_", "mul", "add", "mul", "mul")
"""What the made-up device takes ``silu_backward`` apart into; CUDA has one kernel for it."""


def plain_name(name: str) -> str:
    """``mul`` of ``aten.mul.Tensor``."""
    return name.split(".")[1] if "." in name else name


def has_kernel(operator: Operator) -> bool:
    """Whether it starts a kernel on the device."""
    return not (operator.view or operator.host or plain_name(operator.name) in NO_KERNEL)


def device_seconds(operator: Operator, rates: Rates) -> float:
    """Seconds of an operator's kernels on the device."""
    name = plain_name(operator.name)
    if operator.name.startswith("attention."):
        return _attention(operator, rates)
    if name in PRODUCTS:
        (dtype, left), (_, right) = operator.inputs[-2:]
        batch = left[0] if len(left) == 3 else 1
        rows, inner, columns = left[-2], left[-1], right[-1]
        if min(batch, rows, inner, columns) == 0:
            return 0.0
        return rates.product(PRECISIONS.get(dtype, "fp32"), rows, inner, columns, batch)
    return rates.moving(moved_bytes(operator), NAMED.get(name))


def flops_of(operator: Operator) -> float:
    """Floating-point operations of a product or of attention; 0 for all others."""
    if operator.name.startswith("attention."):
        (_, query), (_, key), *_ = operator.inputs
        words = operator.name.split(".")
        flops = 4.0 * math.prod(query) * key[2] / (2 if "causal" in words and query[2] == key[2] else 1)
        return flops * (FLASH_BACKWARD if words[-1] == "backward" else 1)
    if plain_name(operator.name) not in PRODUCTS:
        return 0.0
    (_, left), (_, right) = operator.inputs[-2:]
    return 2.0 * math.prod(left) * right[-1]


def _attention(operator: Operator, rates: Rates) -> float:
    (dtype, query), (_, key), *_ = operator.inputs
    words = operator.name.split(".")
    return rates.attention(
        PRECISIONS.get(dtype, "fp32"),
        query[0] * query[1],
        query[2],
        key[2],
        query[3],
        causal="causal" in words,
        backward=words[-1] == "backward",
        dropout="dropout" in words,
        masked="masked" in words,
    )


def moved_bytes(operator: Operator) -> int:
    """Bytes that an operator reads and writes."""
    name = plain_name(operator.name)
    if name in (
        "multi_tensor_adam",
        "adam_update",
    ):  # gradient, parameter and two moments read, the last three written
        return int(size_of(operator.inputs) * 7 / 4)
    if name in ("embedding", "index_select"):
        return 2 * size_of(operator.outputs)
    if name in ("fill_", "zero_"):
        return size_of(operator.inputs[:1])
    if name in ("copy_",):  # the first input is what it writes
        return size_of(operator.inputs)
    if name == "slice_backward":  # zeros, then the slice into them
        return size_of(operator.outputs) + 2 * size_of(operator.inputs)
    return size_of(operator.inputs) + size_of(operator.outputs)


def host_seconds(operator: Operator, rates: Rates, ranks: int = 1) -> float:
    """Seconds of an operator that runs on the host's memory, as one of ``ranks`` of its node."""
    if operator.view or plain_name(operator.name) in NO_KERNEL:
        return 0.0
    return rates.host_moving(moved_bytes(operator), ranks)


def size_of(shapes: Sequence[tuple[str, tuple[int, ...]]]) -> int:
    """Bytes of tensors of these types and shapes."""
    return sum(ITEMS.get(dtype, 4) * math.prod(shape) for dtype, shape in shapes)
