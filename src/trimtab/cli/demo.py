"""``trimtab demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def demo(
    run: Annotated[str, typer.Option("--run", help="The run's folder.")] = "runs/demo",
    steps: Annotated[int | None, typer.Option("--steps", help="Optimizer steps.")] = None,
    device: Annotated[str, typer.Option("--device", help="auto, cuda or cpu.")] = "auto",
    ranks: Annotated[
        int | None, typer.Option("--ranks", help="Processes (default: every GPU, else 2 on the CPU).")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the closing report as one object.")] = False,
) -> int:
    """Train a small GPT on Python's own standard library, in minutes.

    A byte-level vocabulary is trained first, then six layers on the standard library's own source, with ZeRO
    stage 2 on every GPU or on two CPU ranks.  Ends with a sample of what it writes and a plot of the loss.

    \b
    Examples:
      trimtab demo
      trimtab demo --run /tmp/demo --steps 50
    """
    from trimtab.errors import need_packages

    need_packages("training")
    from trimtab.train.demo import STEPS, demo_settings
    from trimtab.train.report import describe
    from trimtab.train.start import settle_device, start

    settings = demo_settings(Path(run), device=settle_device(device), steps=steps or STEPS)
    typer.echo("Reading the standard library's source and training a vocabulary on it …", err=True)
    ended = start(settings, ranks=ranks)
    if ended.report is None:
        typer.echo(ended.message, err=True)
    elif as_json:
        import json

        typer.echo(json.dumps(ended.report))
    else:
        typer.echo(describe(ended.report))
    return ended.exit_code
