"""AutoTP's and Ulysses' arithmetic against the phantom's answers that bench/parallel.py has kept."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from trimtab.cluster import Cluster
from trimtab.config import Config
from trimtab.cost.memory import profile
from trimtab.errors import Unsupported
from trimtab.estimate import estimate
from trimtab.model import Model

BENCH = Path(__file__).resolve().parents[2] / "bench"


def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("parallel_bench", BENCH / "parallel.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


BENCHMARK = script()
ROWS = [json.loads(line) for line in BENCHMARK.DATA.read_text("utf-8").splitlines()]


@pytest.mark.parametrize(
    "row",
    ROWS,
    ids=lambda row: "-".join(str(value) for value in row["case"].values() if not isinstance(value, dict)),
)
def test_peaks_and_collectives_are_the_engine_s(row: dict[str, Any]) -> None:
    counted = BENCHMARK.count(row["case"])
    assert counted["peak_bytes"] == pytest.approx(row["phantom"]["peak_bytes"], rel=0.001)
    assert counted["engine_bytes"] == pytest.approx(row["phantom"]["engine_bytes"], rel=0.001)
    assert counted["collectives"] == BENCHMARK.within_layers({**row, "counted": counted})


def config(size: int, stage: int = 1, **more: Any) -> Config:
    raw: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": {"stage": stage},
        "bf16": {"enabled": True},
        "optimizer": {"type": "AdamW"},
        "trimtab": {"model": "llama-7b", "sequence_length": 2048, "checkpoint_activations": True},
        **more,
    }
    return Config.from_mapping(raw | ({"tensor_parallel": {"autotp_size": size}} if size > 1 else {}))


def test_a_split_model_needs_less_and_is_reported_whole() -> None:
    cluster = Cluster.of("h100-80gb", 8)
    answers = [estimate(config(size, 0), cluster) for size in (1, 2, 4, 8)]
    peaks = [answer.peak_allocated.expected for answer in answers]
    assert peaks == sorted(peaks, reverse=True)
    assert {answer.profile.parameters for answer in answers} == {6_738_415_616}
    assert answers[1].profile.own_parameters < 0.52 * answers[0].profile.own_parameters
    parts = dict(answers[1].speed.parts)
    assert parts["exchanging activations"] > 0
    assert "exchanging activations" not in dict(answers[0].speed.parts)


def test_tokens_are_counted_once_for_all_ranks_of_a_group() -> None:
    answer = estimate(config(4), Cluster.of("h100-80gb", 8), tokens=10**9)
    assert answer.config.batch(8).train == 2
    a_second = answer.tokens_per_second_per_gpu * 8
    assert a_second == pytest.approx(2 * 2048 / answer.speed.step_seconds)
    assert answer.run is not None
    assert answer.run.seconds == pytest.approx(10**9 / a_second, rel=0.05)
    assert answer.run.steps == -(-(10**9) // (2 * 2048))


def test_what_autotp_cannot_split_is_refused_with_its_reason() -> None:
    with pytest.raises(Unsupported, match="GPT-2"):
        estimate(config(2), Cluster.of("h100-80gb", 8), model=Model.from_hf({"model_type": "gpt2"}))


def test_the_whole_model_is_there_before_it_is_cut() -> None:
    model = Model.from_hf(BENCHMARK.MODELS["llama"])
    one, two = (profile(config(size), model, 4) for size in (1, 2))
    assert one.built == two.built
    assert two.initialized < one.initialized
