"""Where the tests find the project, and how they run it as another process would."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SRC = ROOT / "src"
PACKAGE = SRC / "trimtab"
MODULES = tuple(sorted(PACKAGE.rglob("*.py")))


def python(*arguments: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs this Python on the sources, 80 columns wide, without a terminal."""
    values = {**os.environ, "PYTHONPATH": str(SRC), "COLUMNS": "80", "PYTHONUTF8": "1", **environment}
    values.pop("FORCE_COLOR", None)
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=values,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )


def trimtab(*arguments: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs the command."""
    return python("-m", "trimtab", *arguments, cwd=cwd, **environment)
