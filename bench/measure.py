"""Measure memory on a GPU: small and middling jobs of every kind under the real DeepSpeed engine.

    python bench/measure.py --output bench/data/h200_memory.jsonl      on a machine with a GPU
    python bench/measure.py --list                                      what would run, with what is predicted

Every case runs in a process of its own as rank 0 of its world through torch's fake process group
(scripts/prove_on_gpu.py does the measuring); several share the card, since PyTorch's allocator counts each
process alone.  Step times of cases that shared it are not kept.  One JSON line a case; stops after three
failures in a row.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "scripts"), str(ROOT / "bench")]

from measured_cases import Case, chosen, drawn  # noqa: E402

GIB = 2**30


def predicted_bytes(one: Case) -> int:
    """What `estimate` says that the case allocates at most, start included."""
    from trimtab.config import Config
    from trimtab.cost.memory import profile
    from trimtab.model import Model

    result = profile(Config.from_mapping(one["config"]), Model.from_hf(one["hf"], one["id"]), one["world"])
    return max(result.phase_peaks.values())


class Room:
    """Hands out the card's memory, so that only what fits runs at once."""

    def __init__(self, total: int) -> None:
        self.free, self.change = total, threading.Condition()

    def take(self, count: int) -> None:
        with self.change:
            self.change.wait_for(lambda: self.free >= count)
            self.free -= count

    def give(self, count: int) -> None:
        with self.change:
            self.free += count
            self.change.notify_all()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", default="measured.jsonl")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--only", default="", help="substrings of ids, comma-separated")
    parser.add_argument("--drawn", type=int, default=24, help="random cases beside the chosen ones")
    parser.add_argument("--jobs", type=int, default=7)
    parser.add_argument("--room", type=float, default=110, help="GiB of the card to share out")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument(
        "--tiny", action="store_true", help="shrunken models: tries the path, measures nothing"
    )
    parser.add_argument("--seconds", type=float, default=1e9, help="start no case after this long")
    options = parser.parse_args()
    wanted = [text for text in options.only.split(",") if text]
    cases = [*chosen(), *drawn(options.drawn)]
    cases = [one for one in cases if not wanted or any(text in one["id"] for text in wanted)]
    if options.list:
        for one in cases:
            print(f"{one['id']:36} {predicted_bytes(one) / GIB:7.2f} GiB")
        return 0
    return run(cases, options)


def run(cases: list[Case], options: argparse.Namespace) -> int:
    import prove_on_gpu

    room, lock, started = Room(int(options.room * GIB)), threading.Lock(), time.time()
    failures: list[bool] = []
    child = argparse.Namespace(
        real=False,
        fake=True,
        gpus=1,
        device=options.device,
        max_accumulation=4,
        tiny=options.tiny,
        timeout=200,
        cap_gib=None,
        profile=None,
        initialize=False,
        allocations=None,
    )

    def one_case(one: Case) -> None:
        if failures[-3:] == [True] * 3 or time.time() - started > options.seconds:
            return
        need = int(predicted_bytes(one) * 1.3) + 2 * GIB
        room.take(min(need, int(options.room * GIB)))
        try:
            with tempfile.TemporaryDirectory() as folder:
                model, file = Path(folder) / "config.json", Path(folder) / f"{one['id']}.json"
                model.write_text(json.dumps(one["hf"]))
                block = {**one["config"]["trimtab"], "model": str(model)}
                file.write_text(json.dumps({**one["config"], "trimtab": block}))
                setting = argparse.Namespace(**{**vars(child), "world": one["world"]})
                row = prove_on_gpu.run_child(one["id"], file, setting)
        finally:
            room.give(min(need, int(options.room * GIB)))
        row["hf"], row["step_seconds"] = one["hf"], None
        with lock:
            failures.append(not row["ok"])
            with open(options.output, "a", encoding="utf-8") as lines:
                lines.write(json.dumps(row) + "\n")
            measured = row["gib"].get("end", {}).get("peak_alloc")
            print(
                f"{one['id']:36} {measured}  predicted {predicted_bytes(one) / GIB:.2f}  "
                f"{'' if row['ok'] else (row['error'] or '')[-300:]}",
                flush=True,
            )

    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(one_case, cases))
    return int(any(failures))


if __name__ == "__main__":
    sys.exit(main())
