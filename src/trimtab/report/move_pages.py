"""The moves for a reader: one on a terminal, as JSON, and all of them as the document ``docs/moves.md``."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import Any

from trimtab import catalogue
from trimtab.cluster import Cluster
from trimtab.config import Config
from trimtab.errors import NotFound
from trimtab.model import Model, find_model
from trimtab.moves import MOVES, Kind, Move, find
from trimtab.report.paint import DEFAULT_WIDTH

_SAMPLE = "llama_70b_multi_node"
EFFECTS = {
    "same": "the training stays the same, but for the order of sums",
    "rounding": "the same training in another number format",
    "training": "another training",
}
_INTRODUCTION = """\
# Moves

A move is one named change to a configuration: raise the ZeRO stage, halve the micro batch, put the
optimizer in the host's memory. `trimtab plan` searches over them, `trimtab adapt` applies the fewest that
make a job fit other machines, `trimtab ladder` shows them in the order in which they are tried when memory
runs out. `trimtab explain NAME` shows one.

Every move keeps the global batch and is made once, however often it is applied. A move says why it does not
apply, and some never do: those are here because people ask for them. What Trimtab's arithmetic does not
count is marked; its figures are then those of before the move. A source that names a file means DeepSpeed
0.19.8's.

```python
import trimtab

config = trimtab.load_config("llama_7b_single_node")
model, cluster = trimtab.find_model("llama-7b"), trimtab.Cluster.of("v100-32gb", 8)
move = trimtab.moves.find("zero-stage-3")
move.applies(config, model, cluster)  # None, or why not
move.apply(config, cluster)  # a new configuration
trimtab.adapt(config, cluster).steps  # the fewest moves that make it fit, with their reasons
trimtab.ladder(config, cluster).first  # the first rung that fits
```
"""


def kind_moves(kind: Kind) -> tuple[Move, ...]:
    """The moves of a kind with its usual values; of values that say the same, the first."""
    config, model, cluster = _sample()
    found: dict[tuple[str, str], Move] = {}
    for value in kind.options(config, model, cluster):
        move = kind.make(value)
        found.setdefault((move.saves, move.costs), move)
    return tuple(found.values())


def named(name: str) -> tuple[Move, ...]:
    """The moves of a name: one, or all of a kind; empty where there are none."""
    if name in MOVES and (moves := kind_moves(MOVES[name])):
        return moves
    try:
        return (find(name),)
    except NotFound:
        return ()


def text(move: Move) -> str:
    """A move's page for a terminal."""
    lines = [f"{move.name}  {move.title}", ""]
    for label, value in _facts(move):
        lines += textwrap.wrap(f"{label:<8}{value}", DEFAULT_WIDTH, subsequent_indent=" " * 8)
    return "\n".join(lines) + "\n"


def document(move: Move) -> dict[str, Any]:
    """What a move says of itself."""
    return {
        "name": move.name,
        "kind": move.kind,
        "title": move.title,
        "saves": move.saves,
        "costs": move.costs,
        "needs": move.needs,
        "source": move.source,
        "effect": move.effect,
        "counted": move.counted,
    }


def markdown() -> str:
    """All moves as one document: ``docs/moves.md``."""
    parts = [_INTRODUCTION]
    for kind in MOVES.values():
        moves = kind_moves(kind) or (kind.make(200_000_000),)
        parts.append(f"## {kind.name}\n\n{kind.title}.")
        parts += [_entry(move) for move in moves]
    return "\n\n".join(parts) + "\n"


def _entry(move: Move) -> str:
    lines = [f"**{move.name}**: {move.title}", ""]
    lines += [f"- {label}: {value}" for label, value in _facts(move)]
    return "\n".join(lines)


def _facts(move: Move) -> Iterator[tuple[str, str]]:
    yield "saves", move.saves
    yield "costs", move.costs
    yield "needs", move.needs
    yield "effect", EFFECTS[move.effect] + ("" if move.counted else "; not counted by `trimtab estimate`")
    yield "source", move.source


def _sample() -> tuple[Config, Model, Cluster]:
    """A job on which every kind has values."""
    config, hardware = catalogue.load_config(_SAMPLE), catalogue.card(_SAMPLE).hardware
    cluster = Cluster.of(hardware.gpu, hardware.gpus_per_node, hardware.nodes)
    return config, find_model(config.job.model or ""), cluster
