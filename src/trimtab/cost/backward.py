"""What the backward pass of an operator runs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from trimtab.cost.meter import COLLECTIVES, Kernel

if TYPE_CHECKING:
    from trimtab.cost.machine import Node

PASS = -1
"""A gradient that is the incoming one, or a view of it."""
HELD = -2
"""A gradient made in the forward pass: the first storage that the operator kept; one less, the next."""


class Summed(NamedTuple):
    """A gradient that is made ``whole`` bytes large, or is ``PASS``, and then summed or cast to ``bytes``.

    Autograd does that once the operator has made all its gradients (torch/csrc/autograd/engine.cpp,
    ``validate_outputs``); the sum takes ``buffer`` bytes while it runs.
    """

    whole: int
    bytes: int
    buffer: int = 0


Gradient = int | Summed
"""Bytes of a gradient, ``PASS``, ``HELD``, or one that is summed."""
BACKWARD = {
    "native_layer_norm": "native_layer_norm_backward",
    "native_dropout": "native_dropout_backward",
    "embedding": "embedding_dense_backward",
    "_softmax": "_softmax_backward_data",
    "_log_softmax": "_log_softmax_backward_data",
    "to fp32": "to bf16",
    "to bf16": "to fp32",
    "mean rows fp32": "looked up",
    "gelu": "gelu_backward",
    "silu": "silu_backward",
    "tanh": "tanh_backward",
    "nll_loss_forward": "zero_",
}
"""Kernels that make all gradients of an operator at once, by the operator's own."""
CUT = "slice_backward"
"""What makes the gradient of a slice: zeros, and among them a copy of the slice's own elements."""


def backward_kernels(node: Node) -> Iterator[Kernel]:
    """The kernels that make a node's gradients."""
    scratch = sum(node.scratch)
    if node.kernel in COLLECTIVES:
        yield Kernel("backward", node.kernel, node.moved)
        if scratch:
            yield Kernel("backward", "moving", 2 * scratch)
        return
    sums: list[Summed] = []
    sizes: list[int] = []
    for edge, size in zip(node.inputs, node.gradients, strict=True):
        if edge is not None:
            if isinstance(size, Summed):
                sums.append(size)
                size = size.bytes
            if size > PASS:
                sizes.append(size)
    if not sizes:
        return
    if node.kernel == "attention":  # one kernel makes them all; five products for the forward pass's two
        yield Kernel("backward", "attention", node.moved + sum(sizes), node.flops * 5 // 2, node.shape)
    elif node.kernel == "product":
        batch, rows, inner, columns, item = node.shape
        outcome = batch * rows * columns * item
        moved = outcome + batch * (rows + columns) * inner * item
        for place, shape in enumerate(((rows, columns, inner), (inner, rows, columns))):
            if node.inputs[place] is not None:
                yield Kernel("backward", "product", moved, node.flops, (batch, *shape, item))
        if any(node.inputs[2:]):  # the bias: a sum over the rows
            yield Kernel("backward", "sum columns", outcome)
    elif node.kernel == CUT:
        elements, item = node.shape
        yield Kernel("backward", CUT, sum(sizes) + 2 * elements * item, shape=node.shape)
    elif node.kernel in BACKWARD:
        yield Kernel("backward", BACKWARD[node.kernel], node.moved + sum(sizes), node.flops, node.shape)
    else:
        whole = sum(max(0, one.whole) for one in sums)  # written by one kernel, read by the sum
        moved = node.moved + sum(sizes) + 2 * scratch + 3 * whole + sum(one.buffer for one in sums)
        count = len(sizes) + (scratch > 0) + len(sums)  # one a gradient, and those between
        for place in range(count):
            first = place == 0  # the gradient of the tensor itself; its factors' are sums over even products
            name, dimensions = (node.kernel, node.shape) if first else ("moving", ())
            yield Kernel("backward", name, moved // count, node.flops // count, dimensions)
