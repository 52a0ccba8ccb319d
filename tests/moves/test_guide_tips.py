"""The guide's tips on memory, communication and trouble: each is a move, or refused with the reason."""

from __future__ import annotations

from typing import Any

import pytest

from trimtab import catalogue
from trimtab.cluster import Cluster
from trimtab.config import Config
from trimtab.model import find_model
from trimtab.moves import find

SEVEN = ("llama_7b_single_node", Cluster.of("a100-40gb", 8))
SEVENTY = ("llama_70b_multi_node", Cluster.of("a100-80gb", 8, 4, inter_link="ethernet-100g"))
BERT = ("bert_base_finetuning", Cluster.of("t4", 1))
LARGE = ("bert_large_pretraining", Cluster.of("a100-40gb", 8, 4))

# the tip, where it is taken, the moves, and what the file then says
TAKEN = {
    "high memory, high throughput": (SEVEN, ["micro-batch-8"], {
        "train_micro_batch_size_per_gpu": 8, "gradient_accumulation_steps": 2,
    }),
    "low memory, lower throughput": (SEVEN, ["micro-batch-1"], {
        "train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 16,
    }),
    "larger buckets for InfiniBand": (SEVENTY, ["reduce-bucket-200000000"], {
        "zero_optimization.reduce_bucket_size": 200_000_000,
    }),
    "smaller buckets for Ethernet": (SEVENTY, ["reduce-bucket-50000000"], {
        "zero_optimization.reduce_bucket_size": 50_000_000,
    }),
    "overlap of communication": (BERT, ["zero-stage-2", "overlap-comm-on"], {
        "zero_optimization.overlap_comm": True,
    }),
    "1-bit Adam, by what is there instead": (SEVENTY, ["quantized-weights-on", "quantized-gradients-on"], {
        "zero_optimization.zero_quantized_weights": True, "zero_optimization.zero_quantized_gradients": True,
    }),
    "activation checkpointing": (BERT, ["recomputation-on"], {"trimtab.checkpoint_activations": True}),
    "disable unnecessary offload": (SEVENTY, ["zero-stage-2"], {"zero_optimization.stage": 2}),
    "fp16 overflow: dynamic scaling": (LARGE, ["precision-fp16"], {"fp16.loss_scale": 0, "bf16": None}),
    "switch to bf16": (("gpt2_baseline", SEVEN[1]), ["precision-bf16"], {"bf16.enabled": True, "fp16": None}),
    "maximum memory efficiency": (
        SEVEN,
        ["zero-stage-3", "offload-optimizer-cpu", "offload-param-nvme"],
        {
            "zero_optimization.offload_optimizer.device": "cpu",
            "zero_optimization.offload_param.device": "nvme",
            "zero_optimization.offload_param.nvme_path": "/local_nvme",
            "trimtab.checkpoint_activations": True,
        },
    ),
    "maximum throughput": (SEVEN, ["micro-batch-16"], {
        "train_micro_batch_size_per_gpu": 16, "zero_optimization.stage": 2, "bf16.enabled": True,
    }),
    "LAMB for large batches": (LARGE, ["zero-stage-0", "optimizer-lamb"], {"optimizer.type": "Lamb"}),
}  # fmt: skip

# the tip, where it is tried, the move, and what its refusal must say
REFUSED = {
    "allgather buckets": (SEVEN, "allgather-bucket-200000000", "decides nothing"),
    "1-bit Adam": (SEVENTY, "one-bit-optimizer", "removed its 1-bit optimizers in 0.19.7"),
    "pipeline by configuration": (SEVENTY, "pipeline-4", "no PipelineModule"),
    "parameter offload below stage 3": (SEVEN, "offload-param-cpu", "only stage 3 offloads parameters"),
    "optimizer on NVMe below stage 3": (SEVEN, "offload-optimizer-nvme", "silently uses host memory"),
    "bf16 on a V100": (("gpt2_baseline", Cluster.of("v100-32gb", 4)), "precision-bf16", "no bf16 units"),
    "1-bit LAMB with ZeRO, as LAMB": (LARGE, "optimizer-lamb", "flat slices"),
    "QLoRA": (("llama_lora_finetune", SEVEN[1]), "qlora", "builds no 4-bit weights"),
    "micro batch 12 of 128": (BERT, "micro-batch-12", "does not split into micro batches of 12"),
}


def taken(config: Config, cluster: Cluster, names: list[str]) -> Config:
    model = find_model(config.job.model or "")
    for name in names:
        assert find(name).applies(config, model, cluster) is None
        config = find(name).apply(config, cluster)
    return config


@pytest.mark.parametrize("tip", TAKEN)
def test_a_tip_is_taken(tip: str) -> None:
    (name, cluster), moves, wanted = TAKEN[tip]
    after = taken(catalogue.load_config(name), cluster, moves)
    found: dict[str, Any] = {path: after.get(path) for path in wanted}
    assert found == wanted


@pytest.mark.parametrize("tip", REFUSED)
def test_a_tip_that_the_engine_refuses_says_why(tip: str) -> None:
    (name, cluster), move, said = REFUSED[tip]
    config = catalogue.load_config(name)
    reason = find(move).applies(config, find_model(config.job.model or ""), cluster)
    assert reason is not None
    assert said in reason
