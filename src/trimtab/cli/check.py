"""``trimtab check``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trimtab.cli.checking import FailOn, OutputFormat, run

FORMATS_HELP = f"How to print: {', '.join(one.value for one in OutputFormat)}."
Paths = Annotated[
    list[str],
    typer.Argument(metavar="PATH", help="Files, folders, names from `trimtab list`, or - for stdin."),
]


def check(
    paths: Paths,
    deepspeed: Annotated[
        str | None, typer.Option(metavar="X.Y.Z", help="Release to judge by. Default: the installed one.")
    ] = None,
    loader: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Who reads the file: deepspeed, transformers, accelerate."),
    ] = None,
    gpus_per_node: Annotated[int | None, typer.Option(metavar="N", help="GPUs in each node.")] = None,
    nodes: Annotated[int | None, typer.Option(metavar="N", help="Nodes.")] = None,
    model: Annotated[str | None, typer.Option(metavar="M", help="Model, as in the trimtab block.")] = None,
    gpu: Annotated[str | None, typer.Option(metavar="NAME", help="GPU, such as a100-40gb or H100:8.")] = None,
    select: Annotated[
        list[str] | None, typer.Option(metavar="RULES", help="Only these rules: codes, prefixes or names.")
    ] = None,
    ignore: Annotated[
        list[str] | None, typer.Option(metavar="RULES", help="Not these rules: codes, prefixes or names.")
    ] = None,
    fix: Annotated[bool, typer.Option("--fix", help="Apply safe fixes.")] = False,
    unsafe_fixes: Annotated[
        bool, typer.Option("--unsafe-fixes", help="Apply fixes that change what the run does too.")
    ] = False,
    diff: Annotated[
        bool, typer.Option("--diff", help="Show what fixing would change, and change nothing.")
    ] = False,
    output_format: Annotated[
        OutputFormat, typer.Option(metavar="FORMAT", help=FORMATS_HELP)
    ] = OutputFormat.full,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    output_file: Annotated[
        Path | None, typer.Option("--output-file", "-o", metavar="FILE", help="Write there, not to stdout.")
    ] = None,
    fail_on: Annotated[
        FailOn, typer.Option(help="Least severity that makes the exit code 1.")
    ] = FailOn.warning,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Settings. Default: trimtab.toml or pyproject.toml.")
    ] = None,
    isolated: Annotated[bool, typer.Option("--isolated", help="Read no settings.")] = False,
) -> int:
    """Find what is wrong with configurations, and fix it.

    Reads JSON (with comments, as DeepSpeed does) and the YAML files of Accelerate and of training arguments
    that point at one. Says what DeepSpeed will refuse, what it will silently ignore, and what will hurt.

    \b
    Examples:
      trimtab check ds_config.json
      trimtab check ds_config.json --loader transformers --gpus-per-node 8
      trimtab check configs/ --fix --diff
      trimtab explain ZR003
    """
    return run(
        paths,
        deepspeed=deepspeed,
        loader=loader,
        gpus_per_node=gpus_per_node,
        nodes=nodes,
        model=model,
        gpu=gpu,
        select=select or (),
        ignore=ignore or (),
        fix=fix,
        unsafe_fixes=unsafe_fixes,
        diff=diff,
        output_format=OutputFormat.json if as_json else output_format,
        output_file=output_file,
        fail_on=fail_on,
        config=config,
        isolated=isolated,
    )
