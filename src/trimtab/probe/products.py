"""Matrix products: the rate by shape, precision and layout.

A linear layer of ``k`` inputs and ``n`` outputs over ``m`` tokens runs three of them: ``nt`` forward
(``x @ weight.T``), ``nn`` for the gradient of its input and ``tn`` for the gradient of its weight.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from trimtab.probe.notes import Notes, copies_for

LAYERS = (
    (768, 768), (768, 2304), (768, 3072), (3072, 768),
    (1024, 1024), (1024, 4096), (4096, 1024), (1024, 2816), (1536, 4096),
    (2048, 2048), (2048, 5632), (5632, 2048), (2048, 8192), (2560, 6912), (2560, 10240),
    (4096, 4096), (4096, 11008), (11008, 4096), (4096, 14336), (14336, 4096), (4096, 16384), (16384, 4096),
    (5120, 5120), (5120, 13824), (13824, 5120), (6144, 6144), (6144, 24576), (24576, 6144),
    (8192, 8192), (8192, 28672), (28672, 8192),
)  # fmt: skip
"""(inputs, outputs) of the linear layers of the catalogue's models and their kin."""
VOCABULARIES = (
    (768, 50257), (768, 50304), (768, 30522), (1024, 30522), (1024, 50257), (512, 32128), (1024, 32128),
    (2048, 32000), (4096, 32000), (4096, 50400), (4096, 128256), (5120, 32000), (6144, 50432), (8192, 128256),
)  # fmt: skip
TOKENS = (512, 2048, 8192, 16384)
MORE_TOKENS = (1, 16, 64, 128, 256, 1024, 4096, 32768)
"""Measured for a few layers only."""
MORE_TOKENS_OF = ((768, 3072), (1024, 1024), (4096, 4096), (4096, 11008))
THIN = ((4096, 8), (8, 4096), (4096, 16), (16, 4096), (4096, 64), (64, 4096), (8192, 16), (16, 8192))
"""LoRA's adapters."""
CLASSES = ((768, 2), (1024, 9))
"""Classifiers' outputs."""
BATCHED = (  # batch x heads, rows, inner, columns: attention written out
    (384, 512, 64, 512), (128, 1024, 64, 1024), (192, 512, 64, 512), (64, 2048, 128, 2048),
    (512, 128, 64, 128), (32, 4096, 128, 4096), (384, 114, 64, 114), (96, 512, 64, 114),
    (16, 2048, 256, 2048),
)  # fmt: skip
OTHER_PRECISIONS = ("fp16", "tf32", "fp32")
MOST_FLOPS = 6e12
SUSTAINED_SECONDS = 2.5
SUSTAINED_CUBE = 8192


def shapes(*, small: bool) -> Iterator[tuple[str, int, int, int]]:
    """(precision, tokens, inputs, outputs) to measure; a few small ones for the CPU."""
    if small:
        yield from (("fp32", tokens, 64, 96) for tokens in (32, 128))
        yield ("bf16", 32, 64, 96)
        return
    for k, n in (*LAYERS, *VOCABULARIES, *CLASSES):
        yield from (("bf16", m, k, n) for m in TOKENS)
    for k, n in MORE_TOKENS_OF:
        yield from (("bf16", m, k, n) for m in MORE_TOKENS)
    for k, n in THIN:
        yield from (("bf16", m, k, n) for m in (2048, 8192))
    for precision in OTHER_PRECISIONS:
        for k, n in (*MORE_TOKENS_OF, (768, 50257), (768, 30522)):
            yield from ((precision, m, k, n) for m in (512, 4096, 8192))


def measure(notes: Notes) -> None:
    """Rates of all `shapes`, of batched products, and of one product that runs for seconds."""
    import torch

    before = torch.backends.cuda.matmul.allow_tf32
    for precision, m, k, n in shapes(small=not notes.on_gpu):
        if 2.0 * m * k * n > (MOST_FLOPS / 16 if precision == "fp32" else MOST_FLOPS):
            continue
        dtype = _dtype(precision)
        torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
        size = dtype.itemsize * (m * k + k * n + m * n)
        sets = [_operands(notes.device, dtype, m, k, n) for _ in range(copies_for(size, 4))]
        for layout in ("nt", "nn", "tn"):
            bodies = [_product(layout, *operands) for operands in sets]
            notes.kernel("matrix", bodies, precision=precision, m=m, k=k, n=n, layout=layout)
    torch.backends.cuda.matmul.allow_tf32 = before
    for batch, rows, inner, columns in BATCHED if notes.on_gpu else ((4, 16, 8, 16),):
        for precision in ("bf16", "fp32"):
            _batched(notes, precision, batch, rows, inner, columns)
    _sustained(notes)


def _dtype(precision: str) -> Any:
    import torch

    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)


def _operands(device: str, dtype: Any, m: int, k: int, n: int) -> tuple[Any, Any, Any, Any]:
    import torch

    x = torch.randn(m, k, device=device, dtype=dtype)
    weight = torch.randn(n, k, device=device, dtype=dtype)
    gradient = torch.randn(m, n, device=device, dtype=dtype)
    return x, weight, gradient, torch


def _product(layout: str, x: Any, weight: Any, gradient: Any, torch: Any) -> Any:
    if layout == "nt":
        return lambda: torch.mm(x, weight.t())
    if layout == "nn":
        return lambda: torch.mm(gradient, weight)
    return lambda: torch.mm(gradient.t(), x)


def _batched(notes: Notes, precision: str, batch: int, rows: int, inner: int, columns: int) -> None:
    import torch

    dtype = _dtype(precision)
    a = torch.randn(batch, rows, inner, device=notes.device, dtype=dtype)
    b = torch.randn(batch, columns, inner, device=notes.device, dtype=dtype)
    scores = torch.randn(batch, rows, columns, device=notes.device, dtype=dtype)
    what = {"precision": precision, "batch": batch, "m": rows, "k": inner, "n": columns}
    notes.kernel("batched matrix", [lambda: torch.bmm(a, b.transpose(1, 2))], layout="nt", **what)
    notes.kernel("batched matrix", [lambda: torch.bmm(scores, b)], layout="nn", **what)
    notes.kernel("batched matrix", [lambda: torch.bmm(scores.transpose(1, 2), a)], layout="tn", **what)


def _sustained(notes: Notes) -> None:
    """One product again and again, second by second: what power and heat leave of the first burst."""
    import time

    import torch

    cube = SUSTAINED_CUBE if notes.on_gpu else 64
    limit = SUSTAINED_SECONDS if notes.on_gpu else 0.05
    x, weight, _, _ = _operands(notes.device, torch.bfloat16, cube, cube, cube)
    calls = 40 if notes.on_gpu else 2
    began = time.perf_counter()
    windows = []
    torch.mm(x, weight)
    while time.perf_counter() - began < limit:
        notes.wait()
        start = time.perf_counter()
        for _ in range(calls):
            torch.mm(x, weight)
        notes.wait()
        windows.append((time.perf_counter() - start) / calls)
    notes.add("sustained matrix", windows, precision="bf16", m=cube, k=cube, n=cube, layout="nn")
