"""The jobs whose memory `measure.py` measures: some picked by hand, some drawn at random."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

Case = dict[str, Any]
"""A JSON object: a case, a configuration, or a Hugging Face model configuration."""

BF16: Case = {"bf16": {"enabled": True}}
FP16: Case = {"fp16": {"enabled": True, "initial_scale_power": 8}}
CPU: Case = {"device": "cpu", "pin_memory": True}


def llama(hidden: int, inner: int, layers: int, heads: int, kv: int, words: int, **more: Any) -> Case:
    """LLaMA and those with its configuration's names."""
    return {
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "vocab_size": words,
        "max_position_embeddings": 16384,
        **more,
    }


def gpt2(width: int, layers: int, heads: int, words: int = 50257) -> Case:
    """GPT-2."""
    return {
        "model_type": "gpt2",
        "n_embd": width,
        "n_layer": layers,
        "n_head": heads,
        "vocab_size": words,
        "n_positions": 2048,
    }


def bert(hidden: int, inner: int, layers: int, heads: int, words: int = 30522, kind: str = "bert") -> Case:
    """BERT and its kin."""
    return {
        "model_type": kind,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "vocab_size": words,
        "max_position_embeddings": 514,
    }


def t5(width: int, inner: int, layers: int, heads: int, kv: int = 64, **more: Any) -> Case:
    """T5."""
    return {
        "model_type": "t5",
        "d_model": width,
        "d_ff": inner,
        "num_layers": layers,
        "num_heads": heads,
        "d_kv": kv,
        "vocab_size": 32128,
        "decoder_start_token_id": 0,
        "pad_token_id": 0,
        **more,
    }


MODELS: dict[str, Case] = {
    "llama-s": llama(1536, 4096, 12, 12, 4, 50000),
    "llama-m": llama(2560, 6912, 16, 20, 20, 32000),
    "llama-wide": llama(4096, 14336, 4, 32, 8, 128256),
    "llama-thin": llama(1024, 2816, 40, 16, 16, 8000),
    "mistral": {**llama(2048, 7168, 10, 16, 8, 32000), "model_type": "mistral", "sliding_window": None},
    "qwen2": {**llama(1536, 8960, 10, 12, 2, 151936, tie_word_embeddings=True), "model_type": "qwen2"},
    "qwen3": {**llama(1024, 3072, 12, 16, 8, 100000, head_dim=128), "model_type": "qwen3"},
    "gemma": {**llama(1536, 8192, 8, 8, 1, 64000, head_dim=192), "model_type": "gemma"},
    "phi": {**llama(1536, 6144, 12, 24, 24, 51200), "model_type": "phi"},
    "gpt2-s": gpt2(768, 8, 12),
    "gpt2-m": gpt2(1280, 20, 20),
    "gptj": {
        "model_type": "gptj",
        "n_embd": 1536,
        "n_layer": 8,
        "n_head": 12,
        "rotary_dim": 64,
        "vocab_size": 50400,
        "n_positions": 2048,
    },
    "neox": {
        "model_type": "gpt_neox",
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 10,
        "num_attention_heads": 16,
        "vocab_size": 50432,
        "max_position_embeddings": 4096,
    },
    "opt": {
        "model_type": "opt",
        "hidden_size": 1024,
        "ffn_dim": 4096,
        "num_hidden_layers": 10,
        "num_attention_heads": 16,
        "vocab_size": 50272,
        "max_position_embeddings": 2048,
        "word_embed_proj_dim": 1024,
    },
    "bert-b": bert(768, 3072, 12, 12),
    "bert-l": bert(1024, 4096, 18, 16),
    "roberta": bert(768, 3072, 8, 12, 50265, "roberta"),
    "t5-b": t5(768, 3072, 8, 12),
    "t5-g": t5(1024, 2816, 8, 16, feed_forward_proj="gated-gelu", tie_word_embeddings=False),
}


def case(
    name: str,
    model: str,
    world: int,
    zero: Case,
    *,
    precision: Case = BF16,
    task: str = "causal-lm",
    seq: int = 1024,
    mbs: int = 2,
    gas: int = 1,
    **more: Any,
) -> Case:
    """One case: a name, a model of `MODELS`, a world, and keys of the configuration and its block."""
    block: Case = {
        "task": task,
        "sequence_length": seq,
        "attention": more.pop("attention", "sdpa"),
        "checkpoint_activations": more.pop("ckpt", False),
    }
    for key in ("lora", "target_length"):
        if key in more:
            block[key] = more.pop(key)
    config = {
        "train_micro_batch_size_per_gpu": mbs,
        "gradient_accumulation_steps": gas,
        "zero_optimization": zero,
        **precision,
        "optimizer": more.pop("optimizer", {"type": "AdamW", "params": {"lr": 1e-5}}),
        **more,
        "trimtab": block,
    }
    return {"id": name, "hf": MODELS[model], "world": world, "config": config}


def chosen() -> Iterator[Case]:
    """Cases picked by hand: every wrapper, offload, precision and family at least once."""
    yield case("llama-s-z0-bf16", "llama-s", 1, {"stage": 0})
    yield case("llama-s-z0-bf16-w4", "llama-s", 4, {"stage": 0}, gas=2)
    yield case("llama-s-z0-fp16", "llama-s", 4, {"stage": 0}, precision=FP16)
    yield case("llama-s-z0-fp32", "llama-s", 2, {"stage": 0}, precision={})
    yield case("llama-s-z1-fp32", "llama-s", 4, {"stage": 1}, precision={})
    yield case("llama-s-z2-fp32-ckpt", "llama-s", 4, {"stage": 2}, precision={}, ckpt=True)
    yield case("llama-s-z3-fp32", "llama-s", 4, {"stage": 3}, precision={}, mbs=1)
    yield case("llama-s-z1-fp32accum", "llama-s", 4, {"stage": 1}, data_types={"grad_accum_dtype": "fp32"})
    yield case(
        "llama-s-z2-fp32accum", "llama-s", 4, {"stage": 2}, data_types={"grad_accum_dtype": "fp32"}, gas=2
    )
    yield case("llama-s-z3-fp32accum", "llama-s", 4, {"stage": 3}, data_types={"grad_accum_dtype": "fp32"})
    yield case("llama-s-z1-gas4", "llama-s", 8, {"stage": 1}, gas=4, mbs=1)
    yield case("llama-s-z1-overlap-gas2", "llama-s", 8, {"stage": 1, "overlap_comm": True}, gas=2, mbs=1)
    yield case("llama-m-z2-gas4", "llama-m", 4, {"stage": 2, "overlap_comm": True}, gas=4, mbs=1, ckpt=True)
    yield case("llama-m-z2-offload", "llama-m", 4, {"stage": 2, "offload_optimizer": CPU}, mbs=1)
    yield case("llama-m-z2-offload-gas2", "llama-m", 8, {"stage": 2, "offload_optimizer": CPU}, mbs=1, gas=2)
    yield case("llama-m-z1-offload", "llama-m", 8, {"stage": 1, "offload_optimizer": CPU}, mbs=1, ckpt=True)
    yield case("llama-m-z3-offload", "llama-m", 8, {"stage": 3, "offload_optimizer": CPU}, mbs=1, ckpt=True)
    yield case(
        "llama-m-z3-offload-gas2", "llama-m", 8, {"stage": 3, "offload_optimizer": CPU}, gas=2, ckpt=True
    )
    yield case(
        "llama-m-z3-both",
        "llama-m",
        8,
        {"stage": 3, "offload_optimizer": CPU, "offload_param": CPU},
        ckpt=True,
    )
    yield case("llama-m-z3-param", "llama-m", 8, {"stage": 3, "offload_param": CPU}, ckpt=True)
    yield case(
        "llama-m-z3-buckets",
        "llama-m",
        16,
        {
            "stage": 3,
            "reduce_bucket_size": 20_000_000,
            "stage3_prefetch_bucket_size": 5_000_000,
            "stage3_param_persistence_threshold": 10_000,
            "stage3_max_live_parameters": 100_000_000,
            "stage3_max_reuse_distance": 100_000_000,
        },
    )
    yield case("llama-m-z3-subgroup", "llama-m", 4, {"stage": 3, "sub_group_size": 50_000_000}, ckpt=True)
    yield case("llama-m-z3-hpz", "llama-m", 16, {"stage": 3, "zero_hpz_partition_size": 8}, ckpt=True)
    yield case("llama-wide-z2-ckpt", "llama-wide", 16, {"stage": 2}, ckpt=True, mbs=1)
    yield case("llama-wide-z3", "llama-wide", 32, {"stage": 3}, mbs=1)
    yield case(
        "llama-thin-z2-long-ckpt",
        "llama-thin",
        8,
        {"stage": 2, "reduce_bucket_size": 50_000_000},
        seq=8192,
        mbs=1,
        ckpt=True,
    )
    yield case(
        "llama-thin-z3-long-ckpt",
        "llama-thin",
        8,
        {"stage": 3, "reduce_bucket_size": 50_000_000},
        seq=12288,
        mbs=1,
        ckpt=True,
    )
    yield case(
        "llama-thin-z1-long", "llama-thin", 8, {"stage": 1, "reduce_bucket_size": 50_000_000}, seq=4096, mbs=1
    )
    yield case("llama-s-eager", "llama-s", 4, {"stage": 2}, attention="eager", mbs=2)
    yield case(
        "llama-s-eager-ckpt",
        "llama-s",
        4,
        {"stage": 2, "reduce_bucket_size": 10_000_000},
        attention="eager",
        mbs=2,
        ckpt=True,
    )
    lora = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.05, "target_modules": ["q_proj", "v_proj"]}
    wide = {
        "r": 8,
        "lora_alpha": 16,
        "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    }
    yield case("llama-m-lora-z0", "llama-m", 4, {"stage": 0}, lora=lora)
    yield case("llama-m-lora-z2", "llama-m", 4, {"stage": 2}, lora=lora)
    yield case("llama-m-lora-z2-ckpt-wide", "llama-m", 4, {"stage": 2}, lora=wide, ckpt=True, mbs=4)
    yield case("llama-m-lora-z3", "llama-m", 8, {"stage": 3}, lora=lora, mbs=1)
    yield case("llama-m-lora-z3-ckpt", "llama-m", 8, {"stage": 3}, lora=wide, ckpt=True, mbs=4)
    for name in ("mistral", "qwen2", "qwen3", "gemma", "phi", "neox", "opt"):
        yield case(f"{name}-z1", name, 4, {"stage": 1, "reduce_bucket_size": 50_000_000})
        yield case(f"{name}-z3-ckpt", name, 8, {"stage": 3, "reduce_bucket_size": 50_000_000}, ckpt=True)
    yield case("gptj-z2", "gptj", 4, {"stage": 2}, attention="eager", mbs=2)
    yield case("gptj-z2-ckpt", "gptj", 4, {"stage": 2}, attention="eager", mbs=2, ckpt=True)
    yield case("gpt2-s-z1-fp16", "gpt2-s", 4, {"stage": 1}, precision=FP16, mbs=8)
    yield case("gpt2-s-z2-tiny-vocabulary-bucket", "gpt2-s", 4, {"stage": 2, "reduce_bucket_size": 3_000_000})
    yield case("gpt2-m-z3", "gpt2-m", 4, {"stage": 3}, mbs=2)
    yield case("gpt2-m-z2-ckpt", "gpt2-m", 4, {"stage": 2}, mbs=4, ckpt=True)
    yield case("gpt2-m-z2-offload-fp16", "gpt2-m", 4, {"stage": 2, "offload_optimizer": CPU}, precision=FP16)
    for stage, world in ((0, 1), (1, 4), (2, 4), (3, 4)):
        yield case(
            f"bert-l-mlm-z{stage}", "bert-l", world, {"stage": stage}, task="masked-lm", seq=128, mbs=48
        )
    yield case(
        "bert-b-cls-z0-fp16",
        "bert-b",
        1,
        {"stage": 0},
        precision=FP16,
        seq=384,
        mbs=16,
        task="sequence-classification",
    )
    yield case("bert-b-token-z1", "bert-b", 2, {"stage": 1}, seq=256, mbs=16, task="token-classification")
    yield case(
        "bert-b-qa-z0-fp16",
        "bert-b",
        1,
        {"stage": 0},
        precision=FP16,
        seq=384,
        mbs=8,
        task="question-answering",
    )
    yield case("bert-l-mlm-z2-ckpt", "bert-l", 8, {"stage": 2}, task="masked-lm", seq=512, mbs=16, ckpt=True)
    yield case("roberta-mlm-z2", "roberta", 4, {"stage": 2}, task="masked-lm", seq=256, mbs=16)
    yield case(
        "bert-b-cls-eager",
        "bert-b",
        1,
        {"stage": 0},
        precision=FP16,
        seq=256,
        mbs=16,
        attention="eager",
        task="sequence-classification",
    )
    for name in ("t5-b", "t5-g"):
        yield case(f"{name}-z0", name, 1, {"stage": 0}, task="seq2seq-lm", seq=512, target_length=128, mbs=4)
        yield case(
            f"{name}-z2-ckpt",
            name,
            4,
            {"stage": 2},
            task="span-corruption",
            seq=512,
            target_length=114,
            mbs=8,
            ckpt=True,
        )
        yield case(
            f"{name}-z3-both-ckpt",
            name,
            8,
            {"stage": 3, "offload_optimizer": CPU, "offload_param": CPU},
            task="span-corruption",
            seq=512,
            target_length=114,
            mbs=2,
            ckpt=True,
        )
    yield case(
        "t5-b-z1-fp16",
        "t5-b",
        2,
        {"stage": 1},
        precision=FP16,
        task="seq2seq-lm",
        seq=256,
        target_length=64,
        mbs=8,
    )
    yield case(
        "t5-b-eager-z2",
        "t5-b",
        2,
        {"stage": 2},
        task="seq2seq-lm",
        seq=256,
        target_length=64,
        mbs=8,
        attention="eager",
    )
    yield case(
        "llama-s-sgd-z1",
        "llama-s",
        4,
        {"stage": 1},
        zero_allow_untested_optimizer=True,
        optimizer={"type": "SGD", "params": {"lr": 1e-3, "momentum": 0.9}},
    )
    yield case(
        "llama-s-lion-z2", "llama-s", 4, {"stage": 2}, optimizer={"type": "Lion", "params": {"lr": 1e-5}}
    )
    yield case(
        "llama-s-torch-adam-z2",
        "llama-s",
        4,
        {"stage": 2},
        optimizer={"type": "AdamW", "params": {"lr": 1e-5, "torch_adam": True}},
    )


def drawn(count: int, seed: int = 20261122) -> Iterator[Case]:
    """Cases drawn at random over models, stages, worlds, lengths, buckets and offload."""
    pick = random.Random(seed)
    causal = [name for name in MODELS if not name.startswith(("bert", "roberta", "t5", "gptj"))]
    for number in range(count):
        stage = pick.choice((1, 2, 2, 3, 3))
        zero: Case = {"stage": stage, "reduce_bucket_size": pick.choice((5, 20, 100, 500)) * 1_000_000}
        if pick.random() < 0.5:
            zero["overlap_comm"] = pick.random() < 0.7
        if pick.random() < 0.3:
            zero["offload_optimizer"] = CPU
        if stage == 3 and pick.random() < 0.5:
            zero["stage3_prefetch_bucket_size"] = pick.choice((0, 1, 10, 200)) * 1_000_000
            zero["stage3_max_reuse_distance"] = pick.choice((0, 50, 1000)) * 1_000_000
        yield case(
            f"drawn-{number:02d}",
            pick.choice(causal),
            pick.choice((2, 3, 4, 8, 16, 64)),
            zero,
            seq=pick.choice((256, 512, 1000, 2048)),
            mbs=pick.choice((1, 2, 3, 4)),
            gas=pick.choice((1, 1, 2, 3)),
            ckpt=pick.random() < 0.5,
            precision=pick.choice((BF16, BF16, FP16)),
        )
