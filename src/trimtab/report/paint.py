"""Colour on a terminal, and lines of a reader's width, without a library."""

from __future__ import annotations

import os
import re
import sys

STYLES = {
    "error": "31", "warning": "33", "info": "36", "fix": "32", "frame": "34", "bold": "1", "dim": "2",
    "yes": "1;32", "no": "1;31", "bar": "36", "good bar": "32", "bad bar": "31", "note": "33",
    "corrected": "36",
}  # fmt: skip
DEFAULT_WIDTH = 80
_BREAK = re.compile(r"(?<!\d) | (?!(?:[KMGT]?i?B|ms|s|min|h|days|%)(?!\w))")
"""A blank, but not the one between a number and its unit."""


class Paint:
    """Puts colour around a text, or leaves it plain."""

    def __init__(self, on: bool) -> None:
        self.on = on

    def __call__(self, text: str, style: str) -> str:
        return f"\x1b[{STYLES[style]}m{text}\x1b[0m" if self.on and text else text


def wants_colour() -> bool:
    """Whether stdout is a terminal that wants colour; ``NO_COLOR`` and ``FORCE_COLOR`` count."""
    if os.environ.get("NO_COLOR"):
        return False
    return bool(os.environ.get("FORCE_COLOR")) or sys.stdout.isatty()


def width() -> int:
    """Columns of stdout: ``COLUMNS``, else the terminal's, else 80."""
    given = os.environ.get("COLUMNS", "")
    if given.isdigit() and int(given):
        return int(given)
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns or DEFAULT_WIDTH
    except (AttributeError, OSError, ValueError):
        return DEFAULT_WIDTH


def wrapped(text: str, columns: int, *, first: str = "", rest: str = "") -> list[str]:
    """``text`` in lines of at most ``columns``, broken at blanks; they begin with ``first``, then ``rest``.

    A number keeps its unit.

    >>> wrapped("one two three", 9, first="- ", rest="  ")
    ['- one two', '  three']
    >>> wrapped("offload 4.8 s", 12)
    ['offload', '4.8 s']
    """
    lines = []
    line, fresh = first, True
    for word in _BREAK.split(text):
        if not fresh and len(line) + 1 + len(word) > columns:
            lines.append(line.rstrip())
            line, fresh = rest, True
        line = line + word if fresh else f"{line} {word}"
        fresh = False
    return [*lines, line.rstrip()]
