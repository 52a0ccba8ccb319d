"""How far the quick answer about needed memory is from the whole one: the ratios in trimtab/cost/need.py.

    python scripts/make_spread.py

Replays PyTorch's allocator twice for every measured job, every ready configuration and the first 400 of
``bench/sweep.py``: quickly (what is in use at once), and whole (the smallest capacity that serves every
request).  Prints the quantiles of their ratio, and how often a whole replay at a card's own room said what
the GPU did, over the measured jobs that had a whole card.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "bench"), str(ROOT / "scripts")]

import make_accuracy  # noqa: E402
import sweep  # noqa: E402

from trimtab import catalogue  # noqa: E402
from trimtab.config import Config  # noqa: E402
from trimtab.cost.memory import profile  # noqa: E402
from trimtab.cost.need import CONTEXT_BYTES, LARGE_BYTES, NCCL_ALONE_BYTES, CapacitySearch  # noqa: E402
from trimtab.errors import TrimtabError  # noqa: E402
from trimtab.model import Model, find_model  # noqa: E402

DRAWN = 400
PROBABILITIES = (0.005, 0.025, 0.1, 0.25, 0.5, 0.75, 0.9, 0.975, 0.995)
CARD_BYTES = int(139.80 * 2**30)  # torch.cuda.mem_get_info of the H200s of bench/data/grid_x1.jsonl


def jobs() -> Iterator[tuple[Config, Model, int]]:
    """Configurations, models and worlds."""
    for file in make_accuracy.MEASURED:
        for row in make_accuracy.rows(file):
            if "end" in row["gib"]:
                yield make_accuracy.configuration(row), Model.from_hf(row["hf"], row["id"]), row["world"]
    for name in catalogue.names():
        config = catalogue.load_config(name)
        yield config, find_model(config.job.model or ""), catalogue.hardware(name).world_size
    for number in range(DRAWN):
        one = sweep.draw(number)
        yield Config.from_mapping(one["config"]), Model.from_hf(one["hf"], f"case {number}"), one["world"]


def ratio(config: Config, model: Model, world: int) -> tuple[bool, float]:
    """Whether a quick replay calls it large, and the smallest capacity over what that expects."""
    quick = profile(config, model, world, allocator=True, whole=False)
    whole = profile(config, model, world, allocator=True)
    used = max(reading.peak_used for reading in quick.readings.values())
    expected = max(used, quick.allocated_peak)
    return expected > LARGE_BYTES, CapacitySearch(whole).smallest() / expected


def verdicts() -> Counter[tuple[bool, bool]]:
    """Jobs on a whole card by whether they ran and whether a whole replay within its room says so."""
    room = CARD_BYTES - CONTEXT_BYTES - NCCL_ALONE_BYTES
    found: Counter[tuple[bool, bool]] = Counter()
    for row in make_accuracy.rows("grid_x1.jsonl"):
        if row.get("arch") and "deepspeed_config" in row:
            model = Model.from_hf(row["hf"], row["id"])
            counted = profile(make_accuracy.configuration(row), model, row["world"], allocator=True)
            found[row["ok"], counted.fits(room)] += 1
    return found


def main() -> None:
    ratios: dict[bool, list[float]] = {False: [], True: []}
    for config, model, world in jobs():
        try:
            large, found = ratio(config, model, world)
        except TrimtabError:
            continue
        ratios[large].append(found)
    for large, these in ratios.items():
        these.sort()
        print(f"{len(these)} {'large ' * large}jobs, from {these[0]:.3f} to {these[-1]:.3f}")
        print(", ".join(f"({share}, {these[int(share * len(these))]:.3f})" for share in PROBABILITIES))
    for (ran, fits), count in sorted(verdicts().items()):
        print(f"{count} {'ran' if ran else 'ran out of memory'}; replayed: {'fits' if fits else 'too large'}")


if __name__ == "__main__":
    main()
