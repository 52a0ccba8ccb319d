"""TY: values of a type, a size or a word that the engine cannot take."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from trimtab.config import AUTO
from trimtab.errors import nearest
from trimtab.findings import Fix, Refusal
from trimtab.rules.base import Hit, put, remove, rule, shown
from trimtab.rules.coercion import FALSE, Misfit, coerced, number, out_of_bounds, true_or_false, whole
from trimtab.rules.precision import DTYPES
from trimtab.rules.subject import Subject
from trimtab.schema import Key
from trimtab.source.tree import KeyPath

BATCH = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
PARAMETERS = ("optimizer.params", "scheduler.params")
# blocks that may be null, or anything empty: runtime/swap_tensor/aio_config.py:25, auto_ep_config.py:30,
# precision_config.py:30 (null makes the engine look for "bfloat16")
_NULL_IS_FINE = frozenset(("aio", "bf16", "expert_parallel", "checkpoint.writer", "autotuning.model_info"))
# lists and texts that other families speak of
_ELSEWHERE = frozenset(("optimizer.type", "scheduler.type", "optimizer.params", "scheduler.params"))


def _keys(subject: Subject) -> Iterator[tuple[KeyPath, Key, Any]]:
    """Every known key that stands in the file, with its value; ``"auto"`` has its own rules."""
    for place, key, value in subject.known:
        if value != AUTO and key.path not in BATCH:
            yield place, key, value


def _wrong(key: Key, value: Any) -> bool:
    try:
        coerced(key, value)
    except Misfit:
        return True
    return False


_WANTED = {
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "string": "a text",
    "array": "a list",
    "object": "an object { }",
    "null": "null",
    "any": "anything",
}


def _wanted(key: Key) -> str:
    if key.choices:
        return " or ".join(shown(choice) for choice in key.choices)
    return " or ".join(_WANTED[name] for name in key.types)


def _near_choice(place: KeyPath, key: Key, value: Any) -> Fix | None:
    if not isinstance(value, str):
        return None
    texts = [choice for choice in key.choices if isinstance(choice, str)]
    same = [choice for choice in texts if choice.lower() == value.lower()]
    close = same or list(nearest(value, texts, count=1))
    return put(place, close[0], safety="safe" if same else "unsafe") if close else None


@rule("TY001", "wrong-type", "error", refused="reading")
def wrong_type(subject: Subject) -> Iterable[Hit]:
    """Finds values of a type that a typed section of the engine refuses.

    Why is this bad?
        The run stops with a pydantic ValidationError. `"2"`, `2.0` and `2e8` all pass for a whole number,
        `"yes"` and `1` for true; a fraction, a word or null does not.
    Example
        {"zero_optimization": {"stage": 2, "overlap_comm": "maybe", "reduce_bucket_size": 1.5}}
    Use instead
        {"zero_optimization": {"stage": 2, "overlap_comm": true, "reduce_bucket_size": 5e8}}
    Source
        deepspeed/runtime/config_utils.py:100-110
    """
    for place, key, value in _keys(subject):
        if not key.validated or key.choices or not _wrong(key, value) or _fp16_scale(subject, key, value):
            continue
        if isinstance(value, Mapping) and "object" in key.types:
            continue
        yield Hit(
            place,
            f"{key.path} is {shown(value)}, but must be {_wanted(key)}.",
            remove(place) if value is None else None,
            at_value=True,
        )


@rule("TY002", "out-of-range", "error", refused="reading")
def out_of_range(subject: Subject) -> Iterable[Hit]:
    """Finds numbers outside what the engine accepts.

    Why is this bad?
        The run stops with a ValidationError.
    Example
        {"zero_optimization": {"stage": 1, "reduce_bucket_size": 0}}
    Use instead
        {"zero_optimization": {"stage": 1, "reduce_bucket_size": 50000000}}
    Source
        deepspeed/runtime/zero/config.py:113-346
    """
    for place, key, value in _keys(subject):
        if _wrong(key, value) or key.path in _LOOSE_BOUNDS or key.path.startswith("fp16."):
            continue
        broken = out_of_bounds(key, coerced(key, value))
        if broken is not None:
            sign, words = broken
            at_reading = key.validated and (
                sign not in key.by_hand or key.path.startswith("zero_optimization.zenflow")
            )
            taken = key.path in _TAKEN_AS_IT_IS and value != 0
            yield Hit(
                place,
                f"{key.path} is {shown(value)}, but must be {words}.",
                at_value=True,
                severity="warning" if taken else None,
                refused=None if taken else "reading" if at_reading else "running",
            )


# any number but 0 divides the count of steps (runtime/engine.py:3554)
_TAKEN_AS_IT_IS = frozenset(("steps_per_print",))
# the engine reads these without holding them to their bounds; SC and PL speak of them
_LOOSE_BOUNDS = frozenset(("sequence_parallel_size",))


@rule("TY003", "unknown-choice", "error", refused="reading")
def unknown_choice(subject: Subject) -> Iterable[Hit]:
    """Finds words and numbers that are none of the values a key can have.

    Why is this bad?
        The engine refuses them as it reads the file, or, for `data_types`, as it builds the engine.
    Example
        {"zero_optimization": {"stage": 4}, "communication_data_type": "float16"}
    Use instead
        {"zero_optimization": {"stage": 3}, "communication_data_type": "fp16"}
    Fix safety
        Another case of a known word is safe, another word is unsafe.
    Source
        deepspeed/runtime/zero/config.py:83-90; deepspeed/runtime/config.py:218-230
    """
    for place, key, value in _keys(subject):
        null = (
            value is None and "null" in key.types and key.path != "torch_autocast.dtype"
        )  # runtime/config.py:187
        if not key.choices or null or _is_choice(key, value):
            continue
        if key.path == "log_level":
            continue  # CM speaks of it
        if key.path == "tensor_parallel.dtype":
            message = "tensor_parallel.dtype must be a torch.dtype: DeepSpeed refuses every text for it."
            yield Hit(place, message, remove(place, safety="unsafe"))
            continue
        unread = _unread(subject, key)
        yield Hit(
            place,
            f"{key.path} is {shown(value)}, but must be {_wanted(key)}.",
            _near_choice(place, key, value),
            at_value=True,
            severity="warning" if unread else None,
            refused=None if unread else _when_chosen(key, value),
        )


def _unread(subject: Subject, key: Key) -> bool:
    """Whether the engine looks at the word only where something else is on (runtime/engine.py:822, 1846)."""
    if key.path == "data_types.buffer_dtype":
        return subject.precision == "fp32"
    return key.path.startswith("expert_parallel.") and not subject.on("expert_parallel.enabled")


# untyped keys whose words the engine holds to its list as it reads the file: runtime/config.py:161, 218, 241,
# 373; runtime/model_checkpointing/config.py:29
_CHOSEN_AT_READING = frozenset((
    "communication_data_type", "seq_parallel_communication_data_type", "gradient_allreduce_op",
    "torch_autocast.dtype", "checkpoint.tag_validation", "checkpoint.writer.type",
    "checkpoint.writer.data_parallel",
))  # fmt: skip


_ZENFLOW = "zero_optimization.zenflow"


def _when_chosen(key: Key, value: Any) -> Refusal:
    if key.validated and not isinstance(value, str):
        return "reading"
    words = "choices" in key.by_hand and key.path not in (
        "tensor_parallel.dtype",
        f"{_ZENFLOW}.select_strategy",
    )
    if (key.validated and not words) or key.path in _CHOSEN_AT_READING:
        return "reading"
    return "running" if key.path.startswith(("data_efficiency.", "autotuning.")) else "building"


def _is_choice(key: Key, value: Any) -> bool:
    if isinstance(value, (dict, list)):
        return False
    if key.any_case and isinstance(value, str):
        return value.lower() in [str(choice).lower() for choice in key.choices]
    if key.path == "tensor_parallel.dtype":
        return False  # a torch.dtype, which no file can hold
    if key.path.startswith("data_types.") and isinstance(value, str):
        return value in DTYPES
    if key.path == "tensor_parallel.preset_model" or not key.validated:
        return value in key.choices and isinstance(value, str)
    return not _wrong(key, value)


@rule("TY004", "unchecked-type", "error", refused="running")
def unchecked_type(subject: Subject) -> Iterable[Hit]:
    """Finds values of a wrong type under keys that the engine takes as they are.

    Why is this bad?
        No section checks these keys: a text in place of a number fails in the first arithmetic with it,
        which may be hours later, and `"false"` in place of false is a text and therefore true.
    Example
        {"gradient_clipping": "1.0", "dump_state": "false"}
    Use instead
        {"gradient_clipping": 1.0, "dump_state": false}
    Fix safety
        The text is replaced by what it says, which is what was meant: safe for numbers, unsafe for
        true and false, since the engine took the text for true.
    Source
        deepspeed/runtime/config_utils.py:118-140 (get_scalar_param)
    """
    for place, key, value in _keys(subject):
        if (
            key.validated
            or key.choices
            or "object" in key.types
            or "any" in key.types
            or key.path in _ELSEWHERE
        ):
            continue
        refuses = _CHOKES.get(key.path)
        at_reading = refuses is not None and refuses(value)
        if not at_reading and value is None and ("null" in key.types or key.has_default is False):
            continue
        if not at_reading and _exactly_typed(key, value):
            continue
        switch = key.types == ("boolean",)
        means_off = isinstance(value, str) and value.lower() in FALSE
        counts = isinstance(value, bool) or (key.path in _TAKEN_AS_IT_IS and isinstance(value, float))
        fatal = at_reading or (not switch and "string" not in key.types and not counts) or means_off
        taken = (
            f", and DeepSpeed takes it for {'true' if value else 'false'}"
            if switch and not at_reading
            else ""
        )
        yield Hit(
            place,
            f"{key.path} is {shown(value)}, but should be {_wanted(key)}{taken}.",
            _as_meant(place, key, value),
            at_value=True,
            severity="error" if fatal else "warning",
            refused="reading" if at_reading else None if switch or not fatal else "running",
        )


def _exactly_typed(key: Key, value: Any) -> bool:
    """Whether the value is of a JSON type of the key; whole floats pass for integers, as hjson makes them."""
    for name in key.types:
        if name == "boolean" and isinstance(value, bool):
            return True
        if name in ("number", "integer") and isinstance(value, (int, float)) and not isinstance(value, bool):
            return name == "number" or float(value).is_integer()
        if name == "string" and isinstance(value, str):
            return True
        if name == "array" and isinstance(value, list):
            return True
    return False


def _as_meant(place: KeyPath, key: Key, value: Any) -> Fix | None:
    """What a text or a number says, in the key's own type."""
    try:
        if key.types == ("boolean",):
            return put(place, true_or_false(value))
        if isinstance(value, str) and "integer" in key.types:
            return put(place, whole(value), safety="safe")
        if isinstance(value, str) and "number" in key.types:
            return put(place, number(value), safety="safe")
    except Misfit:
        return None
    return None


def _not_integral(value: Any) -> bool:
    return not isinstance(value, int)


def _no_int(value: Any) -> bool:
    try:
        int(value)
    except (TypeError, ValueError):
        return True
    return False


# where reading the file already fails on a wrong type: runtime/config.py:520 (|), 580-588, 718 (%), 178-205
_CHOKES: Mapping[str, Callable[[Any], bool]] = {
    "wall_clock_breakdown": _not_integral,
    "flops_profiler.enabled": _not_integral,
    "vocabulary_size": lambda value: bool(value) and not isinstance(value, (int, float)),
    "checkpoint.parallel_write.pipeline_stage": lambda value: value not in (True, False),
    "torch_autocast.lower_precision_safe_modules": lambda value: (
        not (
            isinstance(value, (str, dict))
            or (isinstance(value, list) and all(isinstance(x, str) for x in value))
        )
    ),
    "data_types.keep_in_fp32_modules": lambda value: (
        not (isinstance(value, list) and all(isinstance(x, str) for x in value))
    ),
    "data_efficiency.data_sampling.dynamic_batching.min_batch_size": _no_int,
    "data_efficiency.data_sampling.dynamic_batching.max_batch_size": _no_int,
    "autotuning.results_dir": lambda value: not value,
    "autotuning.exps_dir": lambda value: not value,
}


@rule("TY005", "not-a-block", "error", refused="reading")
def not_a_block(subject: Subject) -> Iterable[Hit]:
    """Finds values that stand where a block belongs.

    Why is this bad?
        The engine looks for keys in it and fails with a TypeError or AttributeError that names no key.
    Example
        {"fp16": true, "optimizer": "AdamW", "scheduler": null}
    Use instead
        {"fp16": {"enabled": true}, "optimizer": {"type": "AdamW"}}
    Fix safety
        A switch becomes a block that holds it, and a null is removed: both are safe.
    Source
        deepspeed/runtime/config.py:482-588
    """
    for place, key, value in _keys(subject):
        if "object" not in key.types or isinstance(value, Mapping) or key.path in _ELSEWHERE:
            continue
        if value is None and ("null" in key.types or key.path in _NULL_IS_FINE or _leaf(key)):
            continue
        if key.path == "zero_optimization" and isinstance(value, bool):
            continue  # ZR001
        if not key.validated and len(key.types) > 1 and _exactly_typed(key, value):
            continue
        if key.path == "expert_parallel" and not value:
            continue
        yield Hit(
            place,
            f"{key.path} is {shown(value)}, but must be an object {{ }}.",
            _as_block(subject, place, key, value),
            at_value=True,
            refused=None if key.path in _OPAQUE or _only_searched(key, value) else "reading",
        )
    yield from _auto_blocks(subject)


# blocks that are handed on unseen: autotuning/config.py:62, runtime/data_pipeline/config.py:54-160
_OPAQUE = frozenset((
    "autotuning.arg_mappings", "data_efficiency.data_routing.random_ltd.layer_token_lr_schedule",
    "data_efficiency.data_sampling.curriculum_learning.curriculum_metrics", "datastates_ckpt",
))  # fmt: skip


def _only_searched(key: Key, value: Any) -> bool:
    """The engine looks for a key in it, which a text and a list let it do (utils/config.py:27)."""
    return key.path == "timers" and isinstance(value, (str, list))


def _leaf(key: Key) -> bool:
    return key.path == "zero_optimization.leaf_module"


def _as_block(subject: Subject, place: KeyPath, key: Key, value: Any) -> Fix | None:
    if value is None:
        return remove(place)
    inner = "enabled" if isinstance(value, bool) else "type" if isinstance(value, str) else None
    if inner is None or subject.schema.key(f"{key.path}.{inner}") is None:
        return None
    return put(place, {inner: value}, safety="safe")


def _auto_blocks(subject: Subject) -> Iterator[Hit]:
    """``"auto"`` for a whole block at the top: only values can be filled."""
    monitors = ("tensorboard", "wandb", "csv_monitor", "comet")
    for place, value in subject.entries:
        key = subject.schema.key(".".join(map(str, place)))
        if value != AUTO or key is None or "object" not in key.types or key.path in monitors:
            continue
        if key.validated or key.path in (*_OPAQUE, *PARAMETERS, "timers"):
            continue  # typed sections drop it (runtime/config_utils.py:54), others never look
        yield Hit(
            place, f'{key.path} is "auto", but nobody fills a whole block.', remove(place), at_value=True
        )


@rule("TY006", "wrong-element-type", "error", refused="reading")
def wrong_element_type(subject: Subject) -> Iterable[Hit]:
    """Finds elements of a list that are not what the list is of.

    Why is this bad?
        The typed section refuses the whole list, or the engine fails on the element later.
    Example
        {"compile": {"passes": ["z3", "z4"]}}
    Use instead
        {"compile": {"passes": ["z3"]}}
    Source
        deepspeed/compile/config.py:9
    """
    for place, key, value in _keys(subject):
        if not isinstance(value, list) or not key.validated:
            continue
        for index, item in enumerate(value):
            texts = key.path.startswith("zero_optimization.leaf_module.")
            wrong = item not in key.item_choices if key.item_choices else texts and not isinstance(item, str)
            if wrong:
                wanted = " or ".join(map(shown, key.item_choices)) if key.item_choices else "a text"
                yield Hit(
                    (*place, index),
                    f"{key.path} holds {shown(item)}, but each must be {wanted}.",
                    at_value=True,
                )


@rule("TY007", "loss-scale-not-a-number", "error", refused="reading")
def loss_scale_not_a_number(subject: Subject) -> Iterable[Hit]:
    """Finds fp16 loss scale settings that the engine refuses: of a wrong type, negative or zero.

    Why is this bad?
        The run stops with a ValidationError. These three keys are stricter than all others: true is no
        number for them, and window and floor must be above 0 while the scale is dynamic.
    Example
        {"fp16": {"enabled": true, "loss_scale": 0, "loss_scale_window": 0, "min_loss_scale": true}}
    Use instead
        {"fp16": {"enabled": true, "loss_scale": 0, "loss_scale_window": 1000, "min_loss_scale": 1}}
    Source
        deepspeed/runtime/precision_config.py:111-185
    """
    for place, key, value in _keys(subject):
        if not _scale_is_checked(subject, key):
            continue
        if _fp16_scale(subject, key, value):
            yield Hit(
                place, f"{key.path} is {shown(value)}, but must be a {_SCALE[key.path]}.", at_value=True
            )
            continue
        if _wrong(key, value):
            continue
        dynamic = subject.on("fp16.enabled") and subject.amount("fp16.loss_scale") == 0
        if dynamic and key.path != "fp16.loss_scale" and coerced(key, value) <= 0:
            yield Hit(
                place,
                f"{key.path} is {shown(value)}, but must be above 0 while the scale is dynamic.",
                at_value=True,
            )


_SCALE = {
    "fp16.loss_scale": "number of at least 0 (0 is dynamic)",
    "fp16.loss_scale_window": "whole number",
    "fp16.min_loss_scale": "whole number",
}


def _scale_is_checked(subject: Subject, key: Key) -> bool:
    """Whether this release has checks of its own for the key: since 0.18.8 the scale, since 0.19.3 all."""
    if key.path not in _SCALE or not key.validated:
        return False
    return subject.since("0.18.8" if key.path == "fp16.loss_scale" else "0.19.3")


def _fp16_scale(subject: Subject, key: Key, value: Any) -> bool:
    """Whether the field's own checks refuse the value, before pydantic's."""
    if not _scale_is_checked(subject, key):
        return False
    if isinstance(value, bool) or value is None or isinstance(value, (dict, list)):
        return True
    if key.path == "fp16.loss_scale":
        try:
            scale = number(value)
        except Misfit:
            return True
        return not 0 <= scale < float("inf")
    if isinstance(value, str):
        try:
            int(value)
        except ValueError:
            return True
    return False
