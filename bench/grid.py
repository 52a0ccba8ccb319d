"""The jobs of an exhaustive search: every ZeRO stage, offload, recomputation and micro batch of a model.

    python bench/grid.py --world 4 [--models gpt2,tinyllama-1.1b,llama-7b] > jobs.jsonl
    python bench/case_pool.py jobs.jsonl --gpus 4 --output bench/data/grid.jsonl

The global batch of a model is fixed per GPU, so that every job of a model and a world does the same work.
Jobs that cannot run by a wide margin (`trimtab estimate`: a third more than the card) are left out and named
on stderr.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "src"))

CPU = {"device": "cpu", "pin_memory": True}
OFFLOADS: dict[str, dict[str, Any]] = {
    "none": {},
    "optimizer": {"offload_optimizer": CPU},
    "both": {"offload_optimizer": CPU, "offload_param": CPU},
}
MODELS: dict[str, dict[str, Any]] = {
    "gpt2": {"sequence_length": 1024, "samples_per_gpu": {1: 64, 4: 16}, "micro": (4, 8, 16, 32, 64)},
    "tinyllama-1.1b": {"sequence_length": 2048, "samples_per_gpu": {1: 16, 4: 8}, "micro": (1, 2, 4, 8, 16)},
    "llama-7b": {"sequence_length": 2048, "samples_per_gpu": {1: 8, 4: 8}, "micro": (1, 2, 4, 8)},
}
HOPELESS = 1.33


def job(model: str, world: int, stage: int, offload: str, recompute: bool, micro: int) -> dict[str, Any]:
    """One point of the grid, as `bench/case_pool.py` takes it."""
    setting = MODELS[model]
    samples = setting["samples_per_gpu"][world]
    name = f"{model}-x{world}-z{stage}-{offload}-{'recompute' if recompute else 'keep'}"
    config = {
        "train_batch_size": samples * world,
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": samples // micro,
        "zero_optimization": {"stage": stage, **OFFLOADS[offload]},
        "bf16": {"enabled": True},
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-4, "betas": [0.9, 0.95], "weight_decay": 0.1}},
        "gradient_clipping": 1.0,
        "trimtab": {
            "model": model, "task": "causal-lm", "sequence_length": setting["sequence_length"],
            "checkpoint_activations": recompute, "attention": "sdpa",
        },
    }  # fmt: skip
    return {
        "id": f"{name}-m{micro}", "group": "nccl" if world > 1 else "single", "world": world,
        "config": config,
        "family": name, "order": micro, "model": model, "stage": stage, "offload": offload,
        "recompute": recompute, "micro": micro, "timeout": 200 if offload != "none" else 90,
    }  # fmt: skip


def grid(model: str, world: int) -> Iterator[dict[str, Any]]:
    """Every point, the likely fast ones first."""
    kinds = [(stage, "none") for stage in (0, 1, 2, 3)]
    kinds += [(1, "optimizer"), (2, "optimizer"), (3, "optimizer"), (3, "both")]
    samples = MODELS[model]["samples_per_gpu"][world]
    for stage, offload in kinds:
        for recompute in (False, True):
            for micro in MODELS[model]["micro"]:
                if micro <= samples:
                    yield job(model, world, stage, offload, recompute, micro)


def hopeless(one: dict[str, Any], gpu: str) -> bool:
    """Whether the arithmetic says that it needs a third more than the card has."""
    from trimtab.cluster import Cluster
    from trimtab.config import Config
    from trimtab.estimate import estimate

    cluster = Cluster.of(gpu, gpus_per_node=one["world"], nodes=1)
    answer = estimate(Config.from_mapping(one["config"], name=one["id"]), cluster)
    return answer.needed.expected > HOPELESS * answer.capacity_bytes


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--world", type=int, default=1)
    parser.add_argument("--gpu", default="h200")
    parser.add_argument("--only", default="", help="texts that an id must hold one of, comma-separated")
    options = parser.parse_args()
    wanted = [text for text in options.only.split(",") if text]
    for model in options.models.split(","):
        for one in grid(model, options.world):
            if wanted and not any(text in one["id"] for text in wanted):
                continue
            if hopeless(one, options.gpu):
                print(f"left out, needs far more than the card has: {one['id']}", file=sys.stderr)
            else:
                print(json.dumps(one))
    return 0


if __name__ == "__main__":
    sys.exit(main())
