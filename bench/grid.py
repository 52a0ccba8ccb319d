"""The jobs of an exhaustive search: every ZeRO stage, offload, recomputation and micro batch of a model.

    python bench/grid.py --world 4 [--models gpt2,tinyllama-1.1b,llama-7b] > jobs.jsonl
    python bench/case_pool.py jobs.jsonl --gpus 4 --output bench/data/grid.jsonl

The global batch of a model is fixed per GPU, so that every job of a model and a world does the same work.
Jobs that cannot run by a wide margin (`trimtab estimate`: a third more than the card) are left out and named
on stderr.

Where the time on GPUs is short:

    python bench/grid.py --world 2 --largest 3 --offloaded 2 > jobs.jsonl

keeps what can decide.  Without offload, of each stage the ``--largest`` micro batches that may fit, and
reductions beside the backward pass at the largest alone; recomputed, the largest, and those that do not fit
otherwise, since recomputation only adds work.  With offload the ``--offloaded`` fastest as predicted, each
its kind's largest that fits.  The jobs come in the order of their predicted time over the shortest of their
model, the offloaded last, so that a run that is cut short has tried the best of each model.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "src"))

CPU = {"device": "cpu", "pin_memory": True}
OFFLOADS: dict[str, dict[str, Any]] = {
    "none": {},
    "optimizer": {"offload_optimizer": CPU},
    "param": {"offload_param": CPU},
    "both": {"offload_optimizer": CPU, "offload_param": CPU},
}
OVERLAPPED: dict[bool, dict[str, Any]] = {False: {}, True: {"overlap_comm": True}}
MODELS: dict[str, dict[str, Any]] = {
    "gpt2": {"sequence_length": 1024, "samples_per_gpu": {1: 64, 2: 16, 4: 16}, "micro": (4, 8, 16, 32, 64)},
    "tinyllama-1.1b": {
        "sequence_length": 2048,
        "samples_per_gpu": {1: 16, 2: 8, 4: 8},
        "micro": (1, 2, 4, 8, 16),
    },
    "llama-7b": {"sequence_length": 2048, "samples_per_gpu": {1: 8, 2: 8, 4: 8}, "micro": (1, 2, 4, 8)},
}
HOPELESS = 1.33
MAY_FIT = 0.02
"""The least probability of fitting for a job to be worth its time."""


def job(
    model: str, world: int, stage: int, offload: str, recompute: bool, micro: int, overlap: bool = False
) -> dict[str, Any]:
    """One point of the grid, as `bench/case_pool.py` takes it."""
    setting = MODELS[model]
    samples = setting["samples_per_gpu"][world]
    name = f"{model}-x{world}-z{stage}-{offload}-{'recompute' if recompute else 'keep'}"
    name += "-overlap" * overlap
    config = {
        "train_batch_size": samples * world,
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": samples // micro,
        "zero_optimization": {"stage": stage, **OFFLOADS[offload], **OVERLAPPED[overlap]},
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
        "recompute": recompute, "overlap": overlap, "micro": micro,
        "timeout": 200 if offload != "none" else 90,
    }  # fmt: skip


def grid(model: str, world: int) -> Iterator[dict[str, Any]]:
    """Every point, the likely fast ones first."""
    kinds = [(stage, "none") for stage in (0, 1, 2, 3)]
    kinds += [(1, "optimizer"), (2, "optimizer"), (3, "optimizer"), (3, "param"), (3, "both")]
    samples = MODELS[model]["samples_per_gpu"][world]
    for stage, offload in kinds:
        for recompute in (False, True):
            for micro in MODELS[model]["micro"]:
                if micro <= samples:
                    yield job(model, world, stage, offload, recompute, micro)


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """A job with what `trimtab estimate` says of it on the machine that is to measure."""

    job: dict[str, Any]
    hopeless: bool
    """It needs a third more than the card has, or more than the host."""
    may_fit: bool
    step_seconds: float

    @property
    def kind(self) -> tuple[Any, ...]:
        """All but the micro batch."""
        return tuple(self.job[key] for key in ("model", "stage", "offload", "recompute", "overlap"))


def judge(one: dict[str, Any], gpu: str, host_memory_bytes: int | None) -> Judged:
    """What the arithmetic says of one job."""
    from trimtab.cluster import Cluster
    from trimtab.config import Config
    from trimtab.estimate import estimate

    cluster = Cluster.of(gpu, gpus_per_node=one["world"], nodes=1, host_memory_bytes=host_memory_bytes)
    answer = estimate(Config.from_mapping(one["config"], name=one["id"]), cluster)
    host_is_short = answer.host_bytes_per_node.expected > cluster.host_memory_bytes
    return Judged(
        job=one,
        hopeless=answer.needed.expected > HOPELESS * answer.capacity_bytes or host_is_short,
        may_fit=answer.fits_probability >= MAY_FIT,
        step_seconds=answer.speed.step_seconds,
    )


def deciding(jobs: list[Judged], largest: int, offloaded: int) -> list[Judged]:
    """The jobs of one model and world that can decide what is fastest."""
    kinds: dict[tuple[Any, ...], list[Judged]] = defaultdict(list)
    for one in sorted(jobs, key=lambda one: -one.job["micro"]):
        if one.may_fit:
            kinds[one.kind].append(one)
    plain: list[Judged] = []
    moved: list[Judged] = []
    for (model, stage, offload, recompute, overlap), these in kinds.items():
        if offload != "none":
            moved.append(these[0])
            continue
        if recompute:
            kept = {one.job["micro"] for one in kinds.get((model, stage, offload, False, overlap), ())}
            these = [one for one in these if one is these[0] or one.job["micro"] not in kept]
        plain += these[: 1 if overlap else largest]
    return plain + sorted(moved, key=lambda one: one.step_seconds)[:offloaded]


def overlapped(model: str, world: int) -> Iterator[dict[str, Any]]:
    """Stages 1 and 2 with ``overlap_comm``, which is off there and on at stage 3."""
    for stage in (1, 2):
        for micro in MODELS[model]["micro"]:
            if world > 1 and micro <= MODELS[model]["samples_per_gpu"][world]:
                yield job(model, world, stage, "none", False, micro, overlap=True)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--world", type=int, default=1)
    parser.add_argument("--gpu", default="h200")
    parser.add_argument("--host-memory-gib", type=float, help="of the machine that is to measure")
    parser.add_argument("--only", default="", help="texts that an id must hold one of, comma-separated")
    parser.add_argument("--largest", type=int, help="keep what can decide: so many micro batches of a kind")
    parser.add_argument("--offloaded", type=int, default=0, help="with --largest, so many with offload")
    parser.add_argument("--measured", type=Path, help="rows whose jobs are left out")
    options = parser.parse_args()
    wanted = [text for text in options.only.split(",") if text]
    host = None if options.host_memory_gib is None else int(options.host_memory_gib * 2**30)
    done = set()
    if options.measured:
        rows = [json.loads(line) for line in options.measured.read_text("utf-8").splitlines()]
        done = {row["id"] for row in rows if row["ok"] or row.get("out_of_memory")}
    found: list[tuple[bool, float, dict[str, Any]]] = []
    for model in options.models.split(","):
        points = list(grid(model, options.world))
        if options.largest is not None:
            points += overlapped(model, options.world)
        judged = [judge(one, options.gpu, host) for one in points]
        for one in judged:
            if one.hopeless:
                print(f"left out, needs far more than the machine has: {one.job['id']}", file=sys.stderr)
        judged = [one for one in judged if not one.hopeless]
        if options.largest is not None:
            judged = deciding(judged, options.largest, options.offloaded)
        shortest = min(one.step_seconds for one in judged if one.may_fit)
        found += [(one.job["offload"] != "none", one.step_seconds / shortest, one.job) for one in judged]
    if options.largest is not None:
        found.sort(key=lambda one: one[:2])
    for _, _, one in found:
        if one["id"] not in done and (not wanted or any(text in one["id"] for text in wanted)):
            print(json.dumps(one))
    return 0


if __name__ == "__main__":
    sys.exit(main())
