"""Many rehearsals out of one process say what each says alone."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys

import pytest

from sources import ROOT
from trimtab.rehearse.phantom import rehearse_phantom
from trimtab.rehearse.request import PhantomRequest

SCRIPT = """
import json, sys
from trimtab.errors import TrimtabError
from trimtab.rehearse.request import PhantomRequest
from trimtab.rehearse.series import rehearse_forked

for text in json.load(sys.stdin):
    try:
        answer = rehearse_forked(PhantomRequest.from_json(text), timeout_seconds=300).to_json()
        del answer["seconds"]
    except TrimtabError as error:
        answer = str(error)
    print("ANSWER", json.dumps(answer), flush=True)
"""


def request(stage: int, optimizer: str = "AdamW") -> PhantomRequest:
    return PhantomRequest(
        deepspeed={
            "zero_optimization": {"stage": stage},
            "bf16": {"enabled": True},
            "optimizer": {"type": optimizer, "params": {"lr": 1e-4}},
        },
        hf={"model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 2, "vocab_size": 100},
        micro_batch=1,
        sequence_length=32,
        world_size=4,
    )


@pytest.mark.engine
@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("torch", "deepspeed", "transformers", "peft")),
    reason="needs trimtab[train]",
)
def test_a_fork_answers_as_a_child_of_its_own() -> None:
    asked = [request(2), request(2, "OneBitAdam"), request(3)]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT],
        input=json.dumps([one.to_json() for one in asked]),
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        check=True,
    )
    lines = [line.removeprefix("ANSWER ") for line in done.stdout.splitlines() if line.startswith("ANSWER ")]
    first, refused, third = map(json.loads, lines)
    assert "OneBitAdam" in refused
    alone = json.loads(json.dumps(rehearse_phantom(asked[2], use_cache=False).to_json()))
    del alone["seconds"]
    assert third == alone
    assert first["parameters"] == third["parameters"]
