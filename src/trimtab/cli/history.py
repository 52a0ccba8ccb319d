"""``trimtab history``."""

from __future__ import annotations

from typing import Annotated

import typer

from trimtab.cli import job_flags as job
from trimtab.errors import UsageError, nearest
from trimtab.folders import history_file
from trimtab.report.document import to_json
from trimtab.store import database

ACTIONS = ("list", "show", "forget")


def history(
    action: Annotated[str, typer.Argument(metavar="list|show|forget", help="What to do.")] = "list",
    numbers: Annotated[
        list[int] | None, typer.Argument(metavar="NUMBER", help="Runs, as the list numbers them.")
    ] = None,
    config: Annotated[
        str | None, typer.Option("--config", metavar="NAME", help="List this configuration's runs only.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Rows of the list at most.")] = 20,
    everything: Annotated[bool, typer.Option("--all", help="Forget every run.")] = False,
    as_json: job.JsonOption = False,
) -> int:
    """Look at the rehearsals and trainings of this machine.

    They lie in one file ($TRIMTAB_HISTORY, else the user's data folder) and correct the estimates of the
    jobs that were measured.

    \b
    Examples:
      trimtab history --config llama_7b_single_node
      trimtab history show 12
      trimtab history forget 12 13
    """
    from trimtab.report import console
    from trimtab.report.history import entry_document, entry_text, list_text

    given = numbers or []
    if action not in ACTIONS:
        hint = f" Did you mean {near[0]}?" if (near := nearest(action, ACTIONS, count=1)) else ""
        raise UsageError(f"history {action}: it is one of {', '.join(ACTIONS)}.{hint}")
    if action == "show":
        if len(given) != 1:
            raise UsageError("history show takes the number of one run; `trimtab history` lists them")
        entry = database.entry(given[0])
        if as_json:
            typer.echo(to_json(entry_document(entry, whole=True)))
        else:
            console.show(entry_text(entry))
        return 0
    if action == "forget":
        if everything == bool(given):
            raise UsageError("history forget takes the numbers of runs, or --all")
        gone = database.forget(None if everything else given)
        typer.echo(to_json({"forgotten": gone}) if as_json else f"forgotten: {gone} run{'s' * (gone != 1)}")
        return 0
    if given or everything:
        raise UsageError("history list takes no numbers; `trimtab history show NUMBER` shows one run")
    found = database.entries(config=config, limit=limit)
    if as_json:
        typer.echo(to_json({"runs": [entry_document(one) for one in found]}))
    else:
        console.show(list_text(found, history_file()))
    return 0
