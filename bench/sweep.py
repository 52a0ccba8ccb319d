"""The arithmetic against the phantom engine, over thousands of drawn jobs.

    python bench/sweep.py --count 2000 --output bench/data/sweep.jsonl     goes on where the file ends
    python bench/sweep.py --summary bench/data/sweep.jsonl                  errors by family, stage, ...
    python bench/sweep.py --worst 20 --summary bench/data/sweep.jsonl       and the cases furthest apart

Each case is drawn from its number alone (families, shapes, stages, worlds, buckets, precisions, offload,
recomputation, accumulation, LoRA): a row keeps the number and what the phantom said, and any one can be run
again with ``--only NUMBER``.  The arithmetic is run when it is compared.  Rows of an older `REVISION` of the
phantom are run again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import statistics
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "src"))

REVISION = 1
"""Raised when a change to the phantom may change its answers."""
CPU = {"device": "cpu", "pin_memory": True}
FAMILIES = (
    "llama", "llama", "mistral", "qwen2", "qwen3", "gemma", "phi", "gpt2", "gpt2", "gpt_neox", "opt", "gptj",
    "bert", "bert", "roberta", "t5", "t5",
)  # fmt: skip


def draw(number: int) -> dict[str, Any]:
    """Case ``number``: a Hugging Face config, a DeepSpeed config with its job, and a world size."""
    pick = random.Random(f"trimtab sweep {number}")
    family = pick.choice(FAMILIES)
    hf = _shape(family, pick)
    stage = pick.choice((0, 1, 2, 2, 3, 3))
    precision = pick.choice(("bf16", "bf16", "bf16", "fp16", "fp32"))
    world = pick.choice((1, 2, 4, 8, 16, 64)) if stage else pick.choice((1, 2, 8))
    block = _job(family, pick)
    zero: dict[str, Any] = {
        "stage": stage,
        "reduce_bucket_size": pick.choice((1, 5, 20, 100, 500)) * 1_000_000,
    }
    if pick.random() < 0.4:
        zero["overlap_comm"] = pick.random() < 0.6
    if stage and pick.random() < 0.3:
        zero["offload_optimizer"] = CPU
    if stage == 3:
        if pick.random() < 0.2:
            zero["offload_param"] = CPU
        if pick.random() < 0.4:
            zero["stage3_prefetch_bucket_size"] = pick.choice((0, 1, 10, 200)) * 1_000_000
            zero["stage3_max_reuse_distance"] = pick.choice((0, 50, 1000)) * 1_000_000
            zero["stage3_param_persistence_threshold"] = pick.choice((0, 10_000, 1_000_000))
        if pick.random() < 0.2:
            zero["sub_group_size"] = pick.choice((10, 50)) * 1_000_000
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": pick.choice((1, 2, 3, 4, 8)),
        "gradient_accumulation_steps": pick.choice((1, 1, 1, 2, 3)),
        "zero_optimization": zero,
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-5}},
        "trimtab": block,
    }
    if precision != "fp32":
        config[precision] = {"enabled": True}
    if precision == "bf16" and stage in (1, 2, 3) and pick.random() < 0.1:
        config["data_types"] = {"grad_accum_dtype": "fp32"}
    return {"number": number, "family": family, "hf": hf, "config": config, "world": world}


def _shape(family: str, pick: random.Random) -> dict[str, Any]:
    head = pick.choice((32, 64, 64, 128))
    heads = pick.choice((4, 6, 8, 12, 16))
    hidden = head * heads
    layers = pick.choice((2, 3, 4, 6, 10))
    words = pick.choice((1000, 8000, 32000, 50257, 100_003))
    inner = int(hidden * pick.choice((2, 2.6875, 4)))
    if family == "gpt2":
        return {"model_type": family, "n_embd": hidden, "n_layer": layers, "n_head": heads,
                "vocab_size": words, "n_positions": 4096}  # fmt: skip
    if family == "gptj":
        return {"model_type": family, "n_embd": hidden, "n_layer": layers, "n_head": heads,
                "vocab_size": words, "rotary_dim": head // 2, "n_positions": 4096}  # fmt: skip
    if family == "t5":
        kind = pick.choice(("relu", "gated-gelu"))
        return {"model_type": family, "d_model": hidden, "d_ff": inner, "d_kv": head, "num_heads": heads,
                "num_layers": layers, "vocab_size": words, "feed_forward_proj": kind,
                "decoder_start_token_id": 0, "pad_token_id": 0}  # fmt: skip
    common = {
        "model_type": family, "hidden_size": hidden, "num_hidden_layers": layers,
        "num_attention_heads": heads, "vocab_size": words, "max_position_embeddings": 4098,
    }  # fmt: skip
    if family == "opt":
        return {**common, "ffn_dim": inner, "word_embed_proj_dim": hidden}
    common["intermediate_size"] = inner
    if family in ("llama", "mistral", "qwen2", "qwen3", "gemma"):
        common["num_key_value_heads"] = pick.choice([count for count in (1, 2, heads) if heads % count == 0])
        common["tie_word_embeddings"] = pick.random() < 0.3
        if family in ("qwen3", "gemma"):
            common["head_dim"] = head
        if family == "mistral":
            common["sliding_window"] = None
    return common


def _job(family: str, pick: random.Random) -> dict[str, Any]:
    block: dict[str, Any] = {
        "sequence_length": pick.choice((64, 128, 256, 512, 777, 1024)),
        "checkpoint_activations": pick.random() < 0.4,
        "attention": "eager" if family == "gptj" or pick.random() < 0.15 else "sdpa",
        "task": "causal-lm",
    }
    if family in ("bert", "roberta"):
        block["task"] = pick.choice(("masked-lm", "sequence-classification", "token-classification"))
    elif family == "t5":
        block["task"] = "seq2seq-lm"
        block["target_length"] = pick.choice((32, 114, 128))
    elif family in ("llama", "mistral", "qwen2", "gemma") and pick.random() < 0.25:
        names = pick.choice((["q_proj", "v_proj"], ["q_proj", "k_proj", "v_proj", "o_proj", "down_proj"]))
        block["lora"] = {"r": pick.choice((4, 16)), "lora_alpha": 16, "target_modules": names}
        block["lora"]["lora_dropout"] = pick.choice((0.0, 0.05))
    return block


def arithmetic(one: dict[str, Any]) -> Any:
    """The counted profile of a case."""
    from trimtab.config import Config
    from trimtab.cost.memory import profile
    from trimtab.model import Model

    config = Config.from_mapping(one["config"], name=f"case {one['number']}")
    return profile(config, Model.from_hf(one["hf"], config.name), one["world"])


def fingerprint(one: dict[str, Any]) -> str:
    """What tells a case from another that a changed `draw` gives for the same number."""
    return hashlib.sha256(json.dumps(one, sort_keys=True).encode()).hexdigest()[:8]


def run(one: dict[str, Any]) -> dict[str, Any]:
    """The phantom's answer about one case, as a row."""
    from trimtab.config import Config
    from trimtab.errors import TrimtabError
    from trimtab.rehearse.request import PhantomRequest
    from trimtab.rehearse.series import rehearse_forked

    row = {"number": one["number"], "case": fingerprint(one), "revision": REVISION}
    request = PhantomRequest.of_config(
        Config.from_mapping(one["config"]), one["hf"], world_size=one["world"], record="none"
    )
    try:
        answer = rehearse_forked(request, timeout_seconds=300)
    except TrimtabError as error:
        return {**row, "error": str(error)[:200]}
    return {
        **row,
        "peak": answer.step_peak_bytes,
        "init_peak": answer.init_peak_bytes,
        "allocated_peak": answer.peak_allocated_bytes,
        "reserved_peak": answer.peak_reserved_bytes,
        "host_peak": answer.host_peak_bytes,
        "at": max(answer.phases, key=lambda phase: phase.peak_bytes).name,
    }


def rows(path: Path) -> dict[int, dict[str, Any]]:
    """The latest row of each case whose number still draws the same case."""
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    found = {row["number"]: row for row in map(json.loads, lines)}
    return {number: row for number, row in found.items() if row["case"] == fingerprint(draw(number))}


def groups(one: dict[str, Any]) -> list[str]:
    """The groups that a case counts in."""
    zero, block = one["config"]["zero_optimization"], one["config"]["trimtab"]
    return [
        "all",
        f"family {one['family']}",
        f"stage {zero['stage']}",
        "offload" if "offload_optimizer" in zero or "offload_param" in zero else "no offload",
        "recomputation" if block["checkpoint_activations"] else "no recomputation",
        f"attention {block['attention']}",
        next((name for name in ("bf16", "fp16") if name in one["config"]), "fp32"),
        "LoRA" if "lora" in block else "no LoRA",
    ]


def errors(found: dict[int, dict[str, Any]]) -> dict[int, float]:
    """Of each case that the phantom answered: how far the arithmetic's peak of tensors is off."""
    return {
        number: arithmetic(draw(number)).peak / row["peak"] - 1
        for number, row in sorted(found.items())
        if "peak" in row
    }


def summary(found: dict[int, dict[str, Any]], worst: int) -> str:
    """Errors of the arithmetic against the phantom, in all and by what was drawn."""
    grouped: dict[str, list[float]] = defaultdict(list)
    off = errors(found)
    for number, error in off.items():
        for name in groups(draw(number)):
            grouped[name].append(error)
    lines = [f"{'':24}{'cases':>7}{'median':>9}{'95 %':>9}{'largest':>9}"]
    for name in sorted(grouped, key=lambda name: (name != "all", name)):
        sizes = sorted(map(abs, grouped[name]))
        tail = sizes[min(len(sizes) - 1, int(0.95 * len(sizes)))]
        lines.append(f"{name:24}{len(sizes):7}{statistics.median(sizes):9.2%}{tail:9.2%}{sizes[-1]:9.2%}")
    lines.append(f"{len(found) - len(off)} cases that the phantom did not answer")
    for number in sorted(off, key=lambda number: -abs(off[number]))[:worst]:
        lines.append(f"{number:5} {off[number]:+8.2%}  {', '.join(groups(draw(number))[1:])}")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--output", type=Path, default=ROOT / "bench/data/sweep.jsonl")
    parser.add_argument("--only", type=int)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="start no case after this long")
    parser.add_argument("--summary", type=Path)
    parser.add_argument("--worst", type=int, default=0)
    options = parser.parse_args()
    if options.summary:
        print(summary(rows(options.summary), options.worst))
        return 0
    if options.only is not None:
        one = draw(options.only)
        print(json.dumps({**one, **run(one), "arithmetic_peak": arithmetic(one).peak}, indent=1))
        return 0
    done = {number for number, row in rows(options.output).items() if row["revision"] == REVISION}
    started = time.time()
    for number in sorted(set(range(options.count)) - done):
        if time.time() - started > options.seconds:
            break
        one = draw(number)
        row = run(one)
        with options.output.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        said = f"{arithmetic(one).peak / row['peak'] - 1:+.2%}" if "peak" in row else row["error"]
        print(f"{number:5} {one['family']:10} {said}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
