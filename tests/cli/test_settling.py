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


@pytest.mark.parametrize("changed", [{"task": "token-classification"}, {"modules_to_save": ["ln_f"]}])
def test_a_copy_of_the_head_needs_a_stage_below_3(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changed: dict[str, Any]
) -> None:
    """What peft says then: cannot pickle 'torch._C._distributed_c10d.ProcessGroup' object."""
    saved = {"modules_to_save": changed.pop("modules_to_save", [])}
    block = {**PLAIN["trimtab"], **changed, "lora": {"r": 8, "target_modules": ["c_attn"], **saved}}
    assert run(tmp_path, "estimate", trimtab=block) == 0
    assert run(tmp_path, "estimate", trimtab=block, zero_optimization={"stage": 3}) == 2
    assert "Set zero_optimization.stage to 2" in capsys.readouterr().err


def test_sizes_left_to_transformers_are_those_that_it_fills_in(tmp_path: Path) -> None:
    keys = ("reduce_bucket_size", "stage3_prefetch_bucket_size", "stage3_param_persistence_threshold")
    file = tmp_path / "ds.json"
    zero = {"stage": 3, **dict.fromkeys(keys, "auto")}
    batch = {"train_micro_batch_size_per_gpu": "auto", "train_batch_size": "auto"}
    file.write_text(json.dumps({**PLAIN, **batch, "zero_optimization": zero}), encoding="utf-8")
    config, notes = stated(str(file))
    assert [config.zero(key) for key in keys] == [768 * 768, int(0.9 * 768 * 768), 7680]
    assert config.batch(1).micro == 8
    assert len(notes) == 4
    assert all("auto" in note for note in notes)


def test_a_width_that_nobody_here_knows_the_architecture_of(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mpt", "d_model": 256}), encoding="utf-8")
    file = tmp_path / "ds.json"
    zero = {"stage": 2, "reduce_bucket_size": "auto", "stage3_prefetch_bucket_size": "auto"}
    file.write_text(json.dumps({**PLAIN, "zero_optimization": zero}), encoding="utf-8")
    config, _ = stated(str(file), model=str(tmp_path))
    assert config.zero("reduce_bucket_size") == 256 * 256
    assert config.raw["zero_optimization"]["stage3_prefetch_bucket_size"] == "auto"
