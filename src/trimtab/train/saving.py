"""Saving and loading an engine's state, by all ranks together."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trimtab.train.checkpoint import (
    STATE_TAG,
    Manifest,
    folder_name,
    partial_name,
    prune,
    publish,
    sums,
)
from trimtab.train.ranks import Ranks


def save(
    engine: Any, checkpoints: Path, ranks: Ranks, *, facts: Mapping[str, Any], keep: int, frozen: bool
) -> Path:
    """Save the whole state as ``checkpoints/step-…``; all ranks call it, and it is there when they return.

    ``facts`` are the manifest's, without the files; ``frozen`` saves frozen weights too.
    """
    import torch
    from safetensors.torch import save_file

    step = int(facts["step"])
    name = ranks.same(partial_name(step))
    partial = checkpoints / name
    partial.mkdir(parents=True, exist_ok=True)
    ranks.wait()
    engine.save_checkpoint(
        str(partial), tag=STATE_TAG, save_latest=False, exclude_frozen_parameters=not frozen
    )
    (partial / "random").mkdir(exist_ok=True)
    states = {"cpu": torch.get_rng_state()}
    if engine.device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(engine.device)
    save_file(states, str(partial / "random" / f"rank-{ranks.rank:04d}.safetensors"))
    ranks.wait()
    files = sorted(str(path.relative_to(partial)) for path in partial.rglob("*") if path.is_file())
    parts = ranks.gather(sums(partial, files[ranks.rank :: ranks.world]))
    final = checkpoints / folder_name(step)
    if ranks.first:
        merged = {file: entry for part in parts for file, entry in part.items()}
        publish(partial, final, Manifest(**facts, files=dict(sorted(merged.items()))))
        prune(checkpoints, keep)
    ranks.wait()
    return final


def load(engine: Any, folder: Path, ranks: Ranks, *, frozen: bool) -> None:
    """Put the state of a verified checkpoint into the engine, and its random state into this process."""
    import torch
    from safetensors.torch import load_file

    engine.load_checkpoint(str(folder), tag=STATE_TAG, load_module_strict=frozen)
    random = folder / "random" / f"rank-{ranks.rank:04d}.safetensors"
    if random.exists():  # a world that grew has ranks that were not there
        states = load_file(str(random))
        torch.set_rng_state(states["cpu"])
        if "cuda" in states and engine.device.type == "cuda":
            torch.cuda.set_rng_state(states["cuda"], engine.device)
    ranks.wait()
