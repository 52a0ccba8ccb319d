"""The arithmetic against the phantom engine, over thousands of drawn jobs.

    python bench/sweep.py --count 2000             goes on where bench/data/sweep.jsonl ends
    python bench/sweep.py --first 200000 --count 200 --output bench/data/held_out.jsonl
    python bench/sweep.py --recount                the arithmetic again, of every row (after a change to it)
    python bench/sweep.py --summary --worst 20     errors by family, stage, ..., and the cases furthest apart

Each case is drawn from its number alone (families, shapes, stages, worlds, buckets, precisions, offload,
recomputation, accumulation, LoRA): a row keeps the number and both answers in bytes, and any one can be run
again with ``--only NUMBER``.  Rows of an older `REVISION` of the phantom are run again.
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

REVISION = 2
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


def arithmetic(one: dict[str, Any]) -> dict[str, int]:
    """What is counted of a case, as columns of its row."""
    from trimtab.config import Config
    from trimtab.cost.memory import profile
    from trimtab.model import Model

    config = Config.from_mapping(one["config"], name=f"case {one['number']}")
    counted = profile(config, Model.from_hf(one["hf"], config.name), one["world"], allocator=True)
    return {"arithmetic": counted.peak, "arithmetic_allocated": counted.allocated_peak}


def fingerprint(one: dict[str, Any]) -> str:
    """What tells a case from another that a changed `draw` gives for the same number."""
    return hashlib.sha256(json.dumps(one, sort_keys=True).encode()).hexdigest()[:8]


def run(one: dict[str, Any]) -> dict[str, Any]:
    """Both answers about one case, as a row: a step's peak of tensors, and of what is allocated for them."""
    from trimtab.config import Config
    from trimtab.errors import TrimtabError
    from trimtab.rehearse.request import PhantomRequest
    from trimtab.rehearse.series import rehearse_forked

    row = {"number": one["number"], "case": fingerprint(one), "revision": REVISION, **arithmetic(one)}
    request = PhantomRequest.of_config(
        Config.from_mapping(one["config"]), one["hf"], world_size=one["world"], record="none"
    )
    try:
        answer = rehearse_forked(request, timeout_seconds=300)
    except TrimtabError as error:
        return {**row, "error": str(error)[:200]}
    return {**row, "phantom": answer.step_peak_bytes, "phantom_allocated": answer.peak_allocated_bytes}


def rows(path: Path) -> dict[int, dict[str, Any]]:
    """The latest row of each case whose number still draws the same case."""
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    found = {row["number"]: row for row in map(json.loads, lines)}
    return {number: row for number, row in found.items() if row["case"] == fingerprint(draw(number))}


def groups(one: dict[str, Any]) -> dict[str, str]:
    """The group that a case counts in, by title."""
    zero, block = one["config"]["zero_optimization"], one["config"]["trimtab"]
    offload = [name for name in ("optimizer", "param") if f"offload_{name}" in zero]
    return {
        "ZeRO stage": str(zero["stage"]),
        "offload": " and ".join(offload).replace("param", "parameters") or "none",
        "activations": "recomputed" if block["checkpoint_activations"] else "kept",
        "precision": next((name for name in ("bf16", "fp16") if name in one["config"]), "fp32"),
        "attention": block["attention"],
        "LoRA": "yes" if "lora" in block else "no",
        "model type": one["family"],
    }


def error(row: dict[str, Any]) -> float:
    """How far the arithmetic's peak of tensors is off the phantom's."""
    return row["arithmetic"] / row["phantom"] - 1


def spread(errors: list[float]) -> tuple[float, float, float]:
    """Median, 95th percentile and largest of the errors' sizes, the last with its sign."""
    sizes = sorted(map(abs, errors))
    return statistics.median(sizes), sizes[min(len(sizes) - 1, int(0.95 * len(sizes)))], max(errors, key=abs)


def summary(found: dict[int, dict[str, Any]], worst: int) -> str:
    """Errors of the arithmetic against the phantom, in all and by what was drawn."""
    grouped: dict[tuple[str, str], list[float]] = defaultdict(list)
    answered = {number: row for number, row in found.items() if "phantom" in row}
    for number, row in answered.items():
        for group in (("all", ""), *groups(draw(number)).items()):
            grouped[group].append(error(row))
    lines = [f"{'':28}{'cases':>7}{'median':>9}{'95 %':>9}{'largest':>9}"]
    for title, name in sorted(grouped, key=lambda group: (group[0] != "all", group)):
        middle, tail, largest = spread(grouped[title, name])
        count = len(grouped[title, name])
        lines.append(f"{title + ' ' + name:28}{count:7}{middle:9.2%}{tail:9.2%}{largest:+9.2%}")
    lines.append(f"{len(found) - len(answered)} cases that the phantom did not answer")
    for number in sorted(answered, key=lambda number: -abs(error(answered[number])))[:worst]:
        lines.append(
            f"{number:5} {error(answered[number]):+8.2%}  {', '.join(groups(draw(number)).values())}"
        )
    return "\n".join(lines)


def write(path: Path, found: dict[int, dict[str, Any]]) -> None:
    """Replace the file by ``found``, by number."""
    path.write_text("".join(json.dumps(found[number]) + "\n" for number in sorted(found)), "utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--first", type=int, default=0, help="the number of the first case")
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--output", type=Path, default=ROOT / "bench/data/sweep.jsonl")
    parser.add_argument("--only", type=int)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="start no case after this long")
    parser.add_argument("--recount", action="store_true")
    parser.add_argument("--summary", action="store_true")
    parser.add_argument("--worst", type=int, default=0)
    options = parser.parse_args()
    if options.only is not None:
        one = draw(options.only)
        print(json.dumps({**one, **run(one)}, indent=1))
        return 0
    found = rows(options.output)
    if options.recount:
        write(options.output, {n: {**row, **arithmetic(draw(n))} for n, row in found.items()})
        return 0
    if options.summary:
        print(summary(found, options.worst))
        return 0
    done = {number for number, row in found.items() if row["revision"] == REVISION}
    started = time.time()
    for number in sorted(set(range(options.first, options.first + options.count)) - done):
        if time.time() - started > options.seconds:
            break
        row = run(draw(number))
        with options.output.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(f"{number:5} {f'{error(row):+.2%}' if 'phantom' in row else row['error']}", flush=True)
    write(options.output, rows(options.output))
    return 0


if __name__ == "__main__":
    sys.exit(main())
