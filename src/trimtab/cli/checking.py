"""What ``trimtab check`` does, without the library that parses command lines.

That library takes longer to import than a file takes to check, so `quick` reads plain command lines itself
and leaves all others, help and mistakes included, to it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trimtab.cli.plain import plain
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


class FailOn(str, Enum):
    """The least severity that makes the exit code 1."""

    error = "error"
    warning = "warning"
    info = "info"
    never = "never"


SWITCHES: Mapping[str, tuple[str, bool]] = {
    "--fix": ("fix", True),
    "--unsafe-fixes": ("unsafe_fixes", True),
    "--diff": ("diff", True),
    "--isolated": ("isolated", True),
    "--json": ("as_json", True),
}
FLAGS: Mapping[str, tuple[str, Any]] = {
    "--deepspeed": ("deepspeed", str),
    "--loader": ("loader", str),
    "--gpus-per-node": ("gpus_per_node", int),
    "--nodes": ("nodes", int),
    "--model": ("model", str),
    "--gpu": ("gpu", str),
    "--select": ("select", str),
    "--ignore": ("ignore", str),
    "--output-format": ("output_format", OutputFormat),
    "--output-file": ("output_file", Path),
    "-o": ("output_file", Path),
    "--fail-on": ("fail_on", FailOn),
    "--config": ("config", Path),
}
REPEATED = ("select", "ignore")


def quick(arguments: Sequence[str]) -> int | None:
    """Runs a plain command line; None where it holds anything that only the parser can answer."""
    given = plain(arguments, FLAGS, SWITCHES, REPEATED)
    if given is None or not given.paths:
        return None
    if given.options.pop("as_json", False):
        given.options["output_format"] = OutputFormat.json
    return run(given.paths, **given.options)


def run(
    paths: Sequence[str],
    *,
    deepspeed: str | None = None,
    loader: str | None = None,
    gpus_per_node: int | None = None,
    nodes: int | None = None,
    model: str | None = None,
    gpu: str | None = None,
    select: Sequence[str] = (),
    ignore: Sequence[str] = (),
    fix: bool = False,
    unsafe_fixes: bool = False,
    diff: bool = False,
    output_format: OutputFormat = OutputFormat.full,
    output_file: Path | None = None,
    fail_on: FailOn = FailOn.warning,
    config: Path | None = None,
    isolated: bool = False,
) -> int:
    """Checks, and fixes if asked to; prints what was found and returns the exit code."""
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
    if output_file is not None and any(_same(output_file, source.file) for source in sources):
        raise UsageError(f"-o {output_file}: that is the configuration to check; name another file")
    if not sources:
        print(f"note: no configuration was found in {', '.join(paths)}", file=sys.stderr)  # noqa: T201
    if (fix or unsafe_fixes) and not diff:
        _refuse_ready(sources)
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
            _rendered(report, output_format, output_file is None),
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


def _same(file: Path, name: str) -> bool:
    try:
        return file.samefile(name)
    except (OSError, ValueError):  # one of them is no file
        return False


def _refuse_ready(sources: Sequence[Source]) -> None:
    """The ready configurations stay as they were proven."""
    from trimtab import catalogue

    ready = {str(catalogue.path(name)): name for name in catalogue.names()}
    for source in sources:
        if source.file in ready:
            name = ready[source.file]
            raise UsageError(
                f"{name} is a ready configuration, which stays as it is: `trimtab init {name}` copies it, "
                "--diff shows the fixes"
            )


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
        from trimtab.report.paint import wants_colour

        colour = to_stdout and wants_colour()
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
