"""``trimtab explain``."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from trimtab.errors import NotFound


def explain(
    name: Annotated[
        str | None,
        typer.Argument(metavar="NAME", help="A rule's code or name, a key's path, an optimizer or a move."),
    ] = None,
    deepspeed: Annotated[
        str | None, typer.Option(metavar="X.Y.Z", help="Release to speak of. Default: the newest known.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Explain a rule, a configuration key, an optimizer or a move.

    Without an argument it lists all rules.

    \b
    Examples:
      trimtab explain ZR015
      trimtab explain zero_optimization.reduce_bucket_size
      trimtab explain OneBitAdam
      trimtab explain offload-optimizer
    """
    from trimtab import schema
    from trimtab.moves import MOVES
    from trimtab.report import move_pages, rule_pages
    from trimtab.report.document import to_json
    from trimtab.rules.registry import FAMILIES, find_rule, rules

    if name is None:
        answer: dict[str, Any] = {"rules": [rule_pages.document(rule) for rule in rules().values()]}
        typer.echo(to_json(answer) if as_json else rule_pages.listing())
        return
    rule = find_rule(name)
    if rule is not None:
        typer.echo(
            to_json({"rule": rule_pages.document(rule)}) if as_json else rule_pages.text(rule), nl=as_json
        )
        return
    if name.upper() in FAMILIES:
        answer = {
            "rules": [rule_pages.document(one) for one in rules().values() if one.family == name.upper()]
        }
        typer.echo(to_json(answer) if as_json else rule_pages.listing(name.upper()))
        return
    keys = schema.load(deepspeed)
    if keys.version.problem:
        typer.echo(f"note: {keys.version.problem}", err=True)
    try:
        page = keys.page(name)
    except NotFound as error:
        moves = move_pages.named(name)
        if moves:
            answer = {"moves": [move_pages.document(move) for move in moves]}
            typer.echo(to_json(answer) if as_json else "\n".join(map(move_pages.text, moves)), nl=as_json)
            return
        meant = str(error).partition(". ")[2]
        names = () if meant else [*rules(), *keys.paths(), *MOVES]
        cure = meant or "`trimtab explain` lists the rules."
        raise NotFound("rule, key or move", name, names, cure=cure) from None
    key = keys.key(name)
    if as_json:
        facts = None if key is None else rule_pages.key_document(key)
        typer.echo(to_json({"key": facts, "deepspeed": keys.version.name, "page": page}))
    else:
        typer.echo(page, nl=False)
