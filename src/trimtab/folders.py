"""Where this program keeps things between runs."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """``$TRIMTAB_CACHE``, else ``trimtab`` in the user's cache folder; it need not exist yet."""
    chosen = os.environ.get("TRIMTAB_CACHE")
    if chosen:
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "trimtab"
