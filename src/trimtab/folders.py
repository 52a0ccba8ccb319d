"""Where this program keeps things between runs."""

from __future__ import annotations

import os
from pathlib import Path

HISTORY_VARIABLE = "TRIMTAB_HISTORY"


def cache_folder() -> Path:
    """``$TRIMTAB_CACHE``, else ``trimtab`` in the user's cache folder; it need not exist yet."""
    chosen = os.environ.get("TRIMTAB_CACHE")
    if chosen:
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "trimtab"


def history_file() -> Path | None:
    """Where the history of runs lies; None if the user wants none."""
    chosen = os.environ.get(HISTORY_VARIABLE)
    if chosen is not None:
        return Path(chosen).expanduser() if chosen.strip() else None
    base = os.environ.get("XDG_DATA_HOME")
    return (Path(base) if base else Path.home() / ".local" / "share") / "trimtab" / "history.sqlite"
