"""``trimtab estimate``."""

from __future__ import annotations

from typing import Annotated

import typer

from trimtab.cli import job_flags as job
from trimtab.cli.estimating import run


@job.takes(*job.FLAGS)
def estimate(
    config: job.ConfigArgument,
    flags: job.Given,
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
        config, tokens=tokens, no_corrections=no_corrections, picture=picture, as_json=as_json, **flags
    )
