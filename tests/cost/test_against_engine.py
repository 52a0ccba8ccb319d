"""Every architecture and task is counted, and what odd jobs take is what the real engine allocates."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import pytest

from sources import ROOT
from trimtab.config import Config
from trimtab.cost.memory import Profile, profile
from trimtab.errors import RefusedConfig, UnknownArchitecture, UsageError
from trimtab.hf_config import known_model_types
from trimtab.model import Model
from trimtab.parameters import tasks_of

WORLD = 3
TOLERANCE = 0.005
"""Positions and the like, which nobody counts, show in models as small as these."""
SMALL: dict[str, Any] = {
    "hidden_size": 256,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 512,
    "vocab_size": 1000,
    "max_position_embeddings": 600,
}
WIDE = {**SMALL, "hidden_size": 512, "intermediate_size": 2048, "vocab_size": 300}
WINDOW = {**SMALL, "sliding_window": 100}
DISK = {"device": "nvme", "nvme_path": "nvme"}
AWAY = {"device": "cpu", "pin_memory": False}
SOON_GONE: dict[str, Any] = {
    "stage3_max_reuse_distance": 0,
    "stage3_param_persistence_threshold": 0,
    "stage3_prefetch_bucket_size": 0,
}
SENT_WHOLE = {"wire": "fp32", "zero": {"reduce_scatter": False, "reduce_bucket_size": 10**6}}
OLDER: dict[str, Any] = {"hidden_size": 256, "num_attention_heads": 4, "vocab_size": 1000}
ENCODER = {key: value for key, value in SMALL.items() if key != "num_key_value_heads"}
T5: dict[str, Any] = {"d_model": 256, "d_ff": 512, "num_layers": 2, "num_heads": 4, "vocab_size": 1000}
SHAPES: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 256, "n_layer": 2, "n_head": 4, "vocab_size": 1000},
    "gptj": {"n_embd": 256, "n_layer": 2, "n_head": 4, "vocab_size": 1000, "rotary_dim": 32},
    "gpt_neo": {"hidden_size": 256, "num_layers": 2, "num_heads": 4, "vocab_size": 1000,
                "attention_types": [[["global", "local"], 1]]},
    "bloom": {**OLDER, "num_hidden_layers": 3},
    "falcon": {**OLDER, "num_hidden_layers": 3},
    "distilbert": {"dim": 256, "hidden_dim": 512, "n_layers": 2, "n_heads": 4, "vocab_size": 1000},
    "phi3": {**SMALL, "pad_token_id": 0},
    "smollm3": {**SMALL, "pad_token_id": 0},
    "t5": T5,
    "mt5": T5,
    **dict.fromkeys(("opt", "gpt_neox", "bert", "roberta", "xlm-roberta", "camembert", "electra"), ENCODER),
}  # fmt: skip
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "bloom": ({"model_type": "bloom", **SHAPES["bloom"], "hidden_dropout": 0.1}, {}),
    "bloom recomputed": (
        {"model_type": "bloom", **SHAPES["bloom"], "apply_residual_connection_post_layernorm": True},
        {"stage": 3, "checkpoint_activations": True},
    ),
    "falcon, one key head": ({"model_type": "falcon", **SHAPES["falcon"]}, {}),
    "falcon, grouped key heads": (
        {"model_type": "falcon", **SHAPES["falcon"], "new_decoder_architecture": True, "num_kv_heads": 2},
        {"stage": 3, "checkpoint_activations": True},
    ),
    "falcon with alibi": (
        {"model_type": "falcon", **SHAPES["falcon"], "alibi": True, "multi_query": False,
         "parallel_attn": False, "bias": True},
        {"stage": 3, "checkpoint_activations": True},
    ),
    "falcon, eager": ({"model_type": "falcon", **SHAPES["falcon"]}, {"attention": "eager"}),
    "falcon with alibi, eager": (
        {"model_type": "falcon", **SHAPES["falcon"], "alibi": True, "multi_query": False,
         "parallel_attn": False, "bias": True},
        {"attention": "eager"},
    ),
    "falcon with alibi, rows that are not aligned": (
        {"model_type": "falcon", **SHAPES["falcon"], "alibi": True, "multi_query": False,
         "parallel_attn": False, "bias": True},
        {"sequence_length": 509},
    ),
    "a decoder's look at rows that are not aligned": (
        {"model_type": "t5", **T5},
        {"task": "seq2seq-lm", "sequence_length": 509, "target_length": 250},
    ),
    "an adapter that is fetched with the layer around it": (
        {"model_type": "llama", **WIDE, "vocab_size": 18_000, "num_hidden_layers": 2},
        {"stage": 3, "sequence_length": 16, "lora": {"r": 8, "target_modules": ["down_proj"]},
         "zero": {"stage3_param_persistence_threshold": 10_000, "stage3_prefetch_bucket_size": 900_000}},
    ),
    "a copy of the head that trains beside the adapters": (
        {"model_type": "llama", **SMALL, "vocab_size": 8000},
        {"lora": {"r": 8, "target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}},
    ),
    "lora on all linear layers": (
        {"model_type": "gpt2", **SHAPES["gpt2"]},
        {"lora": {"r": 8, "target_modules": "all-linear"}},
    ),
    "gemma 3": ({"model_type": "gemma3_text", **WINDOW, "head_dim": 64, "sliding_window_pattern": 3}, {}),
    "gemma 2, softcapped": ({"model_type": "gemma2", **WINDOW, "head_dim": 64}, {"attention": "eager"}),
    "gemma 2": ({"model_type": "gemma2", **WINDOW, "head_dim": 64}, {"checkpoint_activations": True}),
    "a window on shared keys": ({"model_type": "mistral", **WINDOW}, {}),
    "a window in fp32": ({"model_type": "starcoder2", **WINDOW}, {"precision": "fp32"}),
    "a window on some layers": (
        {"model_type": "qwen2", **WINDOW, "use_sliding_window": True, "max_window_layers": 2},
        {"stage": 3, "checkpoint_activations": 3},
    ),
    "no window that narrows": ({"model_type": "mistral", **SMALL, "sliding_window": 513}, {}),
    "phi 3, eager and recomputed": (
        {"model_type": "phi3", **SHAPES["phi3"], "sliding_window": None},
        {"stage": 3, "attention": "eager", "checkpoint_activations": True},
    ),
    "a window on queries that lie head by head": (
        {"model_type": "phi3", **SHAPES["phi3"], "sliding_window": 100},
        {},
    ),
    "phi with norms": ({"model_type": "phi", **SMALL, "qk_layernorm": True}, {}),
    "stablelm with norms": (
        {"model_type": "stablelm", **SMALL, "qk_layernorm": True, "use_parallel_residual": True},
        {"stage": 3},
    ),
    "olmo, clipped": ({"model_type": "olmo", **SMALL, "clip_qkv": 8.0}, {}),
    "olmo 2": ({"model_type": "olmo2", **SMALL}, {}),
    "olmo 3": ({"model_type": "olmo3", **WINDOW}, {}),
    "gelu written out": ({"model_type": "gpt_neox", **ENCODER, "hidden_act": "gelu_fast"}, {}),
    "a head tied before its embedding": ({"model_type": "xlm-roberta", **ENCODER}, {"task": "masked-lm"}),
    "an encoder that predicts the next word": ({"model_type": "bert", **ENCODER}, {"task": "causal-lm"}),
    "lora keeps the head": (
        {"model_type": "roberta", **ENCODER},
        {"task": "sequence-classification", "lora": {"r": 8, "target_modules": ["query"]}},
    ),
    "an encoder alone": ({"model_type": "t5", **T5}, {"task": "token-classification"}),
    "an answer's place": ({"model_type": "t5", **T5}, {"task": "question-answering"}),
    "a classifier of tokens": ({"model_type": "llama", **SMALL}, {"task": "token-classification"}),
    "states on a disk": (
        {"model_type": "llama", **SMALL, "hidden_size": 1024, "intermediate_size": 2048},
        {"stage": 3, "zero": {"offload_optimizer": DISK}},
    ),
    "pinned unless said otherwise": (
        {"model_type": "llama", **SMALL},
        {"zero": {"offload_optimizer": {"device": "cpu"}}},
    ),
    "gradients sent in fp32": ({"model_type": "llama", **SMALL}, {"wire": "fp32"}),
    "gradients sent in fp32, sharded": ({"model_type": "llama", **SMALL}, {"stage": 3, "wire": "fp32"}),
    "Lion in one wrapper": ({"model_type": "llama", **SMALL}, {"stage": 0, "optimizer": "Lion"}),
    "Adagrad keeps two sums": ({"model_type": "llama", **SMALL}, {"optimizer": "Adagrad"}),
    "granite": (
        {"model_type": "granite", **SMALL, "residual_multiplier": 0.2},
        {"stage": 3, "checkpoint_activations": True},
    ),
    "smollm 3, every fourth layer without positions": (
        {"model_type": "smollm3", **SMALL, "pad_token_id": 0},
        {"stage": 3, "checkpoint_activations": 3},
    ),
    "weights gathered in int8": (
        {"model_type": "llama", **SMALL, "hidden_size": 384, "intermediate_size": 768},
        {"stage": 3, "zero": {"zero_quantized_weights": True}},
    ),
    "every parameter gathered by itself": (
        {"model_type": "llama", **SMALL},
        {"stage": 3, "zero": {"stage3_allgather_sequential": True}},
    ),
    "parameters fetched by a sum": (
        {"model_type": "llama", **SMALL},
        {"stage": 3, "zero": {"stage3_use_all_reduce_for_fetch_params": True}},
    ),
    "copies within the whole world": (
        {"model_type": "llama", **SMALL},
        {"stage": 3, "zero": {"zero_hpz_partition_size": WORLD}},
    ),
    "torch's linear at stage 3": (
        {"model_type": "starcoder2", **SMALL},
        {"stage": 3, "zero": {"memory_efficient_linear": False}},
    ),
    "no bucket at stage 3": (
        {"model_type": "llama", **SMALL},
        {"stage": 3, "wire": "fp32", "zero": {"contiguous_gradients": False}},
    ),
    "a bucket sent whole at stage 3": (
        {"model_type": "llama", **SMALL},
        {"stage": 3, "wire": "fp16", "zero": {"reduce_scatter": False, "reduce_bucket_size": 10**6}},
    ),
    "half of the optimizer away": (
        {"model_type": "llama", **SMALL},
        {"stage": 3, "zero": {"offload_optimizer": {**AWAY, "ratio": 0.5}, "sub_group_size": 10**5}},
    ),
    "no bucket at stage 2": (
        {"model_type": "llama", **SMALL},
        {"wire": "fp16", "zero": {"contiguous_gradients": False, "overlap_comm": True}},
    ),
    "a bucket sent whole": ({"model_type": "bert", **ENCODER}, {"task": "masked-lm", **SENT_WHOLE}),
    "parameters dealt out, ranks reduced one by one": (
        {"model_type": "llama", **SMALL},
        {"zero": {"round_robin_gradients": True, "use_multi_rank_bucket_allreduce": False}},
    ),
    "masters and states in bf16": (
        {"model_type": "llama", **SMALL},
        {"half": {"bf16_master_weights_and_grads": True, "bf16_optimizer_states": True}},
    ),
    "masters in bf16, away": (
        {"model_type": "llama", **SMALL},
        {
            "stage": 3,
            "zero": {"offload_optimizer": AWAY},
            "half": {"bf16_master_weights_and_grads": True},
        },
    ),
    "torch's Adam": ({"model_type": "llama", **SMALL}, {"params": {"torch_adam": True}}),
    "frozen keys": (
        {"model_type": "qwen2", **SMALL},
        {"lora": {"r": 8, "target_modules": ["q_proj"]}, "precision": "fp32"},
    ),
    "an encoder's hooks": (
        {"model_type": "electra", **ENCODER, "hidden_act": "relu"},
        {"task": "sequence-classification", "stage": 3, "checkpoint_activations": True},
    ),
    "a relu in the words' head": (
        {"model_type": "bert", **ENCODER, "hidden_act": "relu"},
        {"task": "masked-lm"},
    ),
    "an answer's dropout": (
        {"model_type": "distilbert", **SHAPES["distilbert"]}, {"task": "question-answering"}
    ),
    "a causal model that answers": ({"model_type": "llama", **SMALL}, {"task": "question-answering"}),
    "norms without weights": (
        {"model_type": "opt", **ENCODER, "layer_norm_elementwise_affine": False, "enable_bias": False}, {}
    ),
    "transposes that keep what was gathered": (
        {"model_type": "falcon", **SHAPES["falcon"], "vocab_size": 300},
        {"stage": 3, "zero": SOON_GONE},
    ),
    "torch's linear keeps what was gathered": (
        {"model_type": "starcoder2", **SMALL},
        {"stage": 3, "zero": {**SOON_GONE, "memory_efficient_linear": False}},
    ),
    "recomputation keeps what was gathered and trains": (
        {"model_type": "llama", **WIDE},
        {"stage": 3, "checkpoint_activations": True, "sequence_length": 16, "zero": SOON_GONE},
    ),
    "what is frozen stays for whoever had it recomputed": (
        {"model_type": "llama", **WIDE},
        {"stage": 3, "checkpoint_activations": True, "sequence_length": 16, "zero": SOON_GONE,
         "lora": {"r": 8, "target_modules": ["q_proj", "v_proj"]}},
    ),
    "a layer had it recomputed for its own dropout": (
        {"model_type": "opt", **ENCODER},
        {"stage": 3, "checkpoint_activations": True, "zero": SOON_GONE,
         "lora": {"r": 8, "target_modules": ["q_proj", "v_proj"]}},
    ),
    "one parameter at a time is prefetched": (
        {"model_type": "llama", **SMALL, "vocab_size": 8000},
        {"stage": 3, "zero": {**SOON_GONE, "stage3_allgather_sequential": True}},
    ),
    "parameters sent from the host": (
        {"model_type": "llama", **WIDE},
        {"stage": 3, "checkpoint_activations": True, "sequence_length": 16,
         "zero": {**SOON_GONE, "offload_param": AWAY, "offload_optimizer": AWAY},
         "lora": {"r": 8, "target_modules": ["q_proj", "v_proj"]}},
    ),
    "a bucket is scaled in a copy": (
        {"model_type": "llama", **WIDE},
        {"stage": 3, "sequence_length": 16, "gradients": "fp32",
         "zero": {**SOON_GONE, "reduce_scatter": False, "reduce_bucket_size": 4 * 10**6}},
    ),
    "heads too odd for flash": ({"model_type": "llama", **SMALL, "head_dim": 60}, {}),
    "Adafactor of matrices": (
        {"model_type": "llama", **SMALL, "vocab_size": 8000}, {"stage": 0, "optimizer": "Adafactor"}
    ),
    "Adafactor of matrices in fp32": (
        {"model_type": "llama", **SMALL, "vocab_size": 8000},
        {"stage": 0, "optimizer": "Adafactor", "precision": "fp32"},
    ),
}  # fmt: skip

SCRIPT = """
import json, sys
from trimtab.config import Config
from trimtab.rehearse.request import PhantomRequest
from trimtab.rehearse.series import rehearse_forked

world, cases = json.load(sys.stdin)
for name, hf, raw in cases:
    request = PhantomRequest.of_config(Config.from_mapping(raw), hf, world_size=world, record="none")
    answer = rehearse_forked(request, timeout_seconds=300)
    kept = answer.moment("after_forward").allocated_bytes
    host = answer.host_peak_bytes
    print("ANSWER", json.dumps([name, answer.parameters, answer.step_peak_bytes, kept, host]), flush=True)
"""


def raw(
    task: str = "causal-lm",
    stage: int = 2,
    precision: str = "bf16",
    zero: Mapping[str, Any] = MappingProxyType({}),
    optimizer: str = "AdamW",
    wire: str | None = None,
    half: Mapping[str, Any] = MappingProxyType({}),
    params: Mapping[str, Any] = MappingProxyType({}),
    gradients: str | None = None,
    **block: Any,
) -> dict[str, Any]:
    found: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 2,
        "zero_optimization": {"stage": stage, "reduce_bucket_size": 100_000, **zero},
        "optimizer": {"type": optimizer, "params": {"lr": 1e-4, **params}},
        "communication_data_type": wire,
        "data_types": {"grad_accum_dtype": gradients},
        "trimtab": {"task": task, "sequence_length": 512, **block},
    }
    return found if precision == "fp32" else {**found, precision: {"enabled": True, **half}}


def counted(hf: dict[str, Any], **job: Any) -> Profile:
    return profile(Config.from_mapping(raw(**job)), Model.from_hf(hf), WORLD)


@pytest.mark.parametrize("model_type", known_model_types())
def test_every_task_is_counted(model_type: str) -> None:
    hf = {"model_type": model_type, **SHAPES.get(model_type, SMALL)}
    for task in tasks_of(Model.from_hf(hf)):
        if (model_type in ("t5", "mt5")) and task == "sequence-classification":
            with pytest.raises(UnknownArchitecture, match="before a run"):
                counted(hf, task=task)
            continue
        kept = counted(hf, task=task)
        again = counted(hf, task=task, stage=3, attention="eager", checkpoint_activations=True)
        assert kept.parameters == again.parameters
        assert 0 < again.built < kept.built
        assert 0 < kept.live["backward"] < kept.live["forward"] < kept.peak


@pytest.mark.parametrize("model_type", ["bert", "t5"])
def test_an_answer_has_two_labels(model_type: str) -> None:
    hf = {"model_type": model_type, **SHAPES[model_type], "num_labels": 3}
    with pytest.raises(UsageError, match="an answer has 2 labels"):
        counted(hf, task="question-answering")


def test_no_figure_stands_for_a_first_step_that_fails() -> None:
    with pytest.raises(RefusedConfig, match=r"at stage 0: .* Set zero_optimization\.stage to 1"):
        counted({"model_type": "llama", **SMALL}, stage=0, zero={"offload_optimizer": AWAY})


def test_a_window_shows_where_it_is_no_wider_than_the_sequence() -> None:
    masked, whole = (
        counted({"model_type": "mistral", **SMALL, "sliding_window": window}) for window in (512, 513)
    )
    pairs, repeated = 2 * 512 * 512, 2 * (2 * 512 * 128)
    layers = SMALL["num_hidden_layers"]
    grown = masked.live["forward"] - whole.live["forward"]
    assert grown >= layers * 2 * pairs  # a mask of numbers a layer, beside the keys that heads share
    assert grown == pytest.approx(layers * 2 * (pairs + repeated), rel=0.02)


@pytest.mark.engine
@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("torch", "deepspeed", "transformers", "peft")),
    reason="needs trimtab[train]",
)
def test_the_engine_allocates_what_is_counted() -> None:
    asked = [(name, hf, raw(**job)) for name, (hf, job) in CASES.items()]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT],
        input=json.dumps([WORLD, asked]),
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [line.removeprefix("ANSWER ") for line in done.stdout.splitlines() if line.startswith("ANSWER ")]
    answers = {name: found for name, *found in map(json.loads, lines)}
    assert set(answers) == set(CASES), done.stderr[-2000:]
    for name, (hf, job) in CASES.items():
        parameters, peak, kept, host = answers[name]
        found = counted(hf, **job)
        assert found.parameters == parameters, name
        assert found.peak == pytest.approx(peak, rel=TOLERANCE), name
        assert found.live["forward"] == pytest.approx(kept, rel=TOLERANCE), name
        if "offload_optimizer" in job.get("zero", {}):
            assert found.host_bytes == pytest.approx(host, rel=TOLERANCE, abs=1000), name
