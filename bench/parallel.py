"""AutoTP's and Ulysses' arithmetic against the phantom engine: memory, and collectives inside layers.

    python bench/parallel.py              every case again, into bench/data/parallel.jsonl
    python bench/parallel.py --recount    the arithmetic alone again, of every row
    python bench/parallel.py --summary    errors, and the cases furthest apart

Small models on 2, 4 and 8 ranks a group, stages 0 to 2 (Ulysses: 3), with and without recomputation; two
data-parallel replicas each.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "src"))
DATA = ROOT / "bench" / "data" / "parallel.jsonl"

SIZES = {"hidden_size": 512, "num_hidden_layers": 6, "num_attention_heads": 8, "vocab_size": 32000}
LLAMA = {**SIZES, "intermediate_size": 1376, "num_key_value_heads": 4}
WIDE = {**SIZES, "intermediate_size": 2048}
MODELS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", **LLAMA},
    "llama-tied": {"model_type": "llama", **LLAMA, "tie_word_embeddings": True},
    "qwen2": {"model_type": "qwen2", **LLAMA, "vocab_size": 32003},
    "qwen3-tied": {"model_type": "qwen3", **LLAMA, "head_dim": 64, "tie_word_embeddings": True},
    "gemma": {"model_type": "gemma", **LLAMA, "head_dim": 64},
    "gpt_neox": {"model_type": "gpt_neox", **WIDE},
    "bert": {"model_type": "bert", **WIDE},
    "opt": {"model_type": "opt", **SIZES, "ffn_dim": 2048, "word_embed_proj_dim": 512},
    "phi": {"model_type": "phi", **WIDE},
}
OTHERS = ("qwen2", "qwen3-tied", "gemma", "opt", "phi")


def cases() -> Iterator[dict[str, Any]]:
    """Every case: what is split, the model, the size of a group, stage, precision and job."""
    for case in layers():
        yield {"split": "layers", **case, "micro": 2}
    for case in tokens():
        yield {"split": "tokens", **case}
    host = {"device": "cpu", "pin_memory": True}
    states = {"offload_optimizer": host}
    for split, stage, zero in (
        ("layers", 1, {"overlap_comm": True}),
        ("layers", 2, states),
        ("tokens", 1, {"overlap_comm": True}),
        ("tokens", 2, states),
        ("tokens", 3, states),
        ("tokens", 3, {**states, "offload_param": host}),
    ):
        case = {"split": split, "model": "llama", "size": 2, "stage": stage, "recompute": True}
        yield {**case, "precision": "bf16", "micro": 1, "zero": zero}


def layers() -> Iterator[dict[str, Any]]:
    """Layers over the ranks of a group."""
    for model in ("llama", "llama-tied", "gpt_neox", "bert"):
        for size in (2, 4):
            for stage in (0, 1, 2):
                recompute = stage == 1
                yield {
                    "model": model,
                    "size": size,
                    "stage": stage,
                    "recompute": recompute,
                    "precision": "bf16",
                }
    for place, model in enumerate(OTHERS):
        precision = ("bf16", "fp16", "fp32")[place % 3]
        yield {"model": model, "size": 2, "stage": 2, "recompute": False, "precision": precision}
        yield {"model": model, "size": 4, "stage": 1, "recompute": True, "precision": "bf16"}


def tokens() -> Iterator[dict[str, Any]]:
    """Every sample's tokens over the ranks of a group; more ranks than key heads among them."""
    for size in (2, 4, 8):
        for stage in (0, 1, 2, 3):
            recompute, micro = stage in (1, 3), 1 + stage % 2
            case = {"model": "llama", "size": size, "stage": stage, "recompute": recompute}
            yield {**case, "precision": "bf16", "micro": micro}
    for place, model in enumerate(("llama-tied", "qwen2", "qwen3-tied", "gemma", "phi")):
        precision = ("bf16", "fp16", "fp32")[place % 3]
        case = {"model": model, "size": 2, "recompute": False, "precision": precision}
        yield {**case, "stage": 2, "micro": 2}
        yield {**case, "stage": 3, "micro": 1}


def config_of(case: dict[str, Any]) -> dict[str, Any]:
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": case["micro"],
        "gradient_accumulation_steps": 2,
        "zero_optimization": {
            "stage": case["stage"],
            "reduce_bucket_size": 20_000_000,
            **case.get("zero", {}),
        },
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-4}},
        "trimtab": {
            "task": "masked-lm" if case["model"] == "bert" else "causal-lm",
            "sequence_length": 512 if case["split"] == "layers" else 2048,
            "checkpoint_activations": case["recompute"],
        },
    }
    if case["split"] == "layers":
        config["tensor_parallel"] = {"autotp_size": case["size"]}
    else:
        config["sequence_parallel_size"] = case["size"]
    if case["precision"] != "fp32":
        config[case["precision"]] = {"enabled": True}
    return config


def rehearse(case: dict[str, Any]) -> dict[str, Any]:
    """What the engine allocates and sends."""
    from trimtab.config import Config
    from trimtab.rehearse.request import PhantomRequest
    from trimtab.rehearse.series import rehearse_forked

    config = Config.from_mapping(config_of(case))
    request = PhantomRequest.of_config(config, MODELS[case["model"]], world_size=2 * case["size"])
    seen = rehearse_forked(request)
    sent: Counter[str] = Counter()
    for one in seen.collectives:
        if one.group_size == case["size"] and one.phase != "step" and one.stream == "compute":
            sent[f"{one.name} {one.phase} {one.bytes}"] += one.count
    return {
        "peak_bytes": seen.step_peak_bytes,
        "init_peak_bytes": seen.init_peak_bytes,
        "engine_bytes": seen.moment("engine").allocated_bytes,
        "phases": {phase.name: phase.peak_bytes for phase in seen.phases},
        "collectives": dict(sent),
        "versions": dict(seen.versions),
    }


def count(case: dict[str, Any]) -> dict[str, Any]:
    """What the arithmetic says."""
    from trimtab.config import Config
    from trimtab.cost.memory import profile
    from trimtab.cost.meter import COLLECTIVES
    from trimtab.model import Model

    config, model = Config.from_mapping(config_of(case)), Model.from_hf(MODELS[case["model"]])
    counted = profile(config, model, 2 * case["size"])
    layers_only = {"all_reduce": "allreduce", "all_gather": "allgather_base"}
    tokens_only = {"all_to_all": "alltoall_base", "all_gather": "allgather"}
    names = layers_only if case["split"] == "layers" else tokens_only
    sent: Counter[str] = Counter()
    for kernel, runs in counted.work.items():
        if kernel.name in COLLECTIVES:
            phase = "forward" if kernel.phase == "forward" else "backward"
            sent[f"{names[kernel.name]} {phase} {kernel.moved}"] += 2 * runs  # two micro steps
    return {
        "peak_bytes": counted.peak,
        "init_peak_bytes": counted.phase_peaks["init"],
        "engine_bytes": counted.initialized,
        "collectives": dict(sent),
    }


def summary(rows: list[dict[str, Any]]) -> None:
    def error(row: dict[str, Any], key: str) -> float:
        return float(row["counted"][key] / row["phantom"][key] - 1)

    for key in ("peak_bytes", "init_peak_bytes", "engine_bytes"):
        errors = [abs(error(row, key)) for row in rows]
        print(f"{key}: {len(rows)} cases, median {statistics.median(errors):.3%}, largest {max(errors):.3%}")
    alike = [row for row in rows if within_layers(row) == row["counted"]["collectives"]]
    print(f"collectives inside layers, by size and number: {len(alike)} of {len(rows)} cases the same")
    for row in sorted(rows, key=lambda row: -abs(error(row, "peak_bytes")))[:5]:
        print(f"  {error(row, 'peak_bytes'):+.3%}  {row['case']}")


def within_layers(row: dict[str, Any]) -> dict[str, int]:
    """The phantom's collectives of a group's size without those of gradients, which are counted elsewhere."""
    mine = row["counted"]["collectives"]
    return {name: times for name, times in row["phantom"]["collectives"].items() if name in mine}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recount", action="store_true")
    parser.add_argument("--summary", action="store_true")
    asked = parser.parse_args()
    if asked.recount or asked.summary:
        rows = [json.loads(line) for line in DATA.read_text("utf-8").splitlines()]
        if asked.recount:
            rows = [{**row, "counted": count(row["case"])} for row in rows]
    else:
        rows = [{"case": case, "phantom": rehearse(case), "counted": count(case)} for case in cases()]
    if not asked.summary:
        DATA.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    summary(rows)


if __name__ == "__main__":
    main()
