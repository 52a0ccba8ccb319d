"""``trimtab show``."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import typer

from trimtab import catalogue
from trimtab.cards import Card, Figure
from trimtab.config import Config
from trimtab.cost.memory import profile
from trimtab.model import find_model
from trimtab.parameters import parameters
from trimtab.report.document import to_json


def show(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A name from `trimtab list`.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show all that is known about a ready configuration.

    What it is for, the hardware, the batch solved, memory and speed with how each figure was got, what the
    guide claimed beside what is true, what was changed and why, and the variants for other hardware.

    \b
    Examples:
      trimtab show llama_7b_single_node
      trimtab show t5_large_zero3 --json
    """
    from trimtab.report.card import card_document, card_text

    card, config = catalogue.card(name), catalogue.load_config(name)
    card = replace(card, figures=(*_predicted(card, config), *card.figures))
    counts = _parameters(config)
    if as_json:
        typer.echo(to_json(card_document(card, config, catalogue.path(name), parameters=counts)))
    else:
        from trimtab.report import console

        console.show(card_text(card, config, parameters=counts))


def _parameters(config: Config) -> dict[str, int]:
    """Elements in all and of those that train, of a configuration that names its model."""
    assert config.job.model is not None
    tensors = parameters(find_model(config.job.model), config.job.task, config.job.lora)
    trainable = sum(tensor.numel for tensor in tensors if tensor.trainable)
    return {"total": sum(tensor.numel for tensor in tensors), "trainable": trainable}


def _predicted(card: Card, config: Config) -> tuple[Figure, ...]:
    """What arithmetic says of a configuration on the hardware of its card."""
    assert config.job.model is not None
    world, gpu = card.hardware.world_size, card.hardware.gpu
    memory = profile(config, find_model(config.job.model), world)
    values = {"gpu_memory_bytes": memory.peak, "host_memory_bytes_per_rank": memory.host_bytes}
    conditions = {"host_memory_bytes_per_rank": "beside the processes themselves"}
    return tuple(
        Figure(
            quantity=quantity,
            value=value,
            how="predicted",
            where=f"{world} × {gpu}",
            world_size=world,
            gpu=gpu,
            conditions=conditions.get(quantity),
        )
        for quantity, value in values.items()
        if value
    )
