"""Where sheets of measurements are kept: one a GPU and world size, the newest in place of the last."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trimtab.errors import UnreadableFile
from trimtab.folders import cache_folder


def kept_file(sheet: Mapping[str, Any]) -> Path:
    """The file in the cache folder that keeps this machine's sheet, such as ``probe/nvidia-h200-x4.json``."""
    machine = sheet["machine"]
    name = re.sub(r"[^a-z0-9]+", "-", str(machine["gpu"] or "cpu").lower()).strip("-")
    return Path(cache_folder(), "probe") / f"{name}-x{machine['world_size']}.json"


def check_writable(file: Path) -> None:
    """Raises UnreadableFile, before minutes of measuring, where `write` could not put its sheet."""
    above = next(folder for folder in file.absolute().parents if folder.exists())
    if file.is_dir() or not above.is_dir() or not os.access(above, os.W_OK):
        raise UnreadableFile(f"{file}: cannot be written: give --output a file in a folder that can")


def write(sheet: Mapping[str, Any], file: Path) -> None:
    """Write a sheet, whole or not at all.

    Raises:
        UnreadableFile: the file cannot be written.
    """
    part = file.with_name(file.name + ".part")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lines = ",\n".join("  " + json.dumps(row) for row in sheet["measurements"])
        head = json.dumps({key: value for key, value in sheet.items() if key != "measurements"}, indent=1)
        part.write_text(f'{head[:-2]},\n "measurements": [\n{lines}\n ]\n}}\n', encoding="utf-8")
        part.replace(file)
    except OSError as error:
        raise UnreadableFile(f"{file}: cannot be written: {error.strerror}") from None
