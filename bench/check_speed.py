"""How fast the check is, against the import of DeepSpeed in the same run.

One file as a whole process, and a thousand files in one process.  Prints the seconds and their ratios.
"""

from __future__ import annotations

import compileall
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from trimtab import catalogue

REPEATS = 7
FILES = 1_000


def seconds(*command: str, repeats: int = REPEATS) -> tuple[float, float]:
    """The least wall time and processor time of a command over some runs: with nothing else running."""
    walls, processors = [], []
    for _ in range(repeats):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        began = time.perf_counter()
        subprocess.run(command, check=False, capture_output=True, env={**os.environ, "DS_ACCELERATOR": "cpu"})
        walls.append(time.perf_counter() - began)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        processors.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(walls), min(processors)


def main() -> None:
    # as pip installs it: a checkout whose files just changed would be compiled anew in every run
    compileall.compile_dir(Path(catalogue.__file__).parent, quiet=1)
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
    for kind, at in (("wall", 0), ("processor", 1)):
        print(f"{kind} time")
        print(f"  import deepspeed      {engine[at]:7.3f} s")
        print(f"  check of one file     {one[at]:7.3f} s   1/{engine[at] / one[at]:.0f} of the import")
        print(f"  check of {FILES:,} files {thousand[at]:7.3f} s   {thousand[at] / engine[at]:.2f} imports")


if __name__ == "__main__":
    main()
