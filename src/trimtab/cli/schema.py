"""``trimtab schema``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from trimtab.errors import UnreadableFile


def schema(
    deepspeed: Annotated[
        str | None, typer.Option(metavar="X.Y.Z", help="Release to describe. Default: the newest known.")
    ] = None,
    output_file: Annotated[
        Path | None, typer.Option("--output-file", "-o", metavar="FILE", help="Write there, not to stdout.")
    ] = None,
) -> None:
    """Print the JSON Schema of a configuration, for editors.

    \b
    Examples:
      trimtab schema -o deepspeed.schema.json
      trimtab schema --deepspeed 0.17.6
    """
    from trimtab.schema import load

    keys = load(deepspeed)
    if keys.version.problem:
        typer.echo(f"note: {keys.version.problem}", err=True)
    text = json.dumps(keys.json_schema(), indent=2, ensure_ascii=False) + "\n"
    if output_file is None:
        typer.echo(text, nl=False)
        return
    try:
        output_file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UnreadableFile(f"{output_file} cannot be written: {error.strerror or error}") from None
