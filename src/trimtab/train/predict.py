"""What the estimate says of a run before it starts, to stand beside what it measures."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from typing import Any

from trimtab.cluster import Cluster, find_gpu
from trimtab.errors import TrimtabError
from trimtab.estimate import estimate, to_json
from trimtab.train.settings import Settings, effective_config


def prediction(settings: Settings, *, ranks: int, nodes: int = 1) -> Mapping[str, Any] | None:
    """The estimate's JSON form for this run on this machine's GPUs; None where there is none to make.

    There is none on the CPU, for a shrunken model (its sizes follow from the data), for a card that the table
    does not know, or for a model that the arithmetic does not know.
    """
    if settings.device != "cuda" or settings.shrink:
        return None
    name = _gpu_name()
    if name is None:
        return None
    try:
        config, _ = effective_config(settings, world=ranks * nodes)
        return to_json(estimate(config, Cluster.of(find_gpu(name), ranks, nodes)))
    except TrimtabError:
        return None


def _gpu_name() -> str | None:
    """The first GPU's name as the driver reports it (``nvidia-smi``)."""
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    lines = answer.stdout.strip().splitlines()
    return lines[0].strip() if lines else None
