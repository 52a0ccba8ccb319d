"""``trimtab report``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from trimtab.cli import job_flags as job
from trimtab.errors import UnreadableFile, UsageError


def report(
    what: Annotated[
        str, typer.Argument(metavar="WHAT", help="A run's folder, a number of the history, or an answer.")
    ],
    output: Annotated[
        str | None, typer.Option("--output", metavar="FILE", help="Where to (default: beside it).")
    ] = None,
    as_json: job.JsonOption = False,
) -> int:
    """Make one page of a training run, of a rehearsal or of an estimate.

    The page is one HTML file that needs nothing else: what was predicted beside what was measured, pictures
    of loss, speed and memory, how it went.  An answer is a file that `trimtab estimate --json` or
    `trimtab rehearse --json` wrote.

    \b
    Examples:
      trimtab report runs/gpt2_baseline
      trimtab report 12 --output rehearsal.html
      trimtab report answer.json
    """
    from trimtab.report.document import to_json

    text, beside = _page(what)
    file = Path(output) if output else beside
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{file}: cannot be written: {error.strerror}. Give --output FILE") from None
    typer.echo(to_json({"written": str(file)}) if as_json else str(file))
    return 0


def _page(what: str) -> tuple[str, Path]:
    """The page, and where it goes unless the user says otherwise."""
    from trimtab.report.memory_page import memory_page
    from trimtab.report.run_page import entry_page, run_page
    from trimtab.train.folder import RunFolder

    path = Path(what)
    if path.is_dir():
        folder = RunFolder(path)
        if not folder.exists():
            raise UnreadableFile(f"{path}: no run lives in this folder (it has no {folder.settings.name})")
        return run_page(folder), folder.page
    if path.is_file():
        return memory_page(_answer(path)), path.with_suffix(".html")
    if what.isdigit():
        from trimtab.store.database import entry

        found = entry(int(what))
        folder = RunFolder(Path(found.document.get("run") or "/nowhere"))
        text = run_page(folder) if found.how == "training" and folder.exists() else entry_page(found)
        return text, Path(f"run-{what}.html")
    raise UsageError(f"{what}: neither a run's folder, nor a file, nor a number that `trimtab history` lists")


def _answer(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise UnreadableFile(f"{path}: not JSON: {error}") from None
    if not isinstance(found, dict) or not {"method", "gpu", "host", "speed"} <= set(found):
        raise UnreadableFile(
            f"{path}: not an answer of `trimtab estimate --json` or `trimtab rehearse --json`"
        )
    return found
