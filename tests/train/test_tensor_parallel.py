"""AutoTP: two ranks that share a replica train as one rank does, and what cannot be split is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from trimtab.launch import Launch, environment
from trimtab.train.metrics import read_steps

pytest.importorskip("deepspeed")
pytestmark = pytest.mark.engine

ROOT = Path(__file__).resolve().parents[2]
MODEL = {
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 511, "tie_word_embeddings": True,
}  # fmt: skip


def write(folder: Path, size: int, **model: Any) -> Path:
    """A configuration that splits every layer over ``size`` ranks; the global batch is 8."""
    (folder / "model.json").write_text(json.dumps(MODEL | model), encoding="utf-8")
    config = {
        "train_micro_batch_size_per_gpu": 4,
        "gradient_accumulation_steps": 2,
        "gradient_clipping": 0.5,
        "zero_optimization": {"stage": 1},
        "tensor_parallel": {"autotp_size": size},
        "optimizer": {"type": "SGD", "params": {"lr": 0.3}},
        "zero_allow_untested_optimizer": True,
        "trimtab": {"model": str(folder / "model.json"), "task": "causal-lm", "sequence_length": 32},
    }
    file = folder / f"split-{size}.json"
    file.write_text(json.dumps(config), encoding="utf-8")
    return file


def train(config: Path, run: Path, *more: object, ranks: int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "trimtab", "train", config, "--data", os.__file__, "--device", "cpu"]
    values = environment(Launch(ranks=ranks, device="cpu", port=1), os.environ)
    return subprocess.run(
        [*map(str, (*command, "--ranks", ranks, "--run", run, *more))],
        env=values | {"PYTHONPATH": str(ROOT / "src")},
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip


def weights(run: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(str(run / "model" / "model.safetensors"))


def test_two_ranks_train_as_one_and_resume(tmp_path: Path) -> None:
    import torch

    whole, split = tmp_path / "whole", tmp_path / "split"
    assert train(write(tmp_path, 1), whole, "--steps", 5, ranks=1).returncode == 0
    config = write(tmp_path, 2)
    assert train(config, split, "--steps", 3, ranks=2).returncode == 0
    resumed = train(config, split, "--steps", 5, "--resume", "auto", ranks=2)
    assert resumed.returncode == 0, resumed.stderr
    one, two = read_steps(whole / "events.jsonl"), read_steps(split / "events.jsonl")
    assert len(one) == len(two) == 5
    for name in ("loss", "grad_norm"):
        assert [row[name] for row in two] == pytest.approx([row[name] for row in one], rel=1e-5)
    assert [row["tokens"] for row in two] == [row["tokens"] for row in one]
    alone, gathered = weights(whole), weights(split)
    assert alone.keys() == gathered.keys()
    for name, values in alone.items():
        torch.testing.assert_close(gathered[name], values, rtol=1e-4, atol=1e-5)


def test_what_cannot_be_split_is_one_line(tmp_path: Path) -> None:
    model = {"model_type": "gpt2", "vocab_size": 512, "n_embd": 64, "n_layer": 2, "n_head": 4}
    config = write(tmp_path, 2)
    (tmp_path / "model.json").write_text(json.dumps(model), encoding="utf-8")
    refused = train(config, tmp_path / "run", "--steps", 2, ranks=2)
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: ")
    assert "AutoTP refuses GPT-2" in refused.stderr
    assert "Traceback" not in refused.stderr
