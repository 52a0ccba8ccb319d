"""``trimtab list``."""

from __future__ import annotations

from typing import Annotated

import typer

from trimtab import catalogue
from trimtab.errors import NotFound
from trimtab.report.document import to_json


def list_configs(
    family: Annotated[
        str | None, typer.Option("--family", metavar="NAME", help="Only llama, gpt, bert or t5.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """List the ready configurations.

    \b
    Examples:
      trimtab list
      trimtab list --family llama --json
    """
    from trimtab.report.listing import listing_document, listing_text

    if family is not None and family not in catalogue.FAMILIES:
        raise NotFound(
            "family", family, catalogue.FAMILIES, cure=f"There are {', '.join(catalogue.FAMILIES)}."
        )
    cards = [catalogue.card(name) for name in catalogue.names()]
    entries = [
        (card, catalogue.load_config(card.name)) for card in cards if family is None or card.family == family
    ]
    if as_json:
        located = [(card, config, catalogue.path(card.name)) for card, config in entries]
        typer.echo(to_json(listing_document(located)))
    else:
        from trimtab.report.console import show

        show(listing_text(entries))
