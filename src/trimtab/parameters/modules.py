"""The pieces of a model: modules that own tensors, in the order in which a class registers them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

Shape = tuple[int, ...]
Kind = Literal["linear", "conv1d", "embedding", "norm", "own"]


class Module(NamedTuple):
    """One module and the tensors it owns itself: (name, shape) pairs in registration order.

    ``linear`` weights are (outputs, inputs), ``conv1d`` ones (inputs, outputs) as in transformers' Conv1D,
    ``embedding`` ones (rows, width); ``own`` is a tensor that a composite module holds itself.
    """

    path: str
    kind: Kind
    tensors: tuple[tuple[str, Shape], ...]

    @property
    def inputs(self) -> int:
        """Width of what goes into a linear or conv1d module."""
        return self.tensors[0][1][1 if self.kind == "linear" else 0]

    @property
    def outputs(self) -> int:
        """Width of what comes out of a linear or conv1d module."""
        return self.tensors[0][1][0 if self.kind == "linear" else 1]


class Skeleton(NamedTuple):
    """A model's modules in registration order, and which tensor names are one and the same tensor."""

    modules: Sequence[Module]
    ties: Sequence[tuple[str, str]] = ()
    output_embedding: str | None = None
    """Path of what transformers' ``get_output_embeddings`` returns, if the class has one."""


def linear(path: str, inputs: int, outputs: int, bias: bool = False) -> Module:
    weight = ("weight", (outputs, inputs))
    return Module(path, "linear", (weight, ("bias", (outputs,))) if bias else (weight,))


def conv1d(path: str, inputs: int, outputs: int) -> Module:
    return Module(path, "conv1d", (("weight", (inputs, outputs)), ("bias", (outputs,))))


def embedding(path: str, rows: int, width: int) -> Module:
    return Module(path, "embedding", (("weight", (rows, width)),))


def rms_norm(path: str, width: int) -> Module:
    return Module(path, "norm", (("weight", (width,)),))


def layer_norm(path: str, width: int, affine: bool = True) -> Module:
    return Module(path, "norm", (("weight", (width,)), ("bias", (width,))) if affine else ())


def own(path: str, name: str, shape: Shape) -> Module:
    return Module(path, "own", ((name, shape),))


def stack(path: str, count: int, layer: Iterable[Module]) -> list[Module]:
    """``count`` equal layers under ``path``: ``path.0.…``, ``path.1.…`` and so on."""
    template = [(module.path, module.kind, module.tensors) for module in layer]
    return [
        Module(f"{path}.{index}.{inner}", kind, tensors)
        for index in range(count)
        for inner, kind, tensors in template
    ]


def under(prefix: str, modules: Iterable[Module]) -> list[Module]:
    """The same modules one level down, at ``prefix.…``."""
    return [Module(f"{prefix}.{module.path}", module.kind, module.tensors) for module in modules]
