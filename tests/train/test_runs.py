"""Whole runs through the launchers: interrupted and resumed, exported and loaded again, refused with one
message.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from trimtab.launch import Launch, choose_port, environment
from trimtab.train.checkpoint import verify
from trimtab.train.metrics import read_events, read_steps

pytest.importorskip("deepspeed")
pytestmark = pytest.mark.engine

ROOT = Path(__file__).resolve().parents[2]
LIMIT_SECONDS = 240


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny configuration, a LoRA one at stage 3, a tiny model and some text."""
    folder = tmp_path_factory.mktemp("files")
    model = {
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 512,
        "max_position_embeddings": 64,
    }
    (folder / "model.json").write_text(json.dumps(model), encoding="utf-8")
    config = {
        "train_batch_size": 8,
        "train_micro_batch_size_per_gpu": 2,
        "zero_optimization": {"stage": 3},
        "bf16": {"enabled": True},
        "optimizer": {"type": "AdamW", "params": {"lr": 3e-3}},
        "trimtab": {"model": str(folder / "model.json"), "task": "causal-lm", "sequence_length": 32},
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    config["trimtab"]["lora"] = {"r": 4, "target_modules": ["q_proj", "v_proj"]}
    (folder / "lora.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "text.txt").write_text((Path(os.__file__)).read_text(encoding="utf-8"), encoding="utf-8")
    return folder


def trimtab(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "trimtab", *map(str, arguments)]


def values(**more: str) -> dict[str, str]:
    return environment(Launch(ranks=2, device="cpu", port=1), os.environ) | {
        "PYTHONPATH": str(ROOT / "src"),
        **more,
    }


def finish(command: list[str], **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, env=values(**more), capture_output=True, text=True, timeout=LIMIT_SECONDS, check=False
    )


def hex_losses(run: Path) -> dict[int, str]:
    return {row["step"]: row["loss"].hex() for row in read_steps(run / "events.jsonl")}


def start_and_stop(command: list[str], run: Path, number: signal.Signals, at_step: int) -> tuple[int, str]:
    """Start a run, send it a signal once it has made ``at_step`` steps; its exit code and what it said."""
    process = subprocess.Popen(
        command, env=values(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    deadline = time.monotonic() + LIMIT_SECONDS
    while len(read_steps(run / "events.jsonl")) < at_step and process.poll() is None:
        assert time.monotonic() < deadline, "no step in time"
        time.sleep(0.05)
    process.send_signal(number)
    said, _ = process.communicate(timeout=LIMIT_SECONDS)
    return process.returncode, said


def test_ctrl_c_saves_and_the_resumed_run_has_the_same_losses(files: Path, tmp_path: Path) -> None:
    arguments = ["train", files / "config.json", "--data", files / "text.txt", "--device", "cpu"]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    code, said = start_and_stop(
        trimtab(*arguments, "--steps", 400, "--run", stopped), stopped, signal.SIGINT, at_step=3
    )
    assert code == 130, said
    assert "--resume auto" in said
    assert "Traceback" not in said
    reached = read_steps(stopped / "events.jsonl")[-1]["step"]
    assert reached < 400
    assert verify(stopped / "checkpoints" / f"step-{reached:06d}").step == reached

    steps = reached + 4
    again = finish(trimtab(*arguments, "--steps", steps, "--run", stopped, "--resume", "auto", "--json"))
    assert again.returncode == 0, again.stderr
    report = json.loads(again.stdout)
    assert report["steps"] == steps
    assert report["final_loss"] < report["first_loss"]
    assert any(
        row["event"] == "resume" and row["step"] == reached for row in read_events(stopped / "events.jsonl")
    )
    assert finish(trimtab(*arguments, "--steps", steps, "--run", whole)).returncode == 0
    assert hex_losses(whole) == hex_losses(stopped)

    # handed back: what from_pretrained loads is what was trained
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(whole / "model", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(whole / "model")
    ids = tokenizer((files / "text.txt").read_text(encoding="utf-8"), return_tensors="pt")["input_ids"][
        :, -512:-480
    ]
    with torch.no_grad():
        loss = float(model(input_ids=ids, labels=ids).loss)
    assert loss < report["first_loss"]
    assert model.config.use_cache is True


def test_sigterm_is_143_and_train_py_runs_under_deepspeeds_launcher(files: Path, tmp_path: Path) -> None:
    code, said = start_and_stop(
        trimtab("train", files / "config.json", "--data", files / "text.txt", "--device", "cpu",
                "--steps", 400, "--run", tmp_path / "stopped", "--launcher", "deepspeed"),
        tmp_path / "stopped", signal.SIGTERM, at_step=2,
    )  # fmt: skip
    assert code == 143, said
    assert list((tmp_path / "stopped" / "checkpoints").iterdir())

    run = tmp_path / "run"
    done = finish(
        [sys.executable, "-m", "deepspeed.launcher.runner", "--num_gpus=2", "--master_addr=127.0.0.1",
         f"--master_port={choose_port(None)}", str(ROOT / "train.py"), "--deepspeed_config",
         str(files / "config.json"), "--data", str(files / "text.txt"), "--steps", "3", "--run", str(run),
         "--device", "cpu"],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((run / "report.json").read_text(encoding="utf-8"))["world_size"] == 2
    assert "3 steps" in done.stdout


def test_lora_under_torchrun_gives_pefts_folder(files: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    run = tmp_path / "run"
    done = finish(
        [sys.executable, "-m", "torch.distributed.run", "--nnodes", "1", "--nproc_per_node", "2",
         "--master_addr", "127.0.0.1", "--master_port", str(choose_port(None)), str(ROOT / "train.py"),
         "--deepspeed_config", str(files / "lora.json"), "--data", str(files / "text.txt"), "--steps", "3",
         "--run-dir", str(run), "--device", "cpu"],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads((run / "report.json").read_text(encoding="utf-8"))
    assert 0 < report["trainable"] < report["parameters"] / 10
    assert "LoRA trains adapters over random weights" in done.stdout + done.stderr
    from trimtab.train.model import read_model_config

    base = AutoModelForCausalLM.from_config(read_model_config(str(files / "model.json")))
    model = peft.PeftModel.from_pretrained(base, run / "model")
    trained = [p for name, p in model.named_parameters() if "lora_B" in name]
    assert len(trained) == 4
    assert all(float(p.abs().sum()) > 0 for p in trained)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nosuch_config", "--data", "{text}"], "unknown configuration 'nosuch_config'"),
        (["{config}", "--data", "nosuch.txt"], "no such file or folder"),
        (["{config}", "--data", "{empty}"], "the data are empty"),
        (["{config}", "--data", "{binary}"], "not text"),
        (["{config}", "--data", "{text}", "--ranks", "3"], "train_batch_size is 8"),
        (["{config}", "--data", "{text}", "--keep", "2000000000"], "are free there"),
        (["{config}", "--data", "{text}", "--port", "{port}"], "cannot be used"),
        (["{config}", "--data", "{text}", "--resume", "{empty}"], "neither a checkpoint"),
        (["{config}", "--data", "{text}", "--resume", "required"], "holds no run to resume"),
        (["{config}", "--data", "{text}", "--set", "trimtab.sequence_length=100000"], "less than one sample"),
        (["{config}", "--data", "{text}", "--steps", "1", "--epochs", "1"], "give one"),
        (["{config}", "--data", "{text}", "--device", "tpu"], "it is one of auto, cuda, cpu"),
        (["{config}", "--data", "{text}", "--launcher", "none", "--ranks", "2"], "starts one rank"),
    ],
)
def test_a_mistake_is_one_message_and_changes_nothing(
    files: Path, tmp_path: Path, arguments: list[str], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    import socket

    from trimtab.cli.main import main

    (tmp_path / "empty.txt").write_text("", encoding="utf-8")
    (tmp_path / "binary.txt").write_bytes(b"\x00\xff\xfe" * 100)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        names = {"config": files / "config.json", "text": files / "text.txt", "empty": tmp_path / "empty.txt",
                 "binary": tmp_path / "binary.txt", "port": taken.getsockname()[1]}  # fmt: skip
        given = [argument.format(**names) for argument in arguments]
        if "--device" not in given:
            given += ["--device", "cpu"]
        code = main(["train", *given, "--run", str(tmp_path / "run")])
    said = capfd.readouterr()
    assert code == 2, said.err
    assert message in said.err
    assert "Traceback" not in said.err
    assert not (tmp_path / "run").exists()
