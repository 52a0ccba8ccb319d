"""LD: who reads the file, who fills "auto", and who else owns a value."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from trimtab.config import AUTO, BLOCK
from trimtab.rules.base import Hit, put, remove, rule, shown
from trimtab.rules.subject import Subject, walk
from trimtab.source.pointer import OwnedValue
from trimtab.source.tree import KeyPath

# accelerate/utils/dataclasses.py:1506-1521 of 1.15: refused beside a deepspeed_config_file
_IGNORED_BY_ACCELERATE = frozenset((
    "gradient_accumulation_steps", "gradient_clipping", "zero_stage", "offload_optimizer_device",
    "offload_param_device", "offload_param_nvme_path", "offload_optimizer_nvme_path",
    "zero3_save_16bit_model",
    "mixed_precision",
))  # fmt: skip


def _autos(subject: Subject) -> Iterator[tuple[KeyPath, str]]:
    """Keys whose value is "auto" where the engine itself does not know the word."""
    for place, value in walk(subject.raw):
        if value != AUTO or place[0] == BLOCK or any("." in str(part) for part in place):
            continue
        dotted = subject.schema.canonical(".".join(map(str, place)))
        key = subject.schema.key(dotted)
        if key is None or "object" in key.types:
            continue  # an unknown key, or a whole block: other rules' finding
        if key.default == AUTO or AUTO in key.choices:
            continue
        yield place, dotted


@rule("LD001", "auto-without-a-filler", "error")
def auto_without_a_filler(subject: Subject) -> Iterable[Hit]:
    """Finds "auto" in a file that goes straight to DeepSpeed.

    Why is this bad?
        Transformers and Accelerate replace "auto" before DeepSpeed sees it; nobody else does. In typed
        sections DeepSpeed takes its own default; elsewhere the text "auto" goes on as it is: the batch
        arithmetic fails on it as the file is read, clipping in the first step, and an optimizer as it is
        built.
    Example
        With `--loader deepspeed`:
        {"train_micro_batch_size_per_gpu": "auto", "gradient_clipping": "auto"}
    Use instead
        With `--loader transformers`:
        {"train_micro_batch_size_per_gpu": "auto", "gradient_clipping": "auto",
         "zero_optimization": {"stage": 0}}
    Fix safety
        In a typed section the key is removed, which changes nothing: safe, or unsafe where nobody said who
        loads the file. Elsewhere a value is needed.
    Source
        deepspeed/runtime/config_utils.py:54-56; deepspeed/runtime/engine.py:3506
    """
    if subject.fills_auto:
        return
    told = " If Transformers or Accelerate loads the file, say --loader transformers."
    for place, dotted in _autos(subject):
        key = subject.schema.key(dotted)
        if dotted in ("optimizer.type", "scheduler.type"):
            continue  # OP003 and SC002
        said, told = told if subject.loader_assumed else "", ""
        if key is not None and key.validated:
            yield Hit(
                place,
                f'{dotted} is "auto", which nobody fills here: DeepSpeed takes its default, '
                f"{shown(key.default)}.{said}",
                remove(place, safety="unsafe" if subject.loader_assumed else "safe"),
                at_value=True,
                severity="warning",
            )
        else:
            yield Hit(
                place,
                f'{dotted} is "auto", which nobody fills here: DeepSpeed gets the text itself.{said}',
                at_value=True,
                refused=_stops(dotted),
            )


def _stops(dotted: str) -> Any:
    """When the text "auto" stops a run: runtime/config.py:590 (arithmetic), 230 (dtypes), 520 (|)."""
    reading = (
        "train_batch_size",
        "train_micro_batch_size_per_gpu",
        "gradient_accumulation_steps",
        "communication_data_type",
        "seq_parallel_communication_data_type",
        "wall_clock_breakdown",
        "flops_profiler.enabled",
        "gradient_allreduce_op",
        "vocabulary_size",
        "sequence_parallel_size",
        "checkpoint.tag_validation",
        "checkpoint.parallel_write.pipeline_stage",
        "torch_autocast.dtype",
        "checkpoint.writer.type",
        "checkpoint.writer.data_parallel",
    )
    return "reading" if dotted in reading else "running"


@rule("LD002", "auto-that-nobody-fills", "error", refused="building")
def auto_that_nobody_fills(subject: Subject) -> Iterable[Hit]:
    """Finds "auto" at keys that Transformers and Accelerate do not fill.

    Why is this bad?
        Accelerate goes over the whole file and raises ValueError `not found in kwargs` for every "auto"
        that it has no value for; the Trainer works through Accelerate.
    Example
        With `--loader transformers`:
        {"train_micro_batch_size_per_gpu": "auto", "zero_optimization": {"stage": 3,
         "sub_group_size": "auto"}}
    Use instead
        With `--loader transformers`:
        {"train_micro_batch_size_per_gpu": "auto", "zero_optimization": {"stage": 3,
         "reduce_bucket_size": "auto"}}
    Fix safety
        The key is removed, so that DeepSpeed's default holds: unsafe.
    Source
        accelerate/utils/dataclasses.py:1383-1400; transformers/integrations/deepspeed.py:131-250
    """
    if not subject.fills_auto:
        return
    for place, dotted in _autos(subject):
        key = subject.schema.key(dotted)
        fillers = key.auto if key is not None else ()
        wanted = ("accelerate",) if subject.loader == "accelerate" else ("accelerate", "transformers")
        if not set(fillers) & set(wanted):
            other = f"; only {' and '.join(fillers)} would" if fillers else ""
            yield Hit(
                place,
                f'{dotted} is "auto", but {_name(subject)} does not fill it{other}.',
                remove(place, safety="unsafe"),
                at_value=True,
            )


def _name(subject: Subject) -> str:
    return "Accelerate" if subject.loader == "accelerate" else "the Trainer"


@rule("LD003", "text-that-strict-json-refuses", "error", refused="reading")
def text_that_strict_json_refuses(subject: Subject) -> Iterable[Hit]:
    """Finds comments, trailing commas and the like in a file that Transformers or Accelerate read.

    Why is this bad?
        DeepSpeed reads hjson, which has all of these. Transformers and Accelerate read strict JSON and stop
        with a JSONDecodeError.
    Example
        With `--loader transformers`:
        {"train_micro_batch_size_per_gpu": "auto", // filled by the Trainer
         "zero_optimization": {"stage": 2}}
    Use instead
        With `--loader transformers`:
        {"train_micro_batch_size_per_gpu": "auto",
         "zero_optimization": {"stage": 2}}
    Source
        transformers/integrations/deepspeed.py:60; accelerate/utils/deepspeed.py (HfDeepSpeedConfig)
    """
    first = subject.source.first_non_strict
    if subject.fills_auto and first is not None and first.kind != "bom" and subject.source.format == "hjson":
        yield Hit(
            first.key_path,
            f"{first.message}: {_name(subject)} reads strict JSON and refuses this.",
            place=(first.line, first.column),
            where="file",
        )


@rule("LD004", "two-owners-that-disagree", "error", refused="building")
def two_owners_that_disagree(subject: Subject) -> Iterable[Hit]:
    """Finds values of the training arguments that contradict the configuration.

    Why is this bad?
        The Trainer compares them and stops with `Please correct the following DeepSpeed config values that
        mismatch TrainingArguments`. "auto" makes the arguments win. The comparison is by value and type: the
        text "8" is not 8, and the message then reads `8 vs 8`.
    Example
        With `--loader trainer` as YAML:
        learning_rate: 0.0001
        per_device_train_batch_size: 4
        deepspeed:
          train_micro_batch_size_per_gpu: 8
          zero_optimization: {stage: 2}
    Use instead
        With `--loader trainer` as YAML:
        learning_rate: 0.0001
        per_device_train_batch_size: 4
        deepspeed:
          train_micro_batch_size_per_gpu: auto
          zero_optimization: {stage: 2}
    Fix safety
        The configuration says "auto", so that the arguments win: unsafe.
    Source
        transformers/integrations/deepspeed.py:98-128, 236-250
    """
    if subject.pointer is None or subject.pointer.kind != "trainer":
        return
    for owner in subject.owned:
        for place in owner.owns:
            value = _value_at(subject.raw, place)
            if value is None or value == AUTO or _same(value, owner.value):
                continue
            if owner.key_path[-1] in ("warmup_ratio", "num_train_epochs", "fp16_full_eval", "bf16_full_eval"):
                continue
            yield Hit(
                place,
                f"{'.'.join(map(str, place))} is {shown(value)} ({type(value).__name__}), but "
                f"{owner.key_path[-1]} of the training arguments is {shown(owner.value)} "
                f"({type(owner.value).__name__}).",
                put(place, AUTO, title='Set it to "auto"') if not isinstance(place[-1], int) else None,
                at_value=True,
            )


def _same(left: Any, right: Any) -> bool:
    return isinstance(left, str) == isinstance(right, str) and bool(left == right)


def _value_at(value: Any, place: KeyPath) -> Any:
    for key in place:
        try:
            value = value[key]
        except (KeyError, IndexError, TypeError):
            return None
    return value


@rule("LD005", "accelerate-fields-beside-a-file", "error", refused="building", bare=True)
def accelerate_fields_beside_a_file(subject: Subject) -> Iterable[Hit]:
    """Finds fields of an Accelerate file that it refuses beside a DeepSpeed configuration file.

    Why is this bad?
        With deepspeed_config_file, batch, clipping, stage, offload and mixed precision belong into that file:
        Accelerate stops with `the following accelerate config variables will be ignored`.
    Example
        With `--loader accelerate` as YAML:
        distributed_type: DEEPSPEED
        mixed_precision: bf16
        deepspeed_config:
          deepspeed_config_file: ds_config.json
          zero_stage: 3
    Use instead
        With `--loader accelerate` as YAML:
        distributed_type: DEEPSPEED
        mixed_precision: bf16
        deepspeed_config:
          zero_stage: 3
    Fix safety
        There is no fix: the values belong into the other file.
    Source
        accelerate/utils/dataclasses.py:1506-1536; accelerate/commands/launch.py:1394-1396
    """
    pointer = subject.pointer
    if pointer is None or pointer.kind != "accelerate" or pointer.path is None:
        return
    for owner in subject.owned:
        if owner.key_path[-1] in _IGNORED_BY_ACCELERATE:
            yield _at_owner(
                owner,
                f"{owner.key_path[-1]} is refused beside deepspeed_config_file: it belongs into that file.",
            )


def _at_owner(owner: OwnedValue, message: str) -> Hit:
    place = (owner.span.line, owner.span.column) if owner.span else None
    return Hit(owner.key_path, message, place=place, where="pointer")


@rule("LD006", "no-zero-block-for-accelerate", "error", refused="building")
def no_zero_block_for_accelerate(subject: Subject) -> Iterable[Hit]:
    """Finds files without `zero_optimization` that Accelerate or the Trainer will read.

    Why is this bad?
        Accelerate raises `Please specify the ZeRO optimization config in the DeepSpeed config`, and the
        Trainer works through Accelerate.
    Example
        With `--loader transformers`:
        {"train_micro_batch_size_per_gpu": "auto", "bf16": {"enabled": "auto"}}
    Use instead
        With `--loader transformers`:
        {"train_micro_batch_size_per_gpu": "auto", "bf16": {"enabled": "auto"},
         "zero_optimization": {"stage": 0}}
    Fix safety
        Stage 0 is what DeepSpeed does without the block: safe.
    Source
        accelerate/utils/dataclasses.py:1265-1266
    """
    if subject.fills_auto and "zero_optimization" not in subject.raw:
        yield Hit(
            (),
            "there is no zero_optimization block, which Accelerate and the Trainer require.",
            put(("zero_optimization",), {"stage": 0}, safety="safe"),
        )


@rule("LD007", "no-micro-batch-for-accelerate", "error", refused="building")
def no_micro_batch_for_accelerate(subject: Subject) -> Iterable[Hit]:
    """Finds files without any batch size that Accelerate or the Trainer will read.

    Why is this bad?
        They replace "auto" and add nothing: a file that is silent stays silent, and DeepSpeed stops with
        `Either train_batch_size or train_micro_batch_size_per_gpu needs to be provided`.
    Example
        With `--loader transformers`:
        {"zero_optimization": {"stage": 2}}
    Use instead
        With `--loader transformers`:
        {"zero_optimization": {"stage": 2}, "train_micro_batch_size_per_gpu": "auto"}
    Fix safety
        "auto" is added, which they fill: safe.
    Source
        accelerate/accelerator.py:2179-2230; transformers/integrations/deepspeed.py:101-118
    """
    named = ("train_batch_size", "train_micro_batch_size_per_gpu")
    if subject.fills_auto and all(subject.raw.get(name) is None for name in named):
        yield Hit(
            (),
            'there is no train_micro_batch_size_per_gpu: "auto" lets the loader fill it.',
            put((named[1],), AUTO, safety="safe"),
        )


@rule("LD008", "warm-up-filled-with-zero", "error", refused="building")
def warm_up_filled_with_zero(subject: Subject) -> Iterable[Hit]:
    """Finds an automatic warm-up that the training arguments fill with 0.

    Why is this bad?
        The Trainer fills `warmup_num_steps` with its warmup_steps, whose default is 0. DeepSpeed took that
        for 2; since 0.19.6 it raises `warmup_num_steps must be a positive integer, got 0`.
    Example
        With `--loader trainer` as YAML:
        learning_rate: 0.0001
        deepspeed:
          train_micro_batch_size_per_gpu: auto
          zero_optimization: {stage: 2}
          scheduler: {type: WarmupLR, params: {warmup_num_steps: auto}}
    Use instead
        With `--loader trainer` as YAML:
        learning_rate: 0.0001
        warmup_steps: 100
        deepspeed:
          train_micro_batch_size_per_gpu: auto
          zero_optimization: {stage: 2}
          scheduler: {type: WarmupLR, params: {warmup_num_steps: auto}}
    Source
        deepspeed/runtime/lr_schedules.py:734; transformers/integrations/deepspeed.py:228-232
    """
    place = ("scheduler", "params", "warmup_num_steps")
    if not subject.fills_auto or subject.loader == "accelerate" or not subject.since("0.19.6"):
        return
    if _value_at(subject.raw, place) != AUTO:
        return
    warm = [owner.value for owner in subject.owned if owner.key_path[-1] in ("warmup_steps", "warmup_ratio")]
    if any(warm):
        return
    known = subject.pointer is not None and subject.pointer.kind == "trainer"
    yield Hit(
        place,
        "warmup_num_steps is filled with the Trainer's warmup_steps"
        + (
            ", which is 0 here: DeepSpeed refuses 0."
            if known
            else "; its default, 0, is refused since 0.19.6."
        ),
        at_value=True,
        severity="error" if known else "info",
        refused="building" if known else None,
    )


@rule("LD009", "configuration-file-missing", "error", refused="reading", bare=True)
def configuration_file_missing(subject: Subject) -> Iterable[Hit]:
    """Finds arguments and Accelerate files that name a configuration that is not there.

    Why is this bad?
        DeepSpeed takes a path that does not exist for base64: the message speaks of a codec or of an invalid
        base64 text, and not of the missing file.
    Example
        With `--loader trainer` as YAML:
        deepspeed: no_such_file.json
    Use instead
        With `--loader trainer` as YAML:
        deepspeed:
          train_micro_batch_size_per_gpu: auto
          zero_optimization: {stage: 2}
    Source
        deepspeed/runtime/config.py:443-453; https://github.com/QwenLM/Qwen/issues/1171
    """
    pointer = subject.pointer
    if pointer is not None and pointer.path is not None and not pointer.path.exists():
        place = (pointer.span.line, pointer.span.column) if pointer.span else None
        yield Hit(pointer.key_path, f"{pointer.path} does not exist.", place=place, where="pointer")
