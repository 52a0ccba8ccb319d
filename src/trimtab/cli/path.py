"""``trimtab path``."""

from __future__ import annotations

from typing import Annotated

import typer

from trimtab import catalogue


def path(name: Annotated[str, typer.Argument(metavar="NAME", help="A name from `trimtab list`.")]) -> None:
    """Print the file of a ready configuration, for other programs.

    \b
    Example:
      deepspeed train.py --deepspeed_config $(trimtab path llama_7b_single_node)
    """
    typer.echo(str(catalogue.path(name)))
