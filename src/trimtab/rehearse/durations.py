"""How long one recorded operator takes, on the device or on the host."""

from __future__ import annotations

import math
from collections.abc import Sequence

from trimtab.cost.rates import Rates
from trimtab.cost.tables import FLASH_BACKWARD
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
    "zero_": "zero_", "fill_": "zero_", "clone": "clone", "copy_": "clone", "_to_copy": "clone", "cat": "cat",
    "multi_tensor_adam": "FusedAdam", "linalg_vector_norm": "norm fp32 of bf16",
}  # fmt: skip
"""Recorded operators that a probe measures, and what it calls them."""
WIDENED, NARROWED, MIXED, REPEATED = "to fp32", "to bf16", "add_ fp32 of bf16", "mul by rows fp32"
"""Element-wise kernels, as a probe calls them, of operands whose types or layouts are not all the same."""
ROWS_SUMMED, COLUMNS_SUMMED = "mean rows fp32", "sum columns"
SUMS = frozenset(("sum", "mean", "amax", "amin", "any", "all"))
OWN_KERNELS = NAMED.keys() - {"mul", "add", "add_", "copy_", "_to_copy", "clone"}
"""Those of `NAMED` whose kernels are not ATen's element-wise ones."""
IN_PLACE = {
    "liger_cross_entropy_kernel": (3,),  # the logits, twice read, and their gradient in their place
    "_triton_rope": (2, 2),
    "_swiglu_backward_kernel": (1, 2, 2),
    "_swiglu_backward_kernel_tiled": (1, 2, 2),
}
"""Liger's kernels that go more than once over their first tensors, and how often (liger_kernel/ops)."""
FILLED = {
    "new_zeros": False, "zeros": False, "zeros_like": False, "nll_loss_backward": False,
    "slice_backward": True, "select_backward": True,
}  # fmt: skip
"""Operators that make zeros, and whether they copy a strided part into them: of ``nll_loss_backward``'s one
element a row is left (native/cuda/Loss.cu, whose kernel for 8,192 rows takes 9 us: probed)."""
NORMS = ("native_layer_norm", "native_layer_norm_backward")
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
        (dtype, left), (_, right) = _factors(operator)
        batch = left[0] if len(left) == 3 else 1
        rows, inner, columns = left[-2], left[-1], right[-1]
        if min(batch, rows, inner, columns) == 0:
            return 0.0
        return rates.product(PRECISIONS.get(dtype, "fp32"), rows, inner, columns, batch)
    if name in NORMS:
        (_, shape), *_ = operator.inputs
        return rates.norm(NAMED[name], math.prod(shape[:-1]), shape[-1], moved_bytes(operator))
    if name == "_safe_softmax":  # native/transformers/attention.cpp: rows that are all masked give zeros
        (dtype, shape), *_ = operator.inputs
        size, elements = size_of(operator.inputs[:1]), math.prod(shape)
        return (
            rates.moving(2 * size, "_softmax")
            + rates.moving(size + elements, "mul")
            + rates.moving(elements, ROWS_SUMMED)
            + rates.moving(8 * elements, REPEATED)
        )
    if name in FILLED:
        return _filled(operator, rates)
    return rates.moving(moved_bytes(operator), _kernel(operator, name), _repeated(operator))


def _filled(operator: Operator, rates: Rates) -> float:
    """Seconds of making zeros, and of laying the first input into a part of them."""
    seconds = rates.moving(size_of(operator.outputs), "zero_")
    if not FILLED[plain_name(operator.name)]:
        return seconds
    (_, given), *_ = operator.inputs
    return seconds + rates.moving(2 * size_of(operator.inputs[:1]), "clone", math.prod(given))


def _kernel(operator: Operator, name: str) -> str | None:
    """The kernel that a probe measured and that this operator runs, or one much like it."""
    if name in SUMS:
        (_, given), *_ = operator.inputs
        (_, made), *_ = operator.outputs
        columns = given and made and given[-1] == made[-1] and math.prod(made) < math.prod(given)
        return COLUMNS_SUMMED if columns else ROWS_SUMMED
    sizes = [ITEMS.get(dtype, 4) for dtype, shape in (*operator.inputs, *operator.outputs) if shape]
    if name in ("copy_", "_to_copy") and len(set(sizes)) > 1:
        target, source = (sizes[0], sizes[1]) if name == "copy_" else (sizes[-1], sizes[0])
        return WIDENED if target > source else NARROWED
    if len({size for size in sizes if size in (2, 4)}) > 1 and name not in OWN_KERNELS:
        return MIXED
    return NAMED.get(name)


def _repeated(operator: Operator) -> int:
    """Elements of an element-wise operator whose operands lie differently in memory; 0 of any other.

    Its kernel finds each element's place by itself (``elementwise_kernel`` of ATen's CUDALoops.cuh, where
    even operands take ``vectorized_elementwise_kernel``).
    """
    name = plain_name(operator.name)
    if not operator.uneven or not operator.outputs or name in SUMS or name in OWN_KERNELS:
        return 0
    made = math.prod(operator.outputs[0][1])
    alike = all(math.prod(shape) <= made for _, shape in operator.inputs)
    return made if alike else 0


def flops_of(operator: Operator) -> float:
    """Floating-point operations of a product or of attention; 0 for all others."""
    if operator.name.startswith("attention."):
        (_, query), (_, key), *_ = operator.inputs
        words = operator.name.split(".")
        flops = 4.0 * math.prod(query) * key[2] / (2 if "causal" in words and query[2] == key[2] else 1)
        return flops * (FLASH_BACKWARD if words[-1] == "backward" else 1)
    if plain_name(operator.name) not in PRODUCTS:
        return 0.0
    (_, left), (_, right) = _factors(operator)
    return 2.0 * math.prod(left) * right[-1]


def _factors(operator: Operator) -> Sequence[tuple[str, tuple[int, ...]]]:
    """What a product multiplies: its last inputs, but for the tensor that it is told to write to."""
    return operator.inputs[:-1][-2:] if operator.name.endswith(".out") else operator.inputs[-2:]


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
    if name == "nll_loss_forward":
        return 2 * size_of(operator.inputs[1:2])
    if name in ("copy_",):  # the first input is what it writes
        return size_of(operator.inputs)
    if operator.name.startswith("triton."):
        passes = IN_PLACE.get(name, ())
        again = ((count - 1) * size_of([one]) for count, one in zip(passes, operator.inputs, strict=False))
        return size_of(operator.inputs) + sum(again)
    return size_of(operator.inputs) + size_of(operator.outputs)


def host_seconds(operator: Operator, rates: Rates, ranks: int = 1) -> float:
    """Seconds of an operator that runs on the host's memory, as one of ``ranks`` of its node."""
    if operator.view or plain_name(operator.name) in NO_KERNEL:
        return 0.0
    return rates.host_moving(moved_bytes(operator), ranks)


def size_of(shapes: Sequence[tuple[str, tuple[int, ...]]]) -> int:
    """Bytes of tensors of these types and shapes."""
    return sum(ITEMS.get(dtype, 4) * math.prod(shape) for dtype, shape in shapes)
