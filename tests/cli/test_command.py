"""The command as a whole: help, errors, exit codes, streams."""

from __future__ import annotations

import errno
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal

import pytest
import typer

from sources import PACKAGE, ROOT, SRC, trimtab
from trimtab import __version__
from trimtab.cli import commands
from trimtab.cli.main import main
from trimtab.errors import RunFailed

Capture = pytest.CaptureFixture[str]
GOLDEN = ROOT / "tests" / "golden" / "help"
HOW_TO_ACCEPT = "look at the change, then accept it: TRIMTAB_ACCEPT_GOLDEN=1 pytest tests/cli"


def compare(text: str, golden: Path) -> None:
    """``text`` against a golden file; ``TRIMTAB_ACCEPT_GOLDEN=1`` writes the file instead."""
    if os.environ.get("TRIMTAB_ACCEPT_GOLDEN"):
        golden.parent.mkdir(parents=True, exist_ok=True)
        golden.write_text(text, encoding="utf-8")
    assert golden.exists(), f"{golden} is missing: {HOW_TO_ACCEPT}"
    assert text == golden.read_text(encoding="utf-8"), HOW_TO_ACCEPT


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., Any]], None]:
    """Puts a function in the place of ``trimtab path``."""

    def install(function: Callable[..., Any]) -> None:
        module = ModuleType("trimtab.cli.path")
        module.path = function  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "trimtab.cli.path", module)

    return install


# -- help ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", commands.available())
def test_help_of_every_command(name: str) -> None:
    done = trimtab(name, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert max(map(len, done.stdout.splitlines())) <= 80
    compare(done.stdout, GOLDEN / f"{name}.txt")


def test_help_of_the_whole() -> None:
    done = trimtab("--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert max(map(len, done.stdout.splitlines())) <= 80
    compare(done.stdout, GOLDEN / "trimtab.txt")


def test_no_golden_help_is_left_over() -> None:
    assert {file.stem for file in GOLDEN.glob("*.txt")} == {"trimtab", *commands.available()}


def test_a_value_is_called_by_its_kind() -> None:
    def some(a: int | None, b: list[str] | None, c: float, d: bool, e: Path, f: Literal["x"]) -> None: ...

    kinds = {name: commands.placeholder(some, name) for name in "abcdefg"}
    assert kinds == {"a": "N", "b": "TEXT", "c": "X", "d": None, "e": "PATH", "f": None, "g": None}


def test_help_has_many_names(capsys: Capture) -> None:
    outputs = set()
    for arguments in ([], ["--help"], ["-h"], ["help"]):
        assert main(arguments) == 0
        outputs.add(capsys.readouterr().out)
    assert len(outputs) == 1
    assert main(["help", "path"]) == main(["path", "-h"]) == 0


# -- the table -------------------------------------------------------------------------------------------


def test_every_command_file_is_in_the_table() -> None:
    files = {file.stem for file in (PACKAGE / "cli").glob("*.py")}
    assert {Path(commands._file(target)).stem for target in commands.available().values()} == files - {
        "__init__",
        "checking",
        "commands",
        "estimating",
        "job_flags",
        "main",
        "plain",
        "settling",
    }


@pytest.mark.parametrize("name", commands.available())
def test_every_command_has_a_line_that_says_what_it_does(name: str) -> None:
    line = commands.summary(name)
    assert line
    assert line[0].isupper()
    function = commands.load(name)
    assert (function.__doc__ or "").startswith(line)


def test_a_command_whose_module_is_missing_is_not_offered(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "list.py").write_text('def list_configs():\n    """List them."""\n', encoding="utf-8")
    monkeypatch.setattr(commands, "_CLI", tmp_path)
    commands.available.cache_clear()
    try:
        assert list(commands.available()) == ["list"]
        assert main(["--help"]) == 0
        out = capsys.readouterr().out
        assert "  list  List them\n" in out
        assert "show" not in out
        assert main(["show", "gpt2_baseline"]) == 2
        assert "unknown command 'show'" in capsys.readouterr().err
    finally:
        commands.available.cache_clear()


# -- exit codes and errors ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["lst"], "error: unknown command 'lst'. Did you mean list? `trimtab --help` lists them.\n"),
        (
            ["--versoin"],
            "error: unknown flag '--versoin'. Did you mean --version? `trimtab --help` lists them.\n",
        ),
        (["path"], "error: missing argument 'NAME'. See `trimtab path --help`.\n"),
        (
            ["path", "gpt2_baseline", "x"],
            "error: got unexpected extra argument",
        ),
        (["list", "--jsn"], "error: unknown flag '--jsn'. Did you mean --json? See `trimtab list --help`.\n"),
        (["list", "--family"], "error: option '--family' requires an argument. See `trimtab list --help`.\n"),
        (
            ["list", "--family", "got"],
            "error: unknown family 'got'. Did you mean gpt? There are llama, gpt, bert, t5.\n",
        ),
        (
            ["show", "llama_7b_singel_node"],
            "error: unknown configuration 'llama_7b_singel_node'. Did you mean llama_7b_single_node or ",
        ),
    ],
)
def test_a_wrong_request_is_one_line_with_the_nearest_and_exit_2(
    arguments: list[str], said: str, capsys: Capture
) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(said)
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize(
    "arguments", [["show", "gpt2", "--json"], ["list", "--jsn", "--json"], ["nothing", "--json"]]
)
def test_with_json_an_error_is_an_object(arguments: list[str], capsys: Capture) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err == ""
    answer = json.loads(captured.out)
    assert answer["schema_version"] == 1
    assert answer["error"]["exit_code"] == 2
    assert answer["error"]["message"]
    assert answer["error"]["kind"] in ("NotFound", "UsageError")


def test_json_after_the_double_dash_is_someone_elses(capsys: Capture) -> None:
    assert main(["nothing", "--", "--json"]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_the_exit_code_is_the_commands(command: Callable[..., None], capsys: Capture) -> None:
    def answer(code: int) -> int:
        return code

    command(answer)
    assert [main(["path", str(code)]) for code in (0, 1, 3)] == [0, 1, 3]

    def leave() -> None:
        raise typer.Exit(7)

    command(leave)
    assert main(["path"]) == 7

    def fail() -> None:
        raise RunFailed("the loss became NaN at step 12")

    command(fail)
    assert main(["path"]) == 1
    assert capsys.readouterr().err == "error: the loss became NaN at step 12\n"


def test_a_group_of_commands_is_a_command_too(command: Callable[..., None], capsys: Capture) -> None:
    app = typer.Typer(rich_markup_mode=None)

    @app.command()
    def one() -> None:
        print("one")

    @app.command()
    def two() -> int:
        return 1

    command(app)
    assert main(["path", "one"]) == 0
    assert capsys.readouterr().out == "one\n"
    assert main(["path", "two"]) == 1


def test_ctrl_c_is_130(command: Callable[..., None], capsys: Capture) -> None:
    def wait() -> None:
        raise KeyboardInterrupt

    command(wait)
    assert main(["path"]) == 130
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--micro-batch", "--micro_batch"])
def test_underscores_are_dashes_in_flags_and_nowhere_else(
    flag: str, command: Callable[..., None], capsys: Capture
) -> None:
    def batch(
        rest: Annotated[list[str] | None, typer.Argument()] = None,
        micro_batch: Annotated[str, typer.Option("--micro-batch")] = "",
    ) -> None:
        print(micro_batch, rest)

    command(batch)
    assert main(["path", flag, "a_b", "--", "--micro_batch"]) == 0
    assert main(["path", f"{flag}=c_d"]) == 0
    assert capsys.readouterr().out == "a_b ['--micro_batch']\nc_d None\n"


def test_a_mistake_of_ours_is_one_line_and_says_so(
    command: Callable[..., None], capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> None:
        raise KeyError("two\nlines")

    command(broken)
    monkeypatch.delenv("TRIMTAB_DEBUG", raising=False)
    assert main(["path"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith(r"error: KeyError: 'two\nlines' (test_command.py:")
    assert "TRIMTAB_DEBUG=1" in error
    assert main(["path", "--json"]) == 2
    monkeypatch.setenv("TRIMTAB_DEBUG", "1")
    with pytest.raises(KeyError):
        main(["path"])


def test_a_broken_pipe_is_fine() -> None:
    program = "from trimtab.cli.main import run; import sys; sys.argv[1:] = ['list', '--json']; run()"
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-c", program],
        stdout=writer, stderr=subprocess.PIPE, check=False,
        env={**os.environ, "PYTHONPATH": str(SRC)},
    )  # fmt: skip
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_broken_pipe_that_is_not_stdout_is_our_mistake(
    command: Callable[..., None], capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def talk() -> None:
        raise BrokenPipeError("to a worker")

    monkeypatch.delenv("TRIMTAB_DEBUG", raising=False)
    command(talk)
    assert main(["path"]) == 2
    assert "BrokenPipeError: to a worker" in capsys.readouterr().err


def test_a_full_disk_is_no_mistake_of_ours(command: Callable[..., None], capsys: Capture) -> None:
    def write() -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "loss.csv")

    command(write)
    assert main(["path"]) == 2
    assert capsys.readouterr().err == "error: loss.csv: the disk is full.\n"


def test_a_terminal_that_knows_only_ascii_still_gets_its_answer() -> None:
    done = trimtab("list", PYTHONUTF8="0", PYTHONIOENCODING="ascii")
    assert done.returncode == 0
    assert "8 ? a100-40gb" in done.stdout


def test_the_module_is_the_command(capsys: Capture) -> None:
    assert trimtab("--version").stdout == f"trimtab {__version__}\n"
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"trimtab {__version__}\n"


@pytest.mark.parametrize("words", [["list"], ["list", "--json"], ["estimate", "gpt2_baseline"]])
def test_a_full_disk_behind_stdout_is_one_line(words: list[str]) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "trimtab", *words], stdout=full, stderr=subprocess.PIPE, text=True,
            check=False, env={**os.environ, "PYTHONPATH": str(SRC)},
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (2, "error: the output: the disk is full.\n")


@pytest.mark.parametrize(("closed", "code"), [(">&-", 0), ("2>&-", 0)])
def test_a_stream_that_is_closed_is_no_mistake(closed: str, code: int) -> None:
    done = subprocess.run(
        f"{shlex.quote(sys.executable)} -m trimtab estimate gpt2_baseline {closed}", shell=True, text=True,
        capture_output=True, check=False, env={**os.environ, "PYTHONPATH": str(SRC)},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (code, "")


@pytest.mark.parametrize("words", [["train", "gpt2_baseline", "--data", "x.txt"], ["demo"]])
def test_training_without_its_packages_names_the_extra(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(words) == 2
    said = "error: training needs torch, which is not installed: pip install 'trimtab[train]'\n"
    assert capsys.readouterr().err == said
