"""``trimtab rehearse``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trimtab.cli import job_flags as job
from trimtab.errors import Unsupported, UsageError
from trimtab.rehearse.answer import rehearse as answer_for
from trimtab.rehearse.document import to_json as document
from trimtab.rehearse.entry import entry_of
from trimtab.rehearse.on_gpu import gpu_is_here
from trimtab.rehearse.simulator import write_timeline
from trimtab.report.document import to_json
from trimtab.store.database import keep


@job.takes(*(name for name in job.FLAGS if name not in ("link", "host_memory")))
def rehearse(
    config: job.ConfigArgument,
    *,
    phantom: Annotated[
        bool | None,
        typer.Option(
            "--phantom/--no-phantom",
            help="Without a GPU, or on this machine's (default: its GPU if it has one).",
        ),
    ] = None,
    flags: job.Given,
    rank: Annotated[int, typer.Option("--rank", min=0, help="The rank to rehearse.")] = 0,
    modules: Annotated[
        int, typer.Option("--modules", min=0, help="Show the N modules that keep most activations.")
    ] = 0,
    timeline: Annotated[
        Path | None,
        typer.Option("--timeline", help="Write the simulated step for Perfetto or chrome://tracing."),
    ] = None,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Run again what was run before.")] = False,
    picture: job.PictureOption = None,
    as_json: job.JsonOption = False,
) -> int:
    """Run the real engine as one rank, without a GPU or on one.

    Shows what DeepSpeed itself takes beside what the estimate predicts.  A phantom rehearsal needs no GPU
    and no memory, and builds any model that transformers knows.  Exit 1 if the job does not fit.

    \b
    Examples:
      trimtab rehearse llama_7b_single_node --phantom
      trimtab rehearse ds_config.json --model ./my-model --gpu a100-40gb --phantom
      trimtab rehearse gpt_neox_20b_zero3 --phantom --gpu l4 --modules 10 --json
    """
    if picture:
        from trimtab.report.picture_file import check_name, write_picture

        check_name(picture)
    if phantom is False and not gpu_is_here():
        raise Unsupported(
            "this machine shows no GPU to rehearse on; --phantom rehearses the real engine without one"
        )
    settled, cluster, notes = job.settle(config, **flags)
    if phantom is None:
        phantom = not gpu_is_here()
    recorded = "--timeline: only a phantom rehearsal records a step's order; add --phantom"
    if timeline is not None and not phantom:
        raise UsageError(recorded)
    answer = answer_for(settled, cluster, phantom=phantom, rank=rank, use_cache=not no_cache)
    entry = entry_of(answer)
    if entry is not None:
        keep(entry)
    if timeline is not None:
        if answer.seen is None or answer.seen.simulated is None:
            raise UsageError(recorded)
        write_timeline(answer.seen.simulated, timeline)
    if picture:
        write_picture({**document(answer), "notes": list(notes)}, picture)
    if as_json:
        typer.echo(to_json({**document(answer), "notes": list(notes)}))
    else:
        from trimtab.report import console
        from trimtab.report.rehearse import rehearsal_text

        console.show(rehearsal_text(answer, notes, modules=modules))
    return 0 if answer.fits else 1
