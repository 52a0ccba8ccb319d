"""The way out of out-of-memory: the guide's order, cumulative, and its four levels of offload."""

from __future__ import annotations

from functools import cache

import pytest

from trimtab import catalogue
from trimtab.cluster import Cluster
from trimtab.config import Config
from trimtab.errors import UsageError
from trimtab.ladder import LEVELS, OUT_OF_MEMORY, Ladder, ladder
from trimtab.moves import ALREADY, sequence_parallel
from trimtab.moves.writing import global_batch


@cache
def on(name: str, gpu: str, gpus_per_node: int) -> Ladder:
    return ladder(catalogue.load_config(name), Cluster.of(gpu, gpus_per_node))


def test_the_guides_order_of_cures() -> None:
    """Micro batch, recomputation, stage 3, optimizer, parameters; then what the guide leaves to NVMe."""
    assert [move.name for move in OUT_OF_MEMORY] == [
        "micro-batch-1",
        "recomputation-on",
        "zero-stage-3",
        "offload-optimizer-cpu",
        "offload-param-cpu",
        "offload-optimizer-nvme",
        "offload-param-nvme",
    ]


def test_the_guides_four_levels() -> None:
    config = catalogue.load_config("llama_7b_single_node")
    cluster = Cluster.of("a100-40gb", 8)
    found = []
    for _, moves in LEVELS:
        level = config
        for move in moves:
            level = move.apply(level, cluster)
        found.append((level.stage, level.offload_optimizer, level.offload_param))
    assert found == [(2, "none", "none"), (3, "cpu", "none"), (3, "cpu", "cpu"), (3, "cpu", "nvme")]


def test_rungs_add_up_and_the_first_that_fits_is_marked() -> None:
    answer = on("llama_7b_single_node", "t4", 8)
    rungs = (answer.start, *answer.rungs)
    assert [rung.fits(0.9) for rung in rungs] == [False] * 4 + [True] * 4
    assert answer.first is rungs[4]
    assert answer.first.moves == (OUT_OF_MEMORY[3],)
    assert answer.rungs[1].skipped == ALREADY
    needed = [rung.answer.needed.expected for rung in rungs if rung.answer]
    assert needed[:5] == sorted(needed[:5], reverse=True)
    assert max(needed[5:]) < needed[3]  # gradients wait on the GPU for a disk, a bucket at a time
    for rung in rungs:
        assert global_batch(rung.config, answer.cluster) == 128
    last = answer.rungs[-1].config
    assert (last.stage, last.offload_optimizer, last.offload_param) == (3, "nvme", "nvme")
    assert last.batch(8).micro == 1


def test_the_fastest_level_that_fits_is_marked() -> None:
    answer = on("llama_7b_single_node", "t4", 8)
    # with the parameters there too no step casts weights anew: so GPT-2's and TinyLlama's were measured
    assert answer.fastest_level is answer.levels[2]
    assert not answer.levels[0].fits(0.9)


def test_what_fits_needs_no_rung() -> None:
    answer = on("gpt2_baseline", "a100-40gb", 4)
    assert answer.first is answer.start
    assert answer.fastest_level is not None


def test_without_a_drive_nvme_is_no_rung() -> None:
    answer = on("gpt2_baseline", "rtx4090", 1)
    assert answer.rungs[-1].skipped == "the nodes have no local NVMe"
    assert answer.rungs[-1].config is answer.rungs[-2].config


def long_sample(**changes: object) -> Config:
    """One sample of 128 ki tokens for each of eight GPUs."""
    block = {"model": "llama-3.1-8b", "sequence_length": 131_072, "attention": "flash", **changes}
    return Config.from_mapping(
        {
            "train_batch_size": 8,
            "train_micro_batch_size_per_gpu": 1,
            "bf16": {"enabled": True},
            "zero_optimization": {"stage": 2},
            "optimizer": {"type": "AdamW", "params": {"lr": 1e-5}},
            "trimtab": block,
        }
    )


def test_a_sample_that_fits_no_gpu_is_spread_over_the_fewest_that_hold_it() -> None:
    answer = ladder(long_sample(), Cluster.of("h100-80gb", 8))
    assert [rung.fits(0.9) for rung in answer.rungs] == [False] * len(OUT_OF_MEMORY) + [True]
    assert answer.first is answer.rungs[-1]
    assert answer.first.moves == (sequence_parallel(4),)
    assert global_batch(answer.first.config, answer.cluster) == 8


def test_a_sample_that_no_group_of_gpus_holds_shows_the_largest_group() -> None:
    answer = ladder(long_sample(), Cluster.of("a10g", 8))
    assert answer.first is None
    assert answer.rungs[-1].moves == (sequence_parallel(8),)


def test_what_cannot_be_spread_has_no_such_rung() -> None:
    for config, cluster in (
        (long_sample(attention="eager"), Cluster.of("h100-80gb", 8)),
        (long_sample(), Cluster.of("h100-80gb", 1)),
    ):
        answer = ladder(config, cluster)
        assert answer.first is None
        assert len(answer.rungs) == len(OUT_OF_MEMORY)


def test_what_splits_layers_over_gpus_stays_below_stage_3() -> None:
    config = Config.from_mapping(
        {
            "train_micro_batch_size_per_gpu": 1,
            "bf16": {"enabled": True},
            "zero_optimization": {"stage": 1},
            "tensor_parallel": {"autotp_size": 4},
            "trimtab": {"model": "llama-7b", "sequence_length": 512},
        }
    )
    found = ladder(config, Cluster.of("a100-80gb", 8))
    third = next(rung for rung in found.rungs if rung.title == "ZeRO stage 3")
    assert (third.config.stage, third.skipped) == (1, "AutoTP goes with ZeRO stages 0 to 2")


def test_a_file_without_a_model_says_so() -> None:
    with pytest.raises(UsageError, match="no model is named"):
        ladder(Config.from_mapping({"train_batch_size": 8}), Cluster.of("h100", 1))
