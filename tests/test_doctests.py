"""The examples in docstrings."""

from __future__ import annotations

import doctest
import importlib

import pytest

from sources import MODULES, SRC

HEAVY = ("trimtab.train", "trimtab.rehearse", "trimtab.probe")
NAMES = [
    name
    for name in (".".join(file.relative_to(SRC).with_suffix("").parts) for file in MODULES)
    if not name.startswith(HEAVY) and not name.endswith("__main__")
]


@pytest.mark.parametrize("name", NAMES)
def test_examples_do_what_they_say(name: str) -> None:
    module = importlib.import_module(name.removesuffix(".__init__"))
    assert doctest.testmod(module).failed == 0
