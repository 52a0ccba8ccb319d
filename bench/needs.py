"""How far the arithmetic's smallest capacity is from the phantom engine's: the spread of "it fits".

    python bench/needs.py --count 150     goes on where bench/data/needs.jsonl ends (5 s a job)
    python bench/needs.py --recount       the arithmetic again, of every row (after a change to it)
    python bench/needs.py                 the quantiles of their ratio, and the jobs furthest apart

The jobs are those of `bench/sweep.py`, by number.  Both replay PyTorch's allocator over every request of the
job's steps until nothing changes any more; the phantom's requests are the real engine's and model's own.  The
quantiles are those of ``REPLAY_RATIOS`` in trimtab/cost/need.py.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "bench")]

import sweep  # noqa: E402

from trimtab.config import Config  # noqa: E402
from trimtab.cost.allocator import WORKSPACE_BYTES  # noqa: E402
from trimtab.cost.memory import profile  # noqa: E402
from trimtab.cost.need import CapacitySearch  # noqa: E402
from trimtab.errors import TrimtabError  # noqa: E402
from trimtab.model import Model  # noqa: E402
from trimtab.rehearse.request import PhantomRequest  # noqa: E402
from trimtab.rehearse.series import rehearse_forked  # noqa: E402

ROWS = ROOT / "bench" / "data" / "needs.jsonl"
PROBABILITIES = (0.005, 0.025, 0.1, 0.25, 0.5, 0.75, 0.9, 0.975, 0.995)
FIRST = 300_000
"""The first job's number: none of those that anything was mended by (bench/sweep.py)."""
Row = dict[str, Any]


def arithmetic(one: Row, phantom_bytes: int) -> int:
    """The smallest capacity by the arithmetic, as it answers for a card of the phantom's."""
    config, model = Config.from_mapping(one["config"]), Model.from_hf(one["hf"], "drawn")
    workspace = WORKSPACE_BYTES[True]
    counted = profile(config, model, one["world"], allocator=True, workspace_bytes=workspace)
    return CapacitySearch(counted, phantom_bytes).smallest()


def run(number: int) -> Row | None:
    """Both capacities of one job, in bytes; None where the engine or the arithmetic refuses it."""
    one = sweep.draw(number)
    request = PhantomRequest.of_config(Config.from_mapping(one["config"]), one["hf"], world_size=one["world"])
    request = dataclasses.replace(request, steps=3, find_capacity=True)
    try:
        found = rehearse_forked(request).smallest_capacity_bytes
        assert found is not None
        return {"number": number, "phantom": found, "arithmetic": arithmetic(one, found)}
    except TrimtabError as refusal:
        print(f"{number}: {refusal}", flush=True)
        return None


def rows() -> Iterator[Row]:
    """Those that are kept."""
    if ROWS.exists():
        yield from map(json.loads, ROWS.read_text("utf-8").splitlines())


def ratio(row: Row) -> float:
    """The phantom's over the arithmetic's."""
    return row["phantom"] / row["arithmetic"]


def quantile(ordered: list[float], share: float) -> float:
    """The smallest value that is not passed with ``share``."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=0, help="jobs to run")
    parser.add_argument("--recount", action="store_true", help="the arithmetic of every row again")
    options = parser.parse_args()
    if options.recount:
        again = [
            {**row, "arithmetic": arithmetic(sweep.draw(row["number"]), row["phantom"])} for row in rows()
        ]
        ROWS.write_text("".join(json.dumps(row) + "\n" for row in again), encoding="utf-8")
    start = max((row["number"] + 1 for row in rows()), default=FIRST)
    for number in range(start, start + options.count):
        row = run(number)
        if row is not None:
            with ROWS.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
    found = sorted(rows(), key=ratio)
    ordered = [ratio(row) for row in found]
    print(f"{len(found)} jobs; phantom over arithmetic")
    print(", ".join(f"({share}, {quantile(ordered, share):.3f})" for share in PROBABILITIES))
    for row in (*found[:5], *found[-10:]):
        one = sweep.draw(row["number"])
        zero = one["config"]["zero_optimization"]
        print(f"  {row['number']} {ratio(row):.3f}  {one['hf']['model_type']} {json.dumps(zero)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
