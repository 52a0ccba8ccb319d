"""How long a plan takes, as a whole process: one cluster, small cards, and GPUs left open.

Prints wall and processor seconds of each, the least of some runs, and the longest of either kind.
"""

from __future__ import annotations

import compileall
import os
import sys
from pathlib import Path

from check_speed import seconds

from trimtab import catalogue

REPEATS = 3
PLANS = {
    "one cluster": (
        "--model gpt2 --gpu h200 --gpus-per-node 1",
        "--model llama-7b --gpu h200 --gpus-per-node 1",
        "--model llama-13b --gpu a100-80gb --gpus-per-node 8",
        "--model llama-70b --gpu h100-80gb --gpus-per-node 8 --nodes 2",
        "--model llama-70b --gpu h100-80gb --gpus-per-node 8 --nodes 4",
        "--model llama-70b --objective lora --gpu h100-80gb --gpus-per-node 4",
        "--model gpt-neox-20b --objective pretrain --gpu h100-80gb --gpus-per-node 8 --nodes 4",
    ),
    "one cluster of small cards": (
        "--model llama-7b --gpu rtx-4090 --gpus-per-node 8",
        "--model llama-7b --objective lora --gpu rtx-4090 --gpus-per-node 1",
        "--model opt-1.3b --gpu t4 --gpus-per-node 4",
        "--model bert-large --gpu t4 --gpus-per-node 1",
        "--model bert-base --gpu v100-16gb --gpus-per-node 2",
        "--model t5-large --gpu t4 --gpus-per-node 2",
        "--model t5-3b --gpu v100-16gb --gpus-per-node 4",
    ),
    "any GPUs": (
        "--model gpt2 --gpu any",
        "--model llama-7b --gpu any",
        "--model llama-7b --objective lora --gpu any --tokens 50M --budget-usd 100 --optimize cheapest",
        "--model llama-70b --gpu any",
        "--model t5-large --gpu any",
    ),
}


def main() -> None:
    # as pip installs it: a checkout whose files just changed would be compiled anew in every run
    compileall.compile_dir(Path(catalogue.__file__).parent, quiet=1)
    os.environ["TRIMTAB_HISTORY"] = ""  # a machine that has run nothing yet
    plan = (sys.executable, "-m", "trimtab", "plan")
    for kind, plans in PLANS.items():
        print(f"{kind:<102} {'wall':>8} {'processor':>11}")
        every = []
        for flags in plans:
            wall, processor = seconds(*plan, *flags.split(), repeats=REPEATS)
            every.append((wall, processor))
            print(f"  trimtab plan {flags:<87} {wall:6.2f} s {processor:9.2f} s", flush=True)
        walls, processors = zip(*every, strict=True)
        print(f"  {'the longest':<100} {max(walls):6.2f} s {max(processors):9.2f} s\n")


if __name__ == "__main__":
    main()
