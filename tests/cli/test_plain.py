"""Plain command lines, read without the parsing library: the same flags, the same answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

from trimtab.cli import check, checking, commands, estimate, estimating
from trimtab.cli.main import main
from trimtab.cli.plain import Given, plain

Capture = pytest.CaptureFixture[str]


def given(arguments: list[str]) -> Given | None:
    return plain(arguments, checking.FLAGS, checking.SWITCHES, checking.REPEATED)


@pytest.mark.parametrize(
    ("name", "function", "quick", "argument"),
    [
        ("check", check.check, checking, "paths"),
        ("estimate", estimate.estimate, estimating, "config"),
    ],
)
def test_the_quick_way_knows_every_flag(
    name: str, function: Callable[..., int], quick: Any, argument: str
) -> None:
    app = typer.Typer(add_completion=False)
    app.command(name)(function)
    options = [one for one in typer.main.get_command(app).params if one.name not in (argument, "help")]
    flags = {flag: option.name for option in options for flag in (*option.opts, *option.secondary_opts)}
    switches = {flag: option for flag, (option, _) in quick.SWITCHES.items()}
    assert flags == {**switches, **{flag: option for flag, (option, _) in quick.FLAGS.items()}}
    assert name in commands.QUICK


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["a", "--selekt", "ZR"], ["a", "--nodes"], ["a", "--nodes", "two"], ["a", "--fail-on", "x"]],
)
def test_what_only_the_parser_can_answer(arguments: list[str]) -> None:
    assert given(arguments) is None


def test_plain_command_lines() -> None:
    found = given(["a.json", "--nodes=2", "--select", "ZR", "--select=OF", "-o", "x", "--json", "-"])
    assert found is not None
    assert found.paths == ["a.json", "-"]
    assert found.options == {
        "nodes": 2,
        "select": ["ZR", "OF"],
        "output_file": Path("x"),
        "as_json": True,
    }


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--json"],
        ["one", "two"],
        ["gpt2_baseline", "--nodes", "0"],
        ["gpt2_baseline", "--micro_batch", "2"],
    ],
)
def test_an_estimate_that_only_the_parser_can_answer(arguments: list[str]) -> None:
    assert estimating.quick(arguments) is None


def test_both_ways_to_an_estimate_give_one_answer(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["gpt2_baseline", "--gpus-per-node", "2", "--micro-batch", "3", "--tokens", "1B"]
    arguments += ["--checkpoint-activations", "--json"]
    codes = [main(["estimate", *arguments])]
    monkeypatch.setattr(commands, "QUICK", {})
    codes.append(main(["estimate", *arguments]))
    one, two = capsys.readouterr().out.split("\n}\n")[:2]
    assert codes == [0, 0]
    assert json.loads(one + "}") == json.loads(two + "}")
