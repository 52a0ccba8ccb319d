"""The optimizers and schedulers that a release builds by name, and the parameters that each takes."""

from __future__ import annotations

import ast
from typing import Any

from keys_models import describe_type, take_default
from keys_sources import Release
from keys_trace import Frame, Tracer, method

Entries = dict[str, dict[str, Any]]
TYPES = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object"}


def read_optimizers(release: Release, extra: dict[str, Any]) -> tuple[Entries, Entries]:
    """The built-in optimizers by lower-case name, and their parameters as ``name.parameter``."""
    optimizers: Entries = {}
    parameters: Entries = {}
    for name in evaluate(release, "deepspeed.runtime.config", "DEEPSPEED_OPTIMIZERS"):
        known = extra["optimizers"].get(name)
        if known is None:
            raise SystemExit(
                f"DeepSpeed {release.version} builds the optimizer '{name}': add it to keys_extra.yaml"
            )
        optimizers[name] = {"source": "runtime/config.py:" + str(line_of(release, "DEEPSPEED_OPTIMIZERS"))}
        for key, entry in optimizer_parameters(release, known, extra["not_params"]).items():
            parameters[f"{name}.{key}"] = entry
    return optimizers, parameters


def optimizer_parameters(release: Release, known: dict[str, Any], skipped: list[str]) -> Entries:
    merged: Entries = {}
    read = {place: signature(release, place, skipped) for place in known["classes"]}
    for place, entries in read.items():
        condition = known["classes"][place]
        for key, entry in entries.items():
            everywhere = all(key in others for others in read.values())
            limits = {"only": condition} if condition and not everywhere else {}
            merged.setdefault(key, {**entry, **limits})
    for key, fact in known.get("params", {}).items():
        if "text" not in fact:
            merged[key] |= {"only": fact["only"]}
        elif fact["text"] in release.texts.get(fact["file"], ""):
            merged[key] = {k: v for k, v in fact.items() if k not in ("file", "text", "from")}
            merged[key]["source"] = fact["from"]
    return merged


def read_schedulers(release: Release, extra: dict[str, Any]) -> tuple[Entries, Entries]:
    """The built-in schedulers, and their parameters as ``name.parameter``."""
    schedulers: Entries = {}
    parameters: Entries = {}
    for name in evaluate(release, "deepspeed.runtime.lr_schedules", "VALID_LR_SCHEDULES"):
        if name not in extra["schedulers"]:
            raise SystemExit(
                f"DeepSpeed {release.version} builds the scheduler '{name}': add it to keys_extra.yaml"
            )
        place = f"runtime/lr_schedules.py:{name}"
        schedulers[name] = {"source": f"runtime/lr_schedules.py:{class_node(release, place).lineno}"}
        for key, entry in signature(release, place, extra["not_params"]).items():
            parameters[f"{name}.{key}"] = entry
    return schedulers, parameters


def signature(release: Release, place: str, skipped: list[str]) -> Entries:
    """The constructor's parameters of ``path/to/file.py:Class``, with what the signature tells of each."""
    path = place.partition(":")[0]
    module = release.module("deepspeed." + path.removesuffix(".py").replace("/", "."))
    initialiser = method(class_node(release, place), "__init__")
    assert module is not None
    assert initialiser is not None
    tracer = Tracer(release)
    entries: Entries = {}
    arguments = initialiser.args.args
    defaults = [None] * (len(arguments) - len(initialiser.args.defaults)) + list(initialiser.args.defaults)
    for argument, default in zip(arguments, defaults, strict=True):
        if argument.arg in skipped:
            continue
        entry: dict[str, Any] = {"source": f"{path}:{argument.lineno}"}
        if argument.annotation is not None:
            describe_type(tracer, module, argument.annotation, entry)
        if default is None:
            entry["required"] = True
        else:
            take_default(tracer, module, default, entry)
            entry.setdefault("types", [TYPES.get(type(entry.get("default")), "any")])
        entry.setdefault("types", ["any"])
        entries[argument.arg] = entry
    return entries


def class_node(release: Release, place: str) -> ast.ClassDef:
    path, _, name = place.partition(":")
    module = release.module("deepspeed." + path.removesuffix(".py").replace("/", "."))
    node = module.defined.get(name) if module else None
    if not isinstance(node, ast.ClassDef):
        raise SystemExit(f"DeepSpeed {release.version} has no class {place}")
    return node


def evaluate(release: Release, module_name: str, name: str) -> list[str]:
    module = release.module(module_name)
    assert module is not None
    node = module.defined[name]
    assert isinstance(node, ast.expr)
    return list(Tracer(release).value(node, Frame(module, {}, 0)))


def line_of(release: Release, name: str) -> int:
    module = release.module("deepspeed.runtime.config")
    assert module is not None
    return int(module.defined[name].lineno)  # type: ignore[attr-defined]
