"""``trimtab check`` and its relatives as commands."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from sources import ROOT, SRC, python, trimtab
from trimtab import catalogue
from trimtab.report.rule_pages import markdown
from trimtab.rules.registry import rules

WRONG = """{
  // how many samples
  "train_micro_batch_size_per_gpu": 1, // one
  "zero_optimization": {"stage": 2, "offload_param": {"device": "cpu"}},
  "gradient_cliping": 1.0,
  "optimizer": {"type": "AdamW", "params": {"lr": 1e-4}}
}
"""


@pytest.fixture
def wrong(tmp_path: Path) -> Path:
    file = tmp_path / "ds.json"
    file.write_text(WRONG, encoding="utf-8")
    return file


def test_exit_codes(wrong: Path) -> None:
    assert trimtab("check", "llama_7b_single_node").returncode == 0
    assert trimtab("check", str(wrong)).returncode == 1
    assert trimtab("check", str(wrong), "--fail-on", "error").returncode == 0
    assert trimtab("check", str(wrong), "--fail-on", "never").returncode == 0
    done = trimtab("check", str(wrong.parent / "no.json"))
    assert (done.returncode, done.stdout) == (2, "")
    assert "unknown configuration file" in done.stderr


def test_json_on_stdout_and_nothing_else(wrong: Path) -> None:
    done = trimtab("check", str(wrong), "--json", "--deepspeed", "0.19.8")
    answer = json.loads(done.stdout)
    assert done.stderr == ""
    assert {"OF001", "KY002"} <= {finding["code"] for finding in answer["findings"]}


def test_an_unknown_release_is_judged_and_said(wrong: Path) -> None:
    done = trimtab("check", str(wrong), "--deepspeed", "99.0.0", "--json")
    assert json.loads(done.stdout)["deepspeed"] == "0.19.8"
    assert "newer than any release known here" in done.stderr


def test_diff_shows_and_changes_nothing(wrong: Path) -> None:
    done = trimtab("check", str(wrong), "--diff", "--unsafe-fixes", "--deepspeed", "0.19.8")
    assert done.returncode == 1
    assert '-  "gradient_cliping": 1.0,' in done.stdout
    assert '+  "gradient_clipping": 1.0,' in done.stdout
    assert wrong.read_text(encoding="utf-8") == WRONG


def test_fixing_keeps_comments(wrong: Path) -> None:
    done = trimtab("check", str(wrong), "--fix", "--deepspeed", "0.19.8")
    text = wrong.read_text(encoding="utf-8")
    assert done.returncode == 1  # the typo is left: renaming it changes what the run does
    assert "offload_param" not in text
    assert "// how many samples" in text
    assert "// one" in text
    assert "fixed" in done.stderr
    assert trimtab("fix", str(wrong), "--unsafe", "--deepspeed", "0.19.8").returncode == 0
    assert '"gradient_clipping": 1.0' in wrong.read_text(encoding="utf-8")


def test_standard_input_is_fixed_to_standard_output() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "trimtab", "check", "-", "--fix", "--deepspeed", "0.19.8"],
        input=WRONG, capture_output=True, text=True, check=False, cwd=ROOT, env={"PYTHONPATH": str(SRC)},
    )  # fmt: skip
    assert "offload_param" not in done.stdout
    assert "// how many samples" in done.stdout


def test_an_output_file(wrong: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.sarif"
    done = trimtab("check", str(wrong), "--output-format", "sarif", "-o", str(out))
    assert done.stdout == ""
    assert json.loads(out.read_text(encoding="utf-8"))["version"] == "2.1.0"


def test_select_takes_commas_and_repeats(wrong: Path) -> None:
    both = trimtab("check", str(wrong), "--select", "OF,KY", "--json")
    same = trimtab("check", str(wrong), "--select", "OF", "--select", "KY", "--json")
    assert both.stdout == same.stdout
    assert {finding["code"] for finding in json.loads(both.stdout)["findings"]} == {"OF001", "KY002"}


def test_settings_and_isolation_exclude_each_other(wrong: Path, tmp_path: Path) -> None:
    settings = tmp_path / "trimtab.toml"
    settings.write_text('ignore = ["ALL"]\n', encoding="utf-8")
    assert trimtab("check", str(wrong)).returncode == 0
    assert trimtab("check", str(wrong), "--isolated").returncode == 1
    assert trimtab("check", str(wrong), "--isolated", "--config", str(settings)).returncode == 2


# -- explain, schema, diff -----------------------------------------------------------------------------------


def test_explain_a_rule_a_key_and_an_optimizer() -> None:
    assert "Why is this bad?" in trimtab("explain", "ZR015").stdout
    assert trimtab("explain", "fp16-and-bf16").stdout.startswith("PR001  fp16-and-bf16")
    assert "norm of all gradients" in trimtab("explain", "gradient_clipping").stdout
    assert "removed in 0.19.7" in trimtab("explain", "OneBitAdam").stdout
    assert json.loads(trimtab("explain", "ZR015", "--json").stdout)["rule"]["code"] == "ZR015"
    assert len(json.loads(trimtab("explain", "--json").stdout)["rules"]) == len(rules())
    done = trimtab("explain", "gradient_cliping")
    assert done.returncode == 2
    assert "gradient_clipping" in done.stderr


def test_the_schema_is_one_of_json() -> None:
    answer = json.loads(trimtab("schema", "--deepspeed", "0.18.9").stdout)
    assert answer["title"] == "DeepSpeed 0.18.9 configuration"


def test_the_rules_document_is_fresh() -> None:
    assert (ROOT / "docs" / "rules.md").read_text(encoding="utf-8") == markdown(), (
        "docs/rules.md is stale: python scripts/make_reference.py"
    )


def test_no_torch_is_imported() -> None:
    program = (
        "import sys; from trimtab.cli.main import main; main(['check', 'llama_7b_single_node']);"
        "sys.exit(any(name in sys.modules for name in ('torch', 'deepspeed', 'transformers', 'numpy')))"
    )
    assert python("-c", program).returncode == 0


def test_neither_the_file_nor_a_ready_configuration_is_overwritten(wrong: Path) -> None:
    before = wrong.read_bytes()
    done = trimtab("check", str(wrong), "-o", str(wrong))
    assert (done.returncode, wrong.read_bytes()) == (2, before)
    assert "name another file" in done.stderr
    ready = catalogue.path("llama_70b_multi_node")
    before = ready.read_bytes()
    done = trimtab("fix", "llama_70b_multi_node", "--unsafe")
    assert (done.returncode, ready.read_bytes()) == (2, before)
    assert "`trimtab init llama_70b_multi_node` copies it" in done.stderr
    assert trimtab("fix", "llama_70b_multi_node", "--unsafe", "--diff").stdout.startswith("---")


def test_a_misspelt_name_is_answered_with_the_nearest_ready_one() -> None:
    for words in (["check", "llama_7b_single_nod"], ["diff", "gpt2_baseline", "llama_7b_single_nod"]):
        done = trimtab(*words)
        assert done.returncode == 2
        assert "Did you mean llama_7b_single_node" in done.stderr


def test_a_folder_without_configurations_is_said(tmp_path: Path) -> None:
    done = trimtab("check", str(tmp_path))
    assert (done.returncode, done.stderr) == (0, f"note: no configuration was found in {tmp_path}\n")


@pytest.mark.parametrize(
    "words", [["schema"], ["explain", "gradient_clipping"], ["diff", "gpt2_baseline", "gptj_6b_zero2"]]
)
def test_a_release_that_nobody_knows_is_said(words: list[str]) -> None:
    done = trimtab(*words, "--deepspeed", "99.0")
    assert done.stderr.startswith("note: DeepSpeed 99.0 is newer than any release known here")
    assert done.stdout
