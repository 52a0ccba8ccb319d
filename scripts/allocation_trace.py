"""What PyTorch's allocator was asked for on a GPU, in order: `prove_on_gpu.py --allocations`.

One compressed JSON file a case:

``events``    ``[size, stream, place, address]`` of a request in bytes, ``[-n]`` where the ``n``-th one's
              block came free, ``[0, size, address]`` and ``[0, -size, address]`` where a segment came from
              the driver or went back
``places``    who asked: the innermost Python frames, as far as there were any
``capacity``  what the allocator was held to, in GiB, or null
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

ENTRIES = 2_000_000
FRAMES = 4
STEPS = 12
"""Optimizer steps that are recorded, the first included."""


def begin() -> None:
    """Record from now on."""
    import torch

    torch.cuda.memory._record_memory_history(
        enabled="all", context="alloc", stacks="python", max_entries=ENTRIES
    )


def end(path: Path, *, capacity_gib: float | None) -> None:
    """Write what was recorded, and record no more."""
    import torch

    torch.cuda.synchronize()
    trace = torch.cuda.memory._snapshot()["device_traces"][torch.cuda.current_device()]
    torch.cuda.memory._record_memory_history(enabled=None)
    places: dict[str, int] = {}
    numbers: dict[int, int] = {}
    events: list[list[int]] = []
    count = 0
    for entry in trace:
        action, address, size = entry["action"], entry["addr"], entry["size"]
        if action == "alloc":
            count += 1
            numbers[address] = count
            place = places.setdefault(_place(entry), len(places))
            events.append([size, entry["stream"], place, address])
        elif action == "free_completed":
            number = numbers.pop(address, None)
            if number is not None:
                events.append([-number])
        elif action in ("segment_alloc", "segment_free"):
            events.append([0, size if action == "segment_alloc" else -size, address])
    path.parent.mkdir(parents=True, exist_ok=True)
    told = {"events": events, "places": list(places), "capacity": capacity_gib}
    with gzip.open(path, "wt", encoding="utf-8") as file:
        json.dump(told, file)


def _place(entry: dict[str, Any]) -> str:
    frames = [one for one in entry.get("frames", ()) if one["filename"].endswith(".py")]
    return " < ".join(f"{Path(one['filename']).name}:{one['line']}:{one['name']}" for one in frames[:FRAMES])
