"""Plain command lines read without a library, for commands whose work takes less than its import."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


class Given:
    """What a command line holds: paths, and options by name."""

    __slots__ = ("options", "paths")

    def __init__(self) -> None:
        self.paths: list[str] = []
        self.options: dict[str, Any] = {}


def plain(
    arguments: Sequence[str],
    flags: Mapping[str, tuple[str, Any]],
    switches: Mapping[str, tuple[str, bool]],
    repeated: Sequence[str] = (),
) -> Given | None:
    """The options of a command line of known flags with fitting values; None for any other.

    ``flags``: option and type by flag; a type raises ValueError for what it cannot hold.  ``switches``:
    option and value by flag.  ``repeated``: options that hold a list.
    """
    given = Given()
    rest = iter(arguments)
    for argument in rest:
        name, equals, value = argument.partition("=")
        if argument in switches:
            option, on = switches[argument]
            given.options[option] = on
        elif name in flags and (name.startswith("--") or not equals):
            option, kind = flags[name]
            try:
                made = kind(value if equals else next(rest))
            except (ValueError, StopIteration):
                return None
            if option in repeated:
                given.options.setdefault(option, []).append(made)
            else:
                given.options[option] = made
        elif argument.startswith("-") and argument != "-":
            return None
        else:
            given.paths.append(argument)
    return given
