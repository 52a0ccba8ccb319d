"""``trimtab estimate``."""

from __future__ import annotations

from typing import Annotated

import typer

from trimtab.cli import job_flags as job
from trimtab.estimate import estimate as answer_for
from trimtab.estimate import to_json as document
from trimtab.estimate import with_run
from trimtab.report.document import to_json
from trimtab.units import parse_count


def estimate(
    config: job.ConfigArgument,
    model: job.ModelOption = None,
    gpu: job.GpuOption = None,
    gpus_per_node: job.GpusOption = None,
    nodes: job.NodesOption = None,
    link: job.LinkOption = None,
    host_memory: job.HostMemoryOption = None,
    sequence_length: job.SequenceOption = None,
    target_length: job.TargetOption = None,
    micro_batch: job.MicroOption = None,
    grad_accum: job.AccumulationOption = None,
    task: job.TaskOption = None,
    checkpoint_activations: job.RecomputeOption = None,
    attention: job.AttentionOption = None,
    kernels: job.KernelsOption = None,
    lora_r: job.LoraRankOption = None,
    lora_targets: job.LoraTargetsOption = None,
    tokens: Annotated[
        str | None,
        typer.Option("--tokens", metavar="N", help="Tokens of the whole run, such as 300B: days, dollars."),
    ] = None,
    no_corrections: job.NoCorrectionsOption = False,
    picture: job.PictureOption = None,
    as_json: job.JsonOption = False,
) -> int:
    """Say whether a job fits its GPUs, how fast it runs and what it costs.

    Counts every tensor of the model and of DeepSpeed's engine, without torch or a GPU.  What rehearsals and
    trainings of the job on this machine have measured corrects it.  Exit 1 if it does not fit.

    \b
    Examples:
      trimtab estimate llama_7b_single_node --tokens 1T
      trimtab estimate ds_config.json --model ./my-model --gpu a100-40gb \\
        --gpus-per-node 8
      trimtab estimate llama_13b_zero3_offload --gpu rtx4090 --micro-batch 1
    """
    if picture:
        from trimtab.report.picture_file import check_name, write_picture

        check_name(picture)
    settled, cluster, notes = job.settle(
        config,
        model=model,
        gpu=gpu,
        gpus_per_node=gpus_per_node,
        nodes=nodes,
        link=link,
        host_memory=host_memory,
        sequence_length=sequence_length,
        target_length=target_length,
        micro_batch=micro_batch,
        grad_accum=grad_accum,
        task=task,
        checkpoint_activations=checkpoint_activations,
        attention=attention,
        kernels=kernels,
        lora_r=lora_r,
        lora_targets=lora_targets,
    )
    answer = answer_for(settled, cluster)
    if not no_corrections:
        answer = job.corrected_by_history(answer)
    if tokens is not None:
        answer = with_run(answer, parse_count(tokens))
    if picture:
        write_picture({**document(answer), "notes": list(notes)}, picture)
    if as_json:
        typer.echo(to_json({**document(answer), "notes": list(notes)}))
    else:
        from trimtab.report import console
        from trimtab.report.estimate import estimate_text

        console.show(estimate_text(answer, notes))
    return 0 if answer.fits else 1
