"""The check against ``deepspeed.initialize`` itself, on the CPU, in a process of its own."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from trimtab import schema

pytestmark = [pytest.mark.engine]
HERE = Path(__file__).parent
EXCEPTIONS = json.loads((HERE.parent / "data" / "engine_exceptions.json").read_text("utf-8"))["building"]


def verdicts(count: int, seed: int) -> list[dict[str, Any]]:
    """What the engine and the check say of ``count`` configurations, from a process that may be spoilt."""
    try:
        installed = importlib.metadata.version("deepspeed")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("DeepSpeed is not installed")
    if installed != schema.known_versions()[-1]:
        pytest.skip(f"DeepSpeed {installed} is installed; the rules speak of {schema.known_versions()[-1]}")
    source = str(HERE.parent.parent / "src")
    result = subprocess.run(
        [sys.executable, "-W", "ignore", str(HERE / "build_all.py"), str(count), str(seed)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": f"{source}{os.pathsep}{HERE}", "DS_ACCELERATOR": "cpu"},
    )
    assert result.returncode == 0, result.stderr[-2000:]
    rows: list[dict[str, Any]] = json.loads(result.stdout.splitlines()[-1])
    return rows


def compare(count: int, seed: int) -> None:
    rows = verdicts(count, seed)
    conditional = set(EXCEPTIONS["conditional"])
    refused = [row for row in rows if row["refusal"]]
    missed = [row for row in refused if not row["errors"] and not conditional & set(row["warnings"])]
    false_errors = [row for row in rows if row["errors"] and not row["refusal"]]
    print(f"{count} built, {len(refused)} refused, {len(missed)} missed, {len(false_errors)} false errors")
    assert 0.2 * count < len(refused) < 0.8 * count
    assert missed == []
    assert [row for row in false_errors if not set(row["errors"]) <= set(EXCEPTIONS["false_errors"])] == []


def test_the_engine_builds_what_passes_and_nothing_else() -> None:
    compare(30, seed=11)


@pytest.mark.nightly
def test_the_engine_builds_what_passes_and_nothing_else_at_length() -> None:
    compare(200, seed=2026)
