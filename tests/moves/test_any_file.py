"""Moves on files as people write them: old forms, aliases, half-stated batches, odd combinations."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from test_moves import holds, model_of

from trimtab.check import check
from trimtab.cluster import Cluster
from trimtab.config import Config
from trimtab.errors import TrimtabError
from trimtab.moves import all_moves

CLUSTERS = (
    Cluster.of("a100-80gb", 8),
    Cluster.of("v100-32gb", 4),
    Cluster.of("h100-80gb", 8, 2),
    Cluster.of("rtx4090", 1),
)
switch = st.sampled_from([True, False])
device = st.sampled_from(["cpu", "nvme", "none"])
offload = st.fixed_dictionaries(
    {"device": device, "nvme_path": st.just("/nvme")},
    optional={"pin_memory": switch, "buffer_count": st.just(4), "ratio": st.sampled_from([1.0, 0.5])},
)
zero = st.one_of(
    st.just(True),
    st.fixed_dictionaries(
        {"stage": st.sampled_from([0, 1, 2, 3, 3])},
        optional={
            "overlap_comm": switch,
            "contiguous_gradients": switch,
            "reduce_scatter": switch,
            "reduce_bucket_size": st.sampled_from([500_000_000, 200_000_000, 2e8]),
            "allgather_bucket_size": st.just(200_000_000),
            "offload_optimizer": offload,
            "offload_param": st.fixed_dictionaries({"device": device, "nvme_path": st.just("/nvme")}),
            "prefetch_bucket_size": st.just(10_000_000),
            "stage3_max_live_parameters": st.just(10**8),
            "sub_group_size": st.just(10**8),
            "round_robin_gradients": switch,
            "zero_hpz_partition_size": st.sampled_from([1, 4, 8]),
            "zero_quantized_weights": switch,
            "zero_quantized_gradients": switch,
            "zenflow": st.just({"topk_ratio": 0.1}),
        },
    ),
)
optimizer = st.fixed_dictionaries(
    {"type": st.sampled_from(["AdamW", "Adam", "adamw", "Lion", "Lamb", "Muon", "SGD", "Adagrad"])},
    optional={
        "params": st.fixed_dictionaries(
            {"lr": st.just(1e-4)}, optional={"weight_decay": st.just(0.1), "torch_adam": switch}
        )
    },
)
precision = st.sampled_from(
    [
        {"bf16": {"enabled": True}},
        {"bfloat16": {"enabled": True}},
        {"fp16": {"enabled": True}},
        {"fp16": {"enabled": True, "loss_scale": 128}},
        {"bf16": {"enabled": True}, "fp16": {"enabled": False}},
        {"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}},
        {"bf16": {"enabled": True, "bf16_master_weights_and_grads": True, "bf16_optimizer_states": True}},
        {},
    ]
)
batch = st.sampled_from(
    [
        {"train_batch_size": 64},
        {"train_batch_size": 64, "train_micro_batch_size_per_gpu": 2},
        {"train_batch_size": 64, "train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": "auto"},
        {"train_micro_batch_size_per_gpu": 4},
        {"train_micro_batch_size_per_gpu": 4, "gradient_accumulation_steps": 8},
    ]
)
top = st.fixed_dictionaries(
    {},
    optional={
        "gradient_allreduce_op": st.sampled_from(["mean", "sum"]),
        "prescale_gradients": switch,
        "managed_gradient_accumulation": switch,
        "zero_allow_untested_optimizer": st.just(True),
        "torch_autocast": st.just({"enabled": True, "dtype": "bfloat16"}),
    },
)
block = st.fixed_dictionaries(
    {"model": st.sampled_from(["gpt2", "llama-7b", "t5-small", "gpt-j-6b"])},
    optional={
        "checkpoint_activations": st.sampled_from([False, True, 0, 1, 6]),
        "attention": st.sampled_from(["sdpa", "eager"]),
        "lora": st.just({"r": 8}),
    },
)


@st.composite
def files(draw: st.DrawFn) -> dict[str, Any]:
    raw = {**draw(batch), **draw(precision), **draw(top), "trimtab": draw(block)}
    if raw["trimtab"]["model"] == "t5-small":
        raw["trimtab"]["task"] = "span-corruption"
        raw["trimtab"].pop("lora", None)
    raw["zero_optimization"] = draw(zero)
    if draw(st.sampled_from([True, True, False])):
        raw["optimizer"] = draw(optimizer)
    return raw


def file(zero: Any, **more: Any) -> dict[str, Any]:
    base = {"train_batch_size": 64, "bf16": {"enabled": True}, "optimizer": {"type": "AdamW"}}
    return {**base, "trimtab": {"model": "gpt2"}, "zero_optimization": zero, **more}


@example(raw=file({"stage": 0, "zenflow": {"topk_ratio": 0.1}}), cluster=CLUSTERS[0])
@example(raw=file({"stage": 0, "reduce_scatter": False}, prescale_gradients=True), cluster=CLUSTERS[0])
@example(
    raw=file({"stage": 1, "offload_optimizer": {"device": "nvme", "nvme_path": "/nvme"}}), cluster=CLUSTERS[0]
)
@example(
    raw=file({"stage": 1, "offload_optimizer": {"device": "cpu"}}, data_types={"grad_accum_dtype": "fp32"}),
    cluster=CLUSTERS[1],
)
@example(
    raw=file(
        True,
        bf16={"enabled": True, "bf16_master_weights_and_grads": True, "bf16_optimizer_states": True},
        optimizer={"type": "Muon"},
    ),
    cluster=CLUSTERS[0],
)
@given(raw=files(), cluster=st.sampled_from(CLUSTERS))
@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
def test_no_move_breaks_a_file_that_works(raw: dict[str, Any], cluster: Cluster) -> None:
    world = {"gpus_per_node": cluster.gpus_per_node, "nodes": cluster.nodes, "gpu": cluster.gpu.name}
    found = check(raw, deepspeed="0.19.8", ignore=["AD"], **world)  # type: ignore[arg-type]
    assume(not found.at_least("error"))
    config = Config.from_mapping(raw)
    model = model_of(config)
    try:
        config.batch(cluster.world_size)
    except TrimtabError:
        assume(False)
    for move in all_moves(config, model, cluster):
        if move.applies(config, model, cluster) is None:
            holds(move, config, cluster)
