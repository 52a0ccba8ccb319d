"""What the counting machine tells the engine of parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from trimtab.cost.meter import PART, Account, Storage

if TYPE_CHECKING:
    from trimtab.cost.machine import Weight


class Listener(Protocol):
    """Whoever wants to know that parameters are used and gradients are made: the engine."""

    def before_use(self, weights: tuple[Weight, ...], *, again: bool = False) -> None:
        """``weights`` are about to be read by an operator, ``again`` if to recompute what it made."""

    def after_use(self, weights: tuple[Weight, ...]) -> None:
        """The operator that read ``weights`` is done."""

    def after_owner(self) -> None:
        """The module whose backward pass asked for the last recomputation is done with its own."""

    def on_view(self, weight: Weight) -> None:
        """Autograd keeps a view of what is gathered of ``weight``."""

    def on_view_end(self, weight: Weight) -> None:
        """It lets go of one."""

    def on_gradient(self, weight: Weight, gradient: Storage) -> None:
        """The gradient of ``weight`` for this micro step is complete."""


class GatheredView(Storage):
    """A view that autograd keeps of a weight: no bytes of its own, but those that stage 3 gathered stay.

    A parameter that autograd keeps itself is emptied when the engine lets go of it; ``weight.t()`` has the
    old storage on (torch/csrc/autograd/saved_variable.cpp: leaves are kept as they are).  Recomputation keeps
    a view of what trains (torch/utils/checkpoint.py, ``_recomputation_hook``, ``x.detach()``).
    """

    __slots__ = ("listener", "weight")

    def __init__(self, listener: Listener, account: Account, weight: Weight) -> None:
        self.account, self.bytes, self.part, self.number = account, 0, PART["gathered parameters"], 0
        self.listener, self.weight = listener, weight
        listener.on_view(weight)

    def __del__(self) -> None:
        self.listener.on_view_end(self.weight)
