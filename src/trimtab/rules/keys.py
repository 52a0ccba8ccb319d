"""KY: keys that the engine does not know, no longer knows, or finds in the wrong place."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from trimtab.config import BLOCK
from trimtab.findings import Fix
from trimtab.rules.base import Hit, fix, path, remove, rename, rule
from trimtab.rules.subject import Subject
from trimtab.schema import Component, Kind, Nearest
from trimtab.source.edit import RemoveKey, SetValue
from trimtab.source.tree import KeyPath

COMMENTS = ("_", "$", "#", "//")  # how people write comments as keys
PARAMETERS: Mapping[str, Kind] = {"optimizer.params": "optimizer", "scheduler.params": "scheduler"}


def _unknown(subject: Subject, behaviour: str) -> Iterator[tuple[KeyPath, str, Any]]:
    """Keys that no release up to this one reads here and that meet ``behaviour``, the outermost of each."""
    yield from _unknown_below(subject, subject.raw, (), behaviour)


def _unknown_below(
    subject: Subject, block: Mapping[str, Any], above: KeyPath, behaviour: str
) -> Iterator[tuple[KeyPath, str, Any]]:
    schema = subject.schema
    for name, value in block.items():
        place = (*above, name)
        if name == "bfloat16" and not above and block.get("bf16") is not None:
            continue  # KY007: the engine does not look at it
        if "." in name:  # a path written as one key
            if schema.unknown_key_behaviour(".".join(map(str, above))) == behaviour:
                yield place, ".".join(map(str, place)), value
            continue
        dotted = schema.canonical(".".join(map(str, place)))
        if dotted == BLOCK or name.startswith(COMMENTS) or dotted.startswith("trimtab."):
            continue
        if any(dotted.startswith(f"{parameters}.") for parameters in PARAMETERS):
            continue
        if schema.key(dotted) is None:
            if schema.behaviour(dotted) == behaviour and not _retired(subject, dotted):
                yield place, dotted, value
        elif isinstance(value, Mapping) and schema.is_section(dotted):
            yield from _unknown_below(subject, value, place, behaviour)


def _retired(subject: Subject, dotted: str) -> bool:
    """Whether another release knows the key; KY003 to KY005 speak of those."""
    return subject.schema.any_version(dotted) is not None


def _near(subject: Subject, place: KeyPath, dotted: str) -> Nearest | None:
    """The key that an unknown one means; a path written as one key means itself, in blocks."""
    if "." in str(place[-1]) and subject.schema.key(dotted) is not None:
        return Nearest(path=dotted, reason="moved")
    return subject.schema.nearest(dotted)


def _meant(near: Nearest | None, above: str) -> str:
    if near is None:
        return ""
    if near.reason == "misspelt" and near.parent == above:
        return f" Did you mean {near.name}?"
    if near.reason == "misspelt":
        return f" Did you mean {near.path}?"
    if near.reason == "moved":
        return f" It belongs at {near.path}."
    return f" DeepSpeed's name for it is {near.path}."


def _mend(subject: Subject, place: KeyPath, value: Any, near: Nearest | None) -> Fix | None:
    """Rename a misspelt key, or move one to where it belongs; None where nothing is certain enough."""
    above = ".".join(map(str, place[:-1]))
    if near is None or (near.others and near.reason == "moved"):
        return None
    if subject.has(near.path) or near.path.startswith(f"{BLOCK}."):
        return None
    if near.reason == "misspelt" and subject.schema.canonical(above) == near.parent:
        return rename(place, near.name)
    if near.reason != "moved":
        return None
    if any(subject.has(parent) and not subject.block(parent) for parent in _parents(near.path)):
        return None
    there = SetValue(key_path=path(near.path), value=value)
    return fix(f"Move it to {near.path}", RemoveKey(key_path=place), there, safety="unsafe")


def _parents(dotted: str) -> Iterator[str]:
    while "." in dotted:
        dotted = dotted.rpartition(".")[0]
        yield dotted


@rule("KY001", "unknown-key", "error", refused="reading")
def unknown_key(subject: Subject) -> Iterable[Hit]:
    """Finds keys that DeepSpeed refuses because it has none of that name.

    Why is this bad?
        The typed sections forbid unknown keys: the run stops with a pydantic ValidationError
        (`Extra inputs are not permitted`) before the model is touched.
    Example
        {"zero_optimization": {"stage": 2, "reduce_bucket": 50000000}}
    Use instead
        {"zero_optimization": {"stage": 2, "reduce_bucket_size": 50000000}}
    Fix safety
        A near match in the same block is a rename, a key of another block is moved there. Both change
        what the run does, so they are unsafe.
    Source
        deepspeed/runtime/config_utils.py:106
    """
    for place, dotted, value in _unknown(subject, "refused"):
        near = _near(subject, place, dotted)
        block = ".".join(map(str, place[:-1]))
        message = f"{block} has no key '{place[-1]}', and DeepSpeed refuses it.{_meant(near, block)}"
        yield Hit(place, message, _mend(subject, place, value, near))


@rule("KY002", "ignored-key", "warning")
def ignored_key(subject: Subject) -> Iterable[Hit]:
    """Finds keys that DeepSpeed drops without a word because it has none of that name.

    Why is this bad?
        At the top of the file and in the blocks that are plain dictionaries nothing looks at unknown keys:
        a misspelt `gradient_clipping` does not clip, and no message says so.
    Example
        {"gradient_cliping": 0.5, "pipeline": {"enabled": true, "num_stages": 4}}
    Use instead
        {"gradient_clipping": 0.5}
    Fix safety
        A near match in the same block is a rename, a key of another block is moved there. Both change
        what the run does, so they are unsafe.
    Source
        deepspeed/runtime/config.py:482-588
    """
    for place, dotted, value in [*_unknown(subject, "ignored"), *_pipeline(subject)]:
        near = _near(subject, place, dotted)
        block = ".".join(map(str, place[:-1]))
        where = f"{block} has" if block else "DeepSpeed has"
        message = f"{where} no key '{place[-1]}': it is silently ignored.{_meant(near, block)}"
        yield Hit(place, message, _mend(subject, place, value, near))


def _pipeline(subject: Subject) -> Iterator[tuple[KeyPath, str, Any]]:
    """The pipeline block copies every key, and nothing reads the ones that are not DeepSpeed's."""
    for name, value in subject.block("pipeline").items():
        dotted = f"pipeline.{name}"
        if subject.schema.key(dotted) is None and subject.schema.behaviour(dotted) != "ignored":
            yield ("pipeline", name), dotted, value


@rule("KY003", "removed-key", "error", refused="reading")
def removed_key(subject: Subject) -> Iterable[Hit]:
    """Finds keys of features that this release has removed and that stop the run by being there.

    Why is this bad?
        DeepSpeed raises DeepSpeedConfigError for them even where they say `"enabled": false`: a leftover
        would otherwise be ignored and the run would silently be another one.
    Example
        {"amp": {"enabled": false}, "zero_optimization": {"stage": 3, "mics_shard_size": 8}}
    Use instead
        {"zero_optimization": {"stage": 3, "zero_hpz_partition_size": 8}}
    Fix safety
        Removing a feature that was off is safe; removing one that was on is unsafe.
    Source
        deepspeed/runtime/config.py:81-141
    """
    for place, dotted in _standing(subject):
        gone = _lifetime(subject, dotted, "refused_since") or _lifetime(subject, dotted, "removed")
        if subject.schema.key(dotted) is None and subject.schema.behaviour(dotted) == "refused" and gone:
            if _inside_reported(subject, dotted) or dotted.startswith("optimizer."):
                continue
            key = subject.schema.any_version(dotted)
            assert key is not None
            value = subject.written(dotted)
            idle = value is False or (isinstance(value, Mapping) and value.get("enabled", False) is False)
            safety = "safe" if idle else "unsafe"
            yield Hit(
                place,
                f"{dotted} stops DeepSpeed {subject.schema.version.name}, whatever its value: "
                f"it was removed in {key.removed or key.refused_since}.{_successor(dotted)}",
                remove(place, safety=safety),  # type: ignore[arg-type]
            )


_SUCCESSORS: Mapping[str, str] = {
    "amp": " Use bf16, fp16 or torch_autocast.",
    "elasticity": " Set the batch keys directly.",
    "curriculum_learning": " It lives on at data_efficiency.data_sampling.curriculum_learning.",
    "zero_optimization.mics_shard_size": " zero_hpz_partition_size shares weights inside a node.",
}


def _successor(dotted: str) -> str:
    return _SUCCESSORS.get(dotted, "")


@rule("KY004", "retired-key", "warning")
def retired_key(subject: Subject) -> Iterable[Hit]:
    """Finds keys that an older release read and this one silently ignores.

    Why is this bad?
        The setting no longer does anything, and no message says so.
    Example
        {"aio": {"thread_count": 4}}
    Use instead
        {"aio": {"intra_op_parallelism": 4}}
    Fix safety
        The key is removed, which changes nothing.
    Source
        deepspeed/runtime/swap_tensor/aio_config.py:24
    """
    for place, dotted in _standing(subject):
        if subject.schema.key(dotted) is None and subject.schema.behaviour(dotted) == "ignored":
            key = subject.schema.any_version(dotted)
            if key is None or not key.removed or not _release_passed(subject, key.removed):
                continue
            if _inside_reported(subject, dotted):
                continue
            message = f"{dotted} was removed in DeepSpeed {key.removed} and is ignored since."
            yield Hit(place, message, remove(place))


@rule("KY005", "key-of-newer-release", "error")
def key_of_newer_release(subject: Subject) -> Iterable[Hit]:
    """Finds keys that only a newer DeepSpeed than the one judged against reads.

    Why is this bad?
        In a typed section the run stops with a ValidationError; elsewhere the setting is silently ignored.
    Example
        With `--deepspeed 0.17.6`:
        {"zero_optimization": {"stage": 2, "leaf_module": {"names": ["mlp"]}}}
    Use instead
        With `--deepspeed 0.18.0`:
        {"zero_optimization": {"stage": 2, "leaf_module": {"names": ["mlp"]}}}
    Source
        trimtab's table of keys by release, made from DeepSpeed's own sources
    """
    for place, dotted in _standing(subject):
        key = subject.schema.any_version(dotted)
        if subject.schema.key(dotted) is not None or key is None or key.since is None:
            continue
        if _release_passed(subject, key.since) or _inside_reported(subject, dotted):
            continue
        refused = subject.schema.behaviour(dotted) == "refused"
        yield Hit(
            place,
            f"{dotted} is new in DeepSpeed {key.since}; {subject.schema.version.name} "
            f"{'refuses it' if refused else 'silently ignores it'}.",
            severity="error" if refused else "warning",
            refused="reading" if refused else None,
        )


@rule("KY006", "deprecated-key", "warning")
def deprecated_key(subject: Subject) -> Iterable[Hit]:
    """Finds keys under a name that DeepSpeed has replaced.

    Why is this bad?
        DeepSpeed warns, forwards the value to the new key, and refuses the two together.
    Example
        {"zero_optimization": {"stage": 3, "stage3_gather_fp16_weights_on_model_save": true}}
    Use instead
        {"zero_optimization": {"stage": 3, "stage3_gather_16bit_weights_on_model_save": true}}
    Fix safety
        The key is renamed, which changes nothing.
    Source
        deepspeed/runtime/config_utils.py:60-97
    """
    for place, dotted in _standing(subject):
        key = subject.schema.key(dotted)
        if key is None or not key.deprecated:
            continue
        new = subject.schema.canonical(f"{key.parent}.{key.replacement}") if key.replacement else None
        advice = f": use {new}" if new else ""
        yield Hit(place, f"{dotted} is deprecated{advice}.", _forwarded(subject, place, new))


def _forwarded(subject: Subject, place: KeyPath, new: str | None) -> Fix | None:
    if new is None or subject.has(new):
        return None
    target = subject.schema.key(new)
    old = subject.written(subject.schema.canonical(".".join(map(str, place))))
    if target is None:
        return None
    if "object" in target.types:  # cpu_offload: true means offload_optimizer: {"device": "cpu"}
        if old is not True:
            return remove(place) if old is False else None
        block = SetValue(key_path=path(new), value={"device": "cpu"})
        return fix(f"Write {new} instead", RemoveKey(key_path=place), block)
    return rename(place, target.name, safety="safe")


@rule("KY007", "one-key-by-two-names", "error", refused="reading")
def one_key_by_two_names(subject: Subject) -> Iterable[Hit]:
    """Finds a key that stands twice, under its name and under an alias or deprecated name of it.

    Why is this bad?
        DeepSpeed refuses a deprecated name beside its replacement and an alias beside its field; of `bf16`
        and `bfloat16` it reads the first and ignores the second.
    Example
        {"zero_optimization": {"stage": 3, "prefetch_bucket_size": 1, "stage3_prefetch_bucket_size": 2}}
    Use instead
        {"zero_optimization": {"stage": 3, "stage3_prefetch_bucket_size": 2}}
    Fix safety
        A `bfloat16` block beside `bf16` is removed, which changes nothing: safe. The deprecated of two names
        is removed: unsafe.
    Source
        deepspeed/runtime/config_utils.py:84-86; deepspeed/runtime/precision_config.py:28-34
    """
    if "bfloat16" in subject.raw and subject.raw.get("bf16") is not None:
        message = "bf16 and bfloat16 are two names of one block: bfloat16 is ignored."
        yield Hit(("bfloat16",), message, remove(("bfloat16",)), severity="warning")
    for dotted, places in subject.doubles():
        if subject.schema.key(dotted) is not None and not dotted.startswith("bf16"):
            names = " and ".join(str(place[-1]) for place in places)
            yield Hit(places[-1], f"{names} are two names of one key: DeepSpeed refuses them together.")
    for place, dotted in _standing(subject):
        key = subject.schema.key(dotted)
        if key is None or not key.deprecated or not key.replacement:
            continue
        new = subject.schema.canonical(f"{key.parent}.{key.replacement}")
        if subject.has(new):
            yield Hit(
                place,
                f"{place[-1]} is the deprecated name of {new}, which stands there too: "
                "DeepSpeed refuses them together.",
                remove(place, safety="unsafe"),
            )


@rule("KY008", "unknown-optimizer-parameter", "error", refused="building")
def unknown_optimizer_parameter(subject: Subject) -> Iterable[Hit]:
    """Finds parameters that the optimizer does not take.

    Why is this bad?
        `optimizer.params` goes to the optimizer's constructor as it is: the run stops with a TypeError
        (`unexpected keyword argument`), after the model has been built. One name may lead to several classes,
        on the GPU, on the host and torch's: `foreach` and `fused` are torch's alone.
    Example
        {"optimizer": {"type": "AdamW", "params": {"learning_rate": 0.0001, "fused": true}}}
    Use instead
        {"optimizer": {"type": "AdamW", "params": {"lr": 0.0001}}}
    Fix safety
        A near match is a rename, and what another class takes is removed; both change what the run does:
        unsafe.
    Source
        deepspeed/runtime/engine.py:2476-2550
    """
    yield from _unknown_parameters(subject, "optimizer")


@rule("KY009", "unknown-scheduler-parameter", "error", refused="building")
def unknown_scheduler_parameter(subject: Subject) -> Iterable[Hit]:
    """Finds parameters that the scheduler does not take.

    Why is this bad?
        `scheduler.params` goes to the scheduler's constructor as it is: the run stops with a TypeError
        (`unexpected keyword argument`), after the model has been built.
    Example
        {"scheduler": {"type": "WarmupLR", "params": {"warmup_steps": 2000}}}
    Use instead
        {"scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": 2000}}}
    Fix safety
        A near match is a rename, which changes what the run does: unsafe.
    Source
        deepspeed/runtime/engine.py:1926-1935
    """
    yield from _unknown_parameters(subject, "scheduler")


def _unknown_parameters(subject: Subject, kind: Kind) -> Iterator[Hit]:
    name = subject.optimizer if kind == "optimizer" else subject.scheduler
    component = subject.schema.component(kind, name) if name else None
    if component is None or component.unknown == "passed":
        return
    for parameter in subject.block(f"{kind}.params"):
        place: KeyPath = (kind, "params", parameter)
        only = _only_elsewhere(subject, component, parameter) if kind == "optimizer" else None
        if only:
            message = f"{component.name} takes '{parameter}' {only}."
            yield Hit(place, message, remove(place, safety="unsafe"))
            continue
        if parameter in component.params or parameter in ("max_grad_norm", "last_batch_iteration"):
            continue
        near = subject.schema.nearest(f"{kind}.params.{parameter}")
        target = near.name if near and near.parent == f"{kind}.params" else None
        mend = None
        if target in component.params and target not in subject.block(f"{kind}.params"):
            mend = rename(place, str(target))
        ignored = component.unknown == "ignored"
        yield Hit(
            place,
            f"{component.name} takes no parameter '{parameter}'"
            + (": it is silently ignored." if ignored else ".")
            + (f" Did you mean {target}?" if target in component.params else _taken(component)),
            mend,
            severity="warning" if ignored else "error",
            refused=None if ignored else "building",
        )


def _only_elsewhere(subject: Subject, component: Component, parameter: str) -> str | None:
    """Where the optimizer takes a parameter that it does not take here: each device has its own class."""
    key = component.params.get(parameter)
    offloaded = subject.offload("optimizer") != "none"
    torch_adam = (
        bool(subject.block("optimizer.params").get("torch_adam")) and "torch_adam" in component.params
    )
    if key is None or component.unknown == "ignored":
        return None
    if torch_adam and parameter in ("bias_correction", "set_grad_none"):
        return "without torch_adam only"
    if key.only == "torch_adam" and not torch_adam:
        return "with torch_adam only"
    if key.only == "no offload_optimizer" and offloaded:
        return "without offload_optimizer only"
    # Adam's and AdamW's is the engine's own, which it sets where there is offload (runtime/engine.py:2388)
    if key.only == "offload_optimizer" and not offloaded and "torch_adam" not in component.params:
        return "with offload_optimizer only"
    return None


def _taken(component: Component) -> str:
    names = [name for name, key in component.params.items() if not key.only]
    return f" It takes {', '.join(names)}."


# -- what stands where -------------------------------------------------------------------------------------


def _standing(subject: Subject) -> Iterator[tuple[KeyPath, str]]:
    """Every key of the file with the schema's name of it, the trimtab block and parameters left out."""
    for place, _ in subject.entries:
        dotted = subject.schema.canonical(".".join(map(str, place)))
        if place[0] != BLOCK and not any(dotted.startswith(f"{block}.") for block in PARAMETERS):
            yield place, dotted


def _inside_reported(subject: Subject, dotted: str) -> bool:
    """Whether a block above is itself unknown to this release, which is then the finding."""
    return any(subject.schema.key(parent) is None for parent in _parents(dotted))


def _lifetime(subject: Subject, dotted: str, event: str) -> bool:
    key = subject.schema.any_version(dotted)
    version = getattr(key, event, None) if key else None
    return version is not None and _release_passed(subject, version)


def _release_passed(subject: Subject, version: str) -> bool:
    return subject.since(version)
