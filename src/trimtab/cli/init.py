"""``trimtab init``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trimtab import catalogue
from trimtab.errors import UnreadableFile, UsageError


def init(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A name from `trimtab list`.")],
    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="FILE", help="Where to write; a folder takes NAME.json.  [default: NAME.json]"
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite a file that is there.")] = False,
) -> None:
    """Copy a ready configuration to a file of your own.

    \b
    Examples:
      trimtab init llama_lora_finetune
      trimtab init llama_7b_single_node runs/seven.json --force
    """
    text = catalogue.path(name).read_text(encoding="utf-8")
    target = Path(f"{name}.json") if file is None else file
    if target.is_dir():
        target /= f"{name}.json"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("w" if force else "x", encoding="utf-8") as stream:
            stream.write(text)
    except OSError as error:
        if isinstance(error, FileExistsError) and target.exists():
            raise UsageError(f"{target} is there already; --force overwrites it.") from None
        raise UnreadableFile(f"{target}: cannot be written: {error.strerror}.") from None
    typer.echo(f"wrote {target}", err=True)
    typer.echo(f"Next: edit it, then `trimtab train {target} --data DATA`", err=True)
