"""``trimtab plan``: exit codes, the JSON contract, files, and what a person reads."""

from __future__ import annotations

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from sources import python
from trimtab.cli.main import main
from trimtab.rehearse import proving

Capture = pytest.CaptureFixture[str]
QUICK = ["plan", "--model", "gpt2", "--gpu", "a100-40gb", "--gpus-per-node", "2", "--global-batch", "32"]


def answer(arguments: list[str], capsys: Capture) -> tuple[int, dict[str, object]]:
    code = main([*arguments, "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_the_contract(capsys: Capture) -> None:
    code, document = answer(QUICK, capsys)
    assert code == 0
    assert document["schema_version"] == 1
    chosen = document["chosen"]
    assert isinstance(chosen, dict)
    assert set(chosen) >= {"config", "estimate", "launch"}
    assert chosen["config"]["train_batch_size"] == 32
    assert chosen["estimate"]["fits"] is True
    assert chosen["launch"].startswith("trimtab train plan.json")
    assert document["nearest"] is None
    assert isinstance(document["considered"], list)
    assert {"summary", "fits", "step_seconds", "why_not"} <= set(document["considered"][0])
    assert isinstance(document["why"], list)
    assert document["why"]


def test_the_file_is_written_once_and_is_clean(tmp_path: Path, capsys: Capture) -> None:
    file = tmp_path / "runs" / "plan.json"
    assert main([*QUICK, "--output", str(file)]) == 0
    assert main(["check", str(file), "--isolated", "--deepspeed", "0.19.8"]) == 0
    assert main(["check", str(file), "--isolated", "--gpu", "a100-40gb", "--gpus-per-node", "2"]) == 0
    before = file.read_bytes()
    capsys.readouterr()
    assert main([*QUICK, "--output", str(file)]) == 2
    assert "--force" in capsys.readouterr().err
    assert file.read_bytes() == before
    assert main([*QUICK, "--output", str(file), "--force"]) == 0


def test_no_is_exit_1_with_the_nearest(capsys: Capture) -> None:
    code, document = answer(["plan", "--model", "gpt2", "--gpu", "t4", "--gpus-per-node", "4",
                             "--global-batch", "30"], capsys)  # fmt: skip
    assert code == 1
    assert document["chosen"] is None
    nearest = document["nearest"]
    assert isinstance(nearest, dict)
    assert set(nearest) >= {"change", "missing", "config", "estimate", "launch"}
    assert document["broken"] == ["batch: 30 samples do not divide by 4 GPUs"]


@pytest.mark.parametrize(
    ("wrong", "near"),
    [
        (["--model", "llama-77b"], "llama-7b"),
        (["--model", "gpt2", "--gpu", "a100-81gb"], "a100-80gb"),
        (["--model", "gpt2", "--objective", "pretraining"], "pretrain"),
        (["--model", "gpt2", "--optimize", "fast"], "fastest"),
        (["--model", "gpt2", "--link", "infiniband-hdx"], "infiniband-hdr"),
    ],
)
def test_unknown_names_are_exit_2(wrong: list[str], near: str, capsys: Capture) -> None:
    assert main(["plan", *wrong]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: unknown ")
    assert near in said
    assert said.count("\n") == 1


def test_what_a_person_reads(capsys: Capture) -> None:
    assert main(QUICK) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    for part in ("Why", "Considered", "Other machines", "● chosen", "trimtab train plan.json"):
        assert part in text


def test_the_report_needs_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "plan.html"
    assert main([*QUICK, "--html", str(file)]) == 0
    page = file.read_text(encoding="utf-8")
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "")
    assert "<script" not in page
    pictures = page.split("<svg")[1:]
    assert len(pictures) == 2
    for picture in pictures:
        ElementTree.fromstring("<svg" + picture.partition("</svg>")[0] + "</svg>")
    for part in ("Memory of a GPU", "Why", "Considered", "train_batch_size"):
        assert part in page
    # what is wider than a phone scrolls in a frame; the bar has no words and may shrink
    assert page.count("<table") == page.count('<div class="wide considered"><table') == 1
    assert [picture.startswith(' class="bar"') for picture in pictures] == [True, False]
    assert '<div class="wide"><svg' in page
    # and the name of the axis that goes up stands above the figures on it
    heights = [float(y) for y in re.findall(r'<text x="[\d.]+" y="([\d.]+)"', pictures[1])]
    assert heights.count(min(heights)) == 1
    assert "rotate(" not in page


def test_proofs_are_told(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    from trimtab.plan import Proof

    def refuse(config: object, cluster: object) -> Proof:
        return Proof(how="phantom", fits=False, fits_probability=0.0, needed_bytes=10**11, said="too much")

    monkeypatch.setattr(proving, "under_fake_tensors", refuse)
    code, document = answer([*QUICK, "--prove", "1"], capsys)
    assert code == 0
    proven = document["proven"]
    assert isinstance(proven, list)
    assert [one["fits"] for one in proven] == [False]
    assert main([*QUICK, "--prove", "1"]) == 0
    assert "too much" in capsys.readouterr().out


def test_two_ways_of_proof_are_one_too_many(capsys: Capture) -> None:
    assert main([*QUICK, "--prove", "1", "--probe"]) == 2
    assert "give one of them" in capsys.readouterr().err


def test_a_probe_needs_a_gpu(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setattr("trimtab.cli.plan.gpu_is_here", lambda: False)
    assert main([*QUICK, "--probe"]) == 2
    assert "--prove N" in capsys.readouterr().err


def test_nothing_heavy_is_imported() -> None:
    program = f"from trimtab.cli.main import main; main({QUICK!r}); import sys; "
    heavy = {"torch", "deepspeed", "transformers", "numpy", "matplotlib"}
    done = python("-c", program + f"sys.exit(str(sorted({heavy!r} & set(sys.modules))))")
    assert done.stderr.strip() == "[]"


def test_two_files_cannot_be_one(tmp_path: Path, capsys: Capture) -> None:
    file = str(tmp_path / "plan")
    assert main([*QUICK, "-o", file, "--html", file]) == 2
    assert "give them two files" in capsys.readouterr().err
    assert not (tmp_path / "plan").exists()
