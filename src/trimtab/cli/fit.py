"""``trimtab fit``."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from trimtab import fit as edges
from trimtab.cli import job_flags as job
from trimtab.cli.settling import hold_to_the_engine
from trimtab.errors import UsageError
from trimtab.estimate import to_json as estimate_document
from trimtab.model import catalogue, find_model
from trimtab.report.document import to_json
from trimtab.units import format_bytes, format_count

SOUGHT = {"micro-batch": "micro_batch", "sequence-length": "sequence_length"}
"""The flag that states what a question looks for."""


@job.takes(
    "model", "gpu", "gpus_per_node", "nodes", "sequence_length", "micro_batch", "checkpoint_activations"
)
def fit(
    config: job.ConfigArgument,
    *,
    find: Annotated[
        str, typer.Option("--find", metavar="WHAT", help=", ".join(edges.QUESTIONS))
    ] = "micro-batch",
    flags: job.Given,
    as_json: job.JsonOption = False,
) -> int:
    """Find the most that fits: micro batch, sequence, model or GPUs.

    Answers with the largest value that fits with 95 % certainty.  Exit 1 if nothing does.

    \b
    Examples:
      trimtab fit llama_7b_single_node --gpu h100
      trimtab fit llama_7b_single_node --find sequence-length --micro-batch 1
      trimtab fit llama_70b_multi_node --find gpus
    """
    if find not in edges.QUESTIONS:
        raise UsageError(f"--find {find}: it is one of {', '.join(edges.QUESTIONS)}")
    if find in SOUGHT and flags[SOUGHT[find]] is not None:
        raise UsageError(f"--find {find} looks for what --{find} states: leave one of them out")
    settled, cluster, notes = job.settle(config, **flags)
    hold_to_the_engine(config, settled, cluster)
    if find == "micro-batch":
        edge = edges.largest_micro_batch(settled, cluster)
    elif find == "sequence-length":
        edge = edges.longest_sequence(settled, cluster)
    elif find == "gpus":
        edge = edges.fewest_gpus(settled, cluster)
    else:
        kind = find_model(settled.job.model).model_type if settled.job.model else "llama"
        same = [find_model(name) for name, row in catalogue().items() if row["hf"]["model_type"] == kind]
        edge = edges.largest_model(settled, cluster, same)
    if as_json:
        typer.echo(to_json(_document(edge, notes)))
    else:
        for note in notes:
            typer.echo(f"note: {note}")
        typer.echo(_sentence(edge))
    return 0 if edge.value is not None else 1


def _document(edge: edges.Edge, notes: tuple[str, ...]) -> dict[str, Any]:
    return {
        "question": edge.question,
        "value": edge.value,
        "estimate": None if edge.answer is None else estimate_document(edge.answer),
        "beyond": None if edge.beyond is None else estimate_document(edge.beyond),
        "notes": list(notes),
    }


def _sentence(edge: edges.Edge) -> str:
    last = edge.beyond
    if edge.value is None or edge.answer is None:
        need = f": {format_bytes(last.needed.expected)} needed" if last else ""
        return f"nothing fits{need}" + (f" of {format_bytes(last.capacity_bytes)}" if last else "")
    answer = edge.answer
    names = {
        "micro-batch": "largest micro batch",
        "sequence-length": "longest sequence",
        "gpus": "fewest GPUs",
        "model": "largest model",
    }
    text = (
        f"{names[edge.question]}: {edge.value}\n"
        f"needs {format_bytes(answer.needed.expected)} of {format_bytes(answer.capacity_bytes)} on "
        f"{answer.cluster.world_size} × {answer.cluster.gpu.name}, "
        f"{format_count(answer.tokens_per_second_per_gpu)} tokens/s per GPU"
    )
    if last is not None:
        text += (
            f"\none step further needs {format_bytes(last.needed.expected)} "
            f"and would fit with {last.fits_probability:.0%} certainty; {edges.SURE:.0%} is asked"
        )
    return text
