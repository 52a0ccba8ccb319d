"""Jobs held to just more or just less memory than they are said to need: how sure "it fits" may be.

    python bench/near_limit.py [--set held-back] > jobs.jsonl
    python bench/case_pool.py jobs.jsonl --ready 3 --output bench/data/near_limit.jsonl
    python bench/near_limit.py bench/data/near_limit*.jsonl     how sure it was, and what ran

PyTorch's allocator is held to the caps, so that small jobs stand for large ones.  A job whose larger cap ran
out of memory is not run at a smaller one.  Of each job the rows say between which shares of the predicted
need the true one lies; the best normal distribution of these and its quantiles are to be no wider than
``REPLAY_RATIOS`` in trimtab/cost/need.py (`bench/needs.py`).
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "bench")]

import measured_cases  # noqa: E402
from trimtab.cluster import Cluster  # noqa: E402
from trimtab.config import Config  # noqa: E402
from trimtab.cost.allocator import WORKSPACE_BYTES  # noqa: E402
from trimtab.cost.memory import profile  # noqa: E402
from trimtab.cost.need import CapacitySearch, needed, outside_allocator  # noqa: E402
from trimtab.model import Model  # noqa: E402
from trimtab.units import GIB  # noqa: E402

JOBS = (
    "llama-s-z0-bf16", "mistral-z1", "llama-m-z2-gas4", "llama-wide-z3", "llama-m-lora-z2", "gptj-z2-ckpt",
    "llama-m-z3-offload", "bert-l-mlm-z2", "qwen2-z1", "drawn-08", "t5-g-z2-ckpt", "llama-m-lora-z3-ckpt",
    "mistral-z3-ckpt", "gpt2-m-z3",
)  # fmt: skip
"""Of `measured_cases`, each under ten seconds: every stage, LoRA, offload, recomputation, six families."""
HELD_BACK = (
    "llama-s-z1-gas4", "gpt2-m-z2-ckpt", "llama-thin-z1-long", "t5-b-z0", "neox-z3-ckpt",
    "bert-b-cls-z0-fp16", "llama-m-lora-z3", "phi-z1", "gemma-z3-ckpt", "llama-m-z3-both", "drawn-10",
    "qwen3-z1", "llama-s-eager", "roberta-mlm-z2", "llama-s-torch-adam-z2", "opt-z3-ckpt", "drawn-18",
    "llama-m-z2-offload",
)  # fmt: skip
"""Others, measured later: they said that what held for the first did not for them (docs/plan-quality.md)."""
SHARES = ((0.99, 1.01, 0.96), (1.0, 1.02, 0.98), (0.995, 1.04, 0.97), (1.005, 1.06, 0.985))
"""Caps over the predicted need, of each job one row in turn; each row's first is the one nearest to it."""
HELD_BACK_SHARES = ((1.02, 0.975), (1.01, 0.985), (1.03, 0.99))
AFTERWARDS = (
    "llama-s-z0-fp16", "llama-s-z3-fp32accum", "llama-m-z2-offload-gas2", "llama-m-z3-hpz",
    "llama-thin-z2-long-ckpt", "llama-m-lora-z2-ckpt-wide", "qwen3-z3-ckpt", "gemma-z1", "neox-z1",
    "gptj-z2", "gpt2-s-z2-tiny-vocabulary-bucket", "bert-l-mlm-z1", "bert-b-qa-z0-fp16", "t5-b-z2-ckpt",
    "t5-g-z0", "drawn-04", "drawn-12", "drawn-20",
)  # fmt: skip
"""A third set: nothing was changed for what these showed."""
AFTERWARDS_SHARES = ((1.01, 0.985), (1.02, 0.98), (1.005, 0.99))
SETS = {
    "first": (JOBS, SHARES),
    "held-back": (HELD_BACK, HELD_BACK_SHARES),
    "afterwards": (AFTERWARDS, AFTERWARDS_SHARES),
}
MOST = 40
BINS = (0.0, 0.05, 0.2, 0.4, 0.6, 0.8, 0.95, 1.0)
PROBABILITIES = (0.025, 0.16, 0.5, 0.84, 0.975)
GPU = "h200"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """One job at one cap; ``share`` is the cap over the need that is predicted today."""

    base: str
    share: float
    probability: float
    replayed: bool
    """Whether it runs by a replay at the cap."""
    ran: bool


def cases() -> dict[str, dict[str, Any]]:
    """`measured_cases` by name."""
    return {one["id"]: one for one in (*measured_cases.chosen(), *measured_cases.drawn(24))}


def need_of(case: dict[str, Any], room: int | None = None) -> float:
    """Bytes that PyTorch's allocator must be able to take, by a whole replay; told for a card's ``room``."""
    model = Model.from_hf(case["hf"], case["id"])
    workspace = WORKSPACE_BYTES[True]
    config = Config.from_mapping(case["config"], name=case["id"])
    counted = profile(config, model, case["world"], allocator=True, workspace_bytes=workspace)
    return CapacitySearch(counted, room).smallest()


def probability(case: dict[str, Any], cap_bytes: float) -> float:
    """That the job runs on a card with so much room, as `trimtab estimate` says it."""
    config = Config.from_mapping(case["config"], name=case["id"])
    cluster = Cluster.of(GPU, case["world"])
    usable = round(cap_bytes + outside_allocator(case["world"], config.stage))
    cluster = replace(cluster, gpu=replace(cluster.gpu, usable_bytes=usable))
    _, need = needed(config, Model.from_hf(case["hf"], case["id"]), cluster)
    return need.probability_within(cap_bytes)


def jobs(names: Sequence[str], shares: Sequence[Sequence[float]]) -> Iterator[dict[str, Any]]:
    """Jobs of `bench/case_pool.py`: the first cap of each one, then the second, then the third."""
    known = cases()
    found = []
    for number, name in enumerate(names):
        case, need = known[name], need_of(known[name])
        for turn, share in enumerate(shares[number % len(shares)]):
            found.append((turn, number, case, share, need * share / GIB))
    for _, _, case, share, cap in sorted(found, key=lambda one: one[:2])[:MOST]:
        yield {
            "id": f"{case['id']}-at-{share:g}",
            "group": "single" if case["world"] == 1 else "fake",
            "world": case["world"],
            "hf": case["hf"],
            "config": case["config"],
            "family": case["id"],
            "order": -share,
            "base": case["id"],
            "cap_gib": round(cap, 4),
            "timeout": 60,
        }


def tried(files: Iterable[Path]) -> Iterator[Tried]:
    """The rows that ran or ran out of memory."""
    known = cases()
    for file in files:
        for line in file.read_text("utf-8").splitlines():
            row = json.loads(line)
            if not row["ok"] and not row.get("out_of_memory"):
                continue
            case, cap = known[row["job"]["base"]], row["job"]["cap_gib"] * GIB
            yield Tried(
                base=case["id"],
                share=(share := cap / need_of(case, int(cap))),
                probability=probability(case, cap),
                replayed=share >= 1,
                ran=row["ok"],
            )


def between(these: Sequence[Tried]) -> dict[str, tuple[float, float]]:
    """Of each job, the largest share of its predicted need at which it ran out, the smallest at which it ran.

    Where a job ran with less than it ran out with, both stand for that, the larger first.
    """
    out: dict[str, float] = defaultdict(lambda: -math.inf)
    ran: dict[str, float] = defaultdict(lambda: math.inf)
    for one in these:
        if one.ran:
            ran[one.base] = min(ran[one.base], one.share)
        else:
            out[one.base] = max(out[one.base], one.share)
    return {base: (out[base], ran[base]) for base in dict.fromkeys(one.base for one in these)}


def best_normal(intervals: Iterable[tuple[float, float]]) -> tuple[float, float]:
    """Mean and deviation under which it is likeliest that each value lies in its interval."""
    wanted = [pair for pair in intervals if pair[0] < pair[1]]

    def likelihood(mean: float, deviation: float) -> float:
        total = 0.0
        for low, high in wanted:
            share = _below((high - mean) / deviation) - _below((low - mean) / deviation)
            total += math.log(max(share, 1e-12))
        return total

    means = [0.94 + 0.001 * step for step in range(121)]
    deviations = [0.002 * 1.08**step for step in range(50)]
    return max(((m, d) for m in means for d in deviations), key=lambda pair: likelihood(*pair))


def _below(x: float) -> float:
    return 0.5 * math.erfc(-x / math.sqrt(2))


def quantile(mean: float, deviation: float, share: float) -> float:
    """Of a normal distribution, by bisection."""
    low, high = -8.0, 8.0
    while high - low > 1e-9:
        middle = (low + high) / 2
        low, high = (middle, high) if _below(middle) < share else (low, middle)
    return mean + deviation * low


def bins(these: Sequence[Tried]) -> Iterator[tuple[float, float, list[Tried]]]:
    """The jobs by their probability of fitting: each bin's bounds and what it holds, empty ones left out."""
    for low, high in itertools.pairwise(BINS):
        last = high == BINS[-1]
        inside = [one for one in these if low <= one.probability < high or (last and one.probability == high)]
        if inside:
            yield low, high, inside


def show(these: Sequence[Tried]) -> None:
    """What was predicted in bins beside what ran, then where each job's need lies, then the spread."""
    print(f"{len(these)} jobs ran or ran out of memory")
    print("probability of fitting    jobs   ran")
    for low, high, inside in bins(these):
        share = sum(one.ran for one in inside) / len(inside)
        print(f"  {low:.2f} to {high:.2f}           {len(inside):6}  {share:5.0%}")
    print("true need over predicted, more than and at most")
    found = between(these)
    for base, (out, ran) in found.items():
        said = "  ran with less than it ran out with" if out >= ran else ""
        print(f"  {base:28} {out:7.3f} {ran:7.3f}{said}")
    mean, deviation = best_normal(found.values())
    ratios = ", ".join(f"({share}, {quantile(mean, deviation, share):.3f})" for share in PROBABILITIES)
    print(f"likeliest normal: mean {mean:.3f}, deviation {deviation:.4f}; quantiles {ratios}")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rows", nargs="*", type=Path, help="measured rows; without any, print the jobs")
    parser.add_argument("--set", default="first", choices=SETS, help="whose jobs to print")
    options = parser.parse_args()
    if options.rows:
        show(list(tried(options.rows)))
    else:
        for one in jobs(*SETS[options.set]):
            print(json.dumps(one))
    return 0


if __name__ == "__main__":
    sys.exit(main())
