"""Make the tables of rates that come with Trimtab out of what `trimtab probe` wrote on H200s.

    python scripts/add_rates.py                                       writes the tables anew
    python scripts/add_rates.py probe_h200x2.json [ROWS.json ...]     takes other measurements first

``bench/data/probe_h200.json`` keeps the measurements: the sheet's rows without their single samples, one a
line, and those collectives of the present one that ran over other numbers of GPUs.  Each further file holds a
list of rows; those of a kind that it has take the place of the sheet's.  ``src/trimtab/data/rates_h200.json``
is what `trimtab.cost.tables` makes of them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "src"))

KEPT = ROOT / "bench" / "data" / "probe_h200.json"
TABLES = ROOT / "src" / "trimtab" / "data" / "rates_h200.json"


def keep(file: str, *others: str) -> None:
    """Trim the sheet in ``file`` and put it in the kept one's place, with what the others have."""
    from trimtab.probe.kept import write

    sheet = json.loads(Path(file).read_text(encoding="utf-8"))
    measured = sheet["measurements"]
    for other in others:
        newer = json.loads(Path(other).read_text(encoding="utf-8"))
        kinds = {row["kind"] for row in newer}
        measured = [row for row in measured if row["kind"] not in kinds] + newer
    rows = [{key: value for key, value in row.items() if key != "samples"} for row in measured]
    rows = [row for row in rows if row["seconds"]]
    ranks = {row["ranks"] for row in rows if row["kind"] == "collective"}
    present = json.loads(KEPT.read_text(encoding="utf-8"))["measurements"]
    rows += [row for row in present if row["kind"] == "collective" and row["ranks"] not in ranks]
    most = max(row["ranks"] for row in rows if row["kind"] == "collective")
    write({**sheet, "machine": {**sheet["machine"], "gpus_per_node": most}, "measurements": rows}, KEPT)


def main(*files: str) -> None:
    """Write the tables."""
    from trimtab.cost.tables import made_of

    if files:
        keep(*files)
    tables = made_of(json.loads(KEPT.read_text(encoding="utf-8")))
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(table)}" for name, table in tables.items())
    TABLES.write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")
    print(f"{TABLES}: {TABLES.stat().st_size} bytes")


if __name__ == "__main__":
    main(*sys.argv[1:])
