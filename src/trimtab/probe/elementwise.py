"""Kernels that memory bounds: what each operator reads and writes, and how long that takes by size.

``cold`` rows go round operands that no cache holds together, ``warm`` rows use the same ones again, as an
operator does that follows the one that made them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from trimtab.probe.host_adam import is_built
from trimtab.probe.notes import Notes, copies_for

COLUMNS = 1024
ELEMENTS = (2**12, 2**16, 2**18, 2**20, 2**22, 2**24, 2**26, 2**28)
NORM_COLUMNS = (768, 1024, 4096, 8192)
LOSSES = ((2048, 32000), (8192, 32000), (8192, 50257), (4096, 30522), (2048, 128256))
"""Rows and words of the logits."""
SCORES = ((384, 512, 512), (128, 1024, 1024), (512, 128, 128))
"""Attention scores written out: batch x heads, rows, columns."""
PARAMETERS = (2**20, 2**24, 2**27, 2**29)
TENSORS = (1, 150)
"""Optimizer steps over one tensor and over many of the same total."""


def measure(notes: Notes) -> None:
    """Element-wise operators, norms, losses, embeddings, attention's softmax and optimizer steps."""
    import torch

    sizes = ELEMENTS if notes.on_gpu else ELEMENTS[:2]
    for elements in sizes:
        for name, moved, make in _operators(torch):
            total = int(moved * elements)
            for cache in ("cold", "warm") if 2**16 <= elements <= 2**24 else ("cold",):
                sets = copies_for(total) if cache == "cold" else 1
                bodies = [make(_shape(elements), notes.device) for _ in range(sets)]
                notes.kernel("element-wise", bodies, name=name, elements=elements, bytes=total, cache=cache)
    _norms(notes)
    _losses(notes)
    _scores(notes)
    _embeddings(notes)
    _optimizers(notes)


def _shape(elements: int) -> tuple[int, int]:
    return elements // COLUMNS, COLUMNS


def _operators(torch: Any) -> list[tuple[str, float, Callable[[tuple[int, int], str], Callable[[], Any]]]]:
    """(name, bytes moved an element, what makes a body) of the operators that models are made of."""
    half, full = torch.bfloat16, torch.float32
    aten = torch.ops.aten

    def one(run: Callable[[Any], Any], dtype: Any = half) -> Any:
        def make(shape: tuple[int, int], device: str) -> Callable[[], Any]:
            x = torch.randn(shape, device=device, dtype=dtype)
            return lambda: run(x)

        return make

    def two(run: Callable[[Any, Any], Any], dtype: Any = half, other: Any = None) -> Any:
        def make(shape: tuple[int, int], device: str) -> Callable[[], Any]:
            x = torch.randn(shape, device=device, dtype=dtype)
            y = torch.randn(shape, device=device, dtype=dtype).to(other or dtype)
            return lambda: run(x, y)

        return make

    return [
        ("zero_", 2, one(lambda x: x.zero_())),
        ("clone", 4, one(torch.clone)),
        ("to fp32", 6, one(lambda x: x.to(full))),
        ("to bf16", 6, one(lambda x: x.to(half), full)),
        ("add", 6, two(torch.add)),
        ("add_", 6, two(lambda x, y: x.add_(y))),
        ("add_ fp32 of bf16", 10, two(lambda x, y: x.add_(y), full, half)),
        ("mul", 6, two(torch.mul)),
        ("mul fp32", 12, two(torch.mul, full)),
        ("mul number fp32", 8, one(lambda x: x * 0.5, full)),
        ("pow fp32", 8, one(lambda x: x.pow(2), full)),
        ("mean rows fp32", 4, one(lambda x: x.mean(-1, keepdim=True), full)),
        ("sum rows", 2, one(lambda x: x.sum(-1))),
        ("sum columns", 2, one(lambda x: x.sum(0))),
        ("mul by rows fp32", 8, one(lambda x: x * x[:, :1], full)),
        ("silu", 4, one(torch.nn.functional.silu)),
        ("silu_backward", 6, two(aten.silu_backward)),
        ("gelu", 4, one(torch.nn.functional.gelu)),
        ("gelu_backward", 6, two(aten.gelu_backward)),
        ("tanh", 4, one(torch.tanh)),
        ("tanh_backward", 6, two(aten.tanh_backward)),
        ("native_dropout", 5, one(lambda x: aten.native_dropout(x, 0.1, True))),
        (
            "native_dropout_backward",
            5,
            two(lambda x, y: aten.native_dropout_backward(x, y, 1.1), half, torch.bool),
        ),
        ("transpose copy", 4, one(lambda x: x.t().contiguous())),
        ("cat", 8, two(lambda x, y: torch.cat((x, y)))),
        ("norm fp32 of bf16", 2, one(lambda x: torch.linalg.vector_norm(x, dtype=full))),
        ("isfinite all", 2, one(lambda x: torch.isfinite(x).all())),
    ]


def _norms(notes: Notes) -> None:
    import torch

    aten = torch.ops.aten
    for columns in NORM_COLUMNS if notes.on_gpu else NORM_COLUMNS[:1]:
        for rows in (512, 4096, 16384) if notes.on_gpu else (16,):
            x = torch.randn(rows, columns, device=notes.device, dtype=torch.bfloat16)
            weight, bias = torch.ones_like(x[0]), torch.zeros_like(x[0])
            _, mean, deviation = torch.native_layer_norm(x, [columns], weight, bias, 1e-5)
            what = {"rows": rows, "columns": columns}
            moved = x.nbytes
            notes.kernel(
                "norm",
                [partial(torch.native_layer_norm, x, [columns], weight, bias, 1e-5)],
                name="native_layer_norm",
                bytes=2 * moved,
                **what,
            )
            notes.kernel(
                "norm",
                [
                    partial(
                        aten.native_layer_norm_backward,
                        *(x, x, [columns], mean, deviation, weight, bias, [True, True, True]),
                    )
                ],
                name="native_layer_norm_backward",
                bytes=3 * moved,
                **what,
            )


def _losses(notes: Notes) -> None:
    import torch

    aten = torch.ops.aten
    for rows, words in LOSSES if notes.on_gpu else ((16, 128),):
        for dtype in (torch.float32, torch.bfloat16):
            x = torch.randn(rows, words, device=notes.device, dtype=dtype)
            labels = torch.randint(words, (rows,), device=notes.device)
            out = torch.log_softmax(x, -1)
            what = {"rows": rows, "columns": words, "item": dtype.itemsize}
            notes.kernel(
                "loss",
                [partial(torch.log_softmax, x, -1)],
                name="_log_softmax",
                bytes=2 * x.nbytes,
                **what,
            )
            notes.kernel(
                "loss",
                [partial(aten._log_softmax_backward_data, x, out, -1, dtype)],
                name="_log_softmax_backward_data",
                bytes=3 * x.nbytes,
                **what,
            )
            notes.kernel(
                "loss",
                [partial(torch.nn.functional.nll_loss, out, labels)],
                name="nll_loss_forward",
                bytes=out[:, :1].nbytes,
                **what,
            )


def _scores(notes: Notes) -> None:
    import torch

    aten = torch.ops.aten
    for shape in SCORES if notes.on_gpu else ((2, 8, 8),):
        for dtype in (torch.bfloat16, torch.float32):
            x = torch.randn(shape, device=notes.device, dtype=dtype)
            out = torch.softmax(x, -1)
            what = {"rows": shape[0] * shape[1], "columns": shape[2], "item": dtype.itemsize}
            notes.kernel("loss", [partial(torch.softmax, x, -1)], name="_softmax", bytes=2 * x.nbytes, **what)
            notes.kernel(
                "loss",
                [partial(aten._softmax_backward_data, x, out, -1, dtype)],
                name="_softmax_backward_data",
                bytes=3 * x.nbytes,
                **what,
            )


def _embeddings(notes: Notes) -> None:
    import torch

    aten = torch.ops.aten
    for tokens, words, columns in (
        ((2048, 32000, 4096), (16384, 50257, 768), (4096, 30522, 1024)) if notes.on_gpu else ((16, 64, 8),)
    ):
        table = torch.randn(words, columns, device=notes.device, dtype=torch.bfloat16)
        indices = torch.randint(words, (tokens,), device=notes.device)
        rows = torch.nn.functional.embedding(indices, table)
        what = {"tokens": tokens, "words": words, "columns": columns}
        notes.kernel(
            "embedding",
            [partial(torch.nn.functional.embedding, indices, table)],
            name="embedding",
            bytes=2 * rows.nbytes,
            **what,
        )
        notes.kernel(
            "embedding",
            [partial(aten.embedding_dense_backward, rows, indices, words, -1, False)],
            name="embedding_dense_backward",
            bytes=2 * rows.nbytes + table.nbytes,
            **what,
        )


def _optimizers(notes: Notes) -> None:
    """AdamW over fp32 masters: torch's fused one, and DeepSpeed's where it is compiled."""
    import torch

    for parameters in PARAMETERS if notes.on_gpu else (2**12,):
        for tensors in TENSORS:
            each = parameters // tensors
            sets = [[torch.zeros(each, device=notes.device) for _ in range(tensors)] for _ in range(4)]
            steps = [torch.ones((), device=notes.device) for _ in range(tensors)]
            what = {"parameters": each * tensors, "tensors": tensors, "bytes": 28 * each * tensors}
            notes.kernel(
                "optimizer",
                [
                    partial(
                        torch._fused_adamw_, *sets, [], steps,
                        lr=1e-4, beta1=0.9, beta2=0.999, weight_decay=0.01, eps=1e-8,
                        amsgrad=False, maximize=False, grad_scale=None, found_inf=None,
                    )
                ],
                name="_fused_adamw_",
                **what,
            )  # fmt: skip
            notes.kernel(
                "optimizer",
                [partial(torch._foreach_norm, sets[0])],
                name="_foreach_norm",
                **{**what, "bytes": 4 * each * tensors},
            )
            if is_built("fused_adam") and notes.on_gpu:
                from deepspeed.ops.adam import FusedAdam

                masters = [torch.nn.Parameter(one) for one in sets[0]]
                for master, gradient in zip(masters, sets[1], strict=True):
                    master.grad = gradient
                notes.kernel("optimizer", [FusedAdam(masters, lr=1e-4).step], name="FusedAdam", **what)
