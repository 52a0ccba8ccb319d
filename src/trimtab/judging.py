"""One text judged: who reads it and where it runs, every rule over it, and each finding's place."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trimtab import catalogue, schema
from trimtab.errors import NotFound, TrimtabError, UsageError
from trimtab.findings import Finding, Fix, Refusal
from trimtab.rules.base import Hit, Rule
from trimtab.rules.registry import fits, selected
from trimtab.rules.subject import LOADERS, Loader, Subject, World
from trimtab.settings import Settings
from trimtab.source import Source, find_pointer, read_source
from trimtab.source.edit import Edit, RemoveKey, RenameKey, SetValue
from trimtab.source.pointer import Pointer
from trimtab.source.tree import KeyPath

if TYPE_CHECKING:
    from trimtab.model import Model

_INSTALLED = re.compile(r"deepspeed-(?P<version>\d[^-]*)\.dist-info")


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
        from trimtab.cluster import name_and_count

        gpu, gpus_per_node = name_and_count(gpu, gpus_per_node)
    model = model or settings.model
    if model is not None:
        from trimtab.model import find_hf

        find_hf(model)  # one that nobody can name; of an unknown architecture much is left to check
    return Options(
        version=schema.resolve_version(deepspeed or settings.deepspeed or _installed()),
        loader=loader,
        world=World(gpus_per_node=gpus_per_node, nodes=nodes or (1 if gpus_per_node else None)),
        model=model,
        gpu=gpu,
        rules=selected(select or settings.select, [*ignore, *settings.ignore]),
        settings=settings,
    )


@cache
def _installed() -> str | None:
    """The DeepSpeed that is installed here, by the name of its folder: no import, and a tenth of the time."""
    for folder in sys.path:
        try:
            names = [name for name in os.listdir(folder or ".") if _INSTALLED.fullmatch(name)]
        except OSError:
            continue
        if names:
            match = _INSTALLED.fullmatch(names[0])
            return match["version"] if match else None
    return None


# -- one text -----------------------------------------------------------------------------------------------


def judge(source: Source, options: Options) -> Iterator[tuple[Finding, Source]]:
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
    """The configuration that Accelerate makes of its own fields (utils/dataclasses.py:1302-1325 of 1.15)."""
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
        loader_assumed=options.loader is None and pointer is None,
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
    """The world of the options, else of the pointing file, else the one a catalogue file is made for."""
    if options.world.gpus_per_node or options.world.nodes or options.gpu:
        return options.world, options.gpu
    if pointer is not None:
        counts = {owner.key_path[-1]: owner.value for owner in pointer.owned}
        processes, machines = counts.get("num_processes"), counts.get("num_machines", 1)
        if (
            isinstance(processes, int)
            and isinstance(machines, int)
            and machines > 0
            and processes > 0
            and processes % machines == 0
        ):
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
def _known_model(name: str) -> Model | None:
    """The model, or None where the arithmetic does not know it."""
    from trimtab.model import find_model

    try:
        return find_model(name)
    except TrimtabError:
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
