"""The plan's choice and its nearest rivals for models that no grid has, as jobs to measure.

    python bench/choices.py --world 1 > jobs.jsonl
    python bench/case_pool.py jobs.jsonl --gpus 1 --reuse --output bench/data/choices.jsonl

Of each training the choice, the fastest rivals as predicted, and the fastest of each stage that is not among
them: all that the plan holds for fast.  Measured, they say what a choice is worth where nobody looked before.
`bench/plan_quality.py` reads the rows as it does a grid's.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "bench")]

from plan_quality import named, point  # noqa: E402

from trimtab.config import Config  # noqa: E402
from trimtab.plan import Plan, plan  # noqa: E402
from trimtab.plan.costs import Bill  # noqa: E402

TRAININGS: dict[int, dict[str, dict[str, Any]]] = {
    1: {
        "qwen2.5-1.5b": {"sequence_length": 2048, "global_batch": 16},
        "bert-large": {"sequence_length": 512, "global_batch": 128, "task": "masked-lm"},
        "llama-3.2-3b": {"sequence_length": 2048, "global_batch": 8},
        "gpt2-large": {"sequence_length": 1024, "global_batch": 32},
        "t5-large": {"sequence_length": 512, "global_batch": 64, "task": "span-corruption"},
    },
    2: {
        "qwen2.5-1.5b": {"sequence_length": 2048, "global_batch": 32},
        "llama-3-8b": {"sequence_length": 2048, "global_batch": 8},
        "bert-large": {"sequence_length": 512, "global_batch": 256, "task": "masked-lm"},
    },
}


def asked(model: str, world: int, host_memory_bytes: int | None) -> Plan:
    """The plan of one training."""
    return plan(
        model,
        gpu="h200",
        gpus_per_node=world,
        host_memory_bytes=host_memory_bytes,
        objective="pretrain",
        alternatives=False,
        **TRAININGS[world][model],
    )


def candidates(answer: Plan, world: int, points: int) -> Iterator[tuple[Config, float]]:
    """The choice first, then the others as predicted, each with the predicted seconds of its step."""
    assert answer.chosen is not None
    ranked = [(one.contender.config, one.contender.step_seconds) for one in _ranked(answer)]
    chosen = point(answer.chosen.config, world)
    found = {chosen: next(one for one in ranked if point(one[0], world) == chosen)}
    for one in ranked[: points - 1]:
        found.setdefault(point(one[0], world), one)
    for one in ranked:
        if one[0].stage not in {stage for stage, *_ in found}:
            found[point(one[0], world)] = one
    yield from found.values()


def _ranked(answer: Plan) -> list[Bill]:
    return sorted(answer.bills, key=lambda one: one.contender.careful_seconds)


def main() -> int:
    """Prints a job a line, those of one training behind each other."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--world", type=int, default=1, choices=sorted(TRAININGS))
    parser.add_argument("--models", help="comma-separated; else all")
    parser.add_argument("--points", type=int, default=5, help="candidates, other stages not counted")
    parser.add_argument("--host-memory-gib", type=float, help="of the machine that is to measure")
    options = parser.parse_args()
    memory = None if options.host_memory_gib is None else int(options.host_memory_gib * 2**30)
    for model in options.models.split(",") if options.models else TRAININGS[options.world]:
        answer = asked(model, options.world, memory)
        for config, seconds in candidates(answer, options.world, options.points):
            place = named(point(config, options.world)).replace(", ", "-").replace(" ", "-").lower()
            job = {
                "id": f"{model}-x{options.world}-{place}",
                "group": "nccl" if options.world > 1 else "single",
                "world": options.world,
                "config": dict(config.raw),
                "model": model,
                "predicted_seconds": round(seconds, 4),
                "timeout": 90,
            }
            print(json.dumps(job))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
