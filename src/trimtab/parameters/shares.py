"""What each rank holds of every parameter at stage 3, and which shares the quantizing kernel cannot take."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from trimtab.job import Lora
from trimtab.model import Model
from trimtab.parameters.lists import parameters

QUANTIZED_TOGETHER = 8
"""Elements, or a multiple, that are quantized as one piece (runtime/zero/partition_parameters.py:883)."""


class Share(NamedTuple):
    """One rank's share of a parameter, in elements, with the parameter's name, module and own elements."""

    name: str
    module: str
    elements: int
    of: int


def shares(model: Model, task: str, lora: Lora | None, ranks: int) -> Sequence[Share]:
    """Every parameter's share, each rounded up (runtime/zero/partition_parameters.py:1690-1693).

    Raises UsageError and UnknownArchitecture as `parameters` does.
    """
    found = parameters(model, task, lora)
    return [Share(one.name, one.module, -(-one.numel // ranks), one.numel) for one in found]


def odd_module(held: Iterable[Share], times: int = 1) -> tuple[str, int] | None:
    """The first module whose own parameters' shares, ``times`` each, together cannot be quantized, and their
    elements; None where there is none.

    A module's own parameters are gathered, and under qwZ quantized, as one (partition_parameters.py:1512).
    """
    together: dict[str, int] = {}
    for share in held:
        together[share.module] = together.get(share.module, 0) + share.elements * times
    return next(((name, many) for name, many in together.items() if many % QUANTIZED_TOGETHER), None)
