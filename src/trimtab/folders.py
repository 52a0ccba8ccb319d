"""Where this program's own data lie, and where it keeps things between runs.

Places are texts here: ``pathlib`` takes longer to import than many a job takes to count.
"""

from __future__ import annotations

import json
import os
from typing import Any

HISTORY_VARIABLE = "TRIMTAB_HISTORY"
_DATA = os.path.join(os.path.dirname(os.path.abspath(__file__)), "data")


def shipped(*names: str) -> str:
    """The path of a file or folder of the package's own data."""
    return os.path.join(_DATA, *names)


def read_shipped(*names: str) -> Any:
    """What a JSON file of the package's own data holds."""
    with open(shipped(*names), encoding="utf-8") as file:
        return json.load(file)


def cache_folder() -> str:
    """``$TRIMTAB_CACHE``, else ``trimtab`` in the user's cache folder; it need not exist yet."""
    chosen = os.environ.get("TRIMTAB_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser(os.path.join("~", ".cache"))
    return chosen or os.path.join(base, "trimtab")


def history_file() -> str | None:
    """Where the history of runs lies; None if the user wants none."""
    chosen = os.environ.get(HISTORY_VARIABLE)
    if chosen is not None:
        return os.path.expanduser(chosen) if chosen.strip() else None
    base = os.environ.get("XDG_DATA_HOME") or os.path.expanduser(os.path.join("~", ".local", "share"))
    return os.path.join(base, "trimtab", "history.sqlite")
