"""The closed form of a step's time: its parts, and what must never happen."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from trimtab import load_config
from trimtab.cluster import Cluster, find_gpu
from trimtab.config import Config
from trimtab.cost.memory import profile
from trimtab.cost.speed import Speed, step_speed
from trimtab.model import find_model


def config(stage: int = 2, micro: int = 4, accumulation: int = 1, **zero: Any) -> Config:
    return Config.from_mapping(
        {
            "train_micro_batch_size_per_gpu": micro,
            "gradient_accumulation_steps": accumulation,
            "bf16": {"enabled": True},
            "zero_optimization": {"stage": stage, **zero},
            "optimizer": {"type": "AdamW", "params": {"lr": 1e-4}},
            "trimtab": {"model": "llama-7b", "task": "causal-lm", "sequence_length": 2048},
        },
        name="case",
    )


def speed(given: Config, cluster: Cluster) -> Speed:
    return step_speed(given, profile(given, find_model("llama-7b"), cluster.world_size), cluster)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("accumulation", [1, 4])
def test_the_parts_sum_to_the_step(stage: int, accumulation: int) -> None:
    found = speed(config(stage, accumulation=accumulation), Cluster.of("h200", 8))
    assert sum(seconds for _, seconds in found.parts) == pytest.approx(found.step_seconds)
    named = found.compute_seconds + found.communication_seconds + found.offload_seconds + found.host_seconds
    assert named == pytest.approx(found.step_seconds)
    assert found.low_seconds < found.step_seconds < found.high_seconds


@pytest.mark.parametrize("name", ["gpt_neox_20b_zero3", "llama_13b_zero3_offload", "t5_xl_multi_node"])
def test_the_parts_of_an_offloaded_step_sum_too(name: str) -> None:
    given, cluster = load_config(name), Cluster.of("a100-80gb", 8, 4 if "multi" in name else 1)
    given = given.with_values({"train_batch_size": None})
    found = step_speed(given, profile(given, find_model(given.job.model or ""), cluster.world_size), cluster)
    assert sum(seconds for _, seconds in found.parts) == pytest.approx(found.step_seconds)
    assert found.offload_seconds > 0


@settings(max_examples=30, deadline=None)
@given(some.floats(1.0, 8.0), some.floats(1.0, 8.0), some.floats(1.0, 8.0), some.sampled_from([1, 2, 3]))
def test_better_hardware_is_never_slower(flops: float, memory: float, link: float, stage: int) -> None:
    card = find_gpu("a100-80gb")
    better = replace(
        card,
        flops={dtype: rate * flops for dtype, rate in card.flops.items()},
        memory_bytes_per_second=card.memory_bytes_per_second * memory,
        intra_link=replace(card.intra_link, bytes_per_second=card.intra_link.bytes_per_second * link),
    )
    slow, fast = (speed(config(stage), Cluster.of(one, 8)).step_seconds for one in (card, better))
    assert fast <= slow * (1 + 1e-9)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_faster_network_is_never_slower(stage: int) -> None:
    networks = ("ethernet-25g", "ethernet-100g", "infiniband-hdr", "infiniband-ndr")
    found = [
        speed(config(stage), Cluster.of("h100", 8, 4, inter_link=name, inter_ports=1)).step_seconds
        for name in networks
    ]
    assert found == sorted(found, reverse=True)


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_larger_micro_batches_never_train_fewer_tokens(stage: int) -> None:
    cluster = Cluster.of("h200", 8)
    rates = [
        found.tokens_per_step / found.step_seconds
        for found in (speed(config(stage, micro), cluster) for micro in (1, 2, 4, 8))
    ]
    assert rates == sorted(rates)


def test_recomputation_costs_time_and_no_model_operations() -> None:
    kept = speed(config(2), Cluster.of("h200", 8))
    again = speed(config(2).with_values({"trimtab.checkpoint_activations": True}), Cluster.of("h200", 8))
    assert again.step_seconds > kept.step_seconds * 1.15
    assert again.model_flops == kept.model_flops
    # six operations a weight and token, and attention's on top
    matrices = 6.6e9 * 6 * 4 * 2048
    assert matrices < kept.model_flops < matrices * 1.2


def test_each_recomputed_layer_costs_the_same_and_no_model_operations() -> None:
    found = [
        speed(config(stage).with_values({"trimtab.checkpoint_activations": layers}), Cluster.of("h200", 8))
        for stage in (2, 3)
        for layers in (0, 8, 16, 24, True)
    ]
    for stage in (found[:5], found[5:]):
        more = [after.compute_seconds - before.compute_seconds for before, after in pairwise(stage)]
        assert more == pytest.approx([more[0]] * 4, rel=1e-6)
        assert more[0] > 0
        assert {one.model_flops for one in stage} == {found[0].model_flops}
        assert [one.step_seconds for one in stage] == sorted(one.step_seconds for one in stage)


def test_overlap_hides_a_network_but_not_the_node() -> None:
    far = Cluster.of("h100", 8, 2, inter_link="ethernet-100g", inter_ports=1)
    apart, beside = (speed(config(2, overlap_comm=flag), far) for flag in (False, True))
    assert beside.communication_seconds < apart.communication_seconds
    near = Cluster.of("h100", 8)
    assert speed(config(2, overlap_comm=True), near).communication_seconds == pytest.approx(
        speed(config(2, overlap_comm=False), near).communication_seconds
    )


def test_quantized_weights_and_hpz_spare_the_network() -> None:
    far = Cluster.of("a100-80gb", 8, 4, inter_link="ethernet-100g", inter_ports=1)
    plain = speed(config(3), far).communication_seconds
    quantized = speed(config(3, zero_quantized_weights=True), far).communication_seconds
    near = speed(config(3, zero_hpz_partition_size=8), far).communication_seconds
    gradients = speed(config(3, zero_quantized_gradients=True), far).communication_seconds
    assert max(quantized, near, gradients) < plain
