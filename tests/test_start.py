"""``start.py``: the two commands of a fresh clone."""

from __future__ import annotations

import ast
import builtins
import importlib.util
import os
import re
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from sources import ROOT

FILE = ROOT / "start.py"


@pytest.fixture
def start(tmp_path: Path) -> ModuleType:
    """The program, freshly loaded, with an empty clone as its home."""
    spec = importlib.util.spec_from_file_location("start", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    home: Any = module
    home.ROOT = str(tmp_path)
    home.VENV = str(tmp_path / ".venv")
    home.BIN = str(tmp_path / ".venv" / "bin")
    home.PYTHON = str(tmp_path / ".venv" / "bin" / "python")
    home.STAMP = str(tmp_path / ".venv" / "installed.json")
    home.LOG = str(tmp_path / ".venv" / "install.log")
    (tmp_path / ".venv").mkdir()
    for name in ("pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_text(name, encoding="utf-8")
    return module


@pytest.fixture
def installed(start: Any, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """What would have been installed, in order, without doing it."""
    steps: list[tuple[str, ...]] = []

    def pip(label: str, *arguments: str, extra_environment: dict[str, str] | None = None) -> None:
        steps.append(arguments)

    monkeypatch.setattr(start, "pip", pip)
    monkeypatch.setattr(start, "works", lambda: True)
    monkeypatch.setattr(start, "check_room", lambda gigabytes: None)
    monkeypatch.setattr(start, "has_nvidia_gpu", lambda: False)
    monkeypatch.setattr(start, "versions_of_torch", lambda *options: ["2.13.0+cpu"])
    return steps


def test_an_old_python_can_read_the_file_and_is_told() -> None:
    ast.parse(FILE.read_text(encoding="utf-8"), feature_version=(3, 6))


def test_an_old_python_is_refused(start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 9, 18, "final", 0))
    with pytest.raises(start.CannotStart, match=r"needs Python 3\.10 or newer; this is Python 3\.9\.18"):
        start.main([])


def test_it_stands_on_the_standard_library_alone() -> None:
    names = set()
    for node in ast.walk(ast.parse(FILE.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add((node.module or "").partition(".")[0])
    assert names <= sys.stdlib_module_names


def test_the_pins_agree_with_each_other_and_with_the_package(start: Any) -> None:
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert start.TORCH in pins.splitlines()
    pinned = {line.partition("==")[0] for line in pins.splitlines() if line and not line.startswith("#")}
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    wanted = {
        name.lower()
        for block in re.findall(
            r"^(?:dependencies|train|dev) = \[(.*?)^\]", project, re.DOTALL | re.MULTILINE
        )
        for name in re.findall(r'"([A-Za-z0-9-]+)', block)
    }
    assert wanted - pinned == set()


def test_the_stamp_spares_a_second_installation(start: Any, installed: list[tuple[str, ...]]) -> None:
    start.install({"train"})
    first = len(installed)
    assert first == 4
    start.install({"train"})
    assert len(installed) == first
    start.install({"train", "dev"})
    assert installed[-1][-1] == ".[dev,train]"
    second = len(installed)
    start.install({"train"})
    assert len(installed) == second
    Path(start.ROOT, "constraints.txt").write_text("changed", encoding="utf-8")
    start.install({"train"})
    assert len(installed) > second


def test_torch_comes_first_and_deepspeed_sees_it(start: Any, installed: list[tuple[str, ...]]) -> None:
    start.install({"train"})
    assert [step[-1] for step in installed] == ["wheel", "torch==2.13.0", "deepspeed", ".[train]"]
    assert all("--no-build-isolation" in step for step in installed[2:])


def test_a_failed_installation_leaves_no_stamp(
    start: Any, installed: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(label: str, *arguments: str, **others: object) -> None:
        raise start.CannotStart("no")

    monkeypatch.setattr(start, "pip", fail)
    with pytest.raises(start.CannotStart):
        start.install({"train"})
    assert start.read_stamp() == {}
    Path(start.STAMP).write_text("{ broken", encoding="utf-8")
    assert start.read_stamp() == {}


@pytest.mark.parametrize(
    ("registry", "pytorch", "chosen"),
    [
        (["2.13.0+cpu"], [], ["torch==2.13.0"]),
        (
            ["2.13.0"],
            ["2.13.0+cpu"],
            ["torch==2.13.0", "--extra-index-url", "https://download.pytorch.org/whl/cpu"],
        ),
        (["2.13.0"], [], ["torch==2.13.0"]),
    ],
)
def test_without_a_gpu_torch_comes_without_cuda_where_it_can(
    start: Any, registry: list[str], pytorch: list[str], chosen: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(start, "versions_of_torch", lambda *options: pytorch if options else registry)
    assert start.cpu_torch() == chosen


@pytest.mark.parametrize(
    ("script", "found"),
    [
        ("echo 'GPU 0: NVIDIA H200 (UUID: GPU-1)'", True),
        ("echo 'No devices were found'", False),
        ("exit 9", False),
        (None, False),
    ],
)
def test_a_gpu_is_what_nvidia_smi_lists(
    start: Any, script: str | None, found: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if script is not None:
        program = tmp_path / "nvidia-smi"
        program.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert start.has_nvidia_gpu() is found


def test_a_short_disk_is_said_before_anything_is_written(start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(start.shutil, "disk_usage", lambda path: usage(10**12, 10**12, 10**9))
    with pytest.raises(start.CannotStart, match=r"has 1\.0 GB free; installing takes 3 GB"):
        start.check_room(3)
    start.check_room(0.5)


def test_a_missing_venv_module_names_the_package(start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    real: Callable[..., Any] = builtins.__import__

    def without_ensurepip(name: str, *arguments: Any, **named: Any) -> Any:
        if name == "ensurepip":
            raise ImportError(name)
        return real(name, *arguments, **named)

    monkeypatch.setattr(builtins, "__import__", without_ensurepip)
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    with pytest.raises(start.CannotStart, match=rf"sudo apt install python{re.escape(version)}-venv"):
        start.make_venv()


@pytest.mark.parametrize(
    ("log", "said"),
    [
        ("OSError: [Errno 28] No space left on device", "the disk is full"),
        ("WARNING: Retrying: NewConnectionError: Network is unreachable", "no package registry answers"),
        ("ERROR: Could not find a version that satisfies", "pip failed"),
    ],
)
def test_a_failed_installation_says_why_and_shows_the_log(start: Any, log: str, said: str) -> None:
    Path(start.LOG).write_text("first line\n" * 50 + log, encoding="utf-8")
    message = start.explain("torch")
    assert said in message
    assert log in message
    assert message.count("\n") <= 13


def test_pip_is_run_quietly_and_its_failure_is_one_message(
    start: Any, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(start, "PYTHON", sys.executable)
    with pytest.raises(start.CannotStart, match="nothing could not be installed: pip failed"):
        start.pip("nothing", "--no-such-option")
    captured = capfd.readouterr()
    assert captured.out == ""
    assert re.fullmatch(r"  nothing +\d+ s\n", captured.err)
    assert "no-such-option" in Path(start.LOG).read_text(encoding="utf-8")


def test_the_environment_is_turned_to_the_venv_alone(start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    monkeypatch.setenv("PYTHONHOME", "/elsewhere")
    values = start.environment({"DS_BUILD_OPS": "0"})
    assert "PYTHONPATH" not in values
    assert "PYTHONHOME" not in values
    assert values["PATH"].split(os.pathsep)[0] == start.BIN
    assert values["DS_BUILD_OPS"] == "0"


@pytest.fixture
def commands(start: Any, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that would have been run; `mypy` fails, the others succeed."""
    run: list[list[str]] = []

    def call(command: list[str], **others: Any) -> int:
        run.append(command[1:])
        return int("mypy" in command)

    def become(command: list[str]) -> int:
        return call(command)

    monkeypatch.setattr(start, "install", lambda extras: run.append(sorted(extras)))
    monkeypatch.setattr(start, "become", become)
    monkeypatch.setattr(subprocess, "call", call)
    return run


def test_the_demo_gets_what_follows(start: Any, commands: list[list[str]]) -> None:
    assert start.main([]) == 0
    assert start.main(["--steps", "5"]) == 0
    assert commands == [
        ["train"], ["-m", "trimtab", "demo"],
        ["train"], ["-m", "trimtab", "demo", "--steps", "5"],
    ]  # fmt: skip


def test_the_tests_run_every_check_and_end_with_pytest(
    start: Any, commands: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert start.main(["test", "-k", "units"]) == 1
    assert [command[1] for command in commands[1:]] == ["ruff", "ruff", "mypy", "pytest"]
    assert commands[0] == ["dev", "train"]
    assert commands[-1] == ["-m", "pytest", "-n", "2", "-k", "units"]
    assert capsys.readouterr().err.endswith("failed: mypy\n")


def test_help_and_unknown_words(
    start: Any, commands: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert start.main(["--help"]) == 0
    assert "python3 start.py test" in capsys.readouterr().out
    with pytest.raises(start.CannotStart, match="-m trimtab estimate gpt2_baseline"):
        start.main(["estimate", "gpt2_baseline"])
    assert commands == []


def test_as_a_program_a_refusal_is_one_line_and_exit_2() -> None:
    done = subprocess.run([sys.executable, str(FILE), "tset"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: start.py knows only `test`.")
    assert done.stderr.count("\n") == 1
