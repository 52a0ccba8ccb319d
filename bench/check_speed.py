"""How fast the check is, against the import of DeepSpeed in the same run.

One file as a whole process, and a thousand files in one process.  Prints the seconds and their ratios.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from trimtab import catalogue

REPEATS = 5
FILES = 1_000


def seconds(*command: str) -> float:
    """The median wall time of a command over some runs; the first, which warms the disk, is left out."""
    times = []
    for _ in range(REPEATS + 1):
        began = time.perf_counter()
        subprocess.run(command, check=False, capture_output=True, env={**os.environ, "DS_ACCELERATOR": "cpu"})
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])


def main() -> None:
    check = (sys.executable, "-m", "trimtab", "check")
    engine = seconds(sys.executable, "-c", "import deepspeed")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "ds_config.json"
        file.write_text(catalogue.path("llama_7b_single_node").read_text(encoding="utf-8"), encoding="utf-8")
        one = seconds(*check, str(file), "--isolated")
    with tempfile.TemporaryDirectory() as folder:
        configs = [catalogue.load_config(name).deepspeed() for name in catalogue.names()]
        for number in range(FILES):
            text = json.dumps({**configs[number % len(configs)], "steps_per_print": number + 1}, indent=2)
            (Path(folder) / f"ds_{number:04}.json").write_text(text, encoding="utf-8")
        thousand = seconds(*check, folder, "--isolated", "--output-format", "concise")
    print(f"import deepspeed        {engine:7.3f} s")
    print(f"check of one file       {one:7.3f} s   1/{engine / one:.0f} of the import")
    print(f"check of {FILES:,} files   {thousand:7.3f} s   {thousand / engine:.2f} imports")


if __name__ == "__main__":
    main()
