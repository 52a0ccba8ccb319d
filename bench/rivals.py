"""Memory of every measured job: what `trimtab estimate` says of it, and what other estimators say.

    python bench/rivals.py --tools PYTHON    ask everything, write bench/data/rivals.jsonl and docs/rivals.md
    python bench/rivals.py                   ask `trimtab estimate` alone again, and write the page

PYTHON is the interpreter of an environment that has the other tools (rival_tools.py runs in it):

    python -m venv /tmp/rivals-venv
    /tmp/rivals-venv/bin/pip install -c constraints.txt torch deepspeed transformers accelerate
    /tmp/rivals-venv/bin/pip install --no-deps llm-analysis==0.2.2 ftuneai==0.4.1 fire termcolor

``--no-deps``, since llm-analysis asks for releases of transformers that it does not need here.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "scripts")]

import make_accuracy  # noqa: E402

from trimtab.cluster import Cluster  # noqa: E402
from trimtab.estimate import estimate  # noqa: E402
from trimtab.model import Model  # noqa: E402
from trimtab.units import GIB  # noqa: E402

OUT = ROOT / "bench" / "data" / "rivals.jsonl"
PAGE = ROOT / "docs" / "rivals.md"
LATE = ("real_worlds.jsonl", "grid_x1.jsonl", "grid_x2.jsonl", "quiet_steps.jsonl")
"""Measured when most of the arithmetic stood."""
H200_GIB = 139.80
"""What PyTorch says that the card has, in the errors of the jobs that ran out."""

Row = dict[str, Any]

OURS = "trimtab"
SHOWN = {
    OURS: ("`trimtab estimate`", "peak of tensors over a step"),
    "deepspeed": ("DeepSpeed's estimators", "model states alone"),
    "accelerate": ("`accelerate estimate-memory`", "model states alone"),
    "llm-analysis": ("llm-analysis", "model states and activations"),
    "cookbook": ("EleutherAI cookbook", "model states, buffers, activations"),
    "ftuneai": ("ftune (`ftuneai`)", "model states, activations, a fifth more"),
}
WHOLE = (OURS, "llm-analysis", "cookbook", "ftuneai")
"""Those that count activations."""


def measured() -> Iterator[tuple[str, Row]]:
    """Every job that a GPU ran or ran out of memory on, with its file; worlds of made-up ranks once."""
    for file in make_accuracy.MEASURED:
        for row in make_accuracy.rows(file):
            made_up = file == "real_worlds.jsonl" and row["group"] != "nccl"
            if "hf" in row and not made_up:
                yield file, row


def ours(row: Row) -> Row:
    """What `trimtab estimate` says: its peak of tensors in bytes, and how probably the job fits."""
    nodes = -(-row["world"] // 8)
    cluster = Cluster.of("h200", gpus_per_node=row["world"] // nodes, nodes=nodes)
    config = make_accuracy.configuration(row)
    answer = estimate(config, cluster, model=Model.from_hf(row["hf"], row["id"]))
    return {"bytes": answer.profile.allocated_peak, "fits_probability": answer.fits_probability}


def read() -> tuple[dict[str, str], list[Row]]:
    """The versions, and the rows, of bench/data/rivals.jsonl."""
    head, *rows = make_accuracy.rows(OUT.name)
    versions: dict[str, str] = head["versions"]
    return versions, rows


def ask(interpreter: str | None) -> tuple[dict[str, str], list[Row]]:
    """Everything anew; without ``interpreter`` what the other tools said is kept."""
    jobs = list(measured())
    if interpreter is None:
        versions, rows = read()
        answers = {row["id"]: row["says"] for row in rows}
        if new := [row["id"] for _, row in jobs if row["id"] not in answers]:
            raise SystemExit(f"Nobody has asked the other tools about {', '.join(new)}: give --tools")
    else:
        script = Path(__file__).with_name("rival_tools.py")
        done = subprocess.run(
            [interpreter, str(script)],
            input=json.dumps([row for _, row in jobs]),
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        # DeepSpeed talks on standard output when imported
        found = json.loads(done.stdout.splitlines()[-1])
        versions, answers = found["versions"], found["answers"]
    rows = []
    for file, row in jobs:
        end = row["gib"].get("end")
        rows.append(
            {
                "id": row["id"],
                "file": file,
                "measured_gib": end and end["peak_alloc"],
                "says": {**answers[row["id"]], OURS: ours(row)},
            }
        )
    return versions, rows


def said(row: Row, tool: str) -> int | None:
    """Bytes that ``tool`` says of the job, None if it cannot."""
    found: int | None = row["says"][tool].get("bytes")
    return found


def error(row: Row, tool: str) -> float | None:
    """Relative error of ``tool``; None if it cannot answer."""
    found = said(row, tool)
    return None if found is None else found / GIB / row["measured_gib"] - 1


def errors(rows: Iterable[Row], tool: str) -> list[float]:
    """Relative errors of ``tool`` over what it can answer."""
    return [found for row in rows if (found := error(row, tool)) is not None]


def percent(share: float, sign: str = "") -> str:
    """With two figures, or two decimals below a tenth."""
    return format(share, f"{sign}.2%" if abs(share) < 0.0995 else f"{sign}.0%").replace("%", " %")


def median(found: Sequence[float]) -> str:
    """Of the sizes of the errors."""
    return percent(statistics.median(map(abs, found)))


def largest(found: Sequence[float]) -> str:
    """The error furthest from nothing, with its sign."""
    return percent(max(found, key=abs), "+")


def table(rows: list[Row], tools: Iterable[str] = SHOWN) -> list[str]:
    """A Markdown table of errors, a row a tool."""
    lines = [
        "| tool | what it counts | jobs it can answer | median error | largest | within 10 % |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for tool in tools:
        found = errors(rows, tool)
        near = sum(abs(one) <= 0.1 for one in found) / len(found)
        name, counts = SHOWN[tool]
        cells = [
            name,
            counts,
            f"{len(found)} of {len(rows)}",
            median(found),
            largest(found),
            f"{near:.0%}".replace("%", " %"),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def common(rows: list[Row], tools: Iterable[str]) -> list[Row]:
    """The jobs that all of ``tools`` can answer."""
    return [row for row in rows if all(said(row, tool) is not None for tool in tools)]


def ended(rows: list[Row]) -> list[Row]:
    """The jobs that reached their end, and so have a peak."""
    return [row for row in rows if row["measured_gib"] is not None]


def sentence(rows: list[Row]) -> str:
    """What README.md says of the comparison."""
    ran = ended(rows)
    both = common(ran, WHOLE)
    others = ", ".join(
        f"that of {SHOWN[tool][0]} {median(errors(both, tool))}" for tool in WHOLE if tool != OURS
    )
    return (
        f"On the {len(both)} of {len(ran)} measured jobs that other calculators of activations can take, "
        f"its median error is {median(errors(both, OURS))}, {others} ([docs/rivals.md](docs/rivals.md))."
    )


def page(versions: dict[str, str], rows: list[Row]) -> str:
    """The whole page."""
    ran, tools = ended(rows), list(SHOWN)
    every, whole = common(ran, tools), common(ran, WHOLE)
    lines = [INTRODUCTION.format(count=len(ran)), *table(ran), ""]
    lines += [f"The {len(whole)} jobs that all those can answer that count activations:", ""]
    lines += [*table(whole, WHOLE), ""]
    lines += [f"The {len(every)} jobs that all six can answer:", "", *table(every), ""]
    for title, late in (("measured first", False), ("measured later", True)):
        part = [row for row in whole if (row["file"] in LATE) is late]
        lines += [f"Of the {len(whole)}, the {len(part)} that were {title}:", "", *table(part, WHOLE), ""]
    lines += [*fitting(rows), "", *cannot(ran), "", ASKED.format(**versions, **readings(ran)), CAVEATS]
    return "\n".join(lines)


def fits(row: Row, tool: str) -> bool | None:
    """Whether ``tool`` says that the job fits one H200; None if it cannot answer."""
    found = said(row, tool)
    if found is None:
        return None
    chance: float | None = row["says"][tool].get("fits_probability")
    return found <= H200_GIB * GIB if chance is None else chance >= 0.5


def fitting(rows: list[Row]) -> Iterator[str]:
    """A table of who is wrong on whether a job fits."""
    out = [row for row in rows if row["measured_gib"] is None]
    yield FITTING.format(count=len(out), card=H200_GIB)
    yield "| tool | ran out, it says they fit | ran, it says they do not fit |"
    yield "|---|---:|---:|"
    for tool, (name, _) in SHOWN.items():
        cells = [name]
        for part, wrong in ((out, True), (ended(rows), False)):
            verdicts = [verdict for row in part if (verdict := fits(row, tool)) is not None]
            cells.append(f"{verdicts.count(wrong)} of {len(verdicts)}")
        yield f"| {' | '.join(cells)} |"


def cannot(ran: list[Row]) -> Iterator[str]:
    """A table of what the tools have no word for, with the jobs that it costs."""
    yield "## What they cannot take"
    yield ""
    yield "| tool | what it has no word for, and how many jobs that leaves out |"
    yield "|---|---|"
    for tool, (name, _) in SHOWN.items():
        why = Counter(part for row in ran if (part := row["says"][tool].get("cannot")))
        yield f"| {name} | {', '.join(f'{part} ({n})' for part, n in why.most_common()) or 'nothing here'} |"


def readings(ran: list[Row]) -> dict[str, str]:
    """Medians of the readings that were not taken, beside those that were."""
    names = ("cookbook", "cookbook-fused", "cookbook-wide", "ftuneai", "ftuneai-tensors")
    return {name.replace("-", "_") + "_median": median(errors(ran, name)) for name in names}


INTRODUCTION = """\
# Beside other estimators

Peak memory over a training step (`max_memory_allocated`) of {count} jobs, measured on NVIDIA H200s with
torch 2.11, DeepSpeed 0.19.8 and transformers 5.17, and what five estimators that anyone can install or read
say of the same, beside `trimtab estimate`. They are the jobs of [accuracy.md](accuracy.md); of those
measured with real and with made-up ranks side by side only the real ones. Each tool is given everything
that it can take. A job counts for a tool only if the tool has a word for all that decides the job's memory
(ZeRO stage and world, offload, LoRA, precision, optimizer); otherwise it has no answer. Errors are relative
to what was measured, the median is that of their sizes.

This page is written by `bench/rivals.py` from `bench/data/rivals.jsonl`, and a test holds it to that.
"""

FITTING = """\
## Does it fit?

{count} more jobs ran out of memory on one H200, of which PyTorch sees {card:.2f} GiB. Counted are the jobs
of which a tool can answer and is wrong. `trimtab estimate` gives a verdict, which weighs what the allocator
and the driver take; ftune compares its total with the card, and so is done here with the others. The
verdict of `trimtab estimate` was mended on these very jobs: six that ran within 0.4 GiB of the card's end
were refused at first ([accuracy.md](accuracy.md)). The others have not seen them.
"""

ASKED = """\
## How each was asked

- DeepSpeed {deepspeed}: `estimate_zero2_model_states_mem_needs` and `estimate_zero3_model_states_mem_needs`
  (`deepspeed/runtime/zero/stage_1_and_2.py`, `stage3.py`) with the model's exact number of parameters, its
  largest layer by their own rule, the world, and which offload. There is none for stages 0 and 1. Model
  states are all that they claim to count.
- accelerate {accelerate}: `calculate_maximum_sizes` and `estimate_training_usage`, which are what
  `accelerate estimate-memory` calls, for "Training using Adam", on the very model with its head. It asks
  for no batch, sequence or number of GPUs, so it answers only where nothing is divided among GPUs.
- llm-analysis {llm-analysis} from PyPI: `LLMAnalysis.training` with the model's shape, micro batch,
  sequence, recomputation, ZeRO stage, world, fused attention and the optimizer's bytes. It has a gated
  feed-forward part as two wider matrices, as in its own LLaMA 2 file, ties the output to the input
  embedding, and refuses fp32. It ran beside a newer transformers than it asks for, of which it uses nothing
  here.
- EleutherAI cookbook, `calc/calc_transformer_mem.py`, by its formula
  ([069ae2e](https://github.com/EleutherAI/cookbook/blob/069ae2ef9f69f8fb3f1413272015ccb59f3d4a6c/calc/calc_transformer_mem.py)),
  which is not on PyPI: with three matrices for gated models, the ratio of key and value heads, gradients in
  the job's precision, and its buffers held down to the size of the model. With its default of fp32
  gradients the median is {cookbook_wide_median} in place of {cookbook_median}. It has no word for fused
  attention and counts the scores unless recomputation is on. Its formula for recomputation keeps what fused
  attention would: taken for that too, the median is {cookbook_fused_median}.
- ftune, `ftuneai` {ftuneai} from PyPI: `MemoryEstimator` with the exact number of parameters, full training
  or LoRA by rank and targets, micro batch, sequence, recomputation, fused attention, optimizer, ZeRO stage
  and world. It adds a fifth for context and fragmentation, which are not in the measured figure; without
  that the median is {ftuneai_tensors_median} in place of {ftuneai_median}, so the total is shown.
"""

CAVEATS = """\
## What this comparison does not say

- The arithmetic of `trimtab estimate` was made and mended with most of these jobs in sight. Those measured
  later (`real_worlds.jsonl`, the grids, `quiet_steps.jsonl`) came when most of it stood, but it has been
  worked on since. The others never saw any of them. Jobs that nobody measured are in
  [accuracy.md](accuracy.md).
- Most of the jobs were chosen to try DeepSpeed's engine: small models, where what model states leave out is
  much. The larger the model and the smaller the batch, the nearer an estimate of model states alone.
- DeepSpeed's estimators and accelerate do not claim to count activations, and their errors are mostly that.
- Several jobs are alike (the grid on one GPU has a job's stages side by side, and some ran with real ranks
  and made-up ones), so the counts overstate how much was tried.
- llm-analysis, the cookbook and ftune estimate any framework; this is DeepSpeed with Hugging Face models
  alone, on one kind of card. llm-analysis and ftune also answer time and money, which are not compared
  here.
"""


def write(versions: dict[str, str], rows: list[Row]) -> None:
    """The data and the page."""
    lines = [json.dumps(one) for one in ({"versions": versions}, *rows)]
    OUT.write_text("\n".join(lines) + "\n", encoding="utf-8")
    PAGE.write_text(page(versions, rows), encoding="utf-8")


def main() -> int:
    """Ask, write, and print what README.md should say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--tools", metavar="PYTHON", help="the interpreter that has the other tools")
    versions, rows = ask(parser.parse_args().tools)
    write(versions, rows)
    print(sentence(rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
