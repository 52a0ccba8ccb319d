"""How fast an estimate is, against the import of DeepSpeed in the same run.

Every ready configuration as a whole process, and the arithmetic alone as a search calls it.  Prints the
seconds and their ratios.
"""

from __future__ import annotations

import compileall
import gc
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

from check_speed import seconds

from trimtab import catalogue
from trimtab.cost.memory import profile
from trimtab.model import find_model

REPEATS = 5


def least(run: Callable[[], object]) -> float:
    """The least processor time of some runs, in seconds."""
    spent = []
    for _ in range(REPEATS):
        began = time.process_time()
        run()
        spent.append(time.process_time() - began)
    return min(spent)


def candidate(name: str) -> float:
    """Seconds of counting one more candidate of a search: the model's work is known, the engine's is not."""
    config, hardware = catalogue.load_config(name), catalogue.hardware(name)
    assert config.job.model is not None
    model = find_model(config.job.model)
    world = hardware.world_size
    profile(config, model, world)
    return least(lambda: profile(config, model, world))


def main() -> None:
    # as pip installs it: a checkout whose files just changed would be compiled anew in every run
    compileall.compile_dir(Path(catalogue.__file__).parent, quiet=1)
    os.environ["TRIMTAB_HISTORY"] = ""  # a machine that has run nothing yet
    engine = seconds(sys.executable, "-c", "import deepspeed")
    print(f"import deepspeed: wall {engine[0]:.3f} s, processor {engine[1]:.3f} s\n")
    print(f"{'estimate of':<28} {'wall':>8} {'':>6} {'processor':>10} {'':>6} {'one more candidate':>20}")
    gc.disable()
    ratios = []
    for name in catalogue.names():
        wall, processor = seconds(sys.executable, "-m", "trimtab", "estimate", name)
        ratios.append(engine[1] / processor)
        print(
            f"{name:<28} {wall:6.3f} s 1/{engine[0] / wall:<4.0f} {processor:8.3f} s "
            f"1/{engine[1] / processor:<4.0f} {candidate(name) * 1e3:17.1f} ms"
        )
    print(f"\nprocessor time, median: 1/{statistics.median(ratios):.0f} of the import of DeepSpeed")


if __name__ == "__main__":
    main()
