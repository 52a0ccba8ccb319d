"""What stands in the place of "auto"."""

from __future__ import annotations

from typing import Any

import pytest

from trimtab.auto import filled, for_engine
from trimtab.config import Config

TRAINER: dict[str, Any] = {
    "train_micro_batch_size_per_gpu": 2,
    "gradient_clipping": "auto",
    "optimizer": {"type": "AdamW", "params": {"lr": "auto", "betas": "auto", "weight_decay": 0.1}},
    "scheduler": {"type": "WarmupLR", "params": {"warmup_min_lr": 0, "warmup_num_steps": "auto"}},
    "zero_optimization": {"stage": 2, "reduce_bucket_size": "auto"},
}


def test_the_engine_gets_no_auto_where_it_knows_none() -> None:
    found = for_engine(TRAINER)
    assert found["optimizer"]["params"] == {"weight_decay": 0.1}
    assert found["gradient_clipping"] == 1.0
    assert "scheduler" not in found
    assert TRAINER["optimizer"]["params"]["lr"] == "auto"


def test_a_schedule_that_is_stated_stays() -> None:
    schedule = {"type": "WarmupLR", "params": {"warmup_num_steps": 10}}
    assert for_engine({**TRAINER, "scheduler": schedule})["scheduler"] == schedule


def test_what_is_stated_is_not_filled() -> None:
    config = Config.from_mapping({**TRAINER, "zero_optimization": {"stage": 3, "reduce_bucket_size": 7}})
    assert filled(config, 64) == (config, ())


@pytest.mark.parametrize("hidden_size", [None, 64])
def test_sizes_follow_the_width(hidden_size: int | None) -> None:
    config, notes = filled(Config.from_mapping(TRAINER), hidden_size)
    assert config.zero("reduce_bucket_size") == (500_000_000 if hidden_size is None else 4096)
    assert len(notes) == (hidden_size is not None)


def test_what_the_trainer_decides_is_no_truth_here() -> None:
    assert Config.from_mapping(TRAINER).optimizer_params == {"weight_decay": 0.1}
