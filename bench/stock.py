"""Other tools' stock DeepSpeed files beside the plan: what each takes and how fast it is, as predicted.

    python bench/stock.py            a table: every stock file beside the plan for the same job
    python bench/stock.py --write    write the files anew, one per tool, file and world

The settings are those that each project ships, with "auto" filled as transformers fills it
(integrations/deepspeed.py: ``reduce_bucket_size`` = hidden squared, ``stage3_prefetch_bucket_size`` = 0.9 of
that, ``stage3_param_persistence_threshold`` = 10 hidden), and the micro batch and recomputation of the
project's own example.  The global batch, the model and the sequence are the same for all.  A file named
``...-largest`` is the same with the largest micro batch that fits: what a user who tries gets out of it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "stock"
MODEL, HIDDEN, SEQUENCE, GLOBAL_BATCH = "tinyllama-1.1b", 2048, 2048, 64
GPU, WORLDS = "h200", (1, 4)
CPU = {"device": "cpu", "pin_memory": True}
CPU_UNPINNED = {"device": "cpu"}
FILLED = {
    "reduce_bucket_size": HIDDEN * HIDDEN,
    "stage3_prefetch_bucket_size": int(0.9 * HIDDEN * HIDDEN),
    "stage3_param_persistence_threshold": 10 * HIDDEN,
}

# hiyouga/LLaMA-Factory, examples/deepspeed at 1d6e8b2; examples/train_full/llama3_full_sft.yaml at 03da9a7:
# per_device_train_batch_size 1, bf16; disable_gradient_checkpointing is false (hparams/model_args.py)
_LF_2 = {
    "allgather_partitions": True,
    "allgather_bucket_size": 500_000_000,
    "overlap_comm": False,
    "reduce_scatter": True,
    "reduce_bucket_size": 500_000_000,
    "contiguous_gradients": True,
    "round_robin_gradients": True,
}
_LF_3 = {
    "stage": 3,
    "overlap_comm": False,
    "contiguous_gradients": True,
    "sub_group_size": 1_000_000_000,
    "stage3_max_live_parameters": 1_000_000_000,
    "stage3_max_reuse_distance": 1_000_000_000,
    **FILLED,
}
LLAMA_FACTORY = {
    "ds_z0_config": {"stage": 0, **_LF_2},
    "ds_z2_config": {"stage": 2, **_LF_2},
    "ds_z2_offload_config": {"stage": 2, "offload_optimizer": CPU, **_LF_2},
    "ds_z3_config": _LF_3,
    "ds_z3_offload_config": {**_LF_3, "offload_optimizer": CPU, "offload_param": CPU},
}
# axolotl-ai-cloud/axolotl, deepspeed_configs: zero1 at 3fa91bd, zero2 at 58b1d3a, zero3_bf16 at 1aaebb0,
# zero3_bf16_cpuoffload_all at 1377ccc; examples/llama-3/fft-1b-fsdp.yml at 4afb265: micro_batch_size 1, bf16,
# no gradient_checkpointing
_AXOLOTL_3 = {
    "stage": 3,
    "overlap_comm": True,
    "contiguous_gradients": True,
    "sub_group_size": 0,
    "stage3_max_live_parameters": 0,
    "stage3_max_reuse_distance": 0,
    **FILLED,
}
AXOLOTL = {
    "zero1": {"stage": 1, "overlap_comm": True},
    "zero2": {
        "stage": 2,
        "offload_optimizer": CPU_UNPINNED,
        "contiguous_gradients": True,
        "overlap_comm": True,
    },
    "zero3_bf16": _AXOLOTL_3,
    "zero3_bf16_cpuoffload_all": {**_AXOLOTL_3, "offload_optimizer": CPU, "offload_param": CPU},
}
# huggingface/accelerate, examples/deepspeed_config_templates at 1703b79 and 1e893ca: fp16, no recomputation;
# transformers' run_clm_no_trainer.py, which its documentation launches, has --per_device_train_batch_size 8
_ACCELERATE_2 = {
    "allgather_partitions": True,
    "allgather_bucket_size": 200_000_000,
    "overlap_comm": True,
    "reduce_scatter": True,
    "reduce_bucket_size": HIDDEN * HIDDEN,
    "contiguous_gradients": True,
}
_ACCELERATE_3 = {
    "stage": 3,
    "overlap_comm": True,
    "contiguous_gradients": True,
    "sub_group_size": 1_000_000_000,
    "stage3_max_live_parameters": 1_000_000_000,
    "stage3_max_reuse_distance": 1_000_000_000,
    **FILLED,
}
ACCELERATE = {
    "zero_stage1_config": {"stage": 1, **_ACCELERATE_2},
    "zero_stage2_config": {"stage": 2, **_ACCELERATE_2},
    "zero_stage2_offload_config": {"stage": 2, "offload_optimizer": CPU, **_ACCELERATE_2},
    "zero_stage3_config": _ACCELERATE_3,
    "zero_stage3_offload_config": {**_ACCELERATE_3, "offload_optimizer": CPU, "offload_param": CPU},
}
FP16 = {"enabled": True, "loss_scale": 0, "loss_scale_window": 1000, "initial_scale_power": 16,
        "hysteresis": 2, "min_loss_scale": 1}  # fmt: skip
TOOLS: Mapping[str, tuple[Mapping[str, Any], dict[str, Any]]] = {
    "llama-factory": (
        LLAMA_FACTORY,
        {"micro": 1, "precision": {"bf16": {"enabled": True}}, "recompute": True},
    ),
    "axolotl": (AXOLOTL, {"micro": 1, "precision": {"bf16": {"enabled": True}}, "recompute": False}),
    "accelerate": (ACCELERATE, {"micro": 8, "precision": {"fp16": FP16}, "recompute": False}),
}


def stock_files() -> Iterator[tuple[str, int, dict[str, Any]]]:
    """Every stock file: its name, the world it is for, and the configuration."""
    for tool, (files, habit) in TOOLS.items():
        for name, zero in files.items():
            for world in WORLDS:
                micro = habit["micro"]
                raw = configuration(zero, habit, micro, world)
                if tool == "accelerate" and zero["stage"] < 3:
                    raw["optimizer"]["params"].update(torch_adam=True, adam_w_mode=True)
                yield f"{tool}-{name}-{world}gpu", world, raw


def configuration(
    zero: Mapping[str, Any], habit: Mapping[str, Any], micro: int, world: int
) -> dict[str, Any]:
    """The file that a tool's ZeRO block and habits make of the common job."""
    optimizer: dict[str, Any] = {"lr": 2e-5, "weight_decay": 0.0}
    return {
        "train_batch_size": GLOBAL_BATCH,
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": GLOBAL_BATCH // micro // world,
        "zero_optimization": dict(zero),
        **habit["precision"],
        "optimizer": {"type": "AdamW", "params": optimizer},
        "gradient_clipping": 1.0,
        "trimtab": {
            "model": MODEL,
            "task": "causal-lm",
            "sequence_length": SEQUENCE,
            **({"checkpoint_activations": True} if habit["recompute"] else {}),
            "attention": "sdpa",
        },
    }


def write() -> None:
    """Every stock file, and each with the largest micro batch that fits, under `FOLDER`."""
    from trimtab.cluster import Cluster
    from trimtab.config import Config
    from trimtab.estimate import estimate

    FOLDER.mkdir(exist_ok=True)
    for old in FOLDER.glob("*.json"):
        old.unlink()
    for name, world, raw in stock_files():
        _save(name, raw)
        cluster = Cluster.of(GPU, world)
        best = raw
        micro = raw["train_micro_batch_size_per_gpu"] * 2
        while micro * world <= GLOBAL_BATCH:
            larger = {
                **raw,
                "train_micro_batch_size_per_gpu": micro,
                "gradient_accumulation_steps": GLOBAL_BATCH // micro // world,
            }
            if estimate(Config.from_mapping(larger), cluster).fits_probability < 0.9:
                break
            best = larger
            micro *= 2
        if best is not raw:
            _save(f"{name}-largest", best)


def _save(name: str, raw: Mapping[str, Any]) -> None:
    (FOLDER / f"{name}.json").write_text(json.dumps(raw, indent=2) + "\n", encoding="utf-8")


def compare() -> None:
    """A line a file, by world and predicted time, the plan's own first."""
    from trimtab.cluster import Cluster
    from trimtab.config import Config
    from trimtab.estimate import estimate
    from trimtab.plan import plan
    from trimtab.units import GIB

    for world in WORLDS:
        cluster = Cluster.of(GPU, world)
        answer = plan(
            MODEL,
            gpu=GPU,
            gpus_per_node=world,
            objective="finetune",
            global_batch=GLOBAL_BATCH,
            sequence_length=SEQUENCE,
            alternatives=False,
        )
        assert answer.chosen is not None
        own = answer.chosen.estimate
        print(f"{world} x {GPU}, {MODEL}, batch {GLOBAL_BATCH} x {SEQUENCE}: predicted")
        print(f"  {'plan: ' + answer.chosen.summary:62} {own.speed.step_seconds:7.2f} s  {_memory(own, GIB)}")
        found = []
        for file in sorted(FOLDER.glob(f"*-{world}gpu*.json")):
            config = Config.from_mapping(json.loads(file.read_text("utf-8")), name=file.stem)
            found.append((estimate(config, cluster), file.stem))
        for other, name in sorted(found, key=lambda row: (not row[0].fits, row[0].speed.step_seconds)):
            ratio = other.speed.step_seconds / own.speed.step_seconds
            print(f"  {name:62} {other.speed.step_seconds:7.2f} s  {_memory(other, GIB)}  {ratio:5.2f} x")


def _memory(answer: Any, gib: int) -> str:
    return f"{answer.needed.expected / gib:6.1f} GiB{'' if answer.fits else ' DOES NOT FIT'}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="write the files anew")
    if parser.parse_args().write:
        write()
    else:
        compare()


if __name__ == "__main__":
    main()
