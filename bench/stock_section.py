"""The part on other tools' stock files (`stock.py`) of the page that `quality_page.py` writes."""

from __future__ import annotations

import math
import re
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "bench")]

import stock  # noqa: E402
from page_text import wrapped  # noqa: E402
from plan_quality import Row  # noqa: E402

DATA = ROOT / "bench" / "data"
STOCK_SETTLED = DATA / "stock_settled_x1.jsonl"
CLOCKS = DATA / "clocks.jsonl"
"""What the card's clock was and what it drew while these ran."""
AGAIN_ENDING = r"-(quiet|initialized)(-\d)?$"
"""What such a row's name ends with."""

STOCK_HEAD = """\
## Beside stock files

Files that LLaMA-Factory, axolotl and accelerate ship, filled as transformers fills them, with each
project's own micro batch and recomputation (`bench/stock.py`): {model}, {batch} samples of {length:,}
tokens, one GPU. `-largest` is the same file with the largest micro batch that fits. Where fewer micro
steps were measured than the batch has, a step of all is reckoned with the median of the inner ones."""

STOCK_TAIL = """\
In the median of the {count} rows the plan's step is {median:.2f} times as fast, of the {shipped} as
shipped {shipped_median:.2f} times. {unmeasured} further files for one GPU were not measured, most with
offload and micro batches of 1 (`bench/stock.py` says what is predicted of them), so neither is the median
of all."""

NEAREST = """\
**{verdict}** Nearest is `{nearest}`, {ratio:.3f} times the plan's step. Accelerate's files train in fp16,
which is faster by itself: by turns, their first steps gone, the plan's choice took {plan} s, with fp16 in
bf16's place {half} s, {gain:.0%} less; with weights as the architecture asks, not just small and random
ones, {plan_initialized} s and {half_initialized} s, {gain_initialized:.0%} less. All of it is in the
backward pass ({phases}). The card is at its power limit in all of these, {watts} W, and its clock settles
at {half_mhz:,} MHz in fp16 and {plan_mhz:,} MHz in bf16: what the numbers in a product are decides what
it draws, so that what random tokens say here need not hold in training. The plan takes bf16 wherever the
card has it, since it needs no loss scaling, and does not weigh fp16."""


def stock_rows() -> list[stock.Measured]:
    """What was measured, the plan's own among them; where the first steps were left out, only that."""
    settled: dict[str, list[Row]] = defaultdict(list)
    for row in stock.read([STOCK_SETTLED]):
        settled[re.sub(AGAIN_ENDING, "", row["id"])].append(row)
    rows = []
    for row in stock.read([DATA / "stock_x1.jsonl"]):
        these = sorted(settled.get(row["id"], [row]), key=lambda one: one["step_seconds"] or math.inf)
        rows.append({**these[len(these) // 2], "id": row["id"], "job": row["job"]})
    return stock.compared(rows)


def stock_section() -> Iterator[str]:
    """Every measured stock file beside the plan."""
    yield wrapped(STOCK_HEAD.format(model=stock.MODEL, batch=stock.GLOBAL_BATCH, length=stock.SEQUENCE))
    yield ""
    yield "| file | precision | step s | over the plan's | reserved GiB | micro steps measured |"
    yield "|---|---|---|---|---|---|"
    found = stock_rows()
    for one in found:
        name = "**the plan's choice**" if one.is_plan else one.name.replace("-1gpu", "")
        gib = "–" if one.reserved_gib is None else f"{one.reserved_gib:.1f}"
        said = one.said.removesuffix(" micro steps measured") or "all"
        yield f"| {name} | {one.precision} | {one.step_seconds:.3f} | {one.ratio:.2f} × | {gib} | {said} |"
    yield ""
    others = [one for one in found if not one.is_plan]
    shipped = [one for one in others if not one.name.endswith("-largest")]
    yield wrapped(
        STOCK_TAIL.format(
            count=len(others),
            median=_median(others),
            shipped=len(shipped),
            shipped_median=_median(shipped),
            unmeasured=len(stock.files_of(1)) - len(others),
        )
    )
    yield ""
    yield wrapped(nearest(others))


def _median(these: Sequence[stock.Measured]) -> float:
    return statistics.median(one.ratio for one in these if one.ratio is not None)


def nearest(others: Sequence[stock.Measured]) -> str:
    """The file that comes nearest to the plan, and what fp16 has to do with it."""
    settled = stock.read([STOCK_SETTLED])
    plan, half, plan_initialized, half_initialized = (
        [row for row in settled if row["id"].startswith(start)]
        for start in (
            "plan-1gpu-quiet",
            "plan-in-fp16-1gpu-quiet",
            "plan-1gpu-init",
            "plan-in-fp16-1gpu-init",
        )
    )
    phases = ", ".join(
        f"{name} pass {_mean(half, name):.2f} against {_mean(plan, name):.2f} s"
        for name in ("forward", "backward")
    )
    first = min(others, key=lambda one: one.step_seconds)
    faster = sum(one.ratio < 1 for one in others if one.ratio is not None)
    return NEAREST.format(
        verdict=f"{faster} of these files are faster than the plan's choice."
        if faster
        else "None of the measured files is faster than the plan's choice.",
        nearest=first.name.replace("-1gpu", ""),
        ratio=first.ratio,
        plan=_took(plan),
        half=_took(half),
        gain=1 - _mean_step(half) / _mean_step(plan),
        plan_initialized=_took(plan_initialized),
        half_initialized=_took(half_initialized),
        gain_initialized=1 - _mean_step(half_initialized) / _mean_step(plan_initialized),
        phases=phases,
        half_mhz=_clock("plan-in-fp16", "mean_mhz"),
        plan_mhz=_clock("plan-1gpu", "mean_mhz"),
        watts=_clock("plan-", "mean_watts"),
    )


def _clock(start: str, what: str) -> int:
    rows = [row for row in stock.read([CLOCKS]) if row["id"].startswith(start)]
    return round(statistics.mean(row[what] for row in rows))


def _mean_step(these: Sequence[Row]) -> float:
    return statistics.mean(row["step_seconds"] for row in these)


def _took(these: Sequence[Row]) -> str:
    return " and ".join(f"{row['step_seconds']:.2f}" for row in these)


def _mean(these: Sequence[Row], phase: str) -> float:
    return statistics.mean(row["phase_seconds"][phase] for row in these)
