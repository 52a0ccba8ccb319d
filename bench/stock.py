"""Other tools' stock DeepSpeed files beside the plan: what each takes and how fast it is, as predicted.

    python bench/stock.py            a table: every stock file beside the plan for the same job
    python bench/stock.py --write    write the files anew, one per tool, file and world
    python bench/stock.py --jobs 1 > jobs.jsonl        the plan and the files of that world as jobs to measure
    python bench/case_pool.py jobs.jsonl --output ROWS.jsonl
    python bench/stock.py --measured ROWS.jsonl        the table of what was measured

The settings are those that each project ships, with "auto" filled as transformers fills it
(integrations/deepspeed.py: ``reduce_bucket_size`` = hidden squared, ``stage3_prefetch_bucket_size`` = 0.9 of
that, ``stage3_param_persistence_threshold`` = 10 hidden), and the micro batch and recomputation of the
project's own example.  The global batch, the model and the sequence are the same for all.  A file named
``...-largest`` is the same with the largest micro batch that fits: what a user who tries gets out of it.

Some files take so many micro steps for the global batch that a step is long.  Such a job is measured with
fewer (``of_accumulation`` says how many it has), and a step of all of them is what was measured and, for each
micro step left out, the median of those between the first and the last, which alone differ from the others
(the first writes gradients where the others add, the last reduces and holds the optimizer's step).
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "src"))

FOLDER = Path(__file__).parent / "stock"
MODEL, HIDDEN, SEQUENCE, GLOBAL_BATCH = "tinyllama-1.1b", 2048, 2048, 64
GPU, WORLDS = "h200", (1, 2, 4)
LONG_STEP_SECONDS, LEAST_MICRO_STEPS = 2.0, 4
"""A step that is predicted to take twice as long is measured with fewer micro steps; at least so many."""
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


def own_plan(world: int) -> Any:
    """The plan's choice for the common job."""
    from trimtab.plan import plan

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
    return answer.chosen


def files_of(world: int) -> list[tuple[str, dict[str, Any]]]:
    """Names and configurations of all files of one world."""
    files = sorted(FOLDER.glob(f"*-{world}gpu*.json"))
    return [(file.stem, json.loads(file.read_text("utf-8"))) for file in files]


def jobs(world: int) -> Iterator[dict[str, Any]]:
    """The plan and every file of one world as jobs of `bench/case_pool.py`, the most telling first.

    Those without offload before the others, the files as shipped before the largest micro batches.
    """
    from trimtab.cluster import Cluster
    from trimtab.config import Config
    from trimtab.estimate import estimate
    from trimtab.plan.document import file_of

    cluster = Cluster.of(GPU, world)

    def rank(named: tuple[str, dict[str, Any]]) -> tuple[bool, bool]:
        name, raw = named
        zero = raw["zero_optimization"]
        return "offload_optimizer" in zero or "offload_param" in zero, name.endswith("-largest")

    for name, raw in [(f"plan-{world}gpu", file_of(own_plan(world))), *sorted(files_of(world), key=rank)]:
        accumulation = raw["gradient_accumulation_steps"]
        seconds = estimate(Config.from_mapping(raw, name=name), cluster).speed.step_seconds
        measured = accumulation
        if seconds > 2 * LONG_STEP_SECONDS:
            measured = round(accumulation * LONG_STEP_SECONDS / seconds)
            measured = min(accumulation, max(LEAST_MICRO_STEPS, measured))
        micro = raw["train_micro_batch_size_per_gpu"]
        yield {
            "id": name,
            "group": "nccl" if world > 1 else "single",
            "world": world,
            "config": {
                **raw,
                "train_batch_size": micro * measured * world,
                "gradient_accumulation_steps": measured,
            },
            "model": MODEL,
            "of_accumulation": accumulation,
            "predicted_seconds": round(seconds, 4),
            "timeout": 150,
        }


def whole_step_seconds(row: Mapping[str, Any]) -> float:
    """A step of all the micro steps of the global batch, from a row that may have measured fewer."""
    left_out = row["job"]["of_accumulation"] - row["gas"]
    if not left_out:
        return float(row["step_seconds"])
    return float(row["step_seconds"] + left_out * statistics.median(row["micro_step_seconds"][1:-1]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One file's row beside the plan's own of the same world."""

    name: str
    world: int
    precision: str
    step_seconds: float
    """Of all micro steps of the global batch."""
    ratio: float | None
    """That over the plan's own; None where the plan's own is not among the rows."""
    reserved_gib: float | None
    said: str
    """What to know of how it was measured; empty if all micro steps were and none was skipped."""

    @property
    def is_plan(self) -> bool:
        """Whether it is the plan's choice."""
        return self.name.startswith("plan-")


def read(files: Iterable[Path]) -> list[dict[str, Any]]:
    """All rows of the files."""
    return [json.loads(line) for file in files for line in file.read_text("utf-8").splitlines()]


def compared(rows: Iterable[Mapping[str, Any]]) -> list[Measured]:
    """The rows that ran, by world and time."""
    ran = [row for row in rows if row["ok"]]
    own = {row["world"]: whole_step_seconds(row) for row in ran if row["id"].startswith("plan-")}
    found = []
    for row in ran:
        seconds, total = whole_step_seconds(row), row["job"]["of_accumulation"]
        said = [f"{row['gas']} of {total} micro steps measured"] * (total != row["gas"])
        said += [f"{row['skipped_steps']} steps skipped"] * (row["skipped_steps"] > 0)
        found.append(
            Measured(
                name=row["id"],
                world=row["world"],
                precision="fp16" if "fp16" in row["deepspeed_config"] else "bf16",
                step_seconds=seconds,
                ratio=seconds / own[row["world"]] if row["world"] in own else None,
                reserved_gib=row["gib"].get("end", {}).get("peak_reserved"),
                said=", ".join(said),
            )
        )
    return sorted(found, key=lambda one: (one.world, one.step_seconds))


def show(rows: Sequence[Mapping[str, Any]]) -> None:
    """A line a measured file, by world and time, beside the plan's own; then those that did not run."""
    for world, these in itertools.groupby(compared(rows), key=lambda one: one.world):
        print(f"{world} x {GPU}, {MODEL}, batch {GLOBAL_BATCH} x {SEQUENCE}: measured")
        for one in these:
            ratio = "" if one.ratio is None else f"{one.ratio:6.2f} x"
            said = f"  {one.said}" if one.said else ""
            print(f"  {one.name:58} {one.step_seconds:8.3f} s {ratio}  reserved {one.reserved_gib} GiB{said}")
    for row in rows:
        if not row["ok"]:
            short = row.get("out_of_memory")
            why = "out of memory" if short else str(row["error"]).strip().splitlines()[-1][:80]
            print(f"  {row['id']:58} {why}")


def compare() -> None:
    """A line a file, by world and predicted time, the plan's own first."""
    from trimtab.cluster import Cluster
    from trimtab.config import Config
    from trimtab.estimate import estimate
    from trimtab.units import GIB

    for world in WORLDS:
        cluster = Cluster.of(GPU, world)
        chosen = own_plan(world)
        own = chosen.estimate
        print(f"{world} x {GPU}, {MODEL}, batch {GLOBAL_BATCH} x {SEQUENCE}: predicted")
        print(f"  {'plan: ' + chosen.summary:62} {own.speed.step_seconds:7.2f} s  {_memory(own, GIB)}")
        found = []
        for name, raw in files_of(world):
            found.append((estimate(Config.from_mapping(raw, name=name), cluster), name))
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
    parser.add_argument("--jobs", type=int, choices=WORLDS, metavar="WORLD", help="print jobs to measure")
    parser.add_argument("--measured", type=Path, nargs="+", metavar="ROWS", help="a table of measured rows")
    options = parser.parse_args()
    if options.write:
        write()
    elif options.jobs:
        for one in jobs(options.jobs):
            print(json.dumps(one))
    elif options.measured:
        show(read(options.measured))
    else:
        compare()


if __name__ == "__main__":
    main()
