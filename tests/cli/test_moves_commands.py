"""``trimtab adapt`` and ``trimtab ladder`` as a user types them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trimtab.cli.main import main

Capture = pytest.CaptureFixture[str]
MINE = """{
  // ours
  "train_batch_size": 64,
  "train_micro_batch_size_per_gpu": 8,
  "gradient_accumulation_steps": 2,
  "fp16": {"enabled": true},
  "zero_optimization": {"stage": 1},
  "optimizer": {"type": "AdamW", "params": {"lr": 6e-4}}
}
"""


def document(capsys: Capture, *words: str) -> tuple[int, dict[str, object]]:
    code = main([*words, "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_adapt_shows_moves_a_diff_and_the_verdict(capsys: Capture) -> None:
    assert main(["adapt", "llama_7b_single_node", "--gpu", "v100-32gb"]) == 0
    text = capsys.readouterr().out
    for part in (
        "on 8 × v100-32gb (made for 8 × a100-40gb)",
        "1  fp16 with dynamic loss scaling  precision-fp16",
        "v100-32gb has no bf16 units",
        "2  ZeRO stage 3  zero-stage-3",
        '-    "stage": 2,',
        '+    "stage": 3,',
        "fits: ",
    ):
        assert part in text
    assert max(map(len, text.splitlines())) <= 80


def test_adapt_as_json(capsys: Capture) -> None:
    code, found = document(capsys, "adapt", "llama_7b_single_node", "--gpu", "a100-80gb",
                           "--gpus-per-node", "4")  # fmt: skip
    assert code == 0
    assert found["schema_version"] == 1
    assert found["fits"] is True
    assert found["cluster"] == {
        "gpu": "a100-80gb", "gpus_per_node": 4, "nodes": 1, "inter_node_link": None,
        "host_memory_bytes": 1024 * 2**30,
    }  # fmt: skip
    (move,) = found["moves"]  # type: ignore[misc]
    assert move["name"] == "micro-batch-4"
    assert move["changes"] == [{"action": "set", "key_path": ["gradient_accumulation_steps"], "value": 8}]
    assert found["result"]["gradient_accumulation_steps"] == 8  # type: ignore[index]
    assert found["estimate"]["fits"] is True  # type: ignore[index]


def test_adapt_says_no_with_exit_code_1(capsys: Capture) -> None:
    code, found = document(capsys, "adapt", "t5_small_finetuning", "--gpus-per-node", "3")
    assert code == 1
    assert found["fits"] is False
    assert found["result"] is None
    assert "does not split over 3 ranks" in str(found["missing"])
    assert main(["adapt", "t5_small_finetuning", "--gpus-per-node", "3"]) == 1
    assert "nothing fits" in capsys.readouterr().out


def test_adapt_writes_a_file_of_ones_own(tmp_path: Path, capsys: Capture) -> None:
    file = tmp_path / "mine.json"
    file.write_text(MINE, encoding="utf-8")
    flags = ["--model", "gpt2", "--gpu", "a100-40gb", "--gpus-per-node", "2"]
    assert main(["adapt", str(file), *flags]) == 0
    assert file.read_text(encoding="utf-8") == MINE
    other = tmp_path / "other.json"
    assert main(["adapt", str(file), *flags, "-o", str(other)]) == 0
    assert main(["adapt", str(file), *flags, "--write"]) == 0
    wanted = MINE.replace('"gradient_accumulation_steps": 2', '"gradient_accumulation_steps": 4')
    assert file.read_text(encoding="utf-8") == other.read_text(encoding="utf-8") == wanted
    assert main(["adapt", str(file), *flags]) == 0
    out = capsys.readouterr()
    assert "nothing to change" in out.out
    assert "wrote" in out.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["llama_7b_single_node", "--write"], "is a ready configuration"),
        (["x.json", "--write", "-o", "y.json"], "give one of them"),
        (["gpt2_baseline", "--link", "infiniband-xyz"], "unknown link"),
        (["gpt2_baseline", "--host-memory", "plenty"], "is not a size"),
        (["gpt2_baseline", "-o", "/nowhere/at/all.json"], "cannot be written"),
    ],
)
def test_mistakes_are_one_line(words: list[str], said: str, capsys: Capture) -> None:
    assert main(["adapt", *words]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error:")
    assert said in error
    assert len(error.splitlines()) == 1


def test_ladder_marks_the_first_rung_that_fits(capsys: Capture) -> None:
    assert main(["ladder", "llama_7b_single_node", "--gpu", "t4"]) == 0
    text = capsys.readouterr().out
    assert "first that fits: Optimizer in the host's memory" in text
    assert max(map(len, text.splitlines())) <= 80
    code, found = document(capsys, "ladder", "llama_7b_single_node", "--gpu", "t4")
    assert code == 0
    rungs = found["rungs"]
    assert [rung["chosen"] for rung in rungs].index(True) == 4  # type: ignore[attr-defined]
    assert [rung["fits"] for rung in found["levels"]] == [False, True, True, True]  # type: ignore[attr-defined]


def test_ladder_says_no_with_exit_code_1(capsys: Capture) -> None:
    code, found = document(capsys, "ladder", "llama_13b_zero3_offload", "--gpu", "rtx4090",
                           "--gpus-per-node", "4")  # fmt: skip
    assert (code, found["fits"]) == (1, False)


def test_adapt_overwrites_nothing_unasked(tmp_path: Path, capsys: Capture) -> None:
    file = tmp_path / "mine.json"
    file.write_text("{}", encoding="utf-8")
    words = ["adapt", "llama_7b_single_node", "--gpu", "v100-32gb", "-o", str(file)]
    assert main(words) == 2
    assert "--force overwrites it" in capsys.readouterr().err
    assert file.read_text(encoding="utf-8") == "{}"
    assert main([*words, "--force"]) == 0
    assert '"stage": 3' in file.read_text(encoding="utf-8")


def test_adapt_gives_no_number_for_what_the_engine_refuses(tmp_path: Path, capsys: Capture) -> None:
    file = tmp_path / "mine.json"
    file.write_text(MINE.replace('"stage"', '"stge"'), encoding="utf-8")
    assert main(["adapt", str(file), "--gpu", "a100-40gb"]) == 2
    assert "no key 'stge'" in capsys.readouterr().err
