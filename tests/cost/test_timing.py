"""Kernels that are counted against those of the phantom engine's record, at the same rates."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections import Counter
from typing import Any

import pytest

from sources import ROOT
from trimtab.cluster import Cluster
from trimtab.config import Config
from trimtab.cost.memory import profile
from trimtab.cost.rates import rates_of
from trimtab.cost.timing import of_a_card, timed
from trimtab.model import Model

WIDE = {
    "hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 3, "num_attention_heads": 16,
    "vocab_size": 8000, "max_position_embeddings": 512,
}  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {
    "llama": {**WIDE, "num_key_value_heads": 8},
    "qwen3": {**WIDE, "num_key_value_heads": 8, "head_dim": 64},
    "gemma2": {**WIDE, "num_key_value_heads": 8, "head_dim": 64},
    "phi3": {**WIDE, "num_key_value_heads": 8, "pad_token_id": 0},
    "gpt_neox": WIDE,
    "gpt2": {"n_embd": 1024, "n_layer": 3, "n_head": 16, "vocab_size": 8000},
    "gpt_neo": {
        "hidden_size": 1024, "num_layers": 3, "num_heads": 16, "vocab_size": 8000,
        "attention_types": [[["global"], 3]], "max_position_embeddings": 512,
    },
    "falcon": {"hidden_size": 1024, "num_hidden_layers": 3, "num_attention_heads": 16, "vocab_size": 8000},
    "bloom": {"hidden_size": 1024, "n_layer": 3, "n_head": 16, "vocab_size": 8000},
    "bert": WIDE,
    "t5": {"d_model": 1024, "d_ff": 2816, "d_kv": 64, "num_layers": 3, "num_heads": 16, "vocab_size": 8000},
}  # fmt: skip
TASKS = {"bert": "masked-lm", "t5": "seq2seq-lm"}
ADAPTERS = {"lora": {"r": 8, "target_modules": "all-linear"}}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in MODELS},
    "llama in eager attention": ("llama", {"attention": "eager"}),
    "t5 in eager attention": ("t5", {"attention": "eager"}),
    "bert recomputed": ("bert", {"checkpoint_activations": True}),
    "phi3 recomputed": ("phi3", {"checkpoint_activations": True}),
    "llama with adapters": ("llama", ADAPTERS),
    "t5 with adapters": ("t5", ADAPTERS),
}

SCRIPT = """
import json, sys
from collections import Counter
from trimtab.cluster import Cluster
from trimtab.config import Config
from trimtab.cost.rates import rates_of
from trimtab.rehearse.durations import device_seconds, has_kernel
from trimtab.rehearse.request import PHASES, PhantomRequest
from trimtab.rehearse.series import rehearse_forked

rates = rates_of(Cluster.of("h200", 1))
for name, hf, raw in json.load(sys.stdin):
    request = PhantomRequest.of_config(Config.from_mapping(raw), hf, world_size=1, record="ordered")
    seen, phase, found = rehearse_forked(request, timeout_seconds=300), "", Counter()
    for kind, index in seen.order:
        if kind == "phase":
            phase = PHASES[index]
        elif kind == "operator" and has_kernel(seen.operators[index]):
            one = seen.operators[index]
            if phase == "forward" or one.module_class or one.name.startswith("attention."):
                found[phase] += device_seconds(one, rates)
    print("ANSWER", json.dumps([name, found]), flush=True)
"""


def raw(family: str, block: dict[str, Any]) -> dict[str, Any]:
    return {
        "train_micro_batch_size_per_gpu": 16,
        "bf16": {"enabled": True},
        "zero_optimization": {"stage": 0},
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-4}},
        "trimtab": {"task": TASKS.get(family, "causal-lm"), "sequence_length": 512, **block},
    }


@pytest.mark.engine
@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("torch", "deepspeed", "transformers", "peft")),
    reason="needs trimtab[train]",
)
def test_kernels_take_as_long_as_those_of_the_engines_record() -> None:
    models = {name: {"model_type": name, **shape} for name, shape in MODELS.items()}
    asked = [(name, models[family], raw(family, block)) for name, (family, block) in CASES.items()]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT],
        input=json.dumps(asked),
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        check=True,
    )
    answers = [line.split(" ", 1)[1] for line in done.stdout.splitlines() if line.startswith("ANSWER ")]
    seen = dict(map(json.loads, answers))
    assert seen.keys() == CASES.keys()
    rates = rates_of(Cluster.of("h200", 1))
    card = of_a_card(rates.gpu, rates.tables)
    off = {}
    for name, hf, config in asked:
        counted = profile(Config.from_mapping(config), Model.from_hf(hf), 1)
        sums: Counter[str] = Counter()
        for stretch in timed(counted.stretches, "bf16", card)[1]:
            sums[stretch.phase] += stretch.seconds  # type: ignore[assignment]
        for phase in ("forward", "backward"):
            off[name, phase] = sums[phase] / seen[name][phase] - 1
    assert {one: error for one, error in off.items() if abs(error) > 0.04} == {}
