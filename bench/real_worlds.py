"""Jobs that say whether one GPU stands for many: the same case with real ranks and as rank 0 of made-up ones.

    python bench/real_worlds.py > jobs.jsonl
    python bench/case_pool.py jobs.jsonl --gpus 4 --output bench/data/real_worlds.jsonl

Every case runs in worlds of 2 and of 4, each through NCCL and through torch's fake process group.
"""

from __future__ import annotations

import json
import sys
from typing import Any

CPU = {"device": "cpu", "pin_memory": True}
LORA = {"r": 16, "lora_alpha": 32, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]}
ADAM = {"type": "AdamW", "params": {"lr": 1e-5}}
Case = dict[str, Any]


def case(name: str, model: str, zero: Case, *, micro: int = 2, accumulation: int = 1, **block: Any) -> Case:
    """One case: the file without its batch of all ranks."""
    settings = {"model": model, "task": "causal-lm", "sequence_length": 1024, "attention": "sdpa", **block}
    return {
        "name": name,
        "config": {
            "train_micro_batch_size_per_gpu": micro,
            "gradient_accumulation_steps": accumulation,
            "zero_optimization": zero,
            "bf16": {"enabled": True},
            "optimizer": ADAM,
            "trimtab": settings,
        },
    }


CASES = (
    case("llama-z0", "tinyllama-1.1b", {"stage": 0}, accumulation=2),
    case("llama-z1", "tinyllama-1.1b", {"stage": 1}, accumulation=2),
    case("llama-z2", "tinyllama-1.1b", {"stage": 2}, micro=4, checkpoint_activations=True),
    case("llama-z3", "tinyllama-1.1b", {"stage": 3}, micro=4),
    case("llama-z3-recompute", "tinyllama-1.1b", {"stage": 3}, accumulation=2, checkpoint_activations=True),
    case("llama-z2-offload", "tinyllama-1.1b", {"stage": 2, "offload_optimizer": CPU}),
    case("llama-z3-both", "tinyllama-1.1b", {"stage": 3, "offload_optimizer": CPU, "offload_param": CPU}),
    case("llama-lora-z2", "tinyllama-1.1b", {"stage": 2}, micro=4, lora=LORA),
    case("llama-lora-z3", "tinyllama-1.1b", {"stage": 3}, micro=4, lora=LORA, checkpoint_activations=True),
    case("bert-z1", "bert-large", {"stage": 1}, micro=32, task="masked-lm", sequence_length=128),
    case(
        "t5-z2",
        "t5-base",
        {"stage": 2},
        micro=8,
        task="span-corruption",
        sequence_length=512,
        target_length=114,
    ),
)


def main() -> int:
    """Print the jobs: those of all four GPUs first, then two by two, then the made-up worlds."""
    for group, world in (("nccl", 4), ("nccl", 2), ("fake", 4), ("fake", 2)):
        for one in CASES:
            name = f"{one['name']}-{group}{world}"
            print(json.dumps({**one, "id": name, "group": group, "world": world, "timeout": 120}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
