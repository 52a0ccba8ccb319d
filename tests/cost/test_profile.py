"""Profiles of whole jobs: what must hold whatever the configuration."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.config import Config
from trimtab.cost.memory import PHASES, Profile, profile
from trimtab.errors import RefusedConfig, Uncounted, UnknownArchitecture, Unsupported, UsageError
from trimtab.model import Model

TINY: dict[str, dict[str, Any]] = {
    "llama": {
        "model_type": "llama",
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 1024,
    },
    "gpt2": {"model_type": "gpt2", "n_embd": 256, "n_layer": 2, "n_head": 4, "vocab_size": 1024},
    "bert": {
        "model_type": "bert",
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 1024,
    },
    "t5": {
        "model_type": "t5",
        "d_model": 256,
        "d_ff": 512,
        "num_layers": 2,
        "num_heads": 4,
        "d_kv": 64,
        "vocab_size": 1024,
    },
}
TASKS = {"llama": "causal-lm", "gpt2": "causal-lm", "bert": "masked-lm", "t5": "seq2seq-lm"}
PRECISIONS: tuple[dict[str, Any], ...] = ({"bf16": {"enabled": True}}, {"fp16": {"enabled": True}}, {})


def run(model: str, world: int, micro: int = 2, **given: Any) -> Profile:
    block = {
        "task": TASKS[model],
        "sequence_length": given.pop("sequence_length", 128),
        "checkpoint_activations": given.pop("checkpoint_activations", False),
        "attention": given.pop("attention", "sdpa"),
    }
    for key in ("lora", "kernels"):
        if key in given:
            block[key] = given.pop(key)
    zero = {
        "stage": given.pop("stage", 2),
        "reduce_bucket_size": given.pop("reduce_bucket_size", 100_000),
        "stage3_prefetch_bucket_size": 100_000,
        "stage3_param_persistence_threshold": 1000,
        **given.pop("zero", {}),
    }
    config = {
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": given.pop("accumulation", 1),
        "zero_optimization": zero,
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-4}},
        **given.pop("precision", PRECISIONS[0]),
        **given,
        "trimtab": block,
    }
    return profile(Config.from_mapping(config), Model.from_hf(TINY[model], model), world)


MODELS = st.sampled_from(sorted(TINY))
STAGES = st.sampled_from([0, 1, 2, 3])
PRECISION = st.sampled_from(PRECISIONS)
FEW = settings(max_examples=25, deadline=None)


@FEW
@given(MODELS, PRECISION, st.booleans(), st.sampled_from([1, 2, 4, 8]))
def test_more_ranks_never_raise_the_peak_of_stage_3(
    model: str, precision: dict[str, Any], recompute: bool, ranks: int
) -> None:
    given_job: dict[str, Any] = {"stage": 3, "precision": precision, "checkpoint_activations": recompute}
    assert run(model, 2 * ranks, **given_job).peak <= run(model, ranks, **given_job).peak


@FEW
@given(MODELS, STAGES, PRECISION, st.booleans(), st.integers(1, 6))
def test_a_larger_micro_batch_never_lowers_the_peak(
    model: str, stage: int, precision: dict[str, Any], recompute: bool, micro: int
) -> None:
    given_job: dict[str, Any] = {"stage": stage, "precision": precision, "checkpoint_activations": recompute}
    smaller = run(model, 2, micro, **given_job)
    larger = run(model, 2, micro + 1, **given_job)
    assert larger.peak >= smaller.peak
    assert larger.live["forward"] > smaller.live["forward"]


@FEW
@given(MODELS, st.sampled_from(PRECISIONS[:2]), st.sampled_from([2, 4, 8]))
def test_a_higher_stage_keeps_less_per_rank(model: str, precision: dict[str, Any], ranks: int) -> None:
    found = [
        run(model, ranks, stage=stage, precision=precision, reduce_bucket_size=1000).peak_parts
        for stage in range(4)
    ]
    states = [parts["master weights"] + parts["optimizer states"] for parts in found]
    slack = 512 * 200  # stage 3 rounds every shard up
    assert states[0] > states[1] == states[2] >= states[3] - slack
    assert found[3]["parameters"] < found[2]["parameters"] == found[1]["parameters"]


@FEW
@given(MODELS, STAGES, PRECISION)
def test_recomputation_lowers_the_peak_and_changes_nothing_else(
    model: str, stage: int, precision: dict[str, Any]
) -> None:
    given_job: dict[str, Any] = {"stage": stage, "precision": precision, "micro": 4, "sequence_length": 256}
    plain = run(model, 2, **given_job)
    recomputed = run(model, 2, checkpoint_activations=True, **given_job)
    assert recomputed.live["forward"] < plain.live["forward"]
    assert recomputed.peak <= plain.peak
    # T5's cross-attention bias is a leaf then: it and its gradient live as long as the loss
    leaf = 4 * 128 * 256 * (2 if precision else 4)
    assert recomputed.live["step"] - plain.live["step"] == (2 * leaf if model == "t5" else 0)
    assert recomputed.initialized == plain.initialized


@FEW
@given(MODELS, STAGES, PRECISION)
def test_each_recomputed_layer_lowers_what_lives_after_a_forward_pass(
    model: str, stage: int, precision: dict[str, Any]
) -> None:
    given_job: dict[str, Any] = {"stage": stage, "precision": precision, "micro": 4, "sequence_length": 256}
    layers = Model.from_hf(TINY[model]).all_layers
    found = [run(model, 2, checkpoint_activations=count, **given_job) for count in (*range(layers), True)]
    for before, after in pairwise(found):
        assert after.live["forward"] < before.live["forward"]
        # T5's first decoder layer, recomputed, makes its bias a leaf that lives on: 64 KiB a head
        assert after.peak <= before.peak * (1.001 if model == "t5" else 1)
    assert [one.recomputed_layers for one in found] == list(range(layers + 1))
    assert found[-1] == run(model, 2, checkpoint_activations=layers, **given_job)


def test_more_recomputed_layers_than_there_are_are_refused() -> None:
    with pytest.raises(UsageError, match="is 3, but gpt2 has 2 layers"):
        run("gpt2", 2, checkpoint_activations=3)


@FEW
@given(MODELS, STAGES, PRECISION, st.booleans(), st.integers(1, 3))
def test_a_profile_adds_up(
    model: str, stage: int, precision: dict[str, Any], recompute: bool, accumulation: int
) -> None:
    found = run(
        model,
        4,
        stage=stage,
        precision=precision,
        checkpoint_activations=recompute,
        accumulation=accumulation,
    )
    assert set(found.phase_peaks) == set(PHASES)
    assert found.peak == max(found.phase_peaks[name] for name in ("forward", "backward", "step"))
    assert sum(found.peak_parts.values()) == found.peak
    assert min(found.peak_parts.values()) >= 0
    assert all(found.live[name] <= found.phase_peaks[name] for name in found.live)
    assert found.built <= found.phase_peaks["init"] >= found.initialized
    assert found.trainable == found.parameters > 0


def shuffled(raw: object) -> object:
    if isinstance(raw, dict):
        return {key: shuffled(raw[key]) for key in reversed(raw)}
    return raw


def test_the_order_of_keys_is_irrelevant() -> None:
    raw = {
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu", "pin_memory": True}},
        "bf16": {"enabled": True},
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-4}},
        "trimtab": {"task": "causal-lm", "sequence_length": 64, "checkpoint_activations": True},
    }
    model = Model.from_hf(TINY["llama"], "tiny")
    other = shuffled(raw)
    assert isinstance(other, dict)
    assert list(other) != list(raw)
    assert profile(Config.from_mapping(other), model, 4) == profile(Config.from_mapping(raw), model, 4)


def test_the_first_step_is_not_the_measured_one() -> None:
    """Adam's states exist in forward and backward, as from the second step on."""
    found = run("llama", 1, stage=2)
    adam = 8 * found.parameters
    assert found.phase_peaks["forward"] > found.initialized + adam


def test_lora_trains_little_and_keeps_little() -> None:
    lora = {"r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]}
    full, adapted = run("llama", 2), run("llama", 2, lora=lora)
    assert adapted.trainable < full.trainable // 20
    assert adapted.peak_parts["optimizer states"] < full.peak_parts["optimizer states"] // 20
    assert adapted.peak < full.peak


def test_eager_attention_keeps_its_scores() -> None:
    fused, eager = (run("llama", 2, attention=kind, sequence_length=512) for kind in ("sdpa", "eager"))
    scores = 2 * 4 * 512 * 512 * 2
    assert eager.live["forward"] - fused.live["forward"] > 3 * scores


def test_recomputed_layers_hold_the_mask_of_eager_attention() -> None:
    fused, eager = (
        run("llama", 2, attention=kind, sequence_length=512, checkpoint_activations=True)
        for kind in ("sdpa", "eager")
    )
    assert eager.live["forward"] - fused.live["forward"] == 2 * 512 * 512 * 2


def test_a_micro_step_between_takes_most_where_only_the_last_reduces_as_gradients_come() -> None:
    zero = {"overlap_comm": True, "reduce_bucket_size": 10**7}
    two, three, four = (
        run("gpt2", 1, stage=1, zero=zero, accumulation=count, sequence_length=16).phase_peaks["backward"]
        for count in (2, 3, 4)
    )
    assert two < three == four


def test_fused_kernels_keep_less() -> None:
    plain, fused = (run("llama", 2, kernels=kind) for kind in ("plain", "fused"))
    assert fused.peak < plain.peak


def test_offload_moves_states_to_the_host() -> None:
    here = run("llama", 2, stage=3)
    there = run("llama", 2, stage=3, zero={"offload_optimizer": {"device": "cpu", "pin_memory": True}})
    assert there.peak_parts["optimizer states"] == 0 < here.peak_parts["optimizer states"]
    assert here.host_bytes == 0 < there.host_parts["optimizer states"]


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"optimizer": {"type": "Muon", "params": {"lr": 0.02}}}, "Muon"),
        ({"torch_autocast": {"enabled": True, "dtype": "bfloat16"}}, "torch_autocast"),
        ({"zero_optimization": {"stage": 3, "stage3_module_granularity_threshold": 1000}}, "leaf modules"),
        ({"zero_optimization": {"stage": 3, "leaf_module": {"names": ["mlp"]}}}, "leaf modules"),
        ({"managed_gradient_accumulation": False, "gradient_accumulation_steps": 2}, "does not manage"),
    ],
)
def test_what_is_not_counted_is_refused(config: dict[str, Any], named: str) -> None:
    given_config = Config.from_mapping({"train_micro_batch_size_per_gpu": 1, **config})
    with pytest.raises(Uncounted, match=named):
        profile(given_config, Model.from_hf(TINY["llama"], "tiny"), 2)


@pytest.mark.parametrize("model_type", ["falcon", "gptj", "gpt_neo", "bloom", "t5"])
def test_flash_attention_of_its_own_is_refused(model_type: str) -> None:
    shape = (
        {"num_layers": 2, "attention_types": [[["global", "local"], 1]]} if model_type == "gpt_neo" else {}
    )
    block = {"attention": "flash", "task": "seq2seq-lm" if model_type == "t5" else "causal-lm"}
    given_config = Config.from_mapping(
        {"train_micro_batch_size_per_gpu": 1, "bf16": {"enabled": True}, "trimtab": block}
    )
    with pytest.raises(UnknownArchitecture, match=f"flash attention of {model_type}"):
        profile(given_config, Model.from_hf({"model_type": model_type, **shape}, "tiny"), 2)


def test_flash_attention_is_for_narrow_types() -> None:
    with pytest.raises(Unsupported, match="bf16 or fp16"):
        run("llama", 2, attention="flash", precision={})


def test_spellings_of_a_type_are_one() -> None:
    wide, same = (
        run("llama", 2, precision={"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": name}})
        for name in ("fp32", "torch.float32")
    )
    assert wide == same
    with pytest.raises(RefusedConfig, match="grad_accum_dtype must be bf16, fp16, fp32"):
        run("llama", 2, precision={"data_types": {"grad_accum_dtype": "fp64"}})
