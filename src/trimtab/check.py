"""The linter: configurations in, findings out.

>>> from trimtab.check import check
>>> config = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 4}}
>>> [finding.code for finding in check(config, deepspeed="0.19.8").at_least("error")]
['TY003']
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trimtab import catalogue, schema
from trimtab.findings import SEVERITIES, Finding, Severity
from trimtab.judging import Options, judge, make_options
from trimtab.rules.registry import rules
from trimtab.settings import Settings, find_settings
from trimtab.source import Source, read_source
from trimtab.source.read import Written
from trimtab.suppression import suppressed

Given = str | os.PathLike[str] | Mapping[str, Any]
SUFFIXES = (".json", ".jsonc", ".hjson")
# keys that only a DeepSpeed configuration has: which files of a folder are checked
_TELLING = frozenset((
    "zero_optimization", "train_batch_size", "train_micro_batch_size_per_gpu", "gradient_clipping", "bf16",
    "fp16", "zero_allow_untested_optimizer", "steps_per_print", "wall_clock_breakdown",
))  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The answer: findings by file and place, and what they were judged by."""

    findings: tuple[Finding, ...]
    files: tuple[str, ...]
    version: schema.Version
    suppressed: int = 0
    sources: Mapping[str, Source] = field(default_factory=dict, repr=False)

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong or will hurt: no errors and no warnings."""
        return not self.at_least("warning")

    def at_least(self, severity: Severity) -> tuple[Finding, ...]:
        """The findings of that severity and worse."""
        worst = SEVERITIES[: SEVERITIES.index(severity) + 1]
        return tuple(finding for finding in self.findings if finding.severity in worst)

    def to_dict(self) -> dict[str, Any]:
        """The report as `trimtab check --json` prints it."""
        counts = dict.fromkeys(SEVERITIES, 0)
        for finding in self.findings:
            counts[finding.severity] += 1
        return {
            "deepspeed": self.version.name,
            "deepspeed_asked": self.version.asked,
            "files": list(self.files),
            "ok": self.ok,
            "counts": counts,
            "suppressed": self.suppressed,
            "findings": [finding.to_dict() for finding in self.findings],
        }


def check(
    given: Given | Iterable[Given],
    *,
    deepspeed: str | None = None,
    loader: str | None = None,
    gpus_per_node: int | None = None,
    nodes: int | None = None,
    select: Sequence[str] = (),
    ignore: Sequence[str] = (),
    settings: Settings | None = None,
    model: str | None = None,
    gpu: str | None = None,
    written: Written | None = None,
) -> Report:
    """What is wrong with one or more configurations.

    ``given`` is a path, a catalogue name, text, a dict, or several of them; folders are searched for
    configurations.  ``deepspeed`` is the release to judge by (default: the installed one, else the newest
    known).  ``loader`` says who reads the file: ``deepspeed``, ``transformers`` (or ``trainer``) or
    ``accelerate``.  Nothing in a configuration raises.

    Raises:
        NotFound: a file, rule, model or GPU of an unknown name.
        UnreadableFile: a file that the system does not let us read.
        UsageError: options that make no sense.
    """
    items: list[Given] = [given] if isinstance(given, (str, os.PathLike, Mapping)) else list(given)
    if settings is None:
        settings = find_settings(_folder_of(items))
    options = make_options(
        deepspeed=deepspeed, loader=loader, gpus_per_node=gpus_per_node, nodes=nodes, select=select,
        ignore=ignore, settings=settings, model=model, gpu=gpu,
    )  # fmt: skip
    return check_sources(collect(items, settings, written=written), options)


def collect(
    items: Iterable[Given], settings: Settings, *, written: Written | None = None
) -> Iterator[Source]:
    """The texts to judge: each item read, a catalogue name as its file, a folder as what it holds."""
    for item in items:
        if not isinstance(item, Mapping):
            name = os.fspath(item)
            if _is_folder(name):
                yield from _configurations_in(name, settings)
                continue
        yield catalogue.read(item, written=written)


def check_sources(sources: Iterable[Source], options: Options) -> Report:
    """What is wrong with texts that have been read."""
    found: dict[tuple[Any, ...], Finding] = {}
    read: dict[str, Source] = {}
    hidden = 0
    for source in sources:
        read[source.file] = source
        for finding, judged in judge(source, options):
            read.setdefault(judged.file, judged)
            if suppressed(finding, judged, rules()[finding.code]):
                hidden += 1
            else:
                place = (finding.code, finding.file, finding.line, finding.column, finding.message)
                found.setdefault(place, finding)
    return Report(
        findings=tuple(sorted(found.values(), key=_order)),
        files=tuple(read),
        version=options.version,
        suppressed=hidden,
        sources=read,
    )


def _order(finding: Finding) -> tuple[str, int, int, int, str]:
    return finding.file, finding.line, finding.column, SEVERITIES.index(finding.severity), finding.code


# -- which files --------------------------------------------------------------------------------------------


def _folder_of(items: Sequence[Given]) -> Path:
    """Where to look for settings: the folder of the first path, else the working folder."""
    for item in items:
        if isinstance(item, (str, os.PathLike)) and item != "-":
            try:
                path = Path(item)
                if path.exists():
                    return path if path.is_dir() else path.parent
            except (OSError, ValueError):
                continue
    return Path()


def _is_folder(name: str) -> bool:
    try:
        return os.path.isdir(name)
    except ValueError:
        return False


def _configurations_in(folder: str, settings: Settings) -> Iterator[Source]:
    for above, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "node_modules")
        for name in sorted(names):
            file = os.path.join(above, name)
            if name.endswith(SUFFIXES) and not settings.excluded(file):
                source = read_source(file)
                if _TELLING & set(source.mapping):
                    yield source
