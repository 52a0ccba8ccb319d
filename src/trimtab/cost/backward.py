"""What the backward pass of an operator runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from trimtab.cost.meter import COLLECTIVES, Kernel

if TYPE_CHECKING:
    from trimtab.cost.machine import Node

PASS = -1
"""A gradient that is the incoming one, or a view of it."""
HELD = -2
"""A gradient made in the forward pass: the first storage that the operator kept; one less, the next."""


class Summed(NamedTuple):
    """A gradient that is made ``whole`` bytes large, or is ``PASS``, and then ``bytes`` by ``kernel``.

    Autograd does that once the operator has made all its gradients (torch/csrc/autograd/engine.cpp,
    ``validate_outputs``); the sum takes ``buffer`` bytes while it runs.
    """

    whole: int
    bytes: int
    buffer: int = 0
    kernel: str = "sum columns"


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
BLOOM_GELU = "bloom_gelu"
BLOOM_GELU_BACK = {2: 9, 3: 8}
"""Kernels of ``bloom_gelu_back`` (models/bloom) by the tensors that each reads and writes."""


def backward_kernels(node: Node) -> Iterator[Kernel]:
    """The kernels that make a node's gradients."""
    if node.kernel in COLLECTIVES:
        yield Kernel("backward", node.kernel, node.made + node.kept)
        yield from _between(node)
        return
    wanted = [size for edge, size in zip(node.inputs, node.gradients, strict=True) if edge is not None]
    sums = [size for size in wanted if isinstance(size, Summed)]
    sizes = [size for size in wanted if not isinstance(size, Summed) and size > PASS]
    moved = node.made + node.kept + sum(sizes)
    if not sizes and not sums:
        return
    if node.kernel == "attention":  # one kernel makes them all; five products for the forward pass's two
        yield Kernel("backward", "attention", moved, node.flops * 5 // 2, node.shape)
    elif node.kernel == "product":
        batch, rows, inner, columns, item = node.shape
        outcome = batch * rows * columns * item
        read = outcome + batch * (rows + columns) * inner * item
        for place, shape in enumerate(((rows, columns, inner), (inner, rows, columns))):
            if node.inputs[place] is not None:
                yield Kernel("backward", "product", read, node.flops, (batch, *shape, item))
        if any(node.inputs[2:]):  # the bias: a sum over the rows
            yield Kernel("backward", "sum columns", outcome)
    elif node.kernel == CUT:
        elements, item = node.shape
        yield Kernel("backward", CUT, sum(sizes) + 2 * elements * item, shape=node.shape)
    elif node.kernel == BLOOM_GELU:
        for tensors, count in BLOOM_GELU_BACK.items():
            yield from (Kernel("backward", "moving", tensors * node.made) for _ in range(count))
    elif node.kernel in BACKWARD:
        yield Kernel("backward", BACKWARD[node.kernel], moved, node.flops, node.shape)
    else:
        yield from _between(node)
        yield from _element_wise(node, sizes, sums)


def _between(node: Node) -> Iterator[Kernel]:
    """Those that make tensors on the way, each read once."""
    for size in node.scratch:
        yield Kernel("backward", "moving", 2 * size)


def _element_wise(node: Node, sizes: Sequence[int], sums: Sequence[Summed]) -> Iterator[Kernel]:
    """One for each gradient, of which those that are summed read what was kept by themselves."""
    read = node.made + node.kept + sum(sizes) - sum(max(0, one.whole) for one in sums)
    for place, size in enumerate(sizes):
        # the gradient of the tensor itself; its factors' are products of even ones
        name, shape = (node.kernel, node.shape) if place == 0 else ("moving", ())
        yield Kernel("backward", name, max(size, read // len(sizes)), node.flops // len(sizes), shape)
    for whole, size, buffer, kernel in sums:
        if whole >= node.made:
            yield Kernel("backward", "moving", 3 * whole)
        elif whole > PASS:  # what was repeated is summed before it is cast
            yield Kernel("backward", "sum columns", node.made + whole)
        yield Kernel("backward", kernel, (node.made if whole == PASS else whole) + size + buffer)
