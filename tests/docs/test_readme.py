"""The documents do what they say: their commands exist, and what they show is what is printed."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from sources import ROOT, trimtab
from trimtab.cli import commands

DOCUMENTS = (
    "README.md",
    "CONTRIBUTING.md",
    "docs/design.md",
    "docs/check.md",
    "docs/plan.md",
    "docs/proof.md",
    "docs/rehearse.md",
    "docs/compatibility.md",
    "bench/data/README.md",
)
CHEAP = {"list", "show", "path", "init", "version", "estimate", "adapt"}
PROGRAMS = {"python3", "pytest", "trimtab"}


def blocks(document: str) -> list[list[tuple[str, list[str]]]]:
    """The console blocks of a document: the commands of each, with the output shown under them."""
    found = []
    text = (ROOT / document).read_text(encoding="utf-8")
    for body in re.findall(r"^```console\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        shown: list[tuple[str, list[str]]] = []
        for line in body.splitlines():
            if line.startswith("$ "):
                shown.append((line[2:], []))
            else:
                shown[-1][1].append(line)
        found.append(shown)
    return found


COMMANDS = [(command, output) for name in DOCUMENTS for block in blocks(name) for command, output in block]
OURS = [(command, output) for command, output in COMMANDS if command.startswith("trimtab ")]


def words(command: str) -> list[str]:
    """A command's words without comments and settings of the environment."""
    return [word for word in shlex.split(command, comments=True) if not re.match(r"[A-Z_]+=", word)]


def pattern(output: list[str]) -> re.Pattern[str]:
    """What the shown output must match: ``...`` stands for anything."""
    lines = [re.escape(line).replace(r"\.\.\.", ".*") for line in output]
    joined = "\n".join(lines)
    return re.compile(r"(?s)" + re.sub(r"(?m)^\.\*$", "(?:.*)", joined) + r"\n?")


def test_the_two_commands_come_first() -> None:
    first = [words(command) for command, _ in blocks("README.md")[0]]
    assert first == [["python3", "start.py"], ["python3", "start.py", "test"]]


@pytest.mark.parametrize("command", [command for command, _ in COMMANDS])
def test_every_command_is_of_a_known_program(command: str) -> None:
    assert words(command)[0] in PROGRAMS


@pytest.mark.parametrize("command", [command for command, _ in OURS])
def test_every_command_and_flag_exists(command: str) -> None:
    _, name, *rest = words(command)
    assert name in commands.available()
    golden = (ROOT / "tests" / "golden" / "help" / f"{name}.txt").read_text(encoding="utf-8")
    for flag in (word.partition("=")[0] for word in rest if word.startswith("--")):
        assert re.search(rf"(?<![\w-]){flag}(?![\w-])", golden), flag


@pytest.mark.parametrize(
    ("command", "output"),
    [
        (command, output)
        for command, output in OURS
        if words(command)[1] in ("list", "show", "path", "init") or (output and words(command)[1] in CHEAP)
    ],
)
def test_what_is_shown_is_what_is_printed(command: str, output: list[str], tmp_path: Path) -> None:
    done = trimtab(*words(command)[1:], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert output
    assert pattern(output).fullmatch(done.stdout + done.stderr)


def test_every_command_named_in_running_text_exists() -> None:
    for document in DOCUMENTS:
        text = (ROOT / document).read_text(encoding="utf-8")
        for name in re.findall(r"`trimtab ([a-z]+)", text):
            assert any(name in section for section in commands.SECTIONS.values()), f"{document}: {name}"


def test_links_lead_somewhere() -> None:
    for document in DOCUMENTS:
        file = ROOT / document
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", file.read_text(encoding="utf-8")):
            assert (file.parent / target).exists(), f"{document}: {target}"
