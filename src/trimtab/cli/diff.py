"""``trimtab diff``."""

from __future__ import annotations

from typing import Annotated

import typer


def diff(
    before: Annotated[str, typer.Argument(metavar="A", help="A file, or a name from `trimtab list`.")],
    after: Annotated[str, typer.Argument(metavar="B", help="The other.")],
    deepspeed: Annotated[
        str | None, typer.Option(metavar="X.Y.Z", help="Release to judge by. Default: the newest known.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> int:
    """Show how two configurations differ in effect.

    Defaults are filled in, and aliases, deprecated names and spellings of numbers resolved. The exit code is
    1 where DeepSpeed would do something else.

    \b
    Examples:
      trimtab diff ds_config.json ds_config.new.json
      trimtab diff llama_7b_single_node gptj_6b_zero2
    """
    from trimtab import catalogue
    from trimtab.compare import compare
    from trimtab.report.difference import text
    from trimtab.report.document import to_json

    found = compare(catalogue.read(before), catalogue.read(after), deepspeed=deepspeed)
    if found.version.problem:
        typer.echo(f"note: {found.version.problem}", err=True)
    typer.echo(to_json(found.to_dict()) if as_json else text(found), nl=as_json)
    return int(not found.equal)
