"""``trimtab version``."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed
from typing import Annotated

import typer

from trimtab import __version__
from trimtab.report.document import to_json

PACKAGES = ("torch", "deepspeed", "transformers", "accelerate", "peft")


def version(as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False) -> None:
    """Show the versions of Trimtab and of what it works with."""
    versions: dict[str, str | None] = {"trimtab": __version__, "python": platform.python_version()}
    versions |= {package: _installed(package) for package in PACKAGES}
    if as_json:
        typer.echo(to_json({"versions": versions}))
    else:
        for package, found in versions.items():
            typer.echo(f"{package:<12}  {found or 'not installed'}")


def _installed(package: str) -> str | None:
    try:
        return installed(package)
    except PackageNotFoundError:
        return None
