"""``trimtab probe``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trimtab.cli import job_flags as job
from trimtab.probe import kept
from trimtab.probe.start import gpus_here
from trimtab.probe.start import probe as measure
from trimtab.report.document import to_json


def probe(
    output: Annotated[
        Path | None, typer.Option("--output", help="Also write the whole sheet of measurements to this file.")
    ] = None,
    disk: Annotated[
        Path | None, typer.Option("--disk", help="A folder on the NVMe disk to measure, 1 GiB free a rank.")
    ] = None,
    build: Annotated[
        bool,
        typer.Option("--build", help="Compile DeepSpeed's own Adams first where they are missing (minutes)."),
    ] = False,
    ranks: Annotated[
        int | None,
        typer.Option("--ranks", min=1, help="Processes to start (default: one for each GPU; two without)."),
    ] = None,
    keep: Annotated[
        bool, typer.Option("--keep/--no-keep", help="Keep the sheet for `trimtab estimate`.")
    ] = True,
    as_json: job.JsonOption = False,
) -> int:
    """Measure what this machine's GPUs, links and host really do.

    Takes a minute or two, with every GPU that it sees.  The sheet is kept in the cache folder, and
    estimates for this GPU then stand on it instead of the figures that come with Trimtab.  Without a GPU it
    measures the processor, in small, to show the path.  Under torchrun it measures across nodes.  What
    fails is named, the rest is kept, and the exit code is 1.

    \b
    Examples:
      trimtab probe
      trimtab probe --build --disk /mnt/nvme --output h200x4.json
      torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d \\
        --rdzv-endpoint HOST:29500 -m trimtab probe
    """
    if output is not None:
        kept.check_writable(output)
    found = gpus_here()
    sheet = measure(device="cuda" if found else "cpu", ranks=ranks or found or 2, disk=disk, build=build)
    if sheet is None:
        return 0
    files = [*([kept.kept_file(sheet)] if keep else []), *([output] if output else [])]
    for file in files:
        kept.write(sheet, file)
    if as_json:
        typer.echo(to_json(sheet))
    else:
        from trimtab.report import console
        from trimtab.report.probe import probe_text

        console.show(probe_text(sheet, files))
    return 1 if sheet["failures"] else 0
