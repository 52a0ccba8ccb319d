"""Write ``docs/plan-quality.md``, how good the plan's choice is: ``python bench/quality_page.py``.

From the rows of ``bench/data``: measured grids (`plan_quality.py`, `grid.py`), DeepSpeed's autotuner
(`autotuner.py`), other tools' stock files (`stock.py`) and jobs near a memory limit (`near_limit.py`).
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "bench")]

import choices_section  # noqa: E402
import grid  # noqa: E402
import near_limit  # noqa: E402
import needs  # noqa: E402
import plan_quality  # noqa: E402
import stock  # noqa: E402
from page_text import wrapped  # noqa: E402
from plan_quality import Grid, Row, Verdict  # noqa: E402
from stock_section import stock_rows, stock_section  # noqa: E402

from trimtab.config import Config  # noqa: E402
from trimtab.plan.contender import TIE  # noqa: E402

DATA = ROOT / "bench" / "data"
PAGE = ROOT / "docs" / "plan-quality.md"
GRIDS = (DATA / "grid_x1.jsonl", DATA / "grid_x2.jsonl")
AFTERWARDS = DATA / "near_limit_afterwards.jsonl"
NEAR_LIMIT = (DATA / "near_limit.jsonl", DATA / "near_limit_held_back.jsonl", AFTERWARDS)
AGAIN = (
    "gpt2-x1-z0-none-keep-m64", "gpt2-x1-z0-none-keep-m64-quiet-1", "gpt2-x1-z0-none-keep-m64-quiet-2",
    "plan",
)  # fmt: skip
"""Rows of the grid and of the autotuner's rival that are one configuration."""
GPU, REHEARSED = "h200", 3
"""What was measured on; how many candidates ``trimtab plan --probe`` rehearses."""
SURE, UNLIKELY = 0.9, 0.2
"""Probabilities of fitting."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Searched:
    """The plan against one grid, by each way to a choice."""

    predicted: Verdict
    replayed: Verdict
    """With candidates rehearsed, each from its row again."""
    probed: Verdict | None
    """The answer of ``trimtab plan --probe`` on a GPU; None if it was not run."""
    wrongly_fitting: int
    """Rows that ran out of memory and that the arithmetic called fitting."""
    points: int
    """Of the whole grid."""
    cannot_fit: int
    """Points that were not run since they cannot, as predicted."""
    left: int
    """Points that were not run and might fit."""
    fastest_left: tuple[str, float] | None
    """The fastest of these as predicted, and its seconds."""

    @property
    def name(self) -> str:
        """Model and number of GPUs."""
        return f"{self.predicted.model}, {self.predicted.world}"


def searched() -> list[Searched]:
    """Every grid with what the plan says of its job now."""
    probed = plan_quality.answers(DATA / "probe_plans")
    return [
        _searched(key, rows, probed.get(key))
        for key, rows in sorted(plan_quality.grids(plan_quality.read(GRIDS)).items())
    ]


def _named(config: dict[str, Any], world: int) -> str:
    return plan_quality.named(plan_quality.point(Config.from_mapping(config), world))


def _searched(key: Grid, rows: list[Row], given: Row | None) -> Searched:
    model, world, *_ = key
    done = {row["id"] for row in rows}
    points = [*grid.grid(model, world), *grid.overlapped(model, world)]
    judged = [grid.judge(one, GPU, None) for one in points if one["id"] not in done]
    left = [one for one in judged if one.may_fit]
    fastest = min(left, key=lambda one: one.step_seconds, default=None)
    return Searched(
        predicted=plan_quality.judge(key, rows, GPU, None),
        replayed=plan_quality.judge(key, rows, GPU, None, replayed=REHEARSED),
        probed=None if given is None else plan_quality.judge(key, rows, GPU, None, given),
        wrongly_fitting=plan_quality.wrongly_fitting(rows, GPU, world, None),
        points=len(points),
        cannot_fit=len(judged) - len(left),
        left=len(left),
        fastest_left=fastest and (_named(fastest.job["config"], world), fastest.step_seconds),
    )


HEADLINE = """\
{jobs} jobs of three models on one and two H200s: {measured} of the plan's choices, made without any run,
were measured, and their speed is {shares} of that of the best measured configuration. With up to three
candidates rehearsed on the GPU it is {probed} on one, and {replayed} where rehearsals are replayed from
the same measurements. Stock files of other tools took {median:.2f} times the plan's step in the median,
{least:.2f} to {most:.1f} times. No choice that was run ran out of memory."""

INTRODUCTION = """\
Made by `bench/quality_page.py` from measurements on NVIDIA H200s ([bench/data](../bench/data/README.md));
what the plan says of each job is asked anew. The rates that it reckons with for this card were measured
on H200s as well: for other cards, whose times stand on shares of the datasheet, nothing here is a
measurement."""

GRID_HEAD = """\
## Against a grid of measured configurations

ZeRO stage, offload, recomputation, micro batch and, on two GPUs, `overlap_comm` make a grid; every point
of one model and number of GPUs does the same work (`bench/grid.py`). *Of the best* is the shortest
measured step over the measured step of the plan's choice. Nothing was run for these choices: arithmetic
alone made them. *First by predicted time alone* is the fastest as predicted of the plan's candidates that
were measured, where none counts as equally fast."""

GRID_LIMITS = """\
What this does not say:

- **Four GPUs were not measured**: none could be had; two instead.
- **Not every grid was run whole**: {tried} of {points} points were, {left} more might fit{whole}. The likely
  fast ones ran first. *Fastest not run* is the best of the others as predicted: where it is near the best
  measured, the true best may be a point that nobody tried.
- **Recomputation of some of the layers is no point of the grid**: of `llama-7b` on one GPU three such points
  were measured, the plan's choices as memory and the host's costs came to be counted more closely: 25 layers
  at a micro batch of 8, 15 and 11 at 4. That one of them is the best says that the plan looks where the grid
  does not; it does not say that no number of layers is better.
- **One configuration's times differ by up to 5 % from run to run**: {again}. The processor of these
  machines goes back and forth between two paces ([speed.md](speed.md)), and the optimizer's step waits for
  it. A point that was measured more than once counts with its median.
- `gpt2` and `llama-7b` on one GPU, without offload, were measured four jobs side by side while processes
  of the next jobs were importing; all other rows with cores of their own. Most of those with offload or a
  small micro batch are medians of one to four steps only (`brief`).
- The share within which predicted times count as equal is {tie:.0%} (`TIE` in
  `src/trimtab/plan/contender.py`): of {near} points, those of the next section among them, that took up to
  {nearness:.0%} more than the best of their job and offload nothing, the predicted times are off against each
  other by {apart:.1%} in the median, {ninth:.1%} in nine of ten and {worst:.0%} at most. It was last raised
  with rows of the grids in sight, and it decides `gpt2`'s choice on one GPU: without it that would be the
  first by predicted time, {untied:.1%} of the best. This row is therefore no test of a model that nobody
  measured. Nor is that of `gpt2` on two GPUs: that stage 1 counts as no less simple than stage 0 there was
  seen from it, whose stage 0 at the same micro batch is {unsharded:.1%} of the best."""

REHEARSED_HEAD = """\
## With candidates rehearsed

`trimtab plan --probe` rehearses up to three candidates that may be as fast as the first, and chooses by
their measured times.

- *Replayed*: no GPU ran; each candidate was given the time that its row of the grid has. The choice is
  thus judged by the very numbers that it was made by, and a candidate without a row ends the search.
- *Run*: `--probe` on one H200 (`bench/probe_plans.sh`). The choice's share of the best is by the grid's rows,
  which are of other hours."""

AUTOTUNER_HEAD = """\
## Beside DeepSpeed's autotuner

Both were asked for {model} on one GPU at a batch of {batch} (`bench/autotuner.py`): the autotuner in its
fast mode over stages 0 to 3, {steps} steps profiled an experiment, with a time limit; then both answers
were measured alike."""

AUTOTUNER_TAIL = """\
{ended} What counts is the best that it had measured by then, a micro batch of {micro}{missed}. It had
tried the plan's choice too: {tried:.1f} samples/s by its own count, beside {answer:.1f} of its answer.
Measured alike, the plan's is {ahead:.1%} ahead, little more than the times of one configuration differ
by: what sets them apart is the seconds, and a batch that is kept. One model on one GPU was tried."""

FITTING_HEAD = """\
## Whether it fits

No choice on this page that was run ran out of memory, and of the {short} points that did the arithmetic
called {wrong} fitting (a probability of 0.9). Neither says much about what is close to the edge. So
{bases} jobs were held to {jobs} caps within {off:.0%} of the memory that they need by a replay of
PyTorch's allocator (`bench/near_limit.py`):"""

FITTING_TAIL = """\
{sure} of them lie beyond 0.9, where the plan takes a job for fitting, and {wrong_sure} of these ran out
of memory. A replay at the cap itself said of {right} of the {jobs} what the GPU did.

**{fresh_bases} of the jobs are a fresh test**: nothing was changed for what they showed. They were held
to caps within {fresh_off:.1%} of the predicted need. Of {fresh_sure} tries beyond 0.9 {fresh_wrong} ran
out of memory; of {fresh_unlikely} below 0.2 {fresh_ran} ran. The replay was right about {fresh_right} of
{fresh_jobs}; of those that it called fitting {fresh_unsafe} ran out.

The others taught what a replay has to be. Eighteen of them were measured after the first to see whether
what those gave held, and eight ran out of memory where they were called fitting. So every request of
theirs was written down on the GPU (`scripts/allocation_trace.py`) and held against the replay's, one by
one: backward passes made temporaries as one tensor that PyTorch makes one by one, or in another order;
tied weights are built before they are tied; the driver hands out addresses from above; and a full card
goes on being cut up for up to twenty steps. The spread that the probabilities come from (`REPLAY_RATIOS`
in `src/trimtab/cost/need.py`) is that of other jobs, {drawn} drawn ones whose smallest capacity by the
arithmetic is held against the phantom engine's (`bench/needs.py`)."""


def headline(found: Sequence[Searched]) -> str:
    """The page in three sentences."""
    shares = [one.predicted.share for one in found if one.predicted.share is not None]
    replayed = [one.replayed.share for one in found if one.replayed.share is not None]
    probed = [one.probed.share for one in found if one.probed is not None and one.probed.share is not None]
    ratios = [one.ratio for one in stock_rows() if not one.is_plan and one.ratio is not None]
    return HEADLINE.format(
        jobs=len(found),
        measured=len(shares),
        shares=_span(shares),
        replayed=_span(replayed),
        probed=_span(probed),
        median=statistics.median(ratios),
        least=min(ratios),
        most=max(ratios),
    )


def _span(shares: Sequence[float]) -> str:
    least, most = (f"{one:.1%}" for one in (min(shares), max(shares)))
    return most if least == most else f"{least} to {most}"


def grid_section(found: Sequence[Searched]) -> Iterator[str]:
    """The plan's choices without any run."""
    yield wrapped(GRID_HEAD)
    yield ""
    yield (
        "| model, GPUs | choice | predicted s | measured s | of the best | best measured | s "
        "| first by predicted time alone | s | of the best |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for one in found:
        verdict = one.predicted
        took = "not in the grid" if verdict.choice_seconds is None else f"{verdict.choice_seconds:.3f}"
        yield (
            f"| {one.name} | {verdict.choice} | {verdict.predicted_seconds:.3f} | {took} | {share(verdict)} "
            f"| {verdict.best} | {verdict.best_seconds:.3f} {first(verdict)}"
        )
    yield ""
    yield (
        "| model, GPUs | points | ran | ran out of memory | cannot fit | not run | fastest not run "
        "| its predicted time over the best measured |"
    )
    yield "|---|---|---|---|---|---|---|---|"
    for one in found:
        verdict = one.predicted
        name, seconds = one.fastest_left or ("–", None)
        left = "–" if seconds is None else f"{seconds / verdict.best_seconds:.2f}"
        yield (
            f"| {one.name} | {one.points} | {verdict.measured_rows} | {verdict.out_of_memory_rows} "
            f"| {one.cannot_fit} | {one.left} | {name} | {left} |"
        )
    yield ""
    apart = told_apart()
    yield wrapped(
        GRID_LIMITS.format(
            near=len(apart),
            nearness=plan_quality.NEAR - 1,
            apart=statistics.median(apart),
            ninth=apart[int(len(apart) * 0.9)],
            worst=apart[-1],
            tried=sum(one.predicted.measured_rows + one.predicted.out_of_memory_rows for one in found),
            points=sum(one.points for one in found),
            left=sum(one.left for one in found),
            whole=_whole(found),
            again=again(),
            tie=TIE,
            untied=_untied(found),
            unsharded=_unsharded(),
        )
    )


def share(verdict: Verdict) -> str:
    """In words, of a choice or of what stands for it."""
    if verdict.choice_out_of_memory:
        return "ran out of memory"
    return "–" if verdict.share is None else f"{verdict.share:.1%}"


def first(verdict: Verdict) -> str:
    """The columns of what is first by predicted time alone."""
    if verdict.first_seconds is None:
        return "| – | – | – |"
    of_the_best = verdict.best_seconds / verdict.first_seconds
    return f"| {verdict.first} | {verdict.first_seconds:.3f} | {of_the_best:.1%} |"


def _whole(found: Sequence[Searched]) -> str:
    names = [f"`{one.name}`" for one in found if not one.left]
    return f" ({', '.join(names)} was run whole)" if names else ""


def told_apart() -> list[float]:
    """How far predicted times of measured points near the best are off against each other, ascending."""
    found = plan_quality.grids(plan_quality.read((*GRIDS, choices_section.ROWS)))
    return sorted(error for key, rows in found.items() for error in plan_quality.told_apart(key, rows, GPU))


def _unsharded() -> float:
    """The share of the best that GPT-2's stage 0 has on two GPUs, at a micro batch of 16."""
    rows = [row for row in plan_quality.read(GRIDS) if row["id"].startswith("gpt2-x2-")]
    seconds = {row["id"]: row["step_seconds"] for row in rows if row["step_seconds"]}
    return float(min(seconds.values()) / seconds["gpt2-x2-z0-none-keep-m16"])


def _untied(found: Sequence[Searched]) -> float:
    gpt2 = next(one.predicted for one in found if one.name == "gpt2, 1")
    return gpt2.best_seconds / (gpt2.first_seconds or gpt2.best_seconds)


def again() -> str:
    """What `AGAIN` took each time that it was measured."""
    measured = [*stock.read(GRIDS), *stock.read([DATA / "autotuner_rows.jsonl"])]
    seconds = [row["step_seconds"] for row in measured if row["id"] in AGAIN]
    probed = json.loads((DATA / "probe_plans" / "gpt2-x1-probe.json").read_text("utf-8"))
    seconds += [one["step_seconds"] for one in probed["proven"] if one["summary"].startswith("ZeRO-0,")]
    said = [f"{one:.3f} s" for one in seconds]
    return f"`gpt2` at stage 0 with a micro batch of 64 took {', '.join(said[:-1])} and {said[-1]}"


def rehearsed_section(found: Sequence[Searched]) -> Iterator[str]:
    """The choices among measured candidates."""
    yield wrapped(REHEARSED_HEAD)
    yield ""
    yield "| model, GPUs | how | rehearsed | choice | of the best |"
    yield "|---|---|---|---|---|"
    for one in found:
        for how, verdict in (("replayed", one.replayed), ("run", one.probed)):
            if verdict is not None:
                tried = "<br>".join(verdict.proven)
                yield f"| {one.name} | {how} | {tried} | {verdict.choice} | {share(verdict)} |"


def autotuner_section() -> Iterator[str]:
    """Both answers, and what they took."""
    told = json.loads((DATA / "autotuner.json").read_text("utf-8"))
    tuner, own = told["autotuner"], told["plan"]
    tuning = told["settings"]["autotuning"]
    steps = tuning["end_profile_step"] - tuning["start_profile_step"]
    yield wrapped(AUTOTUNER_HEAD.format(model=told["model"], batch=told["batch"], steps=steps))
    yield ""
    yield "| | answer | seconds to it | experiments | step s | samples a step | samples/s |"
    yield "|---|---|---|---|---|---|---|"
    best = tuner["answer"]
    answer = f"ZeRO-{best['stage']}, micro batch {best['micro']} × {best['accumulation']}"
    rated = [one for one in tuner["experiments"] if one["throughput"] is not None]
    yield _line("autotuner", answer, f"{tuner['seconds']:.0f}", str(len(rated)), tuner["measured"])
    yield _line("`trimtab plan`", own["summary"], f"{own['seconds']:.1f}", "0", own["measured"])
    yield ""
    same = next(one for one in rated if (one["stage"], one["micro"]) == (0, told["batch"]))
    yield wrapped(
        AUTOTUNER_TAIL.format(
            ended="It ended by itself." if tuner["ended"] else "Its time limit ended it.",
            micro=best["micro"],
            missed="" if told["batch"] % best["micro"] == 0 else f", which does not divide {told['batch']}",
            tried=same["throughput"],
            answer=best["throughput"],
            ahead=own["measured"]["samples_per_second"] / tuner["measured"]["samples_per_second"] - 1,
        )
    )


def _line(who: str, answer: str, seconds: str, experiments: str, measured: Row) -> str:
    return (
        f"| {who} | {answer} | {seconds} | {experiments} | {measured['step_seconds']:.3f} "
        f"| {measured['samples']} | {measured['samples_per_second']:.1f} |"
    )


def fitting_section(found: Sequence[Searched]) -> Iterator[str]:
    """How sure "it fits" was, and what ran."""
    these = list(near_limit.tried(NEAR_LIMIT))
    yield wrapped(
        FITTING_HEAD.format(
            short=sum(one.predicted.out_of_memory_rows for one in found),
            wrong=sum(one.wrongly_fitting for one in found) or "none",
            jobs=len(these),
            bases=len({one.base for one in these}),
            off=max(abs(one.share - 1) for one in these),
        )
    )
    yield ""
    yield "| probability of fitting | jobs | expected to run | ran |"
    yield "|---|---|---|---|"
    for low, high, inside in near_limit.bins(these):
        expected = sum(one.probability for one in inside)
        ran = sum(one.ran for one in inside)
        yield f"| {low:.2f} to {high:.2f} | {len(inside)} | {expected:.1f} | {ran} |"
    expected = sum(one.probability for one in these)
    yield f"| all | {len(these)} | {expected:.1f} | {sum(one.ran for one in these)} |"
    yield ""
    sure = [one for one in these if one.probability >= SURE]
    short = sum(not one.ran for one in sure)
    fresh = list(near_limit.tried([AFTERWARDS]))
    fresh_sure = [one for one in fresh if one.probability >= SURE]
    unlikely = [one for one in fresh if one.probability < UNLIKELY]
    yield wrapped(
        FITTING_TAIL.format(
            sure=len(sure),
            wrong_sure=short or "none",
            right=sum(one.replayed == one.ran for one in these),
            jobs=len(these),
            drawn=len(list(needs.rows())),
            fresh_bases=len({one.base for one in fresh}),
            fresh_jobs=len(fresh),
            fresh_off=max(abs(one.share - 1) for one in fresh),
            fresh_sure=len(fresh_sure),
            fresh_wrong=sum(not one.ran for one in fresh_sure) or "none",
            fresh_unlikely=len(unlikely),
            fresh_ran=sum(one.ran for one in unlikely) or "none",
            fresh_unsafe=sum(one.replayed and not one.ran for one in fresh) or "none",
            fresh_right=sum(one.replayed == one.ran for one in fresh),
        )
    )


def page(found: Sequence[Searched]) -> str:
    """The document."""
    sections = (
        ("# How good the plan's choice is", "", wrapped(headline(found)), "", wrapped(INTRODUCTION)),
        grid_section(found),
        choices_section.choices_section(choices_section.trainings()),
        rehearsed_section(found),
        autotuner_section(),
        stock_section(),
        fitting_section(found),
    )
    text = "\n\n".join("\n".join(section) for section in sections)
    return text.replace("%", " %").replace("  %", " %") + "\n"


def main() -> None:
    PAGE.write_text(page(searched()), encoding="utf-8")


if __name__ == "__main__":
    main()
