"""Where text goes: one console, 80 columns wide unless the terminal says otherwise."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console, RenderableType


def show(text: RenderableType) -> None:
    """Prints to stdout, in colour only where a terminal reads it (``NO_COLOR`` and ``COLUMNS`` count)."""
    console = _console()
    if console.is_terminal:
        console.print(text)
    else:
        print(plain(text, width=console.width))  # noqa: T201


def plain(text: RenderableType, *, width: int = 80) -> str:
    """The same as plain text without trailing blanks, for pipes, files and tests."""
    console = _console(file=io.StringIO(), width=width)
    with console.capture() as capture:
        console.print(text)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def _console(**where: Any) -> Console:
    return Console(highlight=False, markup=False, emoji=False, **where)
