"""ZR: ZeRO stages and the keys that need one of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from trimtab.config import AUTO, STAGE_3_ONLY
from trimtab.rules.base import Hit, fix, put, remove, rule, shown
from trimtab.rules.precision import data_type
from trimtab.rules.subject import Subject
from trimtab.source.edit import SetValue

ZERO = "zero_optimization"


def zero_path(name: str) -> str:
    """The dotted path of a key of the block."""
    return f"{ZERO}.{name}"


_z = zero_path


@rule("ZR001", "zero-as-a-switch", "warning")
def zero_as_a_switch(subject: Subject) -> Iterable[Hit]:
    """Finds `zero_optimization` written as true or false.

    Why is this bad?
        The form is deprecated. True means stage 1, which few people expect.
    Example
        {"zero_optimization": true}
    Use instead
        {"zero_optimization": {"stage": 1}}
    Fix safety
        The block says what the switch meant: safe.
    Source
        deepspeed/runtime/zero/config.py:60-75
    """
    value = subject.raw.get(ZERO)
    if isinstance(value, bool):
        stage = int(value)
        yield Hit(
            (ZERO,),
            f"{ZERO} is {shown(value)}, a deprecated way to say stage {stage}.",
            put((ZERO,), {"stage": stage}, safety="safe", title=f"Write the stage: {stage}"),
            at_value=True,
        )


@rule("ZR002", "stage-without-optimizer", "warning")
def stage_without_optimizer(subject: Subject) -> Iterable[Hit]:
    """Finds stages 1 and 2 in a file that names no optimizer.

    Why is this bad?
        DeepSpeed stops with `zero stage N requires an optimizer` unless the script passes one to
        `deepspeed.initialize`. At stage 3 the engine is built for inference and the backward pass fails.
    Example
        {"zero_optimization": {"stage": 2}, "optimizer": {"params": {"lr": 0.0003}}}
    Use instead
        {"zero_optimization": {"stage": 2}, "optimizer": {"type": "AdamW", "params": {"lr": 0.0003}}}
    Fix safety
        There is no fix here: OP001 offers one where the type is missing.
    Source
        deepspeed/runtime/engine.py:2659; deepspeed/runtime/engine.py:3149
    """
    if subject.fills_auto or subject.optimizer is not None or subject.written("optimizer.type") is not None:
        return
    if subject.stage not in (1, 2, 3):
        return
    place = subject.place(_z("stage")) or (ZERO,)
    yield Hit(
        place,
        f"ZeRO stage {subject.stage} needs an optimizer, and the file names none: the script must "
        "pass one to "
        "deepspeed.initialize, or the run stops.",
        at_value=True,
    )


@rule("ZR003", "gradient-norm-off-outside-stages-1-and-2", "error", refused="reading")
def gradient_norm_off(subject: Subject) -> Iterable[Hit]:
    """Finds `compute_grad_norm` switched off where the engine needs the norm.

    Why is this bad?
        Stages 0 and 3 refuse it as the file is read; stages 1 and 2 refuse it together with gradient
        clipping, whose default is 1.0, with offload and with ZenFlow, and stage 1 with gradients in fp32 of a
        model in bf16.
    Example
        {"zero_optimization": {"stage": 3, "compute_grad_norm": false}}
    Use instead
        {"zero_optimization": {"stage": 2, "compute_grad_norm": false}, "gradient_clipping": 0.0}
    Fix safety
        The key is removed, which computes the norm again: safe.
    Source
        deepspeed/runtime/zero/config.py:389-393; deepspeed/runtime/zero/stage_1_and_2.py:212-218;
        deepspeed/runtime/engine.py:2305-2309
    """
    place = subject.place(_z("compute_grad_norm"))
    if place is None or not subject.off(_z("compute_grad_norm")) or subject.stage is None:
        return
    if subject.stage in (0, 3):
        yield Hit(place, f"compute_grad_norm is off, which stage {subject.stage} refuses.", remove(place))
        return
    if (subject.amount("gradient_clipping") or 0) > 0:
        default = "" if subject.has("gradient_clipping") else " (the default)"
        clipping = f"gradient clipping at {subject.amount('gradient_clipping'):g}{default}"
        yield Hit(
            place,
            f"compute_grad_norm is off, but {clipping} needs the norm.",
            remove(place),
            refused="building",
        )
    elif subject.offload("optimizer") != "none" or subject.block(_z("zenflow")):
        yield Hit(
            place,
            "compute_grad_norm is off, which offload and ZenFlow refuse.",
            remove(place),
            refused="building",
        )
    elif (
        subject.stage == 1
        and subject.precision == "bf16"
        and data_type(subject, "data_types.grad_accum_dtype") == "fp32"
    ):
        yield Hit(
            place,
            "compute_grad_norm is off, which stage 1 refuses with a model in bf16 and gradients in fp32.",
            remove(place),
            refused="building",
        )


@rule("ZR004", "retired-stage-1", "error", refused="building")
def retired_stage_1(subject: Subject) -> Iterable[Hit]:
    """Finds `legacy_stage1`, which stops the run.

    Why is this bad?
        The implementation is gone; the engine raises if the key is true.
    Example
        {"zero_optimization": {"stage": 1, "legacy_stage1": true}, "optimizer": {"type": "AdamW"}}
    Use instead
        {"zero_optimization": {"stage": 1}, "optimizer": {"type": "AdamW"}}
    Fix safety
        The key is removed: safe.
    Source
        deepspeed/runtime/engine.py:2650
    """
    place = subject.place(_z("legacy_stage1"))
    if place is not None and subject.on(_z("legacy_stage1")) and subject.stage in (1, 2, 3):
        yield Hit(place, "legacy_stage1 is true, which DeepSpeed no longer has.", remove(place))


@rule("ZR005", "scaled-gradients-with-reduce-scatter", "error", refused="building")
def scaled_gradients_with_reduce_scatter(subject: Subject) -> Iterable[Hit]:
    """Finds `prescale_gradients` and `gradient_predivide_factor` at stages 2 and 3 with reduce_scatter.

    Why is this bad?
        Both stages assert that gradients are neither scaled nor divided before a reduce-scatter, which is
        their default. Stage 1 takes both.
    Example
        {"zero_optimization": {"stage": 2}, "prescale_gradients": true, "optimizer": {"type": "AdamW"}}
    Use instead
        {"zero_optimization": {"stage": 2}, "optimizer": {"type": "AdamW"}}
    Fix safety
        The scaling is removed; results differ in rounding only, but the run was meant otherwise: unsafe.
    Source
        deepspeed/runtime/zero/stage_1_and_2.py:346-351; deepspeed/runtime/zero/stage3.py:392-396
    """
    if subject.stage not in (2, 3) or not subject.on(_z("reduce_scatter")):
        return
    if (subject.text("gradient_allreduce_op") or "mean").lower() == "sum":
        return
    place = subject.place("prescale_gradients")
    if place is not None and subject.on("prescale_gradients"):
        yield Hit(
            place,
            f"prescale_gradients is refused at stage {subject.stage} while reduce_scatter is on.",
            remove(place, safety="unsafe"),
        )
    factor = subject.amount("gradient_predivide_factor")
    place = subject.place("gradient_predivide_factor")
    if place is not None and factor is not None and factor != 1:
        yield Hit(
            place,
            f"gradient_predivide_factor {factor:g} is refused at stage {subject.stage} while "
            "reduce_scatter is on.",
            remove(place, safety="unsafe"),
        )


@rule("ZR006", "summed-gradients-at-stage-3", "error", refused="reading")
def summed_gradients(subject: Subject) -> Iterable[Hit]:
    """Finds `gradient_allreduce_op` set to sum where the engine only averages.

    Why is this bad?
        Stage 3, ZenFlow and DeepCompile refuse it with a ValueError.
    Example
        {"gradient_allreduce_op": "sum", "zero_optimization": {"stage": 3}}
    Use instead
        {"gradient_allreduce_op": "sum", "zero_optimization": {"stage": 2}}
    Fix safety
        The key is removed, and gradients are averaged: unsafe.
    Source
        deepspeed/runtime/config.py:694-700
    """
    place = subject.place("gradient_allreduce_op")
    if subject.schema.key("gradient_allreduce_op") is None:
        return
    if place is None or (subject.text("gradient_allreduce_op") or "").lower() != "sum":
        return
    for met, what in (
        (subject.stage == 3, "ZeRO stage 3"),
        (subject.written(_z("zenflow")) not in (None, AUTO), "ZenFlow"),
        (subject.on("compile.deepcompile"), "DeepCompile"),
    ):
        if met:
            message = f'gradient_allreduce_op "sum" is refused with {what}.'
            yield Hit(place, message, remove(place, safety="unsafe"))
            return


@rule("ZR007", "stage-3-key-below-stage-3", "info")
def stage_3_key_below_stage_3(subject: Subject) -> Iterable[Hit]:
    """Finds keys that only stage 3 reads in a file with another stage.

    Why is this bad?
        They are accepted and do nothing. Where ZeRO++ (quantized or hierarchical communication) was meant,
        the run is not the one that was planned.
    Example
        {"zero_optimization": {"stage": 2, "zero_quantized_gradients": true}}
    Use instead
        {"zero_optimization": {"stage": 3, "zero_quantized_gradients": true}}
    Fix safety
        The key is removed, which changes nothing.
    Source
        deepspeed/runtime/engine.py:2751-2795; deepspeed/runtime/zero/partition_parameters.py:1598
    """
    if subject.stage not in (0, 1, 2):
        return
    for name in STAGE_3_ONLY:
        place = subject.place(_z(name))
        key = subject.schema.key(_z(name))
        if place is None or key is None or subject.written(_z(name)) == AUTO:
            continue
        if subject.value(_z(name)) != key.default:
            feature = name.startswith("zero_") and subject.value(_z(name)) not in (0, 1)
            feature = feature or (name.startswith("zero_quantized") and subject.on(_z(name)))
            yield Hit(
                place,
                f"{name} does nothing at stage {subject.stage}: only stage 3 reads it.",
                remove(place),
                severity="warning" if feature else "info",
            )


@rule("ZR008", "setting-that-stage-3-ignores", "info")
def setting_that_stage_3_ignores(subject: Subject) -> Iterable[Hit]:
    """Finds keys of stages 1 and 2 in a file with stage 3.

    Why is this bad?
        They are accepted and do nothing.
    Example
        {"zero_optimization": {"stage": 3, "round_robin_gradients": true}}
    Use instead
        {"zero_optimization": {"stage": 2, "round_robin_gradients": true}}
    Fix safety
        The key is removed, which changes nothing.
    Source
        deepspeed/runtime/zero/stage_1_and_2.py:327; deepspeed/runtime/engine.py:2751-2795
    """
    if subject.stage != 3:
        return
    for name in (
        "round_robin_gradients",
        "parameter_alignment",
        "elastic_checkpoint",
        "allgather_bucket_size",
    ):
        place = subject.place(_z(name))
        key = subject.schema.key(_z(name))
        if place is None or key is None or subject.written(_z(name)) == AUTO:
            continue
        if subject.value(_z(name)) in (key.default, None):
            continue
        yield Hit(place, f"{name} does nothing at stage 3.", remove(place))


@rule("ZR013", "odd-allgather-bucket", "error", refused="building")
def odd_allgather_bucket(subject: Subject) -> Iterable[Hit]:
    """Finds an odd `allgather_bucket_size`.

    Why is this bad?
        Stages 1 and 2 assert that it is even (NCCL wants aligned starts), though they no longer use it
        otherwise: with any torch that has all_gather_into_tensor each group is gathered in one call.
    Example
        {"zero_optimization": {"stage": 2, "allgather_bucket_size": 200000001},
         "optimizer": {"type": "AdamW"}}
    Use instead
        {"zero_optimization": {"stage": 2}, "optimizer": {"type": "AdamW"}}
    Fix safety
        The key is removed; its default does the same: safe.
    Source
        deepspeed/runtime/zero/stage_1_and_2.py:389-391
    """
    size, place = subject.integer(_z("allgather_bucket_size")), subject.place(_z("allgather_bucket_size"))
    if place and size is not None and size % 2 and subject.stage in (1, 2):
        yield Hit(place, f"allgather_bucket_size is {size}, but must be even.", remove(place), at_value=True)


@rule("ZR014", "default-written-out", "info")
def default_written_out(subject: Subject) -> Iterable[Hit]:
    """Finds tuning keys of ZeRO that say what the engine does anyway.

    Why is this bad?
        It is not bad. It is worth knowing that these lines tune nothing, when the aim was to tune.
    Example
        {"zero_optimization": {"stage": 3, "overlap_comm": true, "sub_group_size": 1000000000}}
    Use instead
        {"zero_optimization": {"stage": 3, "sub_group_size": 500000000}}
    Fix safety
        The key is removed, which changes nothing in this release; a later one may have another default.
    Source
        deepspeed/runtime/zero/config.py:95-382
    """
    if subject.stage is None:
        return
    for name in _TUNING:
        place, key = subject.place(_z(name)), subject.schema.key(_z(name))
        if place is None or key is None or subject.written(_z(name)) in (AUTO, None):
            continue
        default = subject.stage == 3 if name == "overlap_comm" else key.default
        if subject.value(_z(name)) == default and type(subject.value(_z(name))) is type(default):
            yield Hit(
                place,
                f"{name} {shown(default)} is the default at stage {subject.stage}: this tunes nothing.",
                remove(place),
            )


_TUNING = (
    "overlap_comm", "reduce_bucket_size", "allgather_bucket_size", "sub_group_size",
    "stage3_prefetch_bucket_size",
    "stage3_param_persistence_threshold", "stage3_max_live_parameters", "stage3_max_reuse_distance",
)  # fmt: skip


@rule("ZR015", "corrupted-gradients-with-overlap", "error")
def corrupted_gradients_with_overlap(subject: Subject) -> Iterable[Hit]:
    """Finds stage 2 with overlapping communication in releases where that could corrupt gradients.

    Why is this bad?
        From 0.12.4 until the overlap buffers were changed in 0.19.0, users found gradient norms of NaN, a
        loss of exactly 0 or wrong convergence, gone without overlap_comm. No error is raised.
    Example
        With `--deepspeed 0.15.4`:
        {"zero_optimization": {"stage": 2, "overlap_comm": true}}
    Use instead
        With `--deepspeed 0.15.4`:
        {"zero_optimization": {"stage": 2, "overlap_comm": false}}
    Fix safety
        overlap_comm is switched off: slower, but the same run: safe.
    Source
        https://github.com/deepspeedai/DeepSpeed/issues/5347; https://github.com/deepspeedai/DeepSpeed/issues/7188
    """
    place = subject.place(_z("overlap_comm"))
    if place is None or subject.stage not in (1, 2) or not subject.on(_z("overlap_comm")):
        return
    if not subject.since("0.12.4") or subject.since("0.19.0") or subject.off(_z("contiguous_gradients")):
        return
    yield Hit(
        place,
        f"overlap_comm at stage {subject.stage} with contiguous_gradients can corrupt gradients in DeepSpeed "
        f"{subject.schema.version.name} (0.12.4 up to 0.19.0).",
        put(place, False, safety="safe"),
        severity="error" if subject.stage == 2 else "warning",
    )


@rule("ZR016", "no-16-bit-weights-on-save", "info")
def no_16_bit_weights_on_save(subject: Subject) -> Iterable[Hit]:
    """Finds stage 3 that saves no usable weights when a trainer saves the model.

    Why is this bad?
        Each GPU holds a slice. Without this key `save_16bit_model` and Transformers' `save_model` write no
        weights, only the checkpoint that `zero_to_fp32.py` must convert.
    Example
        With `--loader transformers`:
        {"train_micro_batch_size_per_gpu": "auto", "zero_optimization": {"stage": 3}}
    Use instead
        With `--loader transformers`:
        {"train_micro_batch_size_per_gpu": "auto", "zero_optimization": {"stage": 3,
         "stage3_gather_16bit_weights_on_model_save": true}}
    Fix safety
        Saving then gathers the weights, which takes memory of one whole model in 16 bits: unsafe.
    Source
        deepspeed/runtime/zero/config.py:257; deepspeed/runtime/engine.py (save_16bit_model)
    """
    name = _z("stage3_gather_16bit_weights_on_model_save")
    block = subject.raw.get(ZERO)
    if subject.stage != 3 or not subject.fills_auto or not isinstance(block, Mapping):
        return
    if subject.on(name) or subject.written(name) == AUTO:
        return
    if subject.on(_z("stage3_gather_fp16_weights_on_model_save")):
        return
    place = subject.place(name) or (ZERO, name.rpartition(".")[2])
    set_it = SetValue(key_path=place, value=True)
    yield Hit(
        subject.place(name) or subject.place(_z("stage")) or (ZERO,),
        "saving the model at stage 3 writes no weights without stage3_gather_16bit_weights_on_model_save.",
        fix("Gather 16-bit weights on save", set_it, safety="unsafe"),
    )
