"""`trimtab report`: one page of a run, of a stored rehearsal, of an answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from test_memory_picture import DOCUMENTS, Page

from trimtab.cli.main import main
from trimtab.store import database
from trimtab.store.entry import Entry

Capture = pytest.CaptureFixture[str]


def steps(count: int) -> list[dict[str, Any]]:
    return [
        {
            "event": "step",
            "step": n,
            "loss": 8 / n,
            "tokens": 100 * n,
            "seconds": 0.5,
            "tokens_per_second": 200.0 + n,
            "memory_peak_bytes": 2**30,
        }
        for n in range(1, count + 1)
    ]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a run that ended."""
    folder = tmp_path / "a <run>"
    folder.mkdir()
    start = {"event": "start", "parameters": 10**6, "trainable": 10**5, "world_size": 2, "steps": 30}
    start |= {"notes": ["a tokenizer was trained"], "versions": {"torch": "2.13.0"}}
    evaluation = {"event": "evaluation", "step": 30, "loss": 0.3}
    saved = {"event": "checkpoint", "step": 30, "path": "step-000030"}
    rows = [start, *steps(30), evaluation, saved, {"event": "end", "step": 30}]
    (folder / "events.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    beside = {"quantity": "peak memory bytes", "predicted": 2**30, "measured": 2**31, "ratio": 2.0}
    report = {"validation": [evaluation], "sample": "def <f>", "predicted": [beside]}
    (folder / "report.json").write_text(json.dumps(report), encoding="utf-8")
    (folder / "settings.json").write_text("{}", encoding="utf-8")
    (folder / "config.json").write_text('{"bf16": {"enabled": true}}', encoding="utf-8")
    return folder


def read(file: Path) -> str:
    """The text of a page, which must be whole and fetch nothing."""
    page = Page()
    page.feed(file.read_text(encoding="utf-8"))
    assert (page.open, page.fetched) == ([], [])
    return page.text


def test_a_runs_page_holds_what_happened(run: Path, capsys: Capture) -> None:
    assert main(["report", str(run)]) == 0
    assert capsys.readouterr().out.strip() == str(run / "report.html")
    text = read(run / "report.html")
    told = ("a <run>", "ended, 30 steps", "8.0000 → 0.2667", "1M, 100k trained", "def <f>", "+100.0%")
    for said in (*told, "a tokenizer was trained", "step 30: checkpoint step-000030", "bf16", "torch 2.13.0"):
        assert said in text


def test_a_run_that_has_not_ended_says_so(run: Path) -> None:
    (run / "report.json").unlink()
    lines = (run / "events.jsonl").read_text(encoding="utf-8").splitlines()
    (run / "events.jsonl").write_text("\n".join(lines[:11]) + '\n{"event": "st', encoding="utf-8")
    assert main(["report", str(run), "--output", str(run / "other.html")]) == 0
    assert "has not ended, 10 of 30 steps" in read(run / "other.html")
    (run / "events.jsonl").unlink()
    assert main(["report", str(run)]) == 0
    assert "no step has run" in read(run / "report.html")


def test_an_answers_page(tmp_path: Path, capsys: Capture) -> None:
    file = tmp_path / "answer.json"
    file.write_text(json.dumps(DOCUMENTS["phantom"]), encoding="utf-8")
    assert main(["report", str(file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["written"] == str(tmp_path / "answer.html")
    assert "llama_7b_single_node on 8 × a100-40gb" in read(tmp_path / "answer.html")


def test_pages_of_the_history(tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIMTAB_HISTORY", str(tmp_path / "history.sqlite"))
    monkeypatch.chdir(tmp_path)
    common = {"config": "c", "model": "m", "gpu": "h200", "gpus_per_node": 1, "nodes": 1, "traits": None}
    gone = {"answer": {"final_loss": 1.25, "run": "x"}, "error": "no <memory>", "run": "/gone"}
    database.keep(Entry(how="phantom", outcome="ended", document={"answer": DOCUMENTS["phantom"]}, **common))
    database.keep(Entry(how="training", outcome="ended", document={"run": str(run)}, **common))
    database.keep(Entry(how="training", outcome="out of memory", document=gone, **common))
    for number, said in (("1", "phantom rehearsal"), ("2", "ended, 30 steps"), ("3", "no <memory>")):
        assert main(["report", number]) == 0
        assert said in read(tmp_path / f"run-{number}.html")
    assert "1.25" in read(tmp_path / "run-3.html")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: None, "neither a run's folder"),
        (lambda path: path.mkdir(), "no run lives in this folder"),
        (lambda path: path.write_text("{", encoding="utf-8"), "not JSON"),
        (lambda path: path.write_text("[1]", encoding="utf-8"), "not an answer"),
    ],
)
def test_what_is_no_run_is_refused(make: Any, said: str, tmp_path: Path, capsys: Capture) -> None:
    make(tmp_path / "it")
    assert main(["report", str(tmp_path / "it")]) == 2
    assert said in capsys.readouterr().err
