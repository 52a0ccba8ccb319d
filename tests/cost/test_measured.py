"""The arithmetic against an H200: every measured row of ``bench/data``, within two per cent each."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from functools import cache
from typing import Any

import pytest

from measured_cases import chosen, drawn
from sources import ROOT
from trimtab.config import Config
from trimtab.cost.memory import Profile, profile
from trimtab.model import Model

GIB = 2**30
MIB = 2**20
WORKSPACE_BYTES = 2 * 32 * MIB
"""cuBLAS: 32 MiB on this architecture for each of the forward and the backward pass's handles
(aten/src/ATen/cuda/CublasHandlePool.cpp)."""
UNSEEN_BYTES = 2 * MIB
"""The measuring script's own tensors, and the engine's smallest ones."""

ROWS = [json.loads(line) for line in (ROOT / "bench/data/h200_memory.jsonl").read_text("utf-8").splitlines()]
CASES = {case["id"]: case for case in (*chosen(), *drawn(24))}
KNOWN_ERRORS: Mapping[str, tuple[float, str]] = {
    "drawn-07": (11.0, "a parameter that stage 3 keeps with a reuse distance of 0"),
    "drawn-12": (3.0, "slack of the caching allocator"),
    "llama-s-z1-fp32": (3.1, "keys shared in fp32"),
    "t5-b-z2-ckpt": (2.6, "T5 under recomputation"),
    "t5-g-z2-ckpt": (4.2, "T5 under recomputation"),
    "t5-b-z3-both-ckpt": (4.7, "T5 under recomputation"),
    "t5-g-z3-both-ckpt": (4.9, "T5 under recomputation"),
}
"""Per cent, and why."""


@cache
def predicted(name: str) -> Profile:
    case = CASES[name]
    return profile(Config.from_mapping(case["config"]), Model.from_hf(case["hf"], name), case["world"])


def error_of(row: Mapping[str, Any]) -> float:
    """Per cent by which the predicted peak exceeds the measured one."""
    measured: float = row["gib"]["end"]["peak_alloc"]
    return 100 * ((predicted(row["id"]).peak + WORKSPACE_BYTES + UNSEEN_BYTES) / GIB / measured - 1)


def test_every_case_was_measured() -> None:
    assert [row["id"] for row in ROWS if not row["ok"]] == []
    assert {row["id"] for row in ROWS} == set(CASES)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["id"])
def test_the_peak_is_that_of_the_gpu(row: Mapping[str, Any]) -> None:
    limit, _ = KNOWN_ERRORS.get(row["id"], (2.0, ""))
    assert abs(error_of(row)) <= limit


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["id"])
def test_what_stays_allocated_is_that_of_the_gpu(row: Mapping[str, Any]) -> None:
    """After ``deepspeed.initialize`` and after the step, to a hundredth or 64 MiB."""
    found, gib = predicted(row["id"]), row["gib"]
    initialized, stepped = gib["engine"]["alloc"] * GIB, gib["end"]["alloc"] * GIB - WORKSPACE_BYTES
    assert found.initialized == pytest.approx(initialized, rel=0.01, abs=64 * MIB)
    assert found.live["step"] == pytest.approx(stepped, rel=0.01, abs=64 * MIB)


def test_the_usual_error_is_a_few_thousandths() -> None:
    errors = sorted(abs(error_of(row)) for row in ROWS)
    assert statistics.median(errors) <= 0.2
    assert errors[len(errors) * 9 // 10] <= 1.5


def test_no_error_is_excused_in_vain() -> None:
    """An entry of the list goes when its cause is found."""
    measured = {row["id"]: abs(error_of(row)) for row in ROWS}
    assert [name for name in KNOWN_ERRORS if measured[name] <= 2.0] == []
