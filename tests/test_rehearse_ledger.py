"""The phantom allocates what CUDA and autograd do, where torch does otherwise for made-up devices."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from typing import Any

import pytest

from sources import ROOT

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs trimtab[train]"),
]

# the made-up device changes torch for good, so all of it runs in one child
SCRIPT = """
import json, torch
from trimtab.rehearse import calls, corners
corners.make_device()
from trimtab.rehearse.ledger import Ledger
from torch.nn import functional as F

ledger, seen = Ledger(), {}

def operators(run):
    ledger.operators, ledger.recording, ledger.phase = {}, True, "backward"
    run()
    ledger.recording = False
    return [str(key[0]).removeprefix("aten.") for key in ledger.operators]

def sums(function):
    x = torch.ones(4, 4, requires_grad=True, device="phantom")
    loss = function(x * 2)
    found = operators(lambda: loss.backward(torch.ones(4, 4, device="phantom")))
    return [name for name in found if name.startswith("add")]

def tied():
    weight = torch.ones(8, 4, requires_grad=True, device="phantom")
    words = F.embedding(torch.zeros(6, dtype=torch.long, device="phantom"), weight)
    loss = F.linear(words, weight).sum()
    return [name for name in operators(loss.backward) if name.startswith("add")]

with ledger, calls.torch_calls(torch.tensor, F.scaled_dot_product_attention):
    ledger.learn_references()
    seen["alone"] = sums(lambda h: h.sin() + h.cos())
    seen["residual"] = sums(lambda h: (h + h.sin()) * 3)
    seen["view"] = sums(lambda h: (h.sin() + h.t().t()) * 3)
    seen["tied"] = tied()
    x = torch.ones(4, 4, requires_grad=True, device="phantom")
    y = F.silu(x * 2)
    seen["silu"] = operators(lambda: y.backward(torch.ones(4, 4, device="phantom")))
    half = torch.ones(4, 4, dtype=torch.float16, device="phantom")
    seen["softmax"] = operators(lambda: F.softmax(half, dim=-1, dtype=torch.float32))
    mask = torch.ones(4, 4, device="phantom").bool()
    seen["nothing masked"] = bool(mask.sum() == mask.numel())
    scores = torch.ones(128, 128, requires_grad=True, device="phantom")
    loss = torch.softmax(scores, -1).sum()
    ledger.reset_peaks()
    before = ledger.allocated
    loss.backward()
    seen["softmax backward"] = ledger.peak - before
    before = ledger.host
    pinned = [ledger.mark_pinned(torch.empty(3000, dtype=torch.uint8, device="cpu")) for _ in range(2)]
    seen["pinned"] = ledger.host - before
    del pinned
    seen["freed"] = ledger.host - before
    again = ledger.mark_pinned(torch.empty(4000, dtype=torch.uint8, device="cpu"))
    seen["again"] = ledger.host - before
    larger = ledger.mark_pinned(torch.empty(5000, dtype=torch.uint8, device="cpu"))
    seen["larger"] = ledger.host - before
print(json.dumps(seen), flush=True)
import os
os._exit(0)
"""


@pytest.fixture(scope="module")
def seen() -> dict[str, Any]:
    """What a child process saw."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "DS_ACCELERATOR": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def test_a_gradient_that_only_the_engine_holds_is_added_in_place(seen: dict[str, Any]) -> None:
    assert seen["alone"] == ["add_.Tensor"]
    assert seen["residual"] == ["add_.Tensor"]


def test_a_gradient_whose_storage_has_another_holder_is_not(seen: dict[str, Any]) -> None:
    assert seen["view"] == ["add.Tensor"]
    # a linear layer's gradient of its weight is a transposed view, which keeps its base
    assert seen["tied"] == ["add.Tensor"]


def test_operators_that_cuda_has_a_kernel_for_stay_whole(seen: dict[str, Any]) -> None:
    assert "silu_backward.default" in seen["silu"]
    assert "sigmoid.default" not in seen["silu"]
    assert seen["softmax"] == ["_softmax.default"]


def test_softmax_multiplies_before_it_sums(seen: dict[str, Any]) -> None:
    whole = 128 * 128 * 4
    # the incoming gradient is one number, expanded; its product with the output and the result are whole
    assert 2 * whole <= seen["softmax backward"] < 2.5 * whole


def test_a_mask_of_true_masks_nothing(seen: dict[str, Any]) -> None:
    assert seen["nothing masked"] is True


def test_page_locked_memory_is_kept_for_the_next_of_its_size(seen: dict[str, Any]) -> None:
    assert seen["pinned"] == seen["freed"] == seen["again"] == 2 * 4096
    assert seen["larger"] == 2 * 4096 + 8192
