"""Rules that need the model's shapes, against the real engine on phantom tensors."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from trimtab.check import check
from trimtab.errors import RefusedConfig
from trimtab.rehearse.phantom import rehearse_phantom
from trimtab.rehearse.request import PhantomRequest
from trimtab.settings import Settings

GPT2 = {"model_type": "gpt2", "n_embd": 128, "n_layer": 2, "n_head": 4, "vocab_size": 16384}
QUANTIZED = {"stage": 3, "zero_quantized_weights": True}

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(
        any(importlib.util.find_spec(name) is None for name in ("torch", "deepspeed", "transformers")),
        reason="needs trimtab[train]",
    ),
]


LLAMA = {
    "model_type": "llama", "hidden_size": 1024, "intermediate_size": 2048, "num_hidden_layers": 8,
    "num_attention_heads": 8, "num_key_value_heads": 8, "vocab_size": 4096, "tie_word_embeddings": False,
}  # fmt: skip


def nvme(buffer_size: int) -> dict[str, Any]:
    block = {"device": "nvme", "nvme_path": "/local_nvme", "buffer_size": buffer_size, "buffer_count": 20}
    return {"stage": 3, "offload_param": block}


def refused(config: dict[str, Any], hf: dict[str, Any], gpus: int) -> str | None:
    """What the engine says as it refuses; None where it trains."""
    asked = PhantomRequest(
        deepspeed=config, hf=hf, micro_batch=1, sequence_length=64, world_size=gpus, ranks_per_node=4
    )
    try:
        rehearse_phantom(asked, use_cache=False)
    except RefusedConfig as error:
        return str(error)
    return None


@pytest.mark.parametrize(
    ("zero", "nodes", "code", "words"),
    [
        (QUANTIZED, 4, "ZR017", None),
        (QUANTIZED, 8, "ZR017", "1548 cannot be divided by 8"),  # (128 * 384 + 384) / 32
        (QUANTIZED | {"zero_hpz_partition_size": 4}, 8, "ZR017", None),
        (nvme(524_288), 1, "OF015", None),  # 16384 * 128 / 4
        (nvme(524_287), 1, "OF015", "More elements 524288 than buffer size 524287"),
        (nvme(262_143), 2, "OF015", None),  # half a mebibyte, which stays in memory
    ],
)
def test_the_engine_refuses_what_the_rule_finds(
    zero: dict[str, Any], nodes: int, code: str, words: str | None, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(GPT2), encoding="utf-8")
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "bf16": {"enabled": True},
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-4}},
        "zero_optimization": zero,
    }
    report = check(
        config, model=str(tmp_path / "config.json"), gpus_per_node=4, nodes=nodes, settings=Settings()
    )
    said = refused(config, GPT2, 4 * nodes)
    if words is None:
        assert said is None
    else:
        assert said is not None
        assert words in said
    errors = {finding.code for finding in report.at_least("error")}
    assert errors == ({code} if words else set())


@pytest.mark.parametrize(
    ("reuse", "count", "needed"),
    [
        (60_000_000, 18, None),  # the head and two layers of seven, two more, and the one in use
        (60_000_000, 17, 18),
        (0, 1, None),
    ],
)
def test_weights_on_nvme_that_are_kept_for_the_backward_pass_need_buffers(
    reuse: int, count: int, needed: int | None, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA), encoding="utf-8")
    zero = nvme(8_388_608)
    zero["offload_param"] |= {"buffer_count": count, "max_in_cpu": 0}
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "bf16": {"enabled": True},
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-4}},
        "zero_optimization": zero | {"stage3_max_reuse_distance": reuse, "stage3_prefetch_bucket_size": 0},
    }
    report = check(config, model=str(tmp_path / "config.json"), gpus_per_node=1, nodes=1, settings=Settings())
    said = refused(config, LLAMA, 1)
    assert (said is None) == (needed is None)
    found = [finding.message for finding in report.at_least("error")]
    if needed is None:
        assert found == []
    else:
        assert "Not enough buffers" in str(said)
        assert [f"at least {needed} shares" in message for message in found] == [True]
