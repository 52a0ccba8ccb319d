"""Text in lines of a page's width."""

from __future__ import annotations

import re
import textwrap


def wrapped(text: str) -> str:
    """Paragraphs and lists in lines of the page's width."""
    blocks = []
    for block in text.strip().split("\n\n"):
        items = re.split(r"^(?=- )", block, flags=re.MULTILINE)
        blocks.append("\n".join(_filled(item) for item in items if item))
    return "\n\n".join(blocks)


def _filled(text: str) -> str:
    indent = "  " if text.startswith("- ") else ""
    words = " ".join(text.split())
    return textwrap.fill(words, 118, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
