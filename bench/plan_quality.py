"""How good the plan's choice is: its measured step time against the best of an exhaustive grid.

    python bench/plan_quality.py bench/data/grid_x1.jsonl bench/data/grid_x4.jsonl [--json]
    python bench/plan_quality.py bench/data/grid_x1.jsonl --answers FOLDER

``--replayed N`` lets the plan rehearse up to N candidates, each taking the time or the running out of memory
that its row of the grid has: what ``trimtab plan --probe`` does on a GPU, from the same measurements again.

Each row of a grid is one measured configuration: ``world``, ``config`` (the whole file, or the parts that
`bench/case_pool.py` writes), ``step_seconds``, ``oom`` or ``out_of_memory``.  Rows of one model, world,
global batch and sequence make a grid.  The plan is asked for that job without any run, or its answer is read
from a folder of ``trimtab plan --json`` (`bench/probe_plans.sh` writes one of ``--probe``).  What it chooses
is looked up among the rows by stage, offload, recomputation and micro batch.  Exits 1 if a choice ran out of
memory or is below the target share of the best.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "bench")]

from speed_accuracy import TASKS  # noqa: E402
from trimtab.cluster import Cluster  # noqa: E402
from trimtab.config import Config  # noqa: E402
from trimtab.cost.memory import profile  # noqa: E402
from trimtab.cost.speed import step_speed  # noqa: E402
from trimtab.estimate import estimate  # noqa: E402
from trimtab.model import find_model  # noqa: E402
from trimtab.plan import Plan, Proof, plan  # noqa: E402

TARGET = 0.97
NEAR = 1.15
"""A point is near the best of its job if it takes no longer than this share of its time."""
Row = Mapping[str, Any]
Grid = tuple[str, int, int, int, str]
"""Model, world, global batch, sequence length, kernels."""
Point = tuple[Any, ...]
"""What tells configurations of a grid apart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The plan against one grid; times in seconds, measured unless it says predicted."""

    model: str
    world: int
    measured_rows: int
    out_of_memory_rows: int
    choice: str
    choice_seconds: float | None
    """None if the grid lacks the choice, or it ran out of memory."""
    choice_out_of_memory: bool
    predicted_seconds: float
    best: str
    best_seconds: float
    share: float | None
    """Best time over the choice's: 1 is the optimum."""
    first: str | None
    """The fastest as predicted of the plan's candidates that the grid has, none counted as equal to it."""
    first_seconds: float | None
    proven: tuple[str, ...] = ()
    """What was rehearsed on the way to the choice, each with its time."""


def read(files: Iterable[Path]) -> list[Row]:
    """All rows of the files that ran or ran out of memory, each with its ``config`` as one file."""
    rows = [
        json.loads(line) for file in files for line in file.read_text("utf-8").splitlines() if line.strip()
    ]
    told = [row for row in rows if row.get("step_seconds") or _out_of_memory(row)]
    return [{**row, "config": _config(row)} for row in told if "config" in row or row.get("deepspeed_config")]


def _config(row: Row) -> dict[str, Any]:
    """The file that a row was measured with, as `bench/case_pool.py` writes rows."""
    if "config" in row:
        return dict(row["config"])
    block = {
        "model": row["job"]["model"],
        "task": TASKS[row["arch"]],
        "sequence_length": row["seq"],
        "checkpoint_activations": row["checkpointing"],
        "attention": row["attention"],
        **({"target_length": row["tgt"]} if row["tgt"] else {}),
    }
    return {**row["deepspeed_config"], "trimtab": block}


def _out_of_memory(row: Row) -> bool:
    return bool(row.get("oom") or row.get("out_of_memory"))


def grids(rows: Iterable[Row]) -> dict[Grid, list[Row]]:
    """The rows by job."""
    found: dict[Grid, list[Row]] = defaultdict(list)
    for row in rows:
        block = row["config"]["trimtab"]
        batch = Config.from_mapping(row["config"]).batch(row["world"]).train
        kernels = block.get("kernels", "plain")
        found[block["model"], row["world"], batch, block["sequence_length"], kernels].append(row)
    return found


def point(config: Config, world: int) -> Point:
    """Where a configuration lies in a grid."""
    batch = config.batch(world)
    job = config.job
    return (
        config.stage,
        config.offload_optimizer,
        config.offload_param,
        job.activations,
        batch.micro,
        config.stage in (1, 2) and bool(config.zero("overlap_comm")),
    )


def named(place: Point) -> str:
    """A point in words."""
    stage, optimizer, param, activations, micro, overlap = place
    words = [f"ZeRO-{stage}", f"micro {micro}", activations.removeprefix("of ")]
    words += [f"optimizer {optimizer}"] * (optimizer != "none") + [f"param {param}"] * (param != "none")
    words += ["overlapped"] * overlap
    return ", ".join(words)


def judge(
    key: Grid,
    rows: list[Row],
    gpu: str,
    host_memory_bytes: int | None,
    given: Row | None = None,
    replayed: int = 0,
) -> Verdict:
    """The plan for one grid's job against its rows; ``given`` is its JSON, else it is asked for."""
    model, world, batch, length, kernels = key
    measured: dict[Point, list[float]] = defaultdict(list)
    short: set[Point] = set()
    for row in rows:
        place = point(Config.from_mapping(row["config"]), world)
        if _out_of_memory(row):
            short.add(place)
        else:
            measured[place].append(float(row["step_seconds"]))
    times = {place: statistics.median(seconds) for place, seconds in measured.items()}
    best = min(times, key=lambda place: times[place])
    first: Point | None = None
    proven: tuple[str, ...] = ()

    def rehearsed(config: Config, _: Cluster) -> Proof:
        place = point(config, world)
        fits = place not in short
        return Proof(
            how="rehearsal",
            fits=fits,
            fits_probability=float(fits),
            needed_bytes=None,
            step_seconds=times.get(place),
        )

    if given is None:
        answer = plan(
            model,
            gpu=gpu,
            gpus_per_node=world,
            host_memory_bytes=host_memory_bytes,
            objective="pretrain",
            global_batch=batch,
            sequence_length=length,
            kernels=kernels,
            alternatives=False,
            prove=replayed,
            prover=rehearsed if replayed else None,
        )
        proven = tuple(
            f"{named(point(one.contender.config, world))}: "
            + ("not in the grid" if one.proof.step_seconds is None else f"{one.proof.step_seconds:.3f} s")
            for one in answer.proven
        )
        assert answer.chosen is not None, f"no plan for {key}"
        chosen = point(answer.chosen.config, world)
        predicted = answer.chosen.estimate.speed.step_seconds
        first = _first(answer, times, world)
    else:
        chosen = point(Config.from_mapping(given["chosen"]["config"]), world)
        predicted = given["chosen"]["estimate"]["speed"]["step_seconds"]["expected"]
        proven = tuple(_proven(one) for one in given["proven"])
    seconds = times.get(chosen)
    return Verdict(
        model=model,
        world=world,
        measured_rows=len(times),
        out_of_memory_rows=len(short),
        choice=named(chosen),
        choice_seconds=seconds,
        choice_out_of_memory=chosen in short,
        predicted_seconds=predicted,
        best=named(best),
        best_seconds=times[best],
        share=None if seconds is None else times[best] / seconds,
        first=None if first is None else named(first),
        first_seconds=None if first is None else times[first],
        proven=proven,
    )


def told_apart(key: Grid, rows: list[Row], gpu: str) -> list[float]:
    """How far the predicted time of each point near the best is off against the others' of its job."""
    measured: dict[Point, list[float]] = defaultdict(list)
    files: dict[Point, Config] = {}
    for row in rows:
        if not _out_of_memory(row):
            config = Config.from_mapping(row["config"])
            place = point(config, key[1])
            measured[place].append(float(row["step_seconds"]))
            files[place] = config
    times = {place: statistics.median(seconds) for place, seconds in measured.items()}
    cluster = Cluster.of(gpu, key[1])
    ratios = []
    for place, seconds in times.items():
        config = files[place]
        offloads = config.offload_optimizer != "none" or config.offload_param != "none"
        if seconds < NEAR * min(times.values()) and not offloads:
            counted = profile(config, find_model(key[0]), key[1])
            ratios.append(step_speed(config, counted, cluster).careful_seconds / seconds)
    return [abs(ratio / statistics.median(ratios) - 1) for ratio in ratios]


def _proven(one: Row) -> str:
    seconds = one["step_seconds"]
    return f"{one['summary']}: {one['said'] or 'no time' if seconds is None else f'{seconds:.3f} s'}"


def answers(folder: Path) -> dict[Grid, Row]:
    """The plans that a folder of ``trimtab plan --json`` holds, by the grid that each is for."""
    found: dict[Grid, Row] = {}
    for file in sorted(folder.glob("*.json")):
        try:
            given = json.loads(file.read_text("utf-8"))
        except ValueError:
            print(f"{file}: no JSON; the plan did not end", file=sys.stderr)
            continue
        if given.get("chosen") is None:
            print(f"{file}: no plan: {given.get('error')}", file=sys.stderr)
            continue
        config = Config.from_mapping(given["chosen"]["config"])
        block = given["chosen"]["config"]["trimtab"]
        raw = given["chosen"]["config"]
        batch = raw["train_batch_size"]
        world = batch // raw["train_micro_batch_size_per_gpu"] // raw["gradient_accumulation_steps"]
        found[block["model"], world, batch, config.job.sequence_length, config.job.kernels] = given
    return found


def _first(answer: Plan, times: Mapping[Point, float], world: int) -> Point | None:
    ranked = sorted(answer.bills, key=lambda one: one.contender.careful_seconds)
    places = (point(one.contender.config, world) for one in ranked)
    return next((place for place in places if place in times), None)


def wrongly_fitting(rows: list[Row], gpu: str, world: int, host_memory_bytes: int | None) -> int:
    """How many ran out of memory that the arithmetic calls fitting."""
    cluster = Cluster.of(gpu, world, host_memory_bytes=host_memory_bytes)
    return sum(
        estimate(Config.from_mapping(row["config"]), cluster).fits_probability >= 0.9
        for row in rows
        if _out_of_memory(row)
    )


def main() -> int:
    """Prints a line a grid."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--gpu", default="h200")
    parser.add_argument("--host-memory-gib", type=float, help="of the machine that was measured")
    parser.add_argument("--answers", type=Path, help="a folder of `trimtab plan --json`; else plans are made")
    parser.add_argument(
        "--replayed", type=int, default=0, metavar="N", help="candidates to rehearse from rows"
    )
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    memory = None if options.host_memory_gib is None else int(options.host_memory_gib * 2**30)
    found = sorted(grids(read(options.files)).items())
    given = None if options.answers is None else answers(options.answers)
    found = [(key, rows) for key, rows in found if given is None or key in given]
    verdicts = [
        judge(key, rows, options.gpu, memory, None if given is None else given[key], options.replayed)
        for key, rows in found
    ]
    wrong = [wrongly_fitting(rows, options.gpu, key[1], memory) for key, rows in found]
    if options.json:
        told = [{**asdict(one), "wrongly_fitting": each} for one, each in zip(verdicts, wrong, strict=True)]
        print(json.dumps(told, indent=2))
    else:
        for one, each in zip(verdicts, wrong, strict=True):
            share = "not measured" if one.share is None else f"{one.share:.1%} of the best"
            share = "OUT OF MEMORY" if one.choice_out_of_memory else share
            rows = f"{one.measured_rows} ran, {one.out_of_memory_rows} short"
            print(f"{one.model} on {one.world}: {share}  ({rows})")
            took = "" if one.choice_seconds is None else f" {one.choice_seconds:.3f} s,"
            print(f"    plan  {one.choice}:{took} predicted {one.predicted_seconds:.3f} s")
            print(f"    best  {one.best}: {one.best_seconds:.3f} s")
            for said in one.proven:
                print(f"    rehearsed  {said}")
            if one.first is not None and one.first != one.choice:
                took = f"{one.first_seconds:.3f} s"
                print(f"    fastest as predicted of those measured: {one.first}: {took}")
            if each:
                print(f"    {each} rows ran out of memory that the arithmetic calls fitting")
    failed = any(one.choice_out_of_memory or (one.share or 1.0) < TARGET for one in verdicts)
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
