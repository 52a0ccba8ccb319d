"""What the engine does for each gradient in each micro step, as the phantom engine's records have it."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest

from trimtab.cost.speed import HOOKS
from trimtab.rehearse.durations import has_kernel
from trimtab.rehearse.phantom import rehearse_phantom
from trimtab.rehearse.request import PHASES, PhantomRequest, Rehearsal

GPT2 = {"model_type": "gpt2", "n_embd": 64, "n_layer": 4, "n_head": 4, "vocab_size": 500}
TENSORS = 4 * 12 + 4
MICRO_STEPS = 4

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(
        any(importlib.util.find_spec(name) is None for name in ("torch", "deepspeed", "transformers")),
        reason="needs trimtab[train]",
    ),
]


def engines_kernels(record: Rehearsal) -> list[int]:
    """Of each micro step's backward pass, copies over the host link among them."""
    found: list[int] = []
    phase = ""
    for kind, index in record.order:
        if kind == "phase":
            phase = PHASES[index]
            found += [0] * (phase == "backward")
        elif phase == "backward" and kind == "copy":
            found[-1] += 1
        elif phase == "backward" and kind == "operator":
            one = record.operators[index]
            found[-1] += not one.host and not one.module_class and has_kernel(one)
    return found


@pytest.mark.parametrize(("stage", "offloads"), HOOKS)
def test_every_micro_step_has_its_kernels_for_a_gradient(stage: int, offloads: bool) -> None:
    zero: dict[str, Any] = {"stage": stage}
    if offloads:
        zero["offload_optimizer"] = {"device": "cpu"}
    config = {
        "bf16": {"enabled": True},
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-4}},
        "zero_optimization": zero,
    }
    asked = PhantomRequest(
        deepspeed=config,
        hf=GPT2,
        micro_batch=1,
        accumulation=MICRO_STEPS,
        sequence_length=16,
        record="ordered",
    )
    hooks = HOOKS[stage, offloads]
    reduced = 1 + hooks.kept
    between = (reduced if stage >= 2 else 0) + hooks.added
    expected = [
        between - hooks.added,
        *[between] * (MICRO_STEPS - 2),
        reduced + hooks.added + hooks.handed,
    ]
    seen = engines_kernels(rehearse_phantom(asked, use_cache=False))
    assert [round(kernels / TENSORS) for kernels in seen] == expected
