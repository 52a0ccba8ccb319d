"""Jobs whose step times say how good the predicted ones are, and where a prediction goes wrong.

    python bench/quiet_steps.py --world 1 > jobs.jsonl
    python bench/case_pool.py jobs.jsonl --gpus 1 --output bench/data/quiet_steps.jsonl

They run on real GPUs only, each with cores of its own, and each says what its phases and single calls take the
host (``profile``, scripts/profiled_step.py; ``kernels`` in its place says it kernel by kernel).  Every family,
stage and offload is there, as jobs that wait for the host and as jobs that wait for the GPU.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from typing import Any

CPU = {"device": "cpu", "pin_memory": True}
LORA = {"r": 16, "lora_alpha": 32, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]}
BF16 = {"bf16": {"enabled": True}}
FP16 = {"fp16": {"enabled": True, "initial_scale_power": 8}}
Job = dict[str, Any]
ONE, TWO = (1,), (2,)
BOTH = (1, 2)


def job(
    name: str,
    model: str,
    zero: dict[str, Any],
    *,
    worlds: tuple[int, ...] = BOTH,
    micro: int,
    accumulation: int = 1,
    precision: dict[str, Any] = BF16,
    **block: Any,
) -> tuple[tuple[int, ...], Job]:
    """A job, and the worlds that it is for."""
    settings = {"model": model, "task": "causal-lm", "sequence_length": 1024, "attention": "sdpa", **block}
    config = {
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": accumulation,
        "zero_optimization": zero,
        **precision,
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-5}},
        "gradient_clipping": 1.0,
        "trimtab": settings,
    }
    return worlds, {"id": name, "config": config, "profile": "phases"}


BERT = {"task": "masked-lm", "sequence_length": 128}
T5 = {"task": "span-corruption", "sequence_length": 512, "target_length": 114}
LONG = {"sequence_length": 2048}
RECOMPUTED = {**LONG, "checkpoint_activations": True}
JOBS = (
    job("gpt2-z0-m16", "gpt2", {"stage": 0}, micro=16),
    job("gpt2-z1-m4", "gpt2", {"stage": 1}, micro=4, accumulation=2),
    job("gpt2-z2-m16", "gpt2", {"stage": 2}, micro=16, accumulation=2),
    job("gpt2-z3-m16", "gpt2", {"stage": 3}, micro=16),
    job("gpt2-z3-m4-recompute", "gpt2", {"stage": 3}, micro=4, checkpoint_activations=True),
    job("bert-base-z0-m32", "bert-base-uncased", {"stage": 0}, micro=32, precision=FP16, **BERT),
    job("bert-large-z1-m64", "bert-large-uncased", {"stage": 1}, micro=64, **BERT),
    job("bert-large-z2-m256", "bert-large-uncased", {"stage": 2}, micro=256, **BERT),
    job("t5-base-z2-m32", "t5-base", {"stage": 2}, micro=32, **T5),
    job("t5-large-z1-m16-recompute", "t5-large", {"stage": 1}, micro=16, checkpoint_activations=True, **T5),
    job("t5-base-z3-m16", "t5-base", {"stage": 3}, micro=16, **T5),
    job("llama-1b-z0-m4", "tinyllama-1.1b", {"stage": 0}, micro=4, accumulation=2, **LONG),
    job("llama-1b-z1-m2", "tinyllama-1.1b", {"stage": 1}, micro=2, accumulation=2),
    job("llama-1b-z2-m8", "tinyllama-1.1b", {"stage": 2}, micro=8, **LONG),
    job("llama-1b-z2-m8-recompute", "tinyllama-1.1b", {"stage": 2}, micro=8, **RECOMPUTED),
    job("llama-1b-z3-m4", "tinyllama-1.1b", {"stage": 3}, micro=4),
    job("llama-1b-z3-m8-recompute", "tinyllama-1.1b", {"stage": 3}, micro=8, **RECOMPUTED),
    job("llama-1b-z2-m4-offload", "tinyllama-1.1b", {"stage": 2, "offload_optimizer": CPU}, micro=4, **LONG),
    job(
        "llama-1b-z3-m4-both",
        "tinyllama-1.1b",
        {"stage": 3, "offload_optimizer": CPU, "offload_param": CPU},
        micro=4,
        **LONG,
    ),
    job("llama-1b-lora-z2-m4", "tinyllama-1.1b", {"stage": 2}, micro=4, lora=LORA, **LONG),
    job("llama-1b-fp16-z1-m8", "tinyllama-1.1b", {"stage": 1}, micro=8, precision=FP16, **LONG),
    job("llama-1b-long-z2-m1", "tinyllama-1.1b", {"stage": 2}, micro=1, **{**LONG, "sequence_length": 16384}),
    job("qwen2-0.5b-z1-m8", "qwen2.5-0.5b", {"stage": 1}, micro=8),
    job("neox-1b-z2-m8", "pythia-1b", {"stage": 2}, micro=8),
    job("llama-7b-z2-m4-recompute", "llama-7b", {"stage": 2}, micro=4, worlds=TWO, **RECOMPUTED),
    job("llama-7b-z3-m4-recompute", "llama-7b", {"stage": 3}, micro=4, **RECOMPUTED),
    job("llama-7b-z3-m2", "llama-7b", {"stage": 3}, micro=2, worlds=TWO, **LONG),
    job("llama-7b-lora-z2-m4-recompute", "llama-7b", {"stage": 2}, micro=4, lora=LORA, **RECOMPUTED),
    job(
        "gptj-z2-m2-recompute",
        "gpt-j-6b",
        {"stage": 2},
        micro=2,
        worlds=TWO,
        attention="eager",
        **RECOMPUTED,
    ),
)  # fmt: skip


def jobs(world: int) -> Iterator[Job]:
    """Those for so many real GPUs."""
    for worlds, one in JOBS:
        if world in worlds:
            group = "nccl" if world > 1 else "single"
            yield {**one, "id": f"{one['id']}-x{world}", "group": group, "world": world, "timeout": 100}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--world", type=int, default=1)
    for one in jobs(parser.parse_args().world):
        print(json.dumps(one))
    return 0


if __name__ == "__main__":
    sys.exit(main())
