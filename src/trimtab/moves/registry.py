"""The one list of moves, and how to find them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType

from trimtab.cluster import Cluster
from trimtab.config import Config
from trimtab.errors import NotFound
from trimtab.model import Model
from trimtab.moves import batch, communication, computation, offload, optimizers, parallel, sharding
from trimtab.moves.move import Kind, Move, spelled

MOVES: Mapping[str, Kind] = MappingProxyType(
    {
        kind.name: kind
        for module in (batch, computation, sharding, offload, communication, optimizers, parallel)
        for kind in module.KINDS
    }
)
"""Every kind of move by its name; ``MOVES["zero-stage"].make(3)`` is a move."""


def find(name: str) -> Move:
    """The move of a name such as ``zero-stage-3``, ``micro-batch-4``, ``offload-param-cpu`` or ``qlora``.

    Raises:
        NotFound: no move has this name; carries the nearest kinds.

    >>> find("zero-stage-3").title
    'ZeRO stage 3'
    """
    text = name.strip().lower()
    for kind in MOVES.values():
        if text == kind.name:
            text_value = None
        elif text.startswith(f"{kind.name}-"):
            text_value = text[len(kind.name) + 1 :]
        else:
            continue
        try:
            move = kind.make(None if text_value is None else kind.read(text_value))
        except (ValueError, KeyError, TypeError):
            continue
        if move.name == text:
            return move
    raise NotFound("move", name, MOVES, cure=f"Kinds of moves: {', '.join(MOVES)}.")


def options(kind: str, config: Config, model: Model, cluster: Cluster) -> Iterator[Move]:
    """The moves of one kind that apply to ``config``."""
    for value in MOVES[kind].options(config, model, cluster):
        move = MOVES[kind].make(value)
        if move.applies(config, model, cluster) is None:
            yield move


def all_moves(config: Config, model: Model, cluster: Cluster) -> Iterator[Move]:
    """Every move with a usual value, whether it applies or not."""
    for kind in MOVES.values():
        for value in kind.options(config, model, cluster):
            yield kind.make(value)


__all__ = ["MOVES", "all_moves", "find", "options", "spelled"]
