"""Fused kernels in a phantom: Liger's Python without Triton."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from trimtab.errors import Unsupported
from trimtab.rehearse import fused
from trimtab.rehearse.phantom import rehearse_phantom
from trimtab.rehearse.request import PhantomRequest

SMALL = {
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "vocab_size": 8000,
}


def request(kernels: str) -> PhantomRequest:
    return PhantomRequest(
        deepspeed={
            "zero_optimization": {"stage": 2, "reduce_bucket_size": 1_000_000},
            "bf16": {"enabled": True},
            "optimizer": {"type": "AdamW", "params": {"lr": 1e-4}},
        },
        hf=SMALL,
        micro_batch=4,
        sequence_length=256,
        world_size=8,
        kernels=kernels,
    )


@pytest.fixture
def without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "meta_path", [fused._NoTriton(), fused._OnOurDevice(), *sys.meta_path])
    for name in [name for name in sys.modules if name.partition(".")[0] in ("triton", "liger_kernel")]:
        monkeypatch.delitem(sys.modules, name)


def test_a_kernel_starts_does_nothing_and_is_noted_with_its_tensors(
    without_triton: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    triton = importlib.import_module("triton")
    language = importlib.import_module("triton.language")
    importlib.import_module("triton.language.extra.libdevice")

    @triton.autotune(configs=[triton.Config({"BLOCK": 32}, num_warps=4)], key=["count"])
    @triton.jit
    def kernel(out: object, count: language.constexpr) -> None:  # type: ignore[name-defined]
        raise AssertionError("a kernel ran")

    noted = []
    monkeypatch.setattr(
        "trimtab.rehearse.streams.note_kernel", lambda name, *given: noted.append((name, given))
    )
    tensor = pytest.importorskip("torch").ones(2)
    assert kernel[(1,)](tensor, count=3) is None
    assert noted == [("triton.kernel", (tensor,))]
    assert (triton.cdiv(7, 2), triton.next_power_of_2(5)) == (4, 8)
    for name in [name for name in sys.modules if name.partition(".")[0] == "triton"]:
        del sys.modules[name]


def test_what_liger_asks_of_cuda_is_asked_of_our_device(
    without_triton: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    package = tmp_path / "liger_kernel" / "ops"
    package.mkdir(parents=True)
    for folder in (package, package.parent):
        (folder / "__init__.py").write_text("")
    (package / "one.py").write_text('def on_cuda(x):\n    return x.device.type == "cuda"\n')
    monkeypatch.syspath_prepend(tmp_path)
    one = importlib.import_module("liger_kernel.ops.one")

    class Tensor:
        class device:
            type = "phantom"

    assert one.on_cuda(Tensor)
    for name in [name for name in sys.modules if name.partition(".")[0] == "liger_kernel"]:
        del sys.modules[name]


@pytest.mark.engine
@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("torch", "deepspeed", "transformers")),
    reason="needs trimtab[train]",
)
def test_fused_kernels_keep_no_logits_or_say_what_is_missing() -> None:
    if importlib.util.find_spec("liger_kernel") is None:
        with pytest.raises(Unsupported, match="liger-kernel"):
            rehearse_phantom(request("fused"), use_cache=False)
        return
    plain, kept = (rehearse_phantom(request(kernels), use_cache=False) for kernels in ("plain", "fused"))
    logits = 4 * 256 * 8000 * 4
    assert kept.step_peak_bytes < plain.step_peak_bytes - logits
