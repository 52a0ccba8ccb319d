"""``trimtab check``."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trimtab.errors import UnreadableFile, UsageError
from trimtab.findings import Severity

if TYPE_CHECKING:
    from trimtab.check import Report
    from trimtab.fixing import Fixed
    from trimtab.source import Source


class OutputFormat(str, Enum):
    """How findings are printed."""

    full = "full"
    concise = "concise"
    json = "json"
    json_lines = "json-lines"
    sarif = "sarif"
    github = "github"
    gitlab = "gitlab"
    junit = "junit"


FORMATS_HELP = f"How to print: {', '.join(one.value for one in OutputFormat)}."


class FailOn(str, Enum):
    """The least severity that makes the exit code 1."""

    error = "error"
    warning = "warning"
    info = "info"
    never = "never"


Paths = Annotated[
    list[str],
    typer.Argument(metavar="PATH", help="Files, folders, names from `trimtab list`, or - for stdin."),
]


def check(
    paths: Paths,
    deepspeed: Annotated[
        str | None, typer.Option(metavar="X.Y.Z", help="Release to judge by. Default: the installed one.")
    ] = None,
    loader: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Who reads the file: deepspeed, transformers, accelerate."),
    ] = None,
    gpus_per_node: Annotated[int | None, typer.Option(metavar="N", help="GPUs in each node.")] = None,
    nodes: Annotated[int | None, typer.Option(metavar="N", help="Nodes.")] = None,
    model: Annotated[str | None, typer.Option(metavar="M", help="Model, as in the trimtab block.")] = None,
    gpu: Annotated[str | None, typer.Option(metavar="NAME", help="GPU, such as a100-40gb or H100:8.")] = None,
    select: Annotated[
        list[str] | None, typer.Option(metavar="RULES", help="Only these rules: codes, prefixes or names.")
    ] = None,
    ignore: Annotated[
        list[str] | None, typer.Option(metavar="RULES", help="Not these rules: codes, prefixes or names.")
    ] = None,
    fix: Annotated[bool, typer.Option("--fix", help="Apply safe fixes.")] = False,
    unsafe_fixes: Annotated[
        bool, typer.Option("--unsafe-fixes", help="Apply fixes that change what the run does too.")
    ] = False,
    diff: Annotated[
        bool, typer.Option("--diff", help="Show what fixing would change, and change nothing.")
    ] = False,
    output_format: Annotated[OutputFormat, typer.Option(metavar="FORMAT", help=FORMATS_HELP)] = OutputFormat.full,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    output_file: Annotated[
        Path | None, typer.Option("--output-file", "-o", metavar="FILE", help="Write there, not to stdout.")
    ] = None,
    fail_on: Annotated[
        FailOn, typer.Option(help="Least severity that makes the exit code 1.")
    ] = FailOn.warning,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Settings. Default: trimtab.toml or pyproject.toml.")
    ] = None,
    isolated: Annotated[bool, typer.Option("--isolated", help="Read no settings.")] = False,
) -> int:
    """Find what is wrong with configurations, and fix it.

    Reads JSON (with comments, as DeepSpeed does) and the YAML files of Accelerate and of training arguments
    that point at one. Says what DeepSpeed will refuse, what it will silently ignore, and what will hurt.

    \b
    Examples:
      trimtab check ds_config.json
      trimtab check ds_config.json --loader transformers --gpus-per-node 8
      trimtab check configs/ --fix --diff
      trimtab explain ZR003
    """
    from trimtab.check import check_sources, collect
    from trimtab.judging import make_options
    from trimtab.settings import Settings, find_settings, read_settings

    if config is not None and isolated:
        raise UsageError("--config names settings and --isolated wants none: give one of them")
    settings = read_settings(config) if config else Settings() if isolated else find_settings(_start(paths))
    options = make_options(
        settings=settings, deepspeed=deepspeed, loader=loader, gpus_per_node=gpus_per_node, nodes=nodes,
        select=_split(select), ignore=_split(ignore), model=model, gpu=gpu,
    )  # fmt: skip
    if options.version.problem:
        print(f"note: {options.version.problem}", file=sys.stderr)  # noqa: T201
    sources = list(collect(paths, settings))
    if fix or unsafe_fixes or diff:
        from trimtab.fixing import fixed

        results = [fixed(source, options, unsafe=unsafe_fixes) for source in sources]
        if diff:
            text = "".join(result.diff() for result in results)
            _write(text, output_file)
            return int(bool(text))
        sources = [_keep(result) for result in results]
    report = check_sources(sources, options)
    if not any(source.file == "<stdin>" for source in sources) or not (fix or unsafe_fixes):
        _write(
            _rendered(report, OutputFormat.json if as_json else output_format, output_file is None),
            output_file,
        )
    least: Severity | None = None if fail_on is FailOn.never else fail_on.value
    return int(least is not None and bool(report.at_least(least)))


def _start(paths: Sequence[str]) -> Path:
    first = Path(paths[0]) if paths and paths[0] != "-" else Path()
    try:
        return first if first.is_dir() else first.parent
    except (OSError, ValueError):
        return Path()


def _split(texts: Sequence[str] | None) -> list[str]:
    return [part.strip() for text in texts or () for part in text.split(",") if part.strip()]


def _keep(result: Fixed) -> Source:
    """Writes a fixed text where it came from, and says what was fixed."""
    from trimtab.source import read_text, write_atomic

    source = result.source
    if source.file == "<stdin>":
        sys.stdout.write(result.text)
    elif result.changed:
        if not os.access(source.file, os.W_OK):
            raise UnreadableFile(f"{source.file} cannot be written: its fixes are lost")
        write_atomic(source.file, result.text)
    for finding in result.applied:
        title = finding.fix.title if finding.fix else ""
        print(f"fixed {source.file}: {finding.code} {title}", file=sys.stderr)  # noqa: T201
    if not result.changed:
        return source
    return read_text(result.text, file=source.file, written="yaml" if source.format == "yaml" else "json")


def _rendered(report: Report, output_format: OutputFormat, to_stdout: bool) -> str:
    if output_format in (OutputFormat.full, OutputFormat.concise):
        from trimtab.report import findings_text

        colour = to_stdout and findings_text.wants_colour()
        render = findings_text.full if output_format is OutputFormat.full else findings_text.concise
        return render(report, colour=colour)
    if output_format is OutputFormat.json:
        from trimtab.report.document import to_json

        return f"{to_json(report.to_dict())}\n"
    if output_format is OutputFormat.json_lines:
        from trimtab.report.findings_json import lines

        return lines(report)
    if output_format is OutputFormat.sarif:
        from trimtab.report.findings_sarif import sarif

        return sarif(report)
    from trimtab.report import findings_ci

    emitters = {
        OutputFormat.github: findings_ci.github,
        OutputFormat.gitlab: findings_ci.gitlab,
        OutputFormat.junit: findings_ci.junit,
    }
    return emitters[output_format](report)


def _write(text: str, file: Path | None) -> None:
    if file is None:
        sys.stdout.write(text)
        return
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UnreadableFile(f"{file} cannot be written: {error.strerror or error}") from None
