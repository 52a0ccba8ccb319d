"""Scaled dot-product attention as models call it: forward and backward, by length, heads and width."""

from __future__ import annotations

from collections.abc import Iterator

from trimtab.probe.notes import Notes

CASES = (  # heads, head width
    (12, 64), (16, 64), (32, 80), (32, 128), (16, 256), (64, 128),
)  # fmt: skip
LENGTHS = (128, 512, 1024, 2048, 4096, 8192, 16384)
TOKENS = 8192
MOST_SCORES = 2e10


def cases(*, small: bool) -> Iterator[dict[str, float]]:
    """Batch, heads, length, width, whether causal, and dropout."""
    if small:
        yield {"batch": 2, "heads": 2, "length": 16, "width": 8, "causal": True, "dropout": 0.0}
        return
    for heads, width in CASES:
        for length in LENGTHS:
            for batch in {1, max(1, TOKENS // length)}:
                shape = {"batch": batch, "heads": heads, "length": length, "width": width}
                if batch * heads * length * length > MOST_SCORES:
                    continue
                yield {**shape, "causal": True, "dropout": 0.0}
                if width == 64:
                    yield {**shape, "causal": False, "dropout": 0.0}
                    yield {**shape, "causal": length > 512, "dropout": 0.1}


def measure(notes: Notes) -> None:
    """Rows of kind ``attention``: ``direction`` forward or backward, ``backend`` as torch chose it."""
    for case in cases(small=not notes.on_gpu):
        _one(notes, case, masked=False)
        if not case["causal"] and not case["dropout"]:
            _one(notes, case, masked=True)


def _one(notes: Notes, case: dict[str, float], *, masked: bool) -> None:
    import torch

    batch, heads, length, width = (int(case[name]) for name in ("batch", "heads", "length", "width"))
    causal, dropout = bool(case["causal"]), float(case["dropout"])
    shape = (batch, heads, length, width)
    q, k, v = (
        torch.randn(shape, device=notes.device, dtype=torch.bfloat16, requires_grad=True) for _ in range(3)
    )
    mask = None
    if masked:
        mask = torch.zeros(batch, 1, length, length, device=notes.device, dtype=torch.bfloat16)

    def forward() -> torch.Tensor:
        return torch.nn.functional.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=causal
        )

    backend = -1
    if notes.on_gpu:
        backend = int(torch._fused_sdp_choice(q, k, v, mask, dropout, causal))
    what = {**case, "masked": masked, "backend": backend}
    with torch.no_grad():
        notes.kernel("attention", [forward], direction="forward", **what)

    gradient = torch.randn_like(q)

    def both() -> None:
        torch.autograd.grad(forward(), (q, k, v), gradient)

    notes.kernel("attention", [both], direction="forward and backward", **what)
