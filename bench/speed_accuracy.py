"""Hold predicted step times against measured ones: ``python bench/speed_accuracy.py [--simulate]``.

Writes ``docs/speed.md``: every row of ``bench/data`` with a step time, as the closed form predicts it and as
the simulator does, and public records of other people's runs.  The simulator replays a phantom rehearsal of
each row; ``--simulate`` makes those that ``bench/data/simulated_steps.jsonl`` lacks (a few seconds each).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "bench")]

from trimtab import load_config  # noqa: E402
from trimtab.cluster import Cluster  # noqa: E402
from trimtab.config import Config  # noqa: E402
from trimtab.cost.memory import profile  # noqa: E402
from trimtab.cost.rates import HOST, Rates, pace_of, rates_of, usual_pace  # noqa: E402
from trimtab.cost.speed import Speed, step_speed  # noqa: E402
from trimtab.model import Model, find_hf  # noqa: E402
from trimtab.rehearse.request import MICRO_STEPS_ENOUGH, PhantomRequest, Rehearsal  # noqa: E402
from trimtab.rehearse.simulator import simulate  # noqa: E402

DATA = ROOT / "bench" / "data"
SIMULATED = DATA / "simulated_steps.jsonl"
PAGE = ROOT / "docs" / "speed.md"
TASKS = {"causal": "causal-lm", "mlm": "masked-lm", "cls": "sequence-classification", "seq2seq": "seq2seq-lm"}
CORES_A_GPU = 16
ROWS = (
    "real_worlds.jsonl", "paced_steps.jsonl", "settled_steps.jsonl", "quiet_steps.jsonl", "grid_x1.jsonl",
    "grid_x2.jsonl", "shared_x2.jsonl", "families.jsonl", "fused.jsonl", "quantized_x2.jsonl",
    "choices.jsonl",
)  # fmt: skip
EXCHANGING = ("llama-1b-sp2-z2-x2-paced", "qwen2-0.5b-sp2-z1-x2-paced")
"""Rows whose ranks share samples, of known pace, that wait for their host."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A measured step."""

    name: str
    file: str = ""
    """That its row is in, of `ROWS`."""
    config: Config
    hf: dict[str, Any]
    world: int
    group: str
    """``nccl``: all GPUs are real; ``single``: one; ``fake``: one in the place of all, no communication."""
    seconds: float
    beside: bool
    """Whether other jobs shared the host's cores, whose times are rough."""
    fitted: bool = False
    """Whether costs of the host were fitted to its phases, or to its step (bench/fit_host.py)."""
    apart: bool = False
    """Whether it had cores of its own."""
    brief: bool = False
    """Whether only one to four steps were timed."""
    sampled: bool = False
    """Whether the pace was sampled before and after each step."""
    pace: float | None = None
    """How much longer single calls took its process than the probed host, where it measured them."""

    @property
    def real(self) -> bool:
        """Whether every GPU of its world was there."""
        return self.group in ("nccl", "single")

    @property
    def cluster(self) -> Cluster:
        """The H200s that it ran on; those of a made-up world have a node of eight."""
        per_node = min(8, self.world) if self.group == "fake" else self.world
        return Cluster.of("h200", per_node, max(1, self.world // per_node), cpu_cores=CORES_A_GPU * per_node)

    @property
    def rates(self) -> Rates:
        """Those of an H200, with its own host's pace."""
        ranks = 1 if self.group == "fake" else self.world
        pace = usual_pace(ranks) if self.pace is None else self.pace
        return dataclasses.replace(rates_of(self.cluster), pace=pace)

    @property
    def alone_on_the_host(self) -> bool:
        """One rank offloads where the cluster has many: nothing that either model speaks of."""
        offloads = self.config.offload_optimizer != "none" or self.config.offload_param != "none"
        return self.group == "fake" and offloads


def cases() -> Iterator[Case]:
    """Every row with a step time."""
    for row in _rows("h200_cases.jsonl"):
        if row["allocator_cap_gib"] is None:
            yield measured_case(row, f"{row['id']} ({row['group']})")
    for row in _rows("catalogue_proof.jsonl"):
        config = load_config(row["id"]).with_values(
            {
                "train_batch_size": None,
                "train_micro_batch_size_per_gpu": row["mbs"],
                "gradient_accumulation_steps": row["gas"],
            }
        )
        yield Case(
            name=f"{row['id']} on {row['world']} ({row['group']}{', again' * ('beside' in row)})",
            config=config,
            hf=dict(find_hf(config.job.model or "").hf),
            world=row["world"],
            group=row["group"],
            seconds=row["step_seconds"],
            beside="beside" in row,
        )
    for name in ROWS:
        for row in _rows(name):
            apart = "cores" in row  # else processes of the next jobs were importing: bench/data/README.md
            case = measured_case(row if apart else {**row, "beside": "other jobs"}, row["id"])
            fitted = name == "paced_steps.jsonl" and "phases" in row.get("profile", {})
            fitted = fitted or row["id"] in EXCHANGING
            yield dataclasses.replace(case, file=name, apart=apart, fitted=fitted)


def _rows(name: str) -> list[dict[str, Any]]:
    rows = (json.loads(line) for line in (DATA / name).read_text(encoding="utf-8").splitlines())
    return [row for row in rows if row.get("step_seconds")]


def measured_case(row: dict[str, Any], name: str) -> Case:
    block: dict[str, Any] = {
        "task": TASKS[row["arch"]],
        "sequence_length": row["seq"],
        "checkpoint_activations": row["checkpointing"],
        "attention": row["attention"],
    }
    if row["tgt"]:
        block["target_length"] = row["tgt"]
    if row["lora"]:
        block["lora"] = row["lora"]
    block["kernels"] = row.get("kernels", "plain")
    batch = {"train_micro_batch_size_per_gpu": row["mbs"], "gradient_accumulation_steps": row["gas"]}
    raw = {**row["deepspeed_config"], **batch, "trimtab": block}
    return Case(
        name=name,
        config=Config.from_mapping(raw, name=row["id"]),
        hf=row["hf"],
        world=row["world"],
        group=row["group"],
        seconds=row["step_seconds"],
        beside="beside" in row,
        brief=bool(row.get("brief")),
        sampled=bool(row.get("paces")),
        pace=_pace(row),
    )


def _pace(row: dict[str, Any]) -> float | None:
    """Its host's while it ran: of the slower rank before and after each step, or of calls timed after all."""
    if row.get("paces"):
        return statistics.mean(max(each) for each in zip(*row["paces"], strict=True))
    return pace_of((row.get("profile") or {}).get("calls", {}))


def closed_form(case: Case) -> Speed:
    """What `estimate` says of its step; a made-up world's communication is taken out."""
    cluster = case.cluster
    counted = profile(case.config, Model.from_hf(case.hf, case.name), case.world)
    speed = step_speed(case.config, counted, cluster, case.rates)
    if case.group != "fake":
        return speed
    gone = speed.communication_seconds
    return dataclasses.replace(
        speed,
        step_seconds=speed.step_seconds - gone,
        low_seconds=speed.low_seconds - gone * 0.7,
        high_seconds=speed.high_seconds - gone * 1.5,
    )


def rehearsed(case: Case) -> tuple[Rehearsal, int]:
    """A phantom's record of a few micro steps, and how many the step has."""
    from trimtab.rehearse.series import rehearse_forked

    request = PhantomRequest.of_config(case.config, case.hf, world_size=case.world, record="ordered")
    accumulation = request.accumulation
    few = dataclasses.replace(request, accumulation=min(MICRO_STEPS_ENOUGH, accumulation))
    return rehearse_forked(few), accumulation


def simulated(case: Case) -> tuple[float, float]:
    """Seconds of a step by the simulator, after a phantom rehearsal, and the share that the GPU works."""
    record, accumulation = rehearsed(case)
    if case.group == "fake":
        alone = (dataclasses.replace(one, group_size=1) for one in record.collectives)
        record = dataclasses.replace(record, collectives=tuple(alone))
    found = simulate(
        record,
        case.rates,
        accumulation=accumulation,
        stage=case.config.stage,
        nodes=case.cluster.nodes,
    )
    return found.step_seconds, found.compute_seconds / found.step_seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A public figure: tokens a second and GPU."""

    name: str
    hf: dict[str, Any]
    config: dict[str, Any]
    gpu: str
    gpus: int
    tokens_per_second: float
    source: str
    differs: str


def _zero3(micro: int, **block: Any) -> dict[str, Any]:
    return {
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": 1,
        "bf16": {"enabled": True},
        "zero_optimization": {"stage": 3},
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-4}},
        "trimtab": {"task": "causal-lm", "attention": "flash", **block},
    }


MPT_7B = {
    "model_type": "gpt_neox", "hidden_size": 4096, "intermediate_size": 16384, "num_hidden_layers": 32,
    "num_attention_heads": 32, "vocab_size": 50432, "max_position_embeddings": 2048, "rotary_pct": 0.25,
    "use_parallel_residual": False,
}  # fmt: skip
LLAMA_8B = {
    "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
    "max_position_embeddings": 131072, "tie_word_embeddings": False,
}  # fmt: skip
RECORDS = (
    Record(
        name="MPT 7B, 8 A100-80, micro batch 6",
        hf=MPT_7B,
        config=_zero3(6, sequence_length=2048),
        gpu="a100-80gb",
        gpus=8,
        tokens_per_second=4641,
        source="llm-foundry, benchmarking README",
        differs="FSDP, fused kernels; here GPT-NeoX's layers of its sizes under ZeRO-3",
    ),
    Record(
        name="MPT 7B, 8 H100, micro batch assumed 6",
        hf=MPT_7B,
        config=_zero3(6, sequence_length=2048),
        gpu="h100-80gb",
        gpus=8,
        tokens_per_second=10643,
        source="llm-foundry, benchmarking README",
        differs="as above",
    ),
    Record(
        name="LLaMA 3.1 8B, 8 H100, micro batch 2 of 8192",
        hf=LLAMA_8B,
        config=_zero3(2, sequence_length=8192, checkpoint_activations=True),
        gpu="h100-80gb",
        gpus=8,
        tokens_per_second=5762,
        source="torchtitan, llama3_h100_202412, eager",
        differs="FSDP2, part of the activations kept, 500 W cards; here all recomputed",
    ),
)


def against_records() -> list[tuple[Record, float]]:
    """Tokens a second and GPU that the closed form expects of each public record."""
    found = []
    for one in RECORDS:
        config = Config.from_mapping(one.config, name=one.name)
        cluster = Cluster.of(one.gpu, one.gpus)
        speed = step_speed(config, profile(config, Model.from_hf(one.hf, one.name), one.gpus), cluster)
        found.append((one, speed.tokens_per_step / speed.step_seconds))
    return found


GROUPS = (
    ("1 to 4 GPUs, no other jobs on the host", lambda case: case.real and not case.beside),
    (
        "1 and 2 GPUs, cores of its own, pace sampled beside each step, nothing fitted to it",
        lambda case: case.real and case.apart and case.sampled and not case.fitted and not case.brief,
    ),
    (
        "– of these, the plan's choices for models that nobody had measured, and their rivals",
        lambda case: case.file == "choices.jsonl",
    ),
    (
        "1 and 2 GPUs, cores of its own, pace sampled beside each step, host costs fitted to it",
        lambda case: case.fitted,
    ),
    (
        "1 and 2 GPUs, cores of its own, pace sampled beside each of one to four steps, nothing fitted to it",
        lambda case: case.brief,
    ),
    (
        "1 and 2 GPUs, cores of its own, pace timed after all steps",
        lambda case: case.apart and case.pace is not None and not case.sampled,
    ),
    (
        "1 and 2 GPUs, cores of its own, pace not known",
        lambda case: case.apart and case.pace is None,
    ),
    ("1 to 4 GPUs, other hosts, alone", lambda case: case.real and not case.apart and not case.beside),
    ("1 to 4 GPUs, other jobs on the host", lambda case: case.real and case.beside),
    ("one GPU in the place of many", lambda case: not case.real),
)
BUSY = 0.9
"""A step whose GPU works for this share of the simulated time waits for little else."""


INTRODUCTION = """\
Made by `bench/speed_accuracy.py`. `estimate` has a closed form: every kernel that the counting machine ran
at a rate, what the host needs to issue them, collectives, offload (`cost/speed.py`). `rehearse --phantom`
replays the engine's own record of a step over streams (`rehearse/simulator.py`), and waits for ranks that
hand other gradients to the host (`rehearse/handovers.py`). Both stand on `cost/rates.py`: kernels, copies and
collectives as `trimtab probe` measured them one by one on an H200 (`bench/data/probe_h200.json`; this
machine's own probe where it keeps one), with nothing fitted. What the host needs to issue a kernel, call a
module, checkpoint a layer or go through ZeRO's hooks is fitted: twelve costs (`cost/rates.py`, `Host`) to the
phases of `bench/data/paced_steps.jsonl`, by `bench/fit_host.py`. What an exchange of Ulysses takes the host
comes from two steps of `bench/data/shared_x2.jsonl` (`--exchange`).

Both let the host be ahead of the GPU by no more than 1,024 kernels, which is what a stream of CUDA holds
(`cost/race.py`): a step's many small kernels, or T5's short decoder, cannot all be issued while longer ones
before them still run. Without that limit the simulator was 3 to 15 % short at stages 1 and 2 wherever the
GPU works most of the time.

**Where a step waits for the host nobody can be exact.** The processor of the machines at hand, a virtual
one, goes back and forth between two paces within tenths of a second: single calls take 1.0 or 1.5 to 1.7
times what they took the probed host, 1.23 times in the mean of 3,938 moments on machines of two days.
Each goes by itself, and a step waits for its slowest rank: of hosts that nobody probed the slowest of two,
four or eight such moments is expected (1.37, 1.51, 1.62); of one that was, what its probe found. Most rows
of the newer files sampled single calls before and after every step, and their predictions are made with the
mean of that, of the slower rank; single steps of one such job still lie up to a third apart. Half of the
phases that the costs are fitted to lie within {phase_error} of them. Other rows of known pace timed the
same calls a second after their steps, and by then it may have changed. Rows with cores of their own kept
all other processes off the cores that issue their kernels (`bench/case_pool.py`); in the others processes
of the next jobs were importing meanwhile. Where only one to four steps were timed, the few samples of the
pace between them say little of what it was within. The rows of `quiet_steps.jsonl` with three to eight
timed steps had not settled: with more steps before the first timed one `t5-large-z1-m16-recompute` took
0.53 and 0.62 s. Weights are random and small; with weights as the architectures ask two jobs took 0.6 and
3.6 % longer (`-initialized`). Made-up worlds with offload are left out: one rank then has a host to itself
that many would share."""


def _phase_error() -> float:
    """The median error of the host's costs over the phases that they are fitted to."""
    import fit_host  # it reads cases with this module

    told = [one for one in fit_host.phases() if one.tells]
    return statistics.median(abs(fit_host.expected(one, HOST) / one.seconds - 1) for one in told)


def page(found: list[Predicted]) -> str:
    """The document."""
    lines = [
        "# Step times, predicted and measured",
        "",
        *INTRODUCTION.replace("{phase_error}", f"{_phase_error():.0%}").splitlines(),
        "",
        "| rows | closed form: count, median, 90 %, most | inside its bounds | simulator: the same |",
        "|---|---|---|---|",
    ]
    for name, belongs in GROUPS:
        chosen = [row for row in found if belongs(row.case)]
        lines.append(_summary(name, chosen))
        lines.append(
            _summary("– of these, the GPU works 90 % of the time", [r for r in chosen if r.busy >= BUSY])
        )
    lines += [
        "",
        "| step | measured s | closed form s | error | simulator s | error | GPU works |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in found:
        case, replay = row.case, row.replayed
        beside = " (beside others)" if case.beside else ""
        lines.append(
            f"| {case.name}{beside} | {case.seconds:.3f} | {row.closed.step_seconds:.3f} | "
            f"{row.closed_error:+.0%} | "
            + (f"{replay:.3f} | {row.replayed_error:+.0%} | {row.busy:.0%} |" if replay else "– | – | – |")
        )
    lines += [
        "",
        "## Other people's records",
        "",
        "None of these had a part in any figure. Their software is not DeepSpeed with plain transformers:",
        "what differs is said beside each.",
        "",
        "| record | tokens/s and GPU | closed form | error | what differs | source |",
        "|---|---|---|---|---|---|",
    ]
    for one, rate in against_records():
        lines.append(
            f"| {one.name} | {one.tokens_per_second:,.0f} | {rate:,.0f} | "
            f"{_error(rate, one.tokens_per_second)} | {one.differs} | {one.source} |"
        )
    return "\n".join(lines).replace("%", " %").replace("  %", " %") + "\n"


def _summary(name: str, chosen: list[Predicted]) -> str:
    inside = [row.closed.low_seconds <= row.case.seconds <= row.closed.high_seconds for row in chosen]
    closed = [abs(row.closed_error) for row in chosen]
    replayed = [abs(error) for row in chosen if (error := row.replayed_error) is not None]
    return f"| {name} | {_spread(closed)} | {statistics.mean(inside or [0]):.0%} | {_spread(replayed)} |"


def _spread(errors: list[float]) -> str:
    if not errors:
        return "0"
    ranked = sorted(errors)
    ninth = ranked[int(len(ranked) * 0.9)]
    return f"{len(ranked)}, {statistics.median(ranked):.0%}, {ninth:.0%}, {ranked[-1]:.0%}"


def _error(predicted: float, measured: float) -> str:
    return f"{predicted / measured - 1:+.0%}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Predicted:
    """A measured case with what is predicted of it."""

    case: Case
    closed: Speed
    replayed: float | None
    """Seconds; None where no simulation is kept."""
    busy: float
    """The share of the simulated step that the GPU works."""

    @property
    def closed_error(self) -> float:
        """Of the closed form, as a share of what was measured."""
        return self.closed.step_seconds / self.case.seconds - 1

    @property
    def replayed_error(self) -> float | None:
        """Of the simulator."""
        return None if self.replayed is None else self.replayed / self.case.seconds - 1


def rows(*, simulate: bool = False) -> list[Predicted]:
    """Every comparable case with the closed form's answer and the simulator's, where that is kept."""
    kept: dict[str, dict[str, Any]] = {}
    if SIMULATED.exists():
        lines = SIMULATED.read_text(encoding="utf-8").splitlines()
        kept = {row["name"]: row for row in map(json.loads, lines)}
    found: list[Predicted] = []
    for case in cases():
        if case.alone_on_the_host:
            continue
        if simulate and case.name not in kept:
            seconds, busy = simulated(case)
            kept[case.name] = {"name": case.name, "step_seconds": round(seconds, 4), "busy": round(busy, 3)}
            with SIMULATED.open("a", encoding="utf-8") as file:
                file.write(json.dumps(kept[case.name]) + "\n")
            print(f"{case.name}: {case.seconds} measured, {seconds:.4f} simulated", flush=True)
        one = kept.get(case.name, {})
        found.append(
            Predicted(
                case=case,
                closed=closed_form(case),
                replayed=one.get("step_seconds"),
                busy=one.get("busy", 0.0),
            )
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--simulate", action="store_true", help="rehearse what was not yet")
    PAGE.write_text(page(rows(simulate=parser.parse_args().simulate)), encoding="utf-8")


if __name__ == "__main__":
    main()
