"""The prediction that stands beside a run's own figures."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from trimtab.train.predict import prediction
from trimtab.train.settings import Settings


def settings(**values: object) -> Settings:
    return Settings(
        **{"config": "llama_7b_single_node", "data": ("x",), "run": "r", "device": "cuda", **values}
    )  # type: ignore[arg-type]


def with_card(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\necho '{name}'\n", encoding="utf-8")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(folder), prepend=":")


def test_a_known_card_gets_the_estimate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_card("NVIDIA H200", tmp_path, monkeypatch)
    found = prediction(settings(), ranks=4)
    assert found is not None
    assert found["gpu"]["name"] == "h200"
    assert found["gpu"]["peak_allocated_bytes"]["expected"] > 40 * 2**30


@pytest.mark.parametrize(
    ("card", "values"),
    [
        ("Imaginary 9000", {}),
        ("NVIDIA H200", {"device": "cpu"}),
        ("NVIDIA H200", {"shrink": True}),
    ],
)
def test_no_prediction_is_made_up(
    card: str, values: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_card(card, tmp_path, monkeypatch)
    assert prediction(settings(**values), ranks=4) is None
