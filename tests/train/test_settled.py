"""After its first step a run no longer looks through what stays, and trains as if it did."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from trimtab.launch import Launch, choose_port, environment

ROOT = Path(__file__).resolve().parents[2]
LIMIT_SECONDS = 240
RUNS = """\
import gc, json, sys
from pathlib import Path
from trimtab.train import loop
from trimtab.train.metrics import read_steps
from trimtab.train.settings import Settings

settle, step, frozen = loop.settle, loop._step, []

def watched(*arguments):
    frozen.append(gc.get_freeze_count() > 0)
    return step(*arguments)

loop._step = watched
for name, settled in (("settled", settle), ("not", lambda: None)):
    frozen.clear()
    loop.settle = settled
    settings = Settings(
        config=sys.argv[1], data=(sys.argv[2],), run=name, steps=4, device="cpu", export=False,
        sample_tokens=1,
    )
    loop.run(settings)
    losses = [row["loss"].hex() for row in read_steps(Path(name) / "events.jsonl")]
    print(json.dumps({"frozen": frozen, "after": gc.get_freeze_count(), "losses": losses}))
"""


def config(folder: Path) -> Path:
    model = {
        "model_type": "llama",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "vocab_size": 512,
    }
    (folder / "model.json").write_text(json.dumps(model), encoding="utf-8")
    block = {"model": str(folder / "model.json"), "sequence_length": 32}
    raw = {
        "train_micro_batch_size_per_gpu": 2,
        "zero_optimization": {"stage": 2},
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-3}},
        "trimtab": block,
    }
    (folder / "config.json").write_text(json.dumps(raw), encoding="utf-8")
    return folder / "config.json"


@pytest.mark.engine
@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="needs trimtab[train]")
def test_what_stays_is_hidden_after_the_first_step_and_changes_no_loss(tmp_path: Path) -> None:
    values = environment(Launch(ranks=1, device="cpu", port=choose_port(None)), os.environ)
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", RUNS, str(config(tmp_path)), str(Path(os.__file__))],
        cwd=tmp_path,
        env=values | {"PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    rows: list[dict[str, Any]] = [
        json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")
    ]
    settled, plain = rows
    assert settled["frozen"] == [False, True, True, True]
    assert plain["frozen"] == [False] * 4
    assert (settled["after"], plain["after"]) == (0, 0)
    assert settled["losses"] == plain["losses"]
    assert len(settled["losses"]) == 4
