"""The typed view of a configuration, and the batch identity."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.config import ZERO_DEFAULTS, Config
from trimtab.cost.memory import settings_of
from trimtab.errors import RefusedConfig, UsageError


def config(**raw: Any) -> Config:
    return Config.from_mapping(raw, name="mine")


def test_unknown_keys_are_kept_and_the_block_is_not_deepspeeds() -> None:
    raw = {"my_own_key": {"deep": [1]}, "trimtab": {"model": "gpt2"}}
    view = Config.from_mapping(raw)
    assert view.raw["my_own_key"] == {"deep": [1]}
    assert view.job.model == "gpt2"
    handed = view.deepspeed()
    assert handed == {"my_own_key": {"deep": [1]}}
    handed["my_own_key"]["deep"].append(2)
    assert view.raw["my_own_key"] == {"deep": [1]}


def test_a_broken_block_names_the_file() -> None:
    with pytest.raises(UsageError, match=r"^mine: "):
        config(trimtab=3)


def test_auto_and_null_count_as_absent() -> None:
    view = config(bf16={"enabled": "auto"}, gradient_clipping=None)
    assert view.get("bf16.enabled", "nothing") == "nothing"
    assert view.get("gradient_clipping", 1.0) == 1.0
    assert view.get("bf16.enabled.deeper") is None


@pytest.mark.parametrize(
    ("raw", "precision", "parameter_bytes", "gradient_bytes"),
    [
        ({}, "fp32", 4, 4),
        ({"bf16": {"enabled": True}}, "bf16", 2, 2),
        ({"bfloat16": {"enabled": True}}, "bf16", 2, 2),
        ({"fp16": {"enabled": True}}, "fp16", 2, 2),
        ({"bf16": {"enabled": False}, "fp16": {"enabled": True}}, "fp16", 2, 2),
        ({"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}}, "bf16", 2, 4),
    ],
)
def test_precision(raw: dict[str, Any], precision: str, parameter_bytes: int, gradient_bytes: int) -> None:
    view = Config.from_mapping(raw)
    assert (view.precision, view.parameter_bytes, view.gradient_bytes) == (
        precision, parameter_bytes, gradient_bytes,
    )  # fmt: skip


def test_zero_values_fall_back_to_deepspeeds_own() -> None:
    view = config(zero_optimization={"stage": 3})
    for key, default in ZERO_DEFAULTS.items():
        if key not in ("stage", "overlap_comm"):
            assert view.zero(key) == default
    assert view.zero("overlap_comm") is True
    assert config(zero_optimization={"stage": 2}).zero("overlap_comm") is False
    assert config(zero_optimization=True).stage == 1
    assert config().stage == 0


def test_stage3_names_are_read_in_either_spelling() -> None:
    assert config(zero_optimization={"prefetch_bucket_size": 7}).zero("stage3_prefetch_bucket_size") == 7
    assert (
        config(zero_optimization={"stage3_prefetch_bucket_size": 7}).zero("stage3_prefetch_bucket_size") == 7
    )


@pytest.mark.parametrize(
    ("stage", "device", "optimizer", "param"),
    [
        (3, "nvme", "nvme", "nvme"),
        (2, "nvme", "cpu", "none"),
        (2, "cpu", "cpu", "none"),
        (3, "none", "none", "none"),
    ],
)
def test_offload_is_what_the_engine_really_does(stage: int, device: str, optimizer: str, param: str) -> None:
    block = {"device": device}
    view = config(zero_optimization={"stage": stage, "offload_optimizer": block, "offload_param": block})
    assert (view.offload_optimizer, view.offload_param) == (optimizer, param)
    assert config(zero_optimization={"stage": 2, "cpu_offload": True}).offload_optimizer == "cpu"


def test_with_values_sets_makes_and_removes_without_touching_the_original() -> None:
    before = config(optimizer={"type": "Adam"}, bf16={"enabled": True}, zero_optimization=True)
    after = before.with_values(
        {"optimizer.params.lr": 1.0, "bf16": None, "zero_optimization.stage": 2, "absent": None}
    )
    assert after.raw == {
        "optimizer": {"type": "Adam", "params": {"lr": 1.0}},
        "zero_optimization": {"stage": 2},
    }
    assert before.raw == {"optimizer": {"type": "Adam"}, "bf16": {"enabled": True}, "zero_optimization": True}
    assert after.with_values({"trimtab.sequence_length": 7}).job.sequence_length == 7


def test_the_optimizer_is_named_as_the_engine_names_it() -> None:
    assert config(optimizer={"type": "AdamW"}).optimizer_type == "adamw"
    assert config(optimizer={"type": "Adafactor"}).optimizer_type == "Adafactor"
    assert config().optimizer_type is None
    assert config(optimizer={"type": "Adam"}).optimizer_params == {}


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        ({"optimizer": {"type": "Adam", "params": 3}}, "optimizer.params must be an object, not 3"),
        ({"optimizer": "Adam"}, "optimizer must be an object, not 'Adam'"),
        ({"bf16": "yes"}, "bf16 must be an object"),
        ({"zero_optimization": [3]}, "zero_optimization must be an object"),
        ({"zero_optimization": {"stage": 9}}, "stage must be 0, 1, 2 or 3, not 9"),
        ({"zero_optimization": {"stage": "three"}}, "stage must be a whole number"),
        ({"zero_optimization": {"reduce_bucket_size": "big"}}, "reduce_bucket_size must be a whole number"),
        ({"zero_optimization": {"reduce_bucket_size": -5}}, "reduce_bucket_size must be a whole number"),
        ({"zero_optimization": {"reduce_bucket_size": 0}}, "reduce_bucket_size must be above 0"),
        ({"zero_optimization": {"overlap_comm": "maybe"}}, "overlap_comm must be true or false"),
        ({"zero_optimization": {"offload_optimizer": "cpu"}}, "offload_optimizer must be an object"),
        ({"zero_optimization": {"offload_optimizer": {"device": "tpu"}}}, "must be none, cpu, nvme"),
        ({"tensor_parallel": "x"}, "tensor_parallel must be an object"),
        ({"sequence_parallel_size": "x"}, "sequence_parallel_size must be a whole number above 0"),
    ],
)
def test_settings_of_the_wrong_kind_are_named(raw: dict[str, Any], says: str) -> None:
    with pytest.raises(RefusedConfig, match=re.escape(says)):
        settings_of(config(train_micro_batch_size_per_gpu=1, **raw), 8)


def test_values_are_read_as_pydantic_reads_them() -> None:
    zero = {"stage": "2", "reduce_bucket_size": 5e8, "overlap_comm": "false", "reduce_scatter": 1}
    found = config(zero_optimization=zero)
    assert (found.stage, found.zero("reduce_bucket_size")) == (2, 500_000_000)
    assert (found.zero("overlap_comm"), found.zero("reduce_scatter")) == (False, True)


@pytest.mark.parametrize(
    ("raw", "world", "solved"),
    [
        ({"train_batch_size": 128, "train_micro_batch_size_per_gpu": 4}, 8, (128, 4, 4)),
        ({"train_batch_size": 128, "gradient_accumulation_steps": 4}, 8, (128, 4, 4)),
        ({"train_micro_batch_size_per_gpu": 4, "gradient_accumulation_steps": 4}, 8, (128, 4, 4)),
        ({"train_micro_batch_size_per_gpu": 4}, 8, (32, 4, 1)),
        ({"train_batch_size": 128}, 8, (128, 16, 1)),
        ({"train_batch_size": 128, "train_micro_batch_size_per_gpu": "auto"}, 8, (128, 16, 1)),
    ],
)
def test_the_batch_is_solved_from_what_is_given(
    raw: dict[str, Any], world: int, solved: tuple[int, ...]
) -> None:
    batch = Config.from_mapping(raw).batch(world)
    assert (batch.train, batch.micro, batch.accumulation) == solved


def test_ranks_that_share_a_replica_do_not_multiply_the_batch() -> None:
    view = config(train_micro_batch_size_per_gpu=4, sequence_parallel_size=2, trimtab={"pipeline_stages": 2})
    assert view.batch(16).data_parallel == 4
    assert view.batch(16).train == 16


def test_a_contradiction_shows_both_numbers_and_the_cure() -> None:
    with pytest.raises(RefusedConfig) as caught:
        config(train_batch_size=100, train_micro_batch_size_per_gpu=4).batch(8)
    message = str(caught.value)
    assert "train_batch_size is 100 but 4 (train_micro_batch_size_per_gpu) x 3" in message
    assert "x 8 (data-parallel ranks) = 96." in message
    assert "Set train_batch_size to 96 or 128" in message


@pytest.mark.parametrize("value", [0, -1, True, 1.5, "8"])
def test_what_is_no_count_is_refused(value: Any) -> None:
    with pytest.raises(RefusedConfig, match="train_batch_size must be a whole number above 0"):
        config(train_batch_size=value).batch(1)


def test_no_size_at_all_is_refused() -> None:
    with pytest.raises(RefusedConfig, match="neither train_batch_size nor"):
        config(gradient_accumulation_steps=4).batch(1)


SIZES = st.none() | st.integers(1, 512)


@given(SIZES, SIZES, SIZES, st.integers(1, 64))
def test_a_batch_is_solved_or_refused_and_the_identity_holds(
    train: int | None, micro: int | None, accumulation: int | None, world: int
) -> None:
    keys = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
    given_keys = {
        key: value for key, value in zip(keys, (train, micro, accumulation), strict=True) if value is not None
    }
    try:
        batch = config(**given_keys).batch(world)
    except RefusedConfig:
        return
    assert batch.train == batch.micro * batch.accumulation * world
    solved = dict(zip(keys, (batch.train, batch.micro, batch.accumulation), strict=True))
    assert given_keys.items() <= solved.items()


@given(st.integers(1, 512), st.integers(1, 64), st.integers(1, 64))
def test_the_cure_of_a_contradiction_works(train: int, micro: int, world: int) -> None:
    view = config(train_batch_size=train, train_micro_batch_size_per_gpu=micro)
    try:
        view.batch(world)
    except RefusedConfig as refusal:
        sizes = str(refusal).partition("Set train_batch_size to ")[2].partition(",")[0].rstrip(".")
        for size in sizes.split(" or "):
            assert view.with_values({"train_batch_size": int(size)}).batch(world).micro == micro
