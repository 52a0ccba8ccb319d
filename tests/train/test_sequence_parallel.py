"""Ulysses: two ranks with half of every sample each train as one rank with the whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from trimtab.config import Config
from trimtab.launch import Launch, environment
from trimtab.train.metrics import read_events, read_steps

pytest.importorskip("deepspeed")
pytestmark = pytest.mark.engine

ROOT = Path(__file__).resolve().parents[2]
MODEL = {
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 512,
}  # fmt: skip


def config(size: int, stage: int, model: Path) -> dict[str, Any]:
    return {
        "train_batch_size": 8,
        "train_micro_batch_size_per_gpu": 4,
        "sequence_parallel_size": size,
        "zero_optimization": {"stage": stage},
        "gradient_clipping": 0.0,
        "optimizer": {"type": "SGD", "params": {"lr": 0.3}},
        "zero_allow_untested_optimizer": True,
        "trimtab": {"model": str(model), "task": "causal-lm", "sequence_length": 32},
    }


def train(folder: Path, raw: dict[str, Any], run: str, ranks: int) -> subprocess.CompletedProcess[str]:
    file = folder / f"{run}.json"
    file.write_text(json.dumps(raw), encoding="utf-8")
    command = [sys.executable, "-m", "trimtab", "train", file, "--data", os.__file__, "--device", "cpu"]
    more = ("--ranks", ranks, "--steps", 3, "--run", folder / run)
    return subprocess.run(
        [*map(str, (*command, *more))],
        env=environment(Launch(ranks=ranks, device="cpu", port=1), os.environ)
        | {"PYTHONPATH": str(ROOT / "src")},
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("stage", [2, 3])
def test_halves_of_samples_train_as_whole_ones(tmp_path: Path, stage: int) -> None:
    model = tmp_path / "model.json"
    model.write_text(json.dumps(MODEL), encoding="utf-8")
    for size in (1, 2):
        done = train(tmp_path, config(size, stage, model), f"over-{size}", size)
        assert done.returncode == 0, done.stderr
    one, two = (read_steps(tmp_path / f"over-{size}" / "events.jsonl") for size in (1, 2))
    for name in ("loss", "grad_norm"):
        assert [row[name] for row in two] == pytest.approx([row[name] for row in one], rel=1e-5)
    assert [row["tokens"] for row in two] == [row["tokens"] for row in one]
    looks = [
        [row["loss"] for row in read_events(tmp_path / run / "events.jsonl") if row["event"] == "evaluation"]
        for run in ("over-1", "over-2")
    ]
    assert looks[1] == pytest.approx(looks[0], rel=1e-5)


def test_each_rank_has_its_own_tokens_and_the_labels_after_them() -> None:
    import torch

    from trimtab.train.sequences import IGNORED, part_of, weight_of_part

    whole = torch.arange(10, 18)[None]
    first, second = (part_of({"input_ids": whole, "labels": whole}, rank, 2) for rank in (0, 1))
    assert first["input_ids"].tolist() == [[10, 11, 12, 13]]
    assert first["shift_labels"].tolist() == [[11, 12, 13, 14]]
    assert second["position_ids"].tolist() == [[4, 5, 6, 7]]
    assert second["shift_labels"].tolist() == [[15, 16, 17, IGNORED]]
    weights = [weight_of_part(Config.from_mapping(config(4, stage, Path("m.json")))) for stage in range(4)]
    assert weights == [0.25, 0.25, 0.25, 1.0]
