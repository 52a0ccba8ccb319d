"""AutoEP and split heads: what DeepSpeed 0.19.8 said of each on eight ranks, with Mixtral and LLaMA."""

from __future__ import annotations

from typing import Any

import pytest

from trimtab.check import check
from trimtab.settings import Settings

FOLDED = {"tensor_parallel": {"autotp_size": 2}}


def errors(config: dict[str, Any], **more: Any) -> list[str]:
    base = {"train_micro_batch_size_per_gpu": 1, "bf16": {"enabled": True},
            "optimizer": {"type": "AdamW", "params": {"lr": 1e-3}}}  # fmt: skip
    report = check(
        {**base, **config}, gpus_per_node=8, nodes=1, deepspeed="0.19.8", settings=Settings(), **more
    )
    return [finding.code for finding in report.at_least("error")]


def expert_parallel(stage: int = 2, zero: dict[str, Any] | None = None, **settings: Any) -> dict[str, Any]:
    return {
        "expert_parallel": {"enabled": True, "autoep_size": 2, **settings},
        "zero_optimization": {"stage": stage, **(zero or {})},
    }


@pytest.mark.parametrize(
    "config",
    [
        *(expert_parallel(stage) for stage in (0, 1, 2, 3)),
        expert_parallel(autoep_size=1),
        expert_parallel(3, autoep_size=4),
        expert_parallel(1, {"contiguous_gradients": False}),
        expert_parallel(0, {"reduce_scatter": False}),
        expert_parallel(2, {"offload_optimizer": {"device": "cpu"}}),
        expert_parallel(3, {"offload_param": {"device": "cpu"}, "offload_optimizer": {"device": "cpu"}}),
        expert_parallel(combine_impl="fused_weighted_sum"),
        expert_parallel(3) | {"sequence_parallel_size": 2},
        {"expert_parallel": {"enabled": False, "autoep_size": 3}},
    ],
    ids=str,
)
def test_what_the_engine_builds_passes(config: dict[str, Any]) -> None:
    assert errors(config) == []


@pytest.mark.parametrize(
    ("config", "code"),
    [
        (expert_parallel(autoep_size=16), "PL016"),
        (expert_parallel(autoep_size=0), "PL016"),
        (expert_parallel(expert_tensor_parallel_size=2), "PL016"),
        (expert_parallel(preset_model="x"), "PL016"),
        (expert_parallel(gate_up_impl="fused", use_grouped_mm=False), "PL016"),
        (expert_parallel(row_weighting_impl="fused"), "PL016"),
        (expert_parallel(comm_backend="deepep"), "PL016"),
        (expert_parallel(num_expert_groups=2, num_limited_groups=4), "PL016"),
        (expert_parallel(1, autoep_size=1) | FOLDED, "PL016"),
        (expert_parallel(1, {"offload_optimizer": {"device": "cpu"}}) | FOLDED, "PL016"),
        (expert_parallel(1, async_split_plan=True) | FOLDED, "PL016"),
        (expert_parallel(1, combine_impl="fused_weighted_sum") | FOLDED, "PL016"),
        (expert_parallel(1) | FOLDED | {"compile": {"deepcompile": True}}, "PL016"),
        (
            expert_parallel(1, preset_model="mixtral")
            | {"tensor_parallel": {"autotp_size": 2, "preset_model": "llama"}},
            "PL016",
        ),
        (expert_parallel(3, {"zero_hpz_partition_size": 2}), "PL017"),
        (expert_parallel(3, {"zero_quantized_gradients": True}), "PL017"),
        (expert_parallel(3) | {"sequence_parallel_size": 2, "data_parallel_size": 4}, "PL017"),
        (expert_parallel(2, {"contiguous_gradients": False}), "PL017"),
        (expert_parallel(2, {"reduce_scatter": False}), "PL017"),
        (expert_parallel(1, {"reduce_scatter": False}), "PL017"),
    ],
    ids=str,
)
def test_what_the_engine_refuses_is_found(config: dict[str, Any], code: str) -> None:
    assert set(errors(config)) == {code}


def test_a_model_without_experts_is_not_refused() -> None:
    config = expert_parallel(3, {"zero_hpz_partition_size": 2})
    assert errors(config) == ["PL017"]
    assert errors(config, model="llama-2-7b") == []


def head(**settings: Any) -> dict[str, Any]:
    return {"tensor_parallel": {"autotp_size": 2, **settings}, "zero_optimization": {"stage": 1}}


@pytest.mark.parametrize(
    ("config", "model", "task", "refused"),
    [
        (head(vocab_parallel_lm_head=True), "llama-2-7b", "causal-lm", False),
        (head(vocab_parallel_lm_head=True), "llama-2-7b", "sequence-classification", True),
        (head(vocab_parallel_ce_backend="liger"), "llama-2-7b", "causal-lm", True),
        (head(vocab_parallel_ce_backend="liger"), "llama-3.2-1b", "causal-lm", False),  # tied, so split
        (head(vocab_parallel_lm_head=True, vocab_parallel_ce_backend="liger"), "llama-2-7b", None, False),
        (head(vocab_parallel_lm_head=False, vocab_parallel_ce_backend="liger"), "llama-3.2-1b", None, True),
        (head(vocab_parallel_lm_head=True, tp={"tp_grain_size": 32000}), "llama-2-7b", None, True),
    ],
)
def test_heads(config: dict[str, Any], model: str, task: str | None, refused: bool) -> None:
    block = {"trimtab": {"model": model, "sequence_length": 128, **({"task": task} if task else {})}}
    assert ("PL018" in errors(config | block)) is refused


def test_a_head_is_not_split_without_tensor_parallelism() -> None:
    config = {"train_micro_batch_size_per_gpu": 1, "tensor_parallel": {"vocab_parallel_lm_head": True}}
    report = check(config, deepspeed="0.19.8", settings=Settings())
    assert [f.code for f in report.findings if f.severity == "warning"][:1] == ["PL018"]
