"""What a command line says of a job, and what no figure is given for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from trimtab.cli.main import main
from trimtab.cli.settling import settle, stated

PLAIN: dict[str, Any] = {
    "train_micro_batch_size_per_gpu": 1,
    "zero_optimization": {"stage": 2},
    "bf16": {"enabled": True},
    "optimizer": {"type": "AdamW", "params": {"lr": 1e-4}},
    "trimtab": {"model": "gpt2", "task": "causal-lm", "sequence_length": 128},
}
FLAGS = ["--gpu", "a100-40gb", "--gpus-per-node", "2"]


def run(tmp_path: Path, command: str, **changes: Any) -> int:
    file = tmp_path / "ds.json"
    file.write_text(json.dumps({**PLAIN, **changes}), encoding="utf-8")
    return main([command, str(file), *FLAGS])


@pytest.mark.parametrize("command", ["estimate", "fit", "ladder"])
@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"optimizer": {"type": "OneBitAdam", "params": {"lr": 1e-4}}}, "OP002"),
        ({"optimizer": {"type": "SGD", "params": {"lr": 1e-4}}}, "OP004"),
        ({"zero_optimization": {"stage": 3, "mics_shard_size": 4}}, "KY003"),
    ],
)
def test_what_the_engine_refuses_gets_the_finding_and_no_number(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, changes: dict[str, Any], code: str
) -> None:
    assert run(tmp_path, command, **changes) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert f"[{code}, `trimtab explain {code}`]" in err
    assert "Traceback" not in err


def test_what_only_runs_badly_gets_its_number(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, "estimate") == 0
    assert "fits" in capsys.readouterr().out


def test_auto_is_left_to_whoever_fills_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    zero = {"stage": 2, "reduce_bucket_size": "auto"}
    assert run(tmp_path, "estimate", zero_optimization=zero, gradient_clipping="auto") == 0
    assert "fits" in capsys.readouterr().out


def test_a_length_that_nobody_stated_is_the_models_at_most_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "ds_config.json"
    file.write_text(json.dumps({**PLAIN, "trimtab": {}}), encoding="utf-8")
    assert main(["estimate", str(file), "--model", "gpt2", *FLAGS, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert "no sequence length is stated: 1024 tokens a sample" in answer["notes"]
    assert answer["warnings"] == []


@pytest.mark.parametrize("gpus", ["a100-40gb:2", "2xA100-40GB"])
def test_a_count_may_stand_with_the_gpu(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], gpus: str
) -> None:
    file = tmp_path / "ds_config.json"
    file.write_text(json.dumps(PLAIN), encoding="utf-8")
    assert main(["estimate", str(file), "--model", "gpt2", "--gpu", gpus, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["gpu"]["gpus_per_node"] == 2


@pytest.mark.parametrize(
    ("hf", "task"),
    [
        ({"architectures": ["ModernBertForMaskedLM"]}, "masked-lm"),
        ({"architectures": ["MixtralForCausalLM"]}, "causal-lm"),
        ({"is_encoder_decoder": True}, "seq2seq-lm"),
        ({"architectures": None}, "causal-lm"),
    ],
)
def test_an_architecture_that_the_arithmetic_does_not_know_has_its_usual_task(
    tmp_path: Path, hf: dict[str, Any], task: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "novel", **hf}), encoding="utf-8")
    file = tmp_path / "ds_config.json"
    file.write_text(json.dumps({**PLAIN, "trimtab": {}}), encoding="utf-8")
    assert stated(str(file), model=str(tmp_path))[0].job.task == task


def test_a_number_of_gpus_that_nobody_stated_is_said(tmp_path: Path) -> None:
    file = tmp_path / "ds_config.json"
    for batch, said in (({}, "1"), ({"train_batch_size": 16}, "4, as the file's batch keys have it")):
        keys = {"train_micro_batch_size_per_gpu": 4, "gradient_accumulation_steps": 1, **batch}
        file.write_text(json.dumps({**PLAIN, **keys}), encoding="utf-8")
        _, cluster, notes = settle(str(file), model="gpt2", gpu="t4")
        assert notes[-1] == f"no number of GPUs is stated: {said}"
        assert cluster.world_size == int(said[0])
    assert not any("GPUs" in note for note in settle(str(file), model="gpt2", gpu="t4:4")[2])
