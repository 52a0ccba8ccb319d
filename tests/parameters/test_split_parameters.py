"""What AutoTP leaves on a rank: shapes that DeepSpeed 0.19.8 printed for tiny models, and its refusals."""

from __future__ import annotations

from typing import Any

import pytest

from trimtab.config import Config
from trimtab.model import Model
from trimtab.parameters import parameters
from trimtab.parameters.tensor_parallel import portions, split_of, why_not

SIZES = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 8, "vocab_size": 320}
LLAMA = {"model_type": "llama", **SIZES, "num_key_value_heads": 4, "intermediate_size": 128}


def model(model_type: str = "llama", **more: Any) -> Model:
    return Model.from_hf({**LLAMA, "model_type": model_type, **more})


def config(size: int = 2, stage: int = 1, **more: Any) -> Config:
    return Config.from_mapping(
        {
            "train_micro_batch_size_per_gpu": 1,
            "zero_optimization": {"stage": stage},
            "tensor_parallel": {"autotp_size": size},
            "optimizer": {"type": "AdamW"},
            **more,
        }
    )


def test_llama_keeps_a_half_of_its_matrices() -> None:
    held = {one.name: one.shape for one in portions(model(attention_bias=True), "causal-lm", 2)}
    assert held["model.embed_tokens.weight"] == (320, 64)
    layer = "model.layers.0."
    assert held[layer + "self_attn.q_proj.weight"] == (32, 64)
    assert held[layer + "self_attn.q_proj.bias"] == (32,)
    assert held[layer + "self_attn.k_proj.weight"] == (16, 64)
    assert held[layer + "self_attn.o_proj.weight"] == (64, 32)
    assert held[layer + "self_attn.o_proj.bias"] == (64,)
    assert held[layer + "mlp.gate_proj.weight"] == (64, 64)
    assert held[layer + "mlp.down_proj.weight"] == (64, 64)
    assert held[layer + "input_layernorm.weight"] == (64,)
    assert held["lm_head.weight"] == (160, 64)


def test_a_tied_head_splits_its_embedding_and_an_odd_vocabulary_leaves_the_first_rank_more() -> None:
    tied = model(tie_word_embeddings=True, vocab_size=321)
    held = {one.name: one.shape for one in portions(tied, "causal-lm", 2)}
    assert held["model.embed_tokens.weight"] == (161, 64)
    assert split_of(tied, "causal-lm", 2).vocabulary_head
    gemma = model("gemma", tie_word_embeddings=True, head_dim=8)
    assert {one.name: one.shape for one in portions(gemma, "causal-lm", 2)}["model.embed_tokens.weight"] == (
        320, 64,
    )  # fmt: skip


@pytest.mark.parametrize("model_type", ["gpt_neox", "phi", "opt", "bert", "stablelm", "starcoder2"])
def test_every_matrix_of_a_layer_is_split_and_nothing_else_of_it(model_type: str) -> None:
    one = model(model_type, word_embed_proj_dim=64, ffn_dim=128, num_key_value_heads=8)
    task = "masked-lm" if model_type == "bert" else "causal-lm"
    split = split_of(one, task, 2)
    inside = [p for p in parameters(one, task) if any(part.isdigit() for part in p.module.split("."))]
    for parameter in inside:
        assert (parameter.module in split.styles) is ("norm" not in parameter.module.lower())
    styles = {split.styles.get(p.module) for p in inside}
    assert {"column", "row"} <= styles


@pytest.mark.parametrize(
    ("given", "settings", "said"),
    [
        (model("gpt_neox"), config(), None),
        (Model.from_hf({"model_type": "gpt2"}), config(), "GPT-2"),
        (model("phi3"), config(), "rowwise_split_input"),
        (model(), config(8), "does not divide"),
        (model(), config(stage=3), "stage 3"),
        (model(), config(trimtab={"lora": {"r": 8}}), "peft"),
        (model(), config(trimtab={"kernels": "fused"}), "Liger"),
        (model(), config(stage=0, bf16={"enabled": True}), None),
        (
            model(),
            config(stage=0, bf16={"enabled": True}, optimizer={"type": "SGD"}),
            "unfused_optimizer.py:214",
        ),
        (model(), config(stage=0, optimizer={"type": "SGD"}), None),
    ],
)
def test_why_not(given: Model, settings: Config, said: str | None) -> None:
    answer = why_not(settings, given)
    assert (answer is None) if said is None else (said in (answer or ""))
