"""Make the sheet of rates that comes with Trimtab out of what `trimtab probe` wrote on H200s.

    python scripts/add_rates.py probe_h200x4.json

Writes ``src/trimtab/data/probe_h200.json``: the same rows without their single samples, one a line, and
those collectives of the present sheet that ran over other numbers of GPUs.
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
    ranks = {row["ranks"] for row in rows if row["kind"] == "collective"}
    present = json.loads(TARGET.read_text(encoding="utf-8"))
    others = [
        row for row in present["measurements"] if row["kind"] == "collective" and row["ranks"] not in ranks
    ]
    machine = {**sheet["machine"], "gpus_per_node": max(ranks | {row["ranks"] for row in others})}
    write({**sheet, "machine": machine, "measurements": rows + others}, TARGET)
    print(f"{len(rows)} rows of {sheet['machine']['gpu']}, {TARGET.stat().st_size} bytes: {TARGET}")


if __name__ == "__main__":
    main(sys.argv[1])
