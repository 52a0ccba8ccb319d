"""The linter: configurations in, findings out.

>>> from trimtab.check import check
>>> report = check({"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 4}}, deepspeed="0.19.8")
>>> [finding.code for finding in report.findings if finding.severity == "error"]
['TY003']
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trimtab import catalogue, schema
from trimtab.errors import NotFound, TrimtabError, UsageError
from trimtab.findings import SEVERITIES, Finding, Fix, Refusal, Severity
from trimtab.rules.base import Hit, Rule
from trimtab.rules.registry import fits, rules, selected
from trimtab.rules.subject import LOADERS, Loader, Subject, World
from trimtab.settings import Settings, find_settings
from trimtab.source import Source, find_pointer, read_source
from trimtab.source.edit import Edit, RemoveKey, RenameKey, SetValue
from trimtab.source.pointer import Pointer
from trimtab.source.read import Written
from trimtab.source.tree import KeyPath
from trimtab.suppression import suppressed

if TYPE_CHECKING:
    from trimtab.model import Model

Given = str | os.PathLike[str] | Mapping[str, Any]
SUFFIXES = (".json", ".jsonc", ".hjson")
# keys that only a DeepSpeed configuration has: which files of a folder are checked
_TELLING = frozenset((
    "zero_optimization", "train_batch_size", "train_micro_batch_size_per_gpu", "gradient_clipping", "bf16",
    "fp16", "zero_allow_untested_optimizer", "steps_per_print", "wall_clock_breakdown",
))  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How to judge: everything that the command line or a caller can say."""

    version: schema.Version
    loader: Loader | None
    world: World
    model: str | None
    gpu: str | None
    rules: tuple[Rule, ...]
    settings: Settings


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
        from trimtab.report.findings_json import document

        return document(self)


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


def collect(items: Iterable[Given], settings: Settings, *, written: Written | None = None) -> Iterator[Source]:
    """The texts to judge: each item read, catalogue names and folders replaced by their files."""
    for item in _files(items, settings):
        yield read_source(item, written=written)


def make_options(
    *,
    settings: Settings,
    deepspeed: str | None = None,
    loader: str | None = None,
    gpus_per_node: int | None = None,
    nodes: int | None = None,
    select: Sequence[str] = (),
    ignore: Sequence[str] = (),
    model: str | None = None,
    gpu: str | None = None,
) -> Options:
    """The options of a call joined with a project's settings, and held to what there is; see `check`."""
    loader = loader or settings.loader
    if loader is not None and loader not in LOADERS:
        raise NotFound("loader", loader, LOADERS, cure=f"There are {', '.join(LOADERS)}.")
    for what, count in (("GPUs per node", gpus_per_node), ("nodes", nodes)):
        if count is not None and count < 1:
            raise UsageError(f"{count} {what}: there must be at least 1")
    gpu = gpu or settings.gpu
    gpus_per_node = gpus_per_node or settings.gpus_per_node
    nodes = nodes or settings.nodes
    if gpu is not None:
        from trimtab.cluster import parse_gpus

        card, count = parse_gpus(gpu)
        gpus_per_node = gpus_per_node or (count if count > 1 or ":" in gpu else None)
        gpu = card.name
    model = model or settings.model
    if model is not None:
        _model(model)
    return Options(
        version=schema.resolve_version(deepspeed or settings.deepspeed or _installed()),
        loader=loader,  # type: ignore[arg-type]
        world=World(gpus_per_node=gpus_per_node, nodes=nodes or (1 if gpus_per_node else None)),
        model=model,
        gpu=gpu,
        rules=selected(select or settings.select, [*ignore, *settings.ignore]),
        settings=settings,
    )


def check_sources(sources: Iterable[Source], options: Options) -> Report:
    """What is wrong with texts that have been read."""
    found: dict[tuple[Any, ...], Finding] = {}
    read: dict[str, Source] = {}
    hidden = 0
    for source in sources:
        read[source.file] = source
        for finding, judged in _judge_all(source, options):
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


# -- one text -----------------------------------------------------------------------------------------------


def _judge_all(source: Source, options: Options) -> Iterator[tuple[Finding, Source]]:
    """The findings of a text and of the configuration it names, each with the text it stands in."""
    ignored = options.settings.ignored_in(source.file)
    for subject in _subjects(source, options):
        for rule in options.rules:
            if (subject.readable or rule.bare) and not fits(rule, ignored):
                for hit in rule.run(subject):
                    placed = _placed(rule, hit, subject)
                    if placed is not None:
                        yield placed


def _subjects(source: Source, options: Options) -> Iterator[Subject]:
    pointer = find_pointer(source) if source.complete else None
    if pointer is None:
        yield _subject(source, options, raw=source.mapping, readable=source.complete)
        return
    if pointer.inline is not None:
        raw = source.mapping
        for key in pointer.inline:
            raw = raw[key]  # type: ignore[index]
        yield _subject(source, options, raw=raw, base=pointer.inline, pointer=pointer, pointer_source=source)
    elif pointer.path is not None and pointer.path.is_file():
        yield _subject(source, options, raw={}, readable=False)
        inner = read_source(pointer.path)
        yield _subject(
            inner, options, raw=inner.mapping, pointer=pointer, pointer_source=source, readable=inner.complete
        )
    elif pointer.path is not None:
        yield _subject(source, options, raw={}, pointer=pointer, pointer_source=source, readable=False)
    else:
        built = _built_by_accelerate(pointer)
        yield _subject(source, options, raw=built, pointer=pointer, pointer_source=source)


def _built_by_accelerate(pointer: Pointer) -> dict[str, Any]:
    """The configuration that Accelerate makes of its own fields (accelerate/utils/dataclasses.py:1302-1325)."""
    built: dict[str, Any] = {"train_batch_size": "auto", "train_micro_batch_size_per_gpu": "auto",
                             "zero_optimization": {}}  # fmt: skip
    for owner in pointer.owned:
        for place in owner.owns:
            if owner.key_path[-1] == "mixed_precision":
                if place[0] == owner.value:
                    built[str(place[0])] = {"enabled": True}
                continue
            if owner.value == "none" and place[-1] == "nvme_path":
                continue
            at = built
            for key in place[:-1]:
                at = at.setdefault(str(key), {})
            at[str(place[-1])] = owner.value
    return built


def _subject(
    source: Source,
    options: Options,
    *,
    raw: Mapping[str, Any],
    base: KeyPath = (),
    pointer: Pointer | None = None,
    pointer_source: Source | None = None,
    readable: bool = True,
) -> Subject:
    from trimtab.job import Job

    job, problem = Job(), None
    try:
        job = Job.from_block(raw.get("trimtab"), where="the trimtab block")
    except TrimtabError as error:
        job, problem = None, str(error)  # type: ignore[assignment]
    world, gpu = _world(options, source, pointer)
    name = options.model or (job.model if job is not None else None)
    return Subject(
        source=source,
        raw=raw,
        schema=schema.load(options.version.name),
        base=base,
        loader=options.loader or ((pointer.kind if pointer else None) or "deepspeed"),
        world=world,
        job=job,
        job_problem=problem,
        pointer=pointer,
        pointer_source=pointer_source,
        model=_known_model(name) if name else None,
        model_name=name,
        cluster=_cluster(gpu, world) if gpu else None,
        readable=readable and isinstance(source.value, Mapping),
    )


def _world(options: Options, source: Source, pointer: Pointer | None) -> tuple[World, str | None]:
    """The world of the options, else of the pointing file, else that a catalogue configuration is made for."""
    if options.world.gpus_per_node or options.world.nodes or options.gpu:
        return options.world, options.gpu
    if pointer is not None:
        counts = {owner.key_path[-1]: owner.value for owner in pointer.owned}
        processes, machines = counts.get("num_processes"), counts.get("num_machines", 1)
        if isinstance(processes, int) and isinstance(machines, int) and machines > 0 and processes > 0:
            if processes % machines == 0:
                return World(gpus_per_node=processes // machines, nodes=machines), None
    name = _catalogue_name(source.file)
    if name is not None:
        made_for = catalogue.card(name).hardware
        return World(gpus_per_node=made_for.gpus_per_node, nodes=made_for.nodes), made_for.gpu
    return options.world, options.gpu


def _catalogue_name(file: str) -> str | None:
    name = Path(file).stem
    if name in catalogue.names() and os.path.abspath(file) == os.path.abspath(catalogue.path(name)):
        return name
    return None


def _cluster(gpu: str, world: World) -> Any:
    from trimtab.cluster import Cluster

    return Cluster.of(gpu, world.gpus_per_node or 1, world.nodes or 1)


@cache
def _model(name: str) -> Model:
    from trimtab.model import find_model

    return find_model(name)


@cache
def _known_model(name: str) -> Model | None:
    """The model, or None where the arithmetic does not know it."""
    try:
        return _model(name)
    except TrimtabError:
        return None


@cache
def _installed() -> str | None:
    """The DeepSpeed that is installed here, without importing it."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("deepspeed")
    except PackageNotFoundError:
        return None


# -- from hits to findings ----------------------------------------------------------------------------------


def _placed(rule: Rule, hit: Hit, subject: Subject) -> tuple[Finding, Source] | None:
    """The hit as a finding with its place; None where the file has no such place at all."""
    source, path = subject.source, hit.path
    if hit.where == "pointer":
        source = subject.pointer_source or source
    elif hit.where == "config":
        path = (*subject.base, *path)
        pointer = subject.pointer
        if pointer is not None and pointer.path is None and pointer.inline is None:
            owners = [owner for owner in pointer.owned if hit.path and hit.path in owner.owns]
            if not owners:
                return None
            path, hit = owners[0].key_path, Hit(hit.path, hit.message, at_value=True)
    line, column, end_line, end_column = _extent(source, path, hit)
    finding = Finding(
        code=rule.code,
        name=rule.name,
        severity=hit.severity or rule.severity,
        message=hit.message,
        file=source.file,
        line=line,
        column=column,
        end_line=end_line,
        end_column=end_column,
        key_path=path,
        fix=_shifted(hit.fix, subject.base) if hit.where == "config" else hit.fix,
        refused=_refusal(rule, hit),
    )
    return finding, source


def _refusal(rule: Rule, hit: Hit) -> Refusal | None:
    """When DeepSpeed stops because of a hit; only errors stop it."""
    if (hit.severity or rule.severity) != "error":
        return None
    return rule.refused if hit.refused == "as the rule" else hit.refused


def _extent(source: Source, path: KeyPath, hit: Hit) -> tuple[int, int, int, int]:
    if hit.place is not None:
        return (*hit.place, hit.place[0], hit.place[1] + 1)
    span = source.spans.nearest(path)
    if span is None:
        return 1, 1, 1, 1
    if path not in source.spans or not path:
        # something is missing: point at the block that should hold it, at its first character
        extent = span.key or span.value
        if span.key is None:
            return extent.line, extent.column, extent.line, extent.column + 1
    else:
        extent = span.value if hit.at_value or span.key is None else span.key
    return extent.line, extent.column, extent.end_line, extent.end_column


def _shifted(fix: Fix | None, base: KeyPath) -> Fix | None:
    if fix is None or not base:
        return fix
    return Fix(title=fix.title, safety=fix.safety, edits=tuple(_moved(edit, base) for edit in fix.edits))


def _moved(edit: Edit, base: KeyPath) -> Edit:
    place = (*base, *edit.key_path)
    if isinstance(edit, SetValue):
        return SetValue(key_path=place, value=edit.value)
    if isinstance(edit, RenameKey):
        return RenameKey(key_path=place, name=edit.name)
    return RemoveKey(key_path=place)


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


def _files(items: Iterable[Given], settings: Settings) -> Iterator[Given]:
    """What to read: catalogue names as their files, folders as the configurations in them."""
    for item in items:
        if isinstance(item, Mapping):
            yield item
        elif os.fspath(item) in catalogue.names() and not os.path.exists(item):
            yield catalogue.path(os.fspath(item))
        elif _is_folder(os.fspath(item)):
            yield from _configurations_in(Path(item), settings)
        else:
            yield item


def _is_folder(name: str) -> bool:
    try:
        return os.path.isdir(name)
    except ValueError:
        return False


def _configurations_in(folder: Path, settings: Settings) -> Iterator[str]:
    for above, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "node_modules")
        for name in sorted(names):
            file = os.path.join(above, name)
            if name.endswith(SUFFIXES) and not settings.excluded(file):
                if _TELLING & set(read_source(file).mapping):
                    yield file
