"""The picture of an answer as a file: SVG, PNG or an HTML page, as its name says."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trimtab.drawing.shapes import to_svg, write_png
from trimtab.errors import UsageError
from trimtab.report.memory_page import memory_page
from trimtab.report.memory_picture import picture

KINDS = (".svg", ".png", ".html")


def check_name(name: str | None) -> None:
    """Refuse, before any work is done, a file that no picture can become.

    Raises:
        UsageError: another ending, or a folder that is not there.
    """
    if name is None:
        return
    file = Path(name)
    if file.suffix.lower() not in KINDS:
        raise UsageError(f"--picture {name}: the name must end in {', '.join(KINDS[:-1])} or {KINDS[-1]}")
    if not file.absolute().parent.is_dir():
        raise UsageError(f"--picture {name}: there is no folder {file.parent}")


def write_picture(document: Mapping[str, Any], name: str) -> None:
    """Draw the JSON answer ``document`` of `trimtab estimate` or `trimtab rehearse` into the file ``name``.

    Raises:
        UsageError: the file cannot be written.
        MissingExtra: a PNG is wanted and matplotlib is not installed.
    """
    file = Path(name)
    try:
        if file.suffix.lower() == ".png":
            write_png(picture(document), file)
        elif file.suffix.lower() == ".svg":
            file.write_text(to_svg(picture(document)), encoding="utf-8")
        else:
            file.write_text(memory_page(document), encoding="utf-8")
    except OSError as error:
        raise UsageError(f"--picture {name}: cannot be written: {error.strerror}") from None
