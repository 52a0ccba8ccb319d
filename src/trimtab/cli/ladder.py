"""``trimtab ladder``."""

from __future__ import annotations

import typer

from trimtab.cli import job_flags as job
from trimtab.cli.settling import hold_to_the_engine


@job.takes("model", *job.MACHINES, "sequence_length", "micro_batch", "task")
def ladder(config: job.ConfigArgument, flags: job.Given, as_json: job.JsonOption = False) -> int:
    """Show the way out of out-of-memory, step by step.

    What each step would need and cost, with all steps before it, and which is the first to fit; then the
    four levels of offload.  Exit 1 if no step fits.

    \b
    Examples:
      trimtab ladder llama_7b_single_node --gpu t4
      trimtab ladder ds_config.json --model llama-13b --gpu rtx4090 \\
        --gpus-per-node 4 --host-memory 256GiB
    """
    from trimtab.ladder import ladder as answer_for
    from trimtab.report import console
    from trimtab.report.document import to_json
    from trimtab.report.ladder import ladder_document, ladder_text

    settled, cluster, notes = job.settle(config, **flags)
    hold_to_the_engine(config, settled, cluster)
    answer = answer_for(settled, cluster)
    if as_json:
        typer.echo(to_json({**ladder_document(answer), "notes": list(notes)}))
    else:
        console.show(ladder_text(answer))
        for note in notes:
            typer.echo(f"note: {note}")
    return int(answer.first is None)
