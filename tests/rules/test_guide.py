"""The guide's own snippets: what is wrong with one is found, and a sound one passes."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from trimtab.check import check
from trimtab.settings import Settings
from trimtab.source import read_text

FILE = Path(__file__).parent.parent / "data" / "guide_snippets.json"
SNIPPETS = json.loads(FILE.read_text("utf-8"))["snippets"]
MINIMAL: dict[str, Any] = {
    "train_micro_batch_size_per_gpu": 1,
    "bf16": {"enabled": True},
    "optimizer": {"type": "AdamW", "params": {"lr": 1e-4}},
}


def whole(snippet: dict[str, Any]) -> dict[str, Any] | str:
    """The snippet inside a small valid configuration; as text where it cannot be read."""
    source = read_text(snippet["text"], written="json")
    if not source.complete:
        return str(snippet["text"])
    config = copy.deepcopy(MINIMAL)
    config.update(copy.deepcopy(snippet.get("base", {})))
    if "train_batch_size" in source.mapping:
        del config["train_micro_batch_size_per_gpu"]
    place = config
    for key in filter(None, snippet["at"].split(".")):
        place = place.setdefault(key, {})
    for key, value in source.mapping.items():
        if isinstance(value, dict) and isinstance(place.get(key), dict) and key == "zero_optimization":
            place[key].update(value)
        else:
            place[key] = value
    return config


@pytest.mark.parametrize("snippet", SNIPPETS, ids=lambda snippet: str(snippet["name"]))
def test_the_guide_s_snippet(snippet: dict[str, Any]) -> None:
    report = check(
        whole(snippet), deepspeed="0.19.8", settings=Settings(), written="json", **snippet["flags"]
    )
    found = {finding.code for finding in report.findings}
    assert set(snippet["finds"]) <= found
    if not snippet["finds"]:
        assert report.at_least("warning") == ()


def test_the_guide_s_advice_on_adam_s_name_is_not_needed() -> None:
    """It says that only "AdamW" works; every spelling does."""
    for name in ("Adam", "adam", "AdamW", "adamw", "ADAMW"):
        config = {**MINIMAL, "optimizer": {"type": name, "params": {"lr": 1e-4}}}
        assert check(config, deepspeed="0.19.8", settings=Settings()).ok
