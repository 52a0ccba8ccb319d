"""``trimtab adapt``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trimtab.cli import job_flags as job


@job.takes(*job.MACHINES, "model", "task", "sequence_length")
def adapt(
    config: job.ConfigArgument,
    flags: job.Given,
    fastest: Annotated[
        bool, typer.Option("--fastest", help="Then take what makes it fastest and still fits.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write the result there.")
    ] = None,
    write: Annotated[bool, typer.Option("--write", help="Change CONFIG itself; comments stay.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite a file that is there.")] = False,
    as_json: job.JsonOption = False,
) -> int:
    """Change a configuration to fit other machines.

    Takes the fewest changes that keep the global batch and the training as they are, each with its reason,
    and shows them as a diff.  Exit 1 if nothing fits: then it says what is missing.

    \b
    Examples:
      trimtab adapt llama_7b_single_node --gpu v100-32gb
      trimtab adapt ds_config.json --gpu a100-40gb --gpus-per-node 4 --write
      trimtab adapt llama_70b_multi_node --link ethernet-100g --fastest \\
        -o slow.json
    """
    from dataclasses import replace

    from trimtab import catalogue
    from trimtab.adapt import adapt as answer_for
    from trimtab.cli.settling import hold_to_the_engine
    from trimtab.errors import UsageError
    from trimtab.report import console
    from trimtab.report.adapt import adapt_document, adapt_text
    from trimtab.report.document import to_json
    from trimtab.source import read_source, unified_diff

    ready = config in catalogue.names()
    if write and ready:
        raise UsageError(f"{config} is a ready configuration, which stays as it is: give --output FILE")
    if write and output is not None:
        raise UsageError("--write changes CONFIG and --output writes another file: give one of them")
    if output is not None and output.exists() and not force:
        raise UsageError(f"{output} is there already; --force overwrites it.")
    named = {name: flags.pop(name) for name in job.MACHINES}
    stated, notes = job.stated(config, **flags)
    cluster = job.machines(config, stated, **named)
    hold_to_the_engine(config, stated, None)
    answer = answer_for(stated, cluster, home=job.home(config), fastest=fastest)
    source = read_source(catalogue.path(config) if ready else config)
    if ready:
        source = replace(source, file=f"{config}.json")
    text = answer.written(source)
    target = Path(config) if write else output
    if target is not None and answer.fits:
        _write(target, text)
    if as_json:
        typer.echo(to_json({**adapt_document(answer), "notes": [*notes, *answer.notes]}))
    else:
        console.show(adapt_text(answer, unified_diff(source, text), notes))
    return int(not answer.fits)


def _write(target: Path, text: str) -> None:
    from trimtab.errors import UnreadableFile
    from trimtab.source import write_atomic

    try:
        write_atomic(target, text)
    except OSError as error:
        raise UnreadableFile(f"{target}: cannot be written: {error.strerror}") from None
    typer.echo(f"wrote {target}", err=True)
