"""``list``, ``show``, ``path``, ``init`` and ``version``."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from trimtab import catalogue
from trimtab.cli.main import main
from trimtab.report.document import to_json

Capture = pytest.CaptureFixture[str]


def answer(capsys: Capture, *arguments: str) -> dict[str, Any]:
    """The object that a command prints."""
    assert main([*arguments, "--json"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    document: dict[str, Any] = json.loads(captured.out, parse_constant=pytest.fail)
    assert list(document)[:2] == ["schema_version", "tool_version"]
    assert document["schema_version"] == 1
    return document


def text(capsys: Capture, *arguments: str) -> str:
    """The text that a command prints, which must be readable at 80 columns."""
    assert main(list(arguments)) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert max(map(len, captured.out.splitlines())) <= 80
    return captured.out


@pytest.fixture(autouse=True)
def eighty_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


# -- list ------------------------------------------------------------------------------------------------


def test_list_names_all_with_their_models_and_gpus(capsys: Capture) -> None:
    lines = text(capsys, "list").splitlines()
    for name in catalogue.names():
        (line,) = (line for line in lines if line.startswith(f"{name} "))
        card = catalogue.card(name)
        assert f"{card.hardware.world_size} × {card.hardware.gpu}" in line
        assert str(catalogue.load_config(name).job.model) in line


def test_list_json_is_what_others_rely_on(capsys: Capture) -> None:
    configs = answer(capsys, "list")["configs"]
    assert [entry["name"] for entry in configs] == list(catalogue.names())
    for entry in configs:
        card = catalogue.card(entry["name"])
        assert Path(entry["path"]) == catalogue.path(entry["name"])
        assert Path(entry["path"]).is_absolute()
        assert (entry["family"], entry["title"]) == (card.family, card.title)
        assert entry["hardware"]["world_size"] == card.hardware.world_size
        assert entry["hardware"]["host_memory_bytes"] == card.hardware.host_memory_bytes
        batch = entry["batch"]
        assert batch["train"] == batch["micro"] * batch["accumulation"] * batch["data_parallel"]


@pytest.mark.parametrize("family", catalogue.FAMILIES)
def test_list_of_one_family(family: str, capsys: Capture) -> None:
    configs = answer(capsys, "list", "--family", family)["configs"]
    assert configs
    assert {entry["family"] for entry in configs} == {family}
    shown = text(capsys, "list", "--family", family)
    assert [name for name in catalogue.names() if name in shown] == [entry["name"] for entry in configs]


# -- show ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", catalogue.names())
def test_show_tells_all_that_the_card_knows(name: str, capsys: Capture) -> None:
    shown = " ".join(text(capsys, "show", name).split())
    card, config = catalogue.card(name), catalogue.load_config(name)
    batch = config.batch(card.hardware.world_size)
    facts = [card.title, *card.purpose, str(config.job.model), config.job.task]
    facts.append(f"{batch.train:,} samples = {batch.micro} per GPU × {batch.accumulation} accumulated")
    facts += [claim.claim for claim in card.claims if claim.quantity == "statement"]
    facts += [claim.truth for claim in card.claims if claim.truth]
    facts += [part for change in card.changes for part in (change.before, change.after, change.why)]
    facts += [other.when for other in card.alternatives]
    for fact in facts:
        assert " ".join(fact.split()) in shown


@pytest.mark.parametrize("name", catalogue.names())
def test_show_json_holds_the_configuration_itself(name: str, capsys: Capture) -> None:
    document = answer(capsys, "show", name)
    assert document["config"] == json.loads(catalogue.path(name).read_text(encoding="utf-8"))
    assert document["parameters"]["total"] >= document["parameters"]["trainable"] > 0
    assert len(document["claims"]) == len(catalogue.card(name).claims)
    assert document["changes"][0].keys() == {"before", "after", "why", "source"}
    assert document["alternatives"][0].keys() == {"when", "changes"}


def test_show_counts_what_trains(capsys: Capture) -> None:
    assert answer(capsys, "show", "llama_lora_finetune")["parameters"] == {
        "total": 6_738_415_616 + 4_194_304,
        "trainable": 4_194_304,
    }
    assert "6.74B parameters, 4.19M of them trained" in text(capsys, "show", "llama_lora_finetune")


# -- path and init ------------------------------------------------------------------------------------------


def test_path_is_a_file_for_other_programs(capsys: Capture) -> None:
    assert (
        Path(text(capsys, "path", "gpt2_baseline").rstrip("\n")).read_text(encoding="utf-8").startswith("{")
    )


def test_init_copies_the_very_text_and_never_overwrites_unasked(
    capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    original = catalogue.path("gpt2_baseline").read_text(encoding="utf-8")
    assert main(["init", "gpt2_baseline"]) == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("wrote gpt2_baseline.json\nNext: ")
    mine = tmp_path / "gpt2_baseline.json"
    assert mine.read_text(encoding="utf-8") == original
    mine.write_text("mine", encoding="utf-8")
    assert main(["init", "gpt2_baseline"]) == 2
    assert capsys.readouterr().err == "error: gpt2_baseline.json is there already; --force overwrites it.\n"
    assert mine.read_text(encoding="utf-8") == "mine"
    assert main(["init", "gpt2_baseline", "--force"]) == 0
    assert mine.read_text(encoding="utf-8") == original


def test_init_writes_where_it_is_told(capsys: Capture, tmp_path: Path) -> None:
    assert main(["init", "gpt2_baseline", str(tmp_path)]) == 0
    assert main(["init", "gpt2_baseline", str(tmp_path / "new" / "mine.json")]) == 0
    assert (tmp_path / "gpt2_baseline.json").exists()
    assert (tmp_path / "new" / "mine.json").exists()
    assert main(["init", "gpt2_baseline", str(tmp_path / "gpt2_baseline.json" / "below.json")]) == 2
    assert "cannot be written" in capsys.readouterr().err


# -- version and the document ----------------------------------------------------------------------------


def test_version_tells_what_is_installed(capsys: Capture) -> None:
    versions = answer(capsys, "version")["versions"]
    shown = text(capsys, "version")
    for package, version in versions.items():
        assert any(
            line.split() == [package, *(version or "not installed").split()] for line in shown.splitlines()
        )


def test_a_document_never_holds_nan() -> None:
    document = json.loads(to_json({"a": math.nan, "b": [math.inf, (1.5,)], "c": {"d": -math.inf}, 1: True}))
    assert document["a"] is None
    assert document["b"] == [None, [1.5]]
    assert document["c"] == {"d": None}
    assert document["1"] is True
