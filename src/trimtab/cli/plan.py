"""``trimtab plan``."""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from trimtab.cli import job_flags as job
from trimtab.cost.need import SURE
from trimtab.errors import UnreadableFile, Unsupported, UsageError
from trimtab.job import Lora
from trimtab.plan import OBJECTIVES, OPTIMIZE
from trimtab.plan import plan as plan_of
from trimtab.plan.answer import Plan, Prover
from trimtab.plan.document import file_of
from trimtab.plan.document import to_json as document
from trimtab.rehearse.on_gpu import gpu_is_here
from trimtab.report.document import to_json
from trimtab.units import parse_bytes, parse_count

MOST_PROBES = 3
SECONDS_A_DAY = 86_400


def plan(
    model: Annotated[
        str,
        typer.Option("--model", metavar="M", help="A catalogue name, a Hugging Face id or a config.json."),
    ],
    gpu: Annotated[
        str, typer.Option("--gpu", metavar="NAME", help="Such as a100-80gb; several with commas; or any.")
    ] = "any",
    gpus_per_node: job.GpusOption = None,
    nodes: job.NodesOption = None,
    link: job.LinkOption = None,
    host_memory: job.HostMemoryOption = None,
    max_gpus: Annotated[
        int | None, typer.Option("--max-gpus", metavar="N", min=1, help="Leave the counts open up to N GPUs.")
    ] = None,
    objective: Annotated[
        str, typer.Option("--objective", metavar="O", help=", ".join(OBJECTIVES))
    ] = "finetune",
    task: job.TaskOption = None,
    sequence_length: job.SequenceOption = None,
    target_length: job.TargetOption = None,
    global_batch: Annotated[
        int | None, typer.Option("--global-batch", metavar="N", min=1, help="Samples of an optimizer step.")
    ] = None,
    tokens: Annotated[
        str | None, typer.Option("--tokens", metavar="T", help="Of the whole run, such as 300M or 1T.")
    ] = None,
    budget_usd: Annotated[
        float | None, typer.Option("--budget-usd", metavar="D", help="What the run may cost.")
    ] = None,
    deadline_days: Annotated[
        float | None, typer.Option("--deadline-days", metavar="D", help="How long the run may take.")
    ] = None,
    optimize: Annotated[
        str, typer.Option("--optimize", metavar="WHAT", help=", ".join(OPTIMIZE))
    ] = "fastest",
    attention: job.AttentionOption = None,
    kernels: job.KernelsOption = None,
    lora_r: job.LoraRankOption = None,
    lora_targets: job.LoraTargetsOption = None,
    fits_probability: Annotated[
        float, typer.Option("--fits-probability", metavar="P", help="How sure a plan must be to fit.")
    ] = SURE,
    spot: Annotated[bool, typer.Option("--spot", help="Reckon with spot prices.")] = False,
    prices: Annotated[
        Path | None, typer.Option("--prices", metavar="FILE", help="Your own prices, JSON or CSV.")
    ] = None,
    prove: Annotated[
        int,
        typer.Option("--prove", metavar="N", min=0, help="Run the N best through the real engine, GPU-less."),
    ] = 0,
    probe: Annotated[
        bool, typer.Option("--probe", help="Rehearse up to three of the best on this machine's GPU.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write the configuration there.")
    ] = None,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write a report with pictures there.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite files that are there.")] = False,
    as_json: job.JsonOption = False,
) -> int:
    """Choose the configuration for a model and GPUs, with reasons.

    Weighs every ZeRO stage, offload, recomputation and micro batch at the same global batch, by arithmetic
    and without a GPU. Exit 1 if nothing fits or keeps the limits; the nearest plan that would is shown.

    \b
    Examples:
      trimtab plan --model llama-7b --gpu a100-80gb --gpus-per-node 8 \\
        -o plan.json
      trimtab plan --model llama-7b --objective lora --gpu any --tokens 50M \\
        --budget-usd 100 --optimize cheapest --spot
      trimtab plan --model llama-70b --objective pretrain --gpu h100 \\
        --gpus-per-node 8 --nodes 8 --tokens 1T --deadline-days 90 --json
    """
    for file in (output, html):
        _refuse_overwriting(file, force)
    if output is not None and html is not None and output.absolute() == html.absolute():
        raise UsageError(f"-o and --html both name {output}: give them two files")
    lora = None
    if lora_r is not None or lora_targets is not None:
        targets = tuple(one.strip() for one in lora_targets.split(",")) if lora_targets else None
        lora = Lora(r=lora_r or 8, lora_alpha=2 * (lora_r or 8), target_modules=targets)
    if prove and probe:
        raise UsageError("--prove and --probe are two ways of proof; give one of them")
    # a search makes millions of short-lived values and no cycles worth collecting: twice as fast without
    gc.disable()
    answer = plan_of(
        model,
        gpu=gpu,
        gpus_per_node=gpus_per_node,
        nodes=nodes,
        max_gpus=max_gpus,
        link=link,
        host_memory_bytes=None if host_memory is None else parse_bytes(host_memory),
        file=str(output) if output else "plan.json",
        prove=MOST_PROBES if probe else prove,
        prover=_prover(prove, probe),
        objective=objective,
        task=task,
        sequence_length=sequence_length,
        target_length=target_length,
        global_batch=global_batch,
        tokens=None if tokens is None else parse_count(tokens),
        budget_usd=budget_usd,
        deadline_seconds=None if deadline_days is None else deadline_days * SECONDS_A_DAY,
        optimize=optimize,
        attention=attention or "sdpa",
        kernels=kernels or "plain",
        lora=lora,
        sure=fits_probability,
        spot=spot,
        price_file=None if prices is None else str(prices),
    )
    _write(answer, output, html)
    if as_json:
        typer.echo(to_json(document(answer)))
    else:
        from trimtab.report import console
        from trimtab.report.plan import plan_text

        console.show(plan_text(answer, written=None if output is None else str(output)))
    return 0 if answer.chosen is not None else 1


def _refuse_overwriting(file: Path | None, force: bool) -> None:
    if file is not None and file.exists() and not force:
        raise UsageError(f"{file} is there already; --force overwrites it.")


def _prover(prove: int, probe: bool) -> Prover | None:
    if not prove and not probe:
        return None
    from trimtab.rehearse import proving

    if not probe:
        return proving.under_fake_tensors
    if not gpu_is_here():
        raise Unsupported("this machine shows no GPU to probe; --prove N runs the real engine without one")
    return proving.on_this_gpu


def _write(answer: Plan, output: Path | None, html: Path | None) -> None:
    if output is not None and answer.chosen is not None:
        _save(output, json.dumps(file_of(answer.chosen), indent=2) + "\n")
    if html is not None:
        from trimtab.report.plan_page import plan_page

        _save(html, plan_page(answer))


def _save(file: Path, text: str) -> Any:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UnreadableFile(f"{file}: cannot be written: {error.strerror}.") from None
    typer.echo(f"wrote {file}", err=True)
