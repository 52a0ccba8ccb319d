"""A whole run's arithmetic: money and time agree, and saving costs what Young says."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as some

from trimtab import load_config
from trimtab.cluster import Cluster
from trimtab.cost.run import WholeRun, whole_run
from trimtab.errors import UsageError
from trimtab.estimate import checkpoint_bytes, estimate, to_json


def made(**changes: float) -> WholeRun:
    values: dict[str, float] = {
        "tokens_per_second": 1e5,
        "tokens_per_step": 2**20,
        "gpus": 64,
        "checkpoint_bytes": 10**11,
        "write_bytes_per_second": 4e9,
        "read_bytes_per_second": 7e9,
        "usd_per_hour": 200.0,
    }
    return whole_run(10**11, **{**values, **changes})  # type: ignore[arg-type]


def test_money_is_time_at_the_price_of_an_hour() -> None:
    run = made()
    assert run.usd == pytest.approx(200 * run.seconds / 3600)
    assert run.seconds == pytest.approx(run.training_seconds / run.effective_ratio)
    assert made(usd_per_hour=None).usd is None


def test_a_gpu_of_metas_fleet_is_interrupted_every_fifty_thousand_hours() -> None:
    assert made(gpus=1).seconds_between_interruptions / 3600 == pytest.approx(50_677, rel=1e-3)


def test_no_other_interval_loses_less_time() -> None:
    run = made()
    best = run.checkpoint_interval_seconds

    def lost(interval: float) -> float:
        return run.save_seconds / interval + interval / 2 / run.seconds_between_interruptions

    assert lost(best) <= min(lost(best * 0.9), lost(best * 1.1))


@given(some.integers(1, 10**5), some.integers(1, 10**14))
def test_the_wall_clock_is_never_shorter_than_the_steps(gpus: int, size: int) -> None:
    run = made(gpus=gpus, checkpoint_bytes=size)
    assert 0 < run.effective_ratio <= 1
    assert run.seconds >= run.training_seconds
    assert run.checkpoint_interval_seconds >= run.save_seconds


def test_an_estimate_with_tokens_holds_the_run() -> None:
    config, cluster = load_config("gpt2_baseline"), Cluster.of("h200", 4)
    answer = estimate(config, cluster, tokens=10**10)
    run = answer.run
    assert run is not None
    assert run.training_seconds == pytest.approx(10**10 / answer.tokens_per_second_per_gpu / 4)
    # fp16 weights, fp32 masters and Adam's two moments
    assert run.checkpoint_bytes == 14 * answer.profile.parameters == checkpoint_bytes(config, answer.profile)
    written = to_json(answer)["run"]
    assert isinstance(written, dict)
    assert written["seconds"] == run.seconds
    assert to_json(estimate(config, cluster))["run"] is None


def test_a_run_of_no_tokens_is_refused() -> None:
    with pytest.raises(UsageError, match="at least 1"):
        estimate(load_config("gpt2_baseline"), Cluster.of("h200", 4), tokens=0)
