"""``trimtab fix``."""

from __future__ import annotations

from typing import Annotated

import typer

from trimtab.cli.check import Paths
from trimtab.cli.checking import run


def fix(
    paths: Paths,
    unsafe: Annotated[
        bool,
        typer.Option("--unsafe", "--unsafe-fixes", help="Apply fixes that change what the run does too."),
    ] = False,
    diff: Annotated[bool, typer.Option("--diff", help="Show the changes, and change nothing.")] = False,
    deepspeed: Annotated[
        str | None, typer.Option(metavar="X.Y.Z", help="Release to judge by. Default: the installed one.")
    ] = None,
    loader: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Who reads the file: deepspeed, transformers, accelerate."),
    ] = None,
    gpus_per_node: Annotated[int | None, typer.Option(metavar="N", help="GPUs in each node.")] = None,
    nodes: Annotated[int | None, typer.Option(metavar="N", help="Nodes.")] = None,
) -> int:
    """Fix what can be fixed; comments and order stay.

    The same as `trimtab check --fix`, which has more options.

    \b
    Examples:
      trimtab fix ds_config.json --diff
      trimtab fix ds_config.json --unsafe
    """
    return run(
        paths, fix=True, unsafe_fixes=unsafe, diff=diff, deepspeed=deepspeed, loader=loader,
        gpus_per_node=gpus_per_node, nodes=nodes,
    )  # fmt: skip
