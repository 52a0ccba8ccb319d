"""The table of commands: where each one lives, without importing it.

A command is a function with typer's annotations.  The first line of its docstring is its line in
``trimtab --help``; what it returns is the exit code (None is 0).  A command whose module is not there is not
offered.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, get_args, get_type_hints

SECTIONS: Mapping[str, Mapping[str, str]] = {
    "Find a configuration": {
        "list": "trimtab.cli.list:list_configs",
        "show": "trimtab.cli.show:show",
        "path": "trimtab.cli.path:path",
        "init": "trimtab.cli.init:init",
        "plan": "trimtab.cli.plan:plan",
        "adapt": "trimtab.cli.adapt:adapt",
    },
    "Prove it": {
        "check": "trimtab.cli.check:check",
        "fix": "trimtab.cli.fix:fix",
        "explain": "trimtab.cli.explain:explain",
        "estimate": "trimtab.cli.estimate:estimate",
        "fit": "trimtab.cli.fit:fit",
        "ladder": "trimtab.cli.ladder:ladder",
        "rehearse": "trimtab.cli.rehearse:rehearse",
        "diff": "trimtab.cli.diff:diff",
    },
    "Run it": {
        "demo": "trimtab.cli.demo:demo",
        "train": "trimtab.cli.train:train",
        "launch": "trimtab.cli.launch:launch",
        "report": "trimtab.cli.report:report",
        "history": "trimtab.cli.history:history",
    },
    "Mend it": {
        "diagnose": "trimtab.cli.diagnose:diagnose",
        "doctor": "trimtab.cli.doctor:doctor",
        "probe": "trimtab.cli.probe:probe",
    },
    "And": {
        "web": "trimtab.cli.web:web",
        "schema": "trimtab.cli.schema:schema",
        "version": "trimtab.cli.version:version",
    },
}

# typer costs a tenth of a second, more than the work of these: they read plain command lines themselves
QUICK: Mapping[str, str] = {
    "check": "trimtab.cli.checking:quick",
    "estimate": "trimtab.cli.estimating:quick",
}

_CLI = os.path.dirname(__file__)


def _file(target: str) -> str:
    """The file of a target such as ``trimtab.cli.list:list_configs`` (every command lies in this package)."""
    return os.path.join(_CLI, f"{target.partition(':')[0].rpartition('.')[2]}.py")


@cache
def available() -> Mapping[str, str]:
    """The commands whose module is installed: name and target."""
    return {
        name: target
        for commands in SECTIONS.values()
        for name, target in commands.items()
        if os.path.exists(_file(target))
    }


def load(name: str) -> Callable[..., Any]:
    """The function (or typer app) of an available command; this imports its module."""
    module, _, function = available()[name].partition(":")
    target: Callable[..., Any] = getattr(importlib.import_module(module), function)
    return target


def quick(name: str) -> Callable[[list[str]], int | None] | None:
    """The function that runs a command's plain command lines without typer, for commands that have one."""
    if name not in QUICK:
        return None
    module, _, function = QUICK[name].partition(":")
    found: Callable[[list[str]], int | None] = getattr(importlib.import_module(module), function)
    return found


def summary(name: str) -> str:
    """The first line of a command's docstring, read from its source without importing it."""
    import ast  # only help needs it, and it costs 2 ms

    target = available()[name]
    function = target.partition(":")[2]
    with open(_file(target), encoding="utf-8") as file:
        module = ast.parse(file.read())
    for node in module.body:
        if isinstance(node, ast.FunctionDef) and node.name == function:
            return (ast.get_docstring(node) or "").partition("\n")[0].rstrip(".")
    return ""


_PLACEHOLDERS = {"int": "N", "float": "X", "str": "TEXT", "Path": "PATH"}


def placeholder(command: Callable[..., Any], parameter: str | None) -> str | None:
    """What stands for a parameter's value in the help, such as ``--steps N``; None for flags and choices."""
    kinds = _plain_types(get_type_hints(command).get(parameter or ""))
    names = (getattr(kind, "__name__", None) for kind in kinds)
    return next((_PLACEHOLDERS[name] for name in names if name in _PLACEHOLDERS), None)


def _plain_types(annotation: Any) -> list[Any]:
    """The types inside an annotation: ``str`` of ``list[str] | None``."""
    inner = get_args(annotation)
    return [kind for part in inner for kind in _plain_types(part)] if inner else [annotation]
