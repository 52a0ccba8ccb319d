"""Make the sheet of rates that comes with Trimtab out of what `trimtab probe` wrote on H200s.

    python scripts/add_rates.py probe_h200x4.json

Writes ``src/trimtab/data/probe_h200.json``: the same rows without their single samples, one a line.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "src"))

TARGET = ROOT / "src" / "trimtab" / "data" / "probe_h200.json"


def main(file: str) -> None:
    """Trim the sheet in ``file`` and put it in its place."""
    from trimtab.probe.kept import write

    sheet = json.loads(Path(file).read_text(encoding="utf-8"))
    rows = [
        {key: value for key, value in row.items() if key != "samples"}
        for row in sheet["measurements"]
        if row["seconds"]
    ]
    write({**sheet, "measurements": rows}, TARGET)
    print(f"{len(rows)} rows of {sheet['machine']['gpu']}, {TARGET.stat().st_size} bytes: {TARGET}")


if __name__ == "__main__":
    main(sys.argv[1])
