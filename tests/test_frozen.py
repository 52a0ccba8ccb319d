"""The project's own dataclasses against the library's."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from collections.abc import Mapping
from dataclasses import FrozenInstanceError
from typing import Any

import pytest

from sources import python
from trimtab.frozen import dataclass, field, fields, replace


@dataclass(frozen=True, slots=True, kw_only=True)
class Port:
    """A class with every kind of field."""

    name: str
    rates: Mapping[str, float] = field(hash=False)
    ports: int = 8
    source: str = field(default="", repr=False, compare=False)
    memo: dict[str, int] = field(default_factory=dict, repr=False, compare=False)

    @property
    def total(self) -> float:
        return self.rates["one"] * self.ports


@dataclass(frozen=True, slots=True, kw_only=True)
class Socket(Port):
    """One that inherits."""

    depth: int


ONE = {"name": "x", "rates": {"one": 2.5}}
LIKE = dataclasses.dataclass(frozen=True, slots=True, kw_only=True)


def twin() -> Any:
    """`Port` by the library."""
    members = {
        "__annotations__": {"name": "str", "rates": "Any", "ports": "int", "source": "str", "memo": "Any"},
        "__qualname__": "Port",
        "rates": dataclasses.field(hash=False),
        "ports": 8,
        "source": dataclasses.field(default="", repr=False, compare=False),
        "memo": dataclasses.field(default_factory=dict, repr=False, compare=False),
    }
    return LIKE(type("Port", (), members))


def test_values_print_compare_and_hash_as_the_librarys_do() -> None:
    ours, theirs = Port(**ONE, source="a sheet"), twin()(**ONE, source="a sheet")
    assert repr(ours) == repr(theirs)
    assert hash(ours) == hash(theirs)
    assert ours == Port(**ONE, source="another") != Port(**ONE, ports=4)
    assert ours != theirs
    assert (ours.ports, ours.source, ours.total) == (8, "a sheet", 20.0)
    assert ours.memo == {}
    assert ours.memo is not Port(**ONE).memo
    assert [one.name for one in fields(ours)] == [one.name for one in dataclasses.fields(theirs)]


@pytest.mark.parametrize("given", [{}, {"name": "x"}, {**ONE, "port": 3}])
def test_a_field_that_is_missing_or_unknown_is_a_type_error(given: dict[str, Any]) -> None:
    for kind in (Port, twin()):
        with pytest.raises(TypeError):
            kind(**given)
    with pytest.raises(TypeError):
        Port("x", {})  # type: ignore[misc]


def test_a_value_cannot_be_changed() -> None:
    one = Port(**ONE)
    with pytest.raises(FrozenInstanceError):
        one.name = "y"  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        del one.name
    assert not hasattr(one, "__dict__")


def test_the_library_takes_them_for_its_own() -> None:
    one = Port(**ONE)
    assert dataclasses.replace(one, ports=4) == replace(one, ports=4) == Port(**ONE, ports=4)
    assert dataclasses.asdict(one) == dataclasses.asdict(twin()(**ONE))
    assert dataclasses.is_dataclass(Port)


def test_an_inherited_field_comes_first() -> None:
    one = Socket(**ONE, depth=2)
    assert [each.name for each in fields(Socket)] == ["name", "rates", "ports", "source", "memo", "depth"]
    assert one.total == 20.0
    assert one != Port(**ONE)
    assert replace(one, depth=3).depth == 3


def test_copies_and_pickles_are_equal() -> None:
    one = Socket(**ONE, depth=2)
    assert pickle.loads(pickle.dumps(one)) == copy.deepcopy(one) == copy.copy(one) == one


def test_an_estimate_needs_neither_the_library_nor_pathlib() -> None:
    program = """
import sys
from trimtab.cli.main import main
assert main(["estimate", "llama_7b_single_node"]) == 0
print(sorted({"dataclasses", "inspect", "pathlib", "typer", "rich"} & set(sys.modules)), file=sys.stderr)
"""
    done = python("-c", program)
    assert done.stderr.split("\n")[0] == "[]"
