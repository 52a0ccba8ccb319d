"""``trimtab estimate``."""

from __future__ import annotations

from typing import Annotated

import typer

from trimtab.cli import job_flags as job
from trimtab.cli.estimating import run


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
    return run(
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
        tokens=tokens,
        no_corrections=no_corrections,
        picture=picture,
        as_json=as_json,
    )
