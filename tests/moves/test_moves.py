"""Every move on every ready configuration: pure, global batch kept, the same twice, no new findings."""

from __future__ import annotations

import copy
import json
from functools import cache

import pytest

from trimtab import catalogue
from trimtab.check import check
from trimtab.cluster import Cluster
from trimtab.config import Config
from trimtab.errors import NotFound, RefusedConfig
from trimtab.model import Model, find_model
from trimtab.moves import (
    ALREADY,
    MOVES,
    Move,
    all_moves,
    differences,
    find,
    options,
    quantized_weights,
    recomputation,
    zero_stage,
)
from trimtab.moves.move import spelled
from trimtab.moves.writing import global_batch

CLUSTERS = {
    "8x a100-80gb": Cluster.of("a100-80gb", 8),
    "8x v100-32gb": Cluster.of("v100-32gb", 8),
    "1x rtx4090": Cluster.of("rtx4090", 1),
    "4x8 h100, ethernet": Cluster.of("h100-80gb", 8, 4, inter_link="ethernet-100g"),
    "2x4 mi300x": Cluster.of("mi300x", 4, 2),
}


def home(name: str) -> Cluster:
    hardware = catalogue.card(name).hardware
    return Cluster.of(
        hardware.gpu, hardware.gpus_per_node, hardware.nodes, inter_link=hardware.inter_node_link
    )


def model_of(config: Config) -> Model:
    assert config.job.model
    return find_model(config.job.model)


@cache
def worst(text: str, gpu: str, gpus_per_node: int, nodes: int) -> frozenset[str]:
    found = check(
        json.loads(text), gpu=gpu, gpus_per_node=gpus_per_node, nodes=nodes, deepspeed="0.19.8", ignore=["AD"]
    )  # AD weighs the memory, which test_adapt does
    return frozenset(finding.code for finding in found.at_least("warning"))


def findings(config: Config, cluster: Cluster) -> frozenset[str]:
    text = json.dumps(config.raw, sort_keys=True)
    return worst(text, cluster.gpu.name, cluster.gpus_per_node, cluster.nodes)


def fitted(config: Config, cluster: Cluster) -> Config | None:
    """The configuration with a batch that solves on the cluster; None where none does."""
    try:
        config.batch(cluster.world_size)
    except RefusedConfig:
        model = model_of(config)
        return next((m.apply(config, cluster) for m in options("micro-batch", config, model, cluster)), None)
    return config


def holds(move: Move, config: Config, cluster: Cluster) -> Config:
    """The configuration after the move, with every law of moves asserted."""
    model = model_of(config)
    before = copy.deepcopy(dict(config.raw))
    after = move.apply(config, cluster)
    assert config.raw == before, "a move is pure"
    assert global_batch(after, cluster) == global_batch(config, cluster)
    assert after.batch(cluster.world_size).train == global_batch(config, cluster)
    again = move.apply(after, cluster)
    assert again.raw == after.raw, "twice is once"
    assert move.applies(after, model, cluster) is not None
    assert findings(after, cluster) <= findings(config, cluster)
    return after


@pytest.mark.parametrize("where", CLUSTERS)
@pytest.mark.parametrize("name", catalogue.names())
def test_every_move_keeps_the_laws(name: str, where: str) -> None:
    cluster, config = CLUSTERS[where], catalogue.load_config(name)
    config = fitted(config, cluster)  # type: ignore[assignment]
    if config is None:
        pytest.skip("the global batch does not split over these GPUs")
    made = 0
    for move in all_moves(config, model_of(config), cluster):
        reason = move.applies(config, model_of(config), cluster)
        if reason is None:
            assert holds(move, config, cluster).raw != config.raw
            made += 1
        else:
            assert reason
            assert not reason.endswith(".")
    assert made > 5


@pytest.mark.parametrize("name", catalogue.names())
def test_moves_after_a_move_keep_the_laws(name: str) -> None:
    """Pairs, from each stage: what the first move leaves behind is what the second one meets."""
    cluster, start = home(name), catalogue.load_config(name)
    model = model_of(start)
    for stage in range(4):
        config = zero_stage(stage).apply(start, cluster)
        for first in ("offload-optimizer", "precision", "optimizer", "recomputation"):
            for one in options(first, config, model, cluster):
                middle = one.apply(config, cluster)
                for second in ("zero-stage", "offload-optimizer", "offload-param", "optimizer"):
                    for other in options(second, middle, model, cluster):
                        holds(other, middle, cluster)


def test_every_move_says_what_it_is() -> None:
    config, cluster = catalogue.load_config("llama_7b_single_node"), home("llama_7b_single_node")
    names = []
    for move in all_moves(config, model_of(config), cluster):
        names.append(move.name)
        assert move.kind in MOVES
        for text in (move.title, move.saves, move.costs, move.needs, move.source):
            assert text
            assert not text.endswith(".")
        assert find(move.name) == move
    assert len(names) == len(set(names))


@pytest.mark.parametrize("stated", [None, False, True, 0, 1, 8])
def test_recomputation_of_some_layers_is_a_move_from_any_other(stated: bool | int | None) -> None:
    """A file that says true is not one that says 1, though Python calls them equal."""
    plain = catalogue.load_config("llama_7b_single_node")
    config, cluster = plain.with_values({"trimtab.checkpoint_activations": stated}), home(plain.name)
    model = model_of(config)
    for amount, written in ((False, None), (True, True), (1, 1), (8, 8)):
        move = recomputation(amount)
        after = move.apply(config, cluster)
        if spelled(config.job.recomputation) == spelled(amount):
            assert move.applies(config, model, cluster) == ALREADY
            assert after is config
            continue
        assert move.applies(config, model, cluster) is None
        assert repr(after.raw["trimtab"].get("checkpoint_activations")) == repr(written)
        assert spelled(after.job.recomputation) == spelled(amount)
    assert recomputation(33).applies(config, model, cluster) == "llama-7b has 32 layers"
    for name in ("recomputation-0", "recomputation--1", "recomputation-some"):
        with pytest.raises(NotFound):
            find(name)


def test_an_unknown_move_is_answered_with_the_nearest() -> None:
    with pytest.raises(NotFound, match="zero-stage"):
        find("zero-stages-3")
    with pytest.raises(NotFound):
        find("offload-param-disk")
    with pytest.raises(NotFound):
        find("zero-stage")


@pytest.mark.parametrize("name", ["one-bit-optimizer", "qlora", "pipeline-4", "allgather-bucket-50000000"])
def test_what_the_engine_cannot_is_refused_with_the_way_out(name: str) -> None:
    config, cluster = catalogue.load_config("llama_70b_multi_node"), home("llama_70b_multi_node")
    assert find(name).applies(config, model_of(config), cluster)


def test_differences_are_as_deep_as_objects_agree() -> None:
    before = {"bf16": {"enabled": True}, "zero_optimization": {"stage": 2, "overlap_comm": True}}
    after = {"fp16": {"enabled": True}, "zero_optimization": {"stage": 3, "overlap_comm": True}}
    assert differences(before, after) == {
        ("bf16",): None,
        ("fp16",): {"enabled": True},
        ("zero_optimization", "stage"): 3,
    }


def test_layers_over_several_gpus_keep_the_samples_of_a_step() -> None:
    config, cluster = catalogue.load_config("llama_7b_single_node"), CLUSTERS["8x a100-80gb"]
    before, move = config.batch(8), find("tensor-parallel-4")
    assert move.applies(config, model_of(config), cluster) is None
    after = move.apply(config, cluster)
    assert after.get("tensor_parallel.autotp_size") == 4
    assert after.get("train_batch_size") is None  # the engine would count every rank of a group in it
    assert (after.batch(8).train, after.batch(8).micro) == (before.train, before.micro)
    assert after.batch(8).data_parallel == 2
    assert find("tensor-parallel-1").apply(after, cluster).batch(8).train == before.train


@pytest.mark.parametrize(
    ("name", "cluster", "said"),
    [
        ("gpt2_baseline", "8x a100-80gb", "GPT-2"),
        ("llama_7b_single_node", "1x rtx4090", "reach over nodes"),
        ("llama_lora_finetune", "8x a100-80gb", "peft"),
    ],
)
def test_layers_that_cannot_be_split_say_why(name: str, cluster: str, said: str) -> None:
    config = catalogue.load_config(name)
    reason = find("tensor-parallel-2").applies(config, model_of(config), CLUSTERS[cluster])
    assert reason is not None
    assert said in reason


def test_samples_over_several_gpus_keep_the_samples_of_a_step() -> None:
    config, cluster = catalogue.load_config("llama_7b_single_node"), CLUSTERS["8x a100-80gb"]
    before, move = config.batch(8), find("sequence-parallel-2")
    assert move.applies(config, model_of(config), cluster) is None
    after = move.apply(config, cluster)
    assert after.get("sequence_parallel_size") == 2
    assert (after.batch(8).train, after.batch(8).data_parallel) == (before.train, 4)
    neox = catalogue.load_config("gpt_neox_20b_zero3")
    reason = move.applies(neox, model_of(neox), cluster)
    assert reason is not None
    assert "num_key_value_heads" in reason


def test_weights_whose_shares_cannot_be_quantized_stay_as_they_are() -> None:
    """GPT-2's embedding is 50257 x 768: a 64th of it is no multiple of 8 elements."""
    block = {"model": "gpt2", "sequence_length": 128}
    raw = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 3}, "trimtab": block}
    config = Config.from_mapping(raw)
    said = [
        quantized_weights(True).applies(config, model_of(config), Cluster.of("h100-80gb", 8, nodes))
        for nodes in (4, 8)
    ]
    assert said[0] is None
    assert said[1]
    assert "603,084 elements of transformer.wte" in said[1]
