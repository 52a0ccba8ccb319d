"""A stretch of the forward pass whose activations are made again in the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from trimtab.cost.meter import Storage

if TYPE_CHECKING:
    from trimtab.cost.machine import Tensor


def _nothing(*_: Tensor) -> Tensor:
    raise AssertionError("a finished region runs no more")


class Stop(Exception):
    """Recomputation has made the last tensor that the backward pass needs."""


class Region:
    """A stretch of the forward pass whose activations are recomputed (non-reentrant checkpointing)."""

    __slots__ = ("arguments", "nodes", "owned", "recomputed", "run", "saves")

    def __init__(self, run: Callable[..., Tensor], arguments: tuple[Tensor, ...]) -> None:
        self.run, self.arguments = run, arguments
        self.nodes = self.saves = 0
        self.owned = False
        """Whether it was recomputed for a module whose backward pass is not over."""
        self.recomputed: list[tuple[Storage, ...]] | None = None

    def finish(self) -> None:
        """Let go of everything: its backward pass is done."""
        self.run, self.arguments, self.recomputed = _nothing, (), None
