"""PR: number formats of parameters, gradients and communication."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from trimtab.architecture import BF16_FAMILIES
from trimtab.config import AUTO
from trimtab.rules.base import Hit, put, remove, rule
from trimtab.rules.subject import Subject

MASTER = {"bf16": "bf16.bf16_master_weights_and_grads", "fp16": "fp16.fp16_master_weights_and_grads"}
# the words of runtime/config.py:146-152 (DtypeEnum); the engine takes any of them in data_types
DTYPES: Mapping[str, str] = {
    word: name
    for name, words in {
        "fp16": ("fp16", "float16", "half", "torch.float16"),
        "fp32": ("fp32", "float32", "float", "torch.float32"),
        "bf16": ("bf16", "bfloat16", "torch.bfloat16"),
        "int8": ("int8", "torch.int8"),
    }.items()
    for word in words
}


def data_type(subject: Subject, dotted: str) -> str | None:
    """The format that a word of ``data_types`` stands for."""
    word = subject.written(dotted)
    return DTYPES.get(word) if isinstance(word, str) else None


@rule("PR001", "fp16-and-bf16", "error", refused="reading")
def fp16_and_bf16(subject: Subject) -> Iterable[Hit]:
    """Finds both half precisions switched on.

    Why is this bad?
        DeepSpeed asserts `bfloat16 and fp16 modes cannot be simultaneously enabled`.
    Example
        {"fp16": {"enabled": true}, "bf16": {"enabled": true}}
    Use instead
        {"bf16": {"enabled": true}}
    Fix safety
        fp16 is switched off, since whoever added bf16 has hardware for it: unsafe.
    Source
        deepspeed/runtime/config.py:511
    """
    place = subject.place("fp16.enabled")
    if place and subject.on("fp16.enabled") and subject.on("bf16.enabled"):
        yield Hit(place, "fp16 and bf16 are both enabled: DeepSpeed refuses that.", put(place, False))


@rule("PR002", "half-master-weights-without-zero", "error", refused="reading")
def half_master_weights_without_zero(subject: Subject) -> Iterable[Hit]:
    """Finds half-precision master weights or optimizer states without ZeRO.

    Why is this bad?
        DeepSpeed asserts that the stage is 1, 2 or 3; before 0.18.3, with fp16, that it is 2.
    Example
        {"bf16": {"enabled": true, "bf16_master_weights_and_grads": true}}
    Use instead
        {"bf16": {"enabled": true, "bf16_master_weights_and_grads": true, "bf16_optimizer_states": true},
         "zero_optimization": {"stage": 3}}
    Fix safety
        The key is removed, and master weights are kept in fp32: unsafe.
    Source
        deepspeed/runtime/config.py:702-712
    """
    if not subject.since("0.18.3") and subject.stage in (1, 3) and subject.on(MASTER["fp16"]):
        place = subject.place(MASTER["fp16"])
        if place:
            message = f"{place[-1]} needs ZeRO stage 2 before DeepSpeed 0.18.3."
            yield Hit(place, message, remove(place, safety="unsafe"))
    if subject.stage != 0:
        return
    for name in (*MASTER.values(), "bf16.bf16_optimizer_states"):
        place = subject.place(name)
        if place and subject.on(name):
            yield Hit(place, f"{place[-1]} needs ZeRO stage 1, 2 or 3.", remove(place, safety="unsafe"))


@rule("PR003", "half-optimizer-states-without-master-weights", "error", refused="reading")
def half_states_without_master(subject: Subject) -> Iterable[Hit]:
    """Finds bf16 optimizer states beside fp32 master weights.

    Why is this bad?
        DeepSpeed asserts that `bf16_master_weights_and_grads` is on too.
    Example
        {"bf16": {"enabled": true, "bf16_optimizer_states": true}, "zero_optimization": {"stage": 3}}
    Use instead
        {"bf16": {"enabled": true, "bf16_optimizer_states": true, "bf16_master_weights_and_grads": true},
         "zero_optimization": {"stage": 3}}
    Fix safety
        The master weights become bf16 too: unsafe.
    Source
        deepspeed/runtime/config.py:714
    """
    place = subject.place("bf16.bf16_optimizer_states")
    if place and subject.on("bf16.bf16_optimizer_states") and not subject.on(MASTER["bf16"]):
        there = (*place[:-1], "bf16_master_weights_and_grads")
        yield Hit(place, "bf16_optimizer_states needs bf16_master_weights_and_grads.", put(there, True))


@rule("PR004", "half-master-weights-without-cpu-adam", "error", refused="building")
def half_master_weights_without_cpu_adam(subject: Subject) -> Iterable[Hit]:
    """Finds half-precision master weights where the optimizer that can keep them is not used.

    Why is this bad?
        `Master weights feature requires ZeRO Offload with DeepSpeedCPUAdam`. Only bf16 with bf16 optimizer
        states works without offload.
    Example
        {"bf16": {"enabled": true, "bf16_master_weights_and_grads": true}, "zero_optimization": {"stage": 2},
         "optimizer": {"type": "AdamW"}}
    Use instead
        {"bf16": {"enabled": true, "bf16_master_weights_and_grads": true, "bf16_optimizer_states": true},
         "zero_optimization": {"stage": 2}, "optimizer": {"type": "AdamW"}}
    Fix safety
        The key is removed, and master weights are kept in fp32: unsafe.
    Source
        deepspeed/runtime/base_optimizer.py:510-520
    """
    if subject.stage not in (1, 2, 3) or subject.optimizer is None:
        return
    cpu_adam = subject.offload("optimizer") != "none" and subject.optimizer in ("adam", "adamw")
    cpu_adam = cpu_adam and not subject.block("optimizer.params").get("torch_adam")
    for mode, name in MASTER.items():
        place = subject.place(name)
        if place is None or not subject.on(name) or cpu_adam:
            continue
        states = mode == "bf16" and subject.on("bf16.bf16_optimizer_states")
        if not states or subject.offload("optimizer") != "none":
            yield Hit(
                place,
                f"{place[-1]} needs the optimizer offloaded with DeepSpeed's CPU Adam"
                + (", or bf16_optimizer_states." if mode == "bf16" else "."),
                remove(place, safety="unsafe"),
            )


@rule("PR005", "parameter-type-against-mode", "error", refused="building")
def parameter_type_against_mode(subject: Subject) -> Iterable[Hit]:
    """Finds `data_types.param_dtype` that differs from the enabled mode.

    Why is this bad?
        The engine asserts that it equals the type of the mode (fp32 where neither fp16 nor bf16 is on).
    Example
        {"data_types": {"param_dtype": "bf16"}, "fp16": {"enabled": true}}
    Use instead
        {"bf16": {"enabled": true}}
    Fix safety
        The key is removed, since the mode decides anyway: unsafe where the mode was the mistake.
    Source
        deepspeed/runtime/engine.py:1827
    """
    place, dtype = subject.place("data_types.param_dtype"), data_type(subject, "data_types.param_dtype")
    if place and dtype and subject.precision and dtype != subject.precision:
        yield Hit(
            place,
            f"param_dtype is {dtype}, but the model is {subject.precision}.",
            remove(place, safety="unsafe"),
            at_value=True,
        )


@rule("PR006", "gradient-type-without-zero", "error", refused="building")
def gradient_type_without_zero(subject: Subject) -> Iterable[Hit]:
    """Finds gradients summed in another type than the model's without ZeRO.

    Why is this bad?
        Stage 0 knows no such mix: NotImplementedError `unsupported mix`.
    Example
        {"data_types": {"grad_accum_dtype": "fp32"}, "bf16": {"enabled": true},
         "optimizer": {"type": "AdamW"}}
    Use instead
        {"data_types": {"grad_accum_dtype": "fp32"}, "bf16": {"enabled": true},
         "optimizer": {"type": "AdamW"},
         "zero_optimization": {"stage": 1}}
    Fix safety
        The key is removed, and gradients are summed in the model's type: unsafe.
    Source
        deepspeed/runtime/engine.py:2323
    """
    place, dtype = (
        subject.place("data_types.grad_accum_dtype"),
        data_type(subject, "data_types.grad_accum_dtype"),
    )
    if place is None or dtype is None or subject.stage != 0 or subject.optimizer is None:
        return
    if subject.precision and dtype != subject.precision:
        yield Hit(
            place,
            f"grad_accum_dtype is {dtype}, but the model is {subject.precision}: stage 0 cannot mix them.",
            remove(place, safety="unsafe"),
            at_value=True,
        )


@rule("PR007", "unsharded-gradients-in-fp32", "warning")
def unsharded_gradients_in_fp32(subject: Subject) -> Iterable[Hit]:
    """Finds the combination that keeps all gradients whole in fp32: stage 1, bf16, sums in fp32.

    Why is this bad?
        The engine then silently uses BF16_Optimizer, which holds 4 bytes per parameter of gradients on every
        GPU from the start. With NVMe offload it also gets a CPU optimizer that fails on the GPU.
    Example
        {"zero_optimization": {"stage": 1}, "bf16": {"enabled": true},
         "data_types": {"grad_accum_dtype": "fp32"}}
    Use instead
        {"zero_optimization": {"stage": 2}, "bf16": {"enabled": true},
         "data_types": {"grad_accum_dtype": "fp32"}}
    Fix safety
        Stage 2 shards the gradients; the run is the same, its memory and its communication are not: unsafe.
    Source
        deepspeed/runtime/engine.py:2305-2310; deepspeed/runtime/bf16_optimizer.py:190-192
    """
    if subject.stage != 1 or subject.precision != "bf16":
        return
    if data_type(subject, "data_types.grad_accum_dtype") != "fp32" or subject.offload("optimizer") == "cpu":
        return
    place = subject.place("data_types.grad_accum_dtype") or ()
    nvme = subject.offload("optimizer") == "nvme"
    yield Hit(
        place,
        "stage 1 with bf16 and gradients in fp32 keeps 4 bytes of gradient per parameter on every GPU"
        + (", and NVMe offload fails there." if nvme else "; stage 2 shards them."),
        put(("zero_optimization", "stage"), 2),
        at_value=True,
        severity="error" if nvme else "warning",
        refused="running" if nvme else None,
    )


@rule("PR008", "static-loss-scale", "warning")
def static_loss_scale(subject: Subject) -> Iterable[Hit]:
    """Finds fp16 training with a fixed loss scale.

    Why is this bad?
        A fixed scale neither grows nor gives way: gradients under- or overflow once training leaves the
        range it was chosen for. 0 makes it dynamic.
    Example
        {"fp16": {"enabled": true, "loss_scale": 128}}
    Use instead
        {"fp16": {"enabled": true, "loss_scale": 0}}
    Fix safety
        The scale becomes dynamic: unsafe.
    Source
        deepspeed/runtime/precision_config.py:111
    """
    scale, place = subject.amount("fp16.loss_scale"), subject.place("fp16.loss_scale")
    if place and scale and subject.on("fp16.enabled"):
        yield Hit(place, f"loss_scale {scale:g} is fixed; 0 makes it dynamic.", put(place, 0), at_value=True)


@rule("PR009", "full-precision", "info")
def full_precision(subject: Subject) -> Iterable[Hit]:
    """Finds training in fp32 because no mode is enabled.

    Why is this bad?
        fp32 doubles the memory of weights, gradients and activations and uses a fraction of the GPU's
        speed. Often the block is there and "enabled" is missing.
    Example
        {"bf16": {}, "zero_optimization": {"stage": 2}}
    Use instead
        {"bf16": {"enabled": true}, "zero_optimization": {"stage": 2}}
    Fix safety
        bf16 is switched on: unsafe.
    Source
        deepspeed/runtime/precision_config.py:43, 102
    """
    if subject.precision != "fp32" or subject.on("torch_autocast.enabled"):
        return
    for mode in ("bf16", "fp16"):
        place = subject.place(mode)
        if place and isinstance(subject.written(mode), dict) and not subject.has(f"{mode}.enabled"):
            yield Hit(
                place,
                f'the {mode} block has no "enabled", so the run is in fp32.',
                put((*place, "enabled"), True),
                severity="warning",
            )
            return
    if subject.has("bf16.enabled") or subject.has("fp16.enabled") or subject.loader != "deepspeed":
        return
    yield Hit((), "neither bf16 nor fp16 is enabled: the run is in fp32.")


@rule("PR010", "fp16-for-a-bf16-model", "warning")
def fp16_for_a_bf16_model(subject: Subject) -> Iterable[Hit]:
    """Finds fp16 for a model whose weights were trained in bf16.

    Why is this bad?
        Their activations go beyond fp16's 65,504: the loss scale falls to its minimum, or the loss is NaN.
        Changing the scaler's numbers only hides it.
    Example
        {"fp16": {"enabled": true}, "trimtab": {"model": "llama-7b"}}
    Use instead
        {"bf16": {"enabled": true}, "trimtab": {"model": "llama-7b"}}
    Fix safety
        The card must have bf16 (Ampere or newer): there is no automatic fix.
    Source
        the Llama 2 paper, section 2.2; https://github.com/deepspeedai/DeepSpeedExamples/issues/419
    """
    place = subject.place("fp16.enabled")
    if place is None or not subject.on("fp16.enabled") or subject.model is None:
        return
    if subject.model.model_type in BF16_FAMILIES and (subject.cluster is None or subject.cluster.gpu.bf16):
        yield Hit(place, f"{subject.model.name} was trained in bf16; fp16 overflows on such weights.")


@rule("PR011", "bf16-without-hardware", "error")
def bf16_without_hardware(subject: Subject) -> Iterable[Hit]:
    """Finds bf16 on a card that has no bf16 units.

    Why is this bad?
        DeepSpeed only asks PyTorch, which emulates bf16 on older cards: the run starts and crawls.
    Example
        With `--gpu v100-32gb`:
        {"bf16": {"enabled": true}}
    Use instead
        With `--gpu v100-32gb`:
        {"fp16": {"enabled": true}}
    Source
        deepspeed/accelerator/cuda_accelerator.py:204-207
    """
    place = subject.place("bf16.enabled")
    if place and subject.on("bf16.enabled") and subject.cluster is not None and not subject.cluster.gpu.bf16:
        yield Hit(place, f"{subject.cluster.gpu.name} has no bf16; use fp16.", severity="warning")


@rule("PR012", "initial-scale-with-static-scale", "info")
def initial_scale_with_static_scale(subject: Subject) -> Iterable[Hit]:
    """Finds settings of the dynamic loss scale beside a fixed one, and of fp16 in a run without it.

    Why is this bad?
        They do nothing.
    Example
        {"fp16": {"enabled": true, "loss_scale": 128, "initial_scale_power": 12}}
    Use instead
        {"fp16": {"enabled": true, "loss_scale": 0, "initial_scale_power": 12}}
    Fix safety
        The key is removed, which changes nothing.
    Source
        deepspeed/runtime/fp16/loss_scaler.py:122
    """
    if not subject.on("fp16.enabled") or not subject.amount("fp16.loss_scale"):
        return
    for name in ("initial_scale_power", "loss_scale_window", "hysteresis", "min_loss_scale"):
        place = subject.place(f"fp16.{name}")
        if place and subject.written(f"fp16.{name}") != AUTO:
            yield Hit(place, f"{name} does nothing while loss_scale is fixed.", remove(place))


@rule("PR013", "autocast-module-without-its-package", "error", refused="building")
def autocast_module_without_its_package(subject: Subject) -> Iterable[Hit]:
    """Finds classes of `torch_autocast.lower_precision_safe_modules` that cannot be imported as written.

    Why is this bad?
        The engine imports each by its whole path and raises `Failed to import lower precision safe module`
        for a class without its package.
    Example
        {"torch_autocast": {"enabled": true, "dtype": "bfloat16", "lower_precision_safe_modules": ["Linear"]}}
    Use instead
        {"torch_autocast": {"enabled": true, "dtype": "bfloat16",
         "lower_precision_safe_modules": ["torch.nn.Linear"]}}
    Fix safety
        A class without a package is taken for one of torch.nn, as most are: unsafe.
    Source
        deepspeed/runtime/torch_autocast.py:41-52
    """
    above = "torch_autocast.lower_precision_safe_modules"
    place, classes = subject.place(above), subject.written(above)
    if place is None or not isinstance(classes, list) or not subject.on("torch_autocast.enabled"):
        return
    for index, name in enumerate(classes):
        if not isinstance(name, str) or all(name.rpartition(".")):
            continue
        mend = put((*place, index), f"torch.nn.{name}") if name.isidentifier() else None
        yield Hit(
            (*place, index),
            f'"{name}" names no class that can be imported: the whole path is needed, as "torch.nn.Linear".',
            mend,
            at_value=True,
        )


LARGEST_POWER = {True: 63, False: 1023}
"""Of a loss scale that the engine can multiply with: ZeRO's by a 64-bit integer, stage 0's by a float."""


@rule("PR014", "loss-scale-beyond-integers", "error", refused="running")
def loss_scale_beyond_integers(subject: Subject) -> Iterable[Hit]:
    """Finds an `initial_scale_power` whose scale no 64-bit integer holds.

    Why is this bad?
        The first scale is the integer 2 to that power. From 64 on ZeRO cannot multiply the loss with it, from
        1024 on stage 0 cannot: the first backward pass stops with an OverflowError. fp16 itself ends at
        65504, so that 16, the default, is already more than most losses take.
    Example
        {"fp16": {"enabled": true, "initial_scale_power": 128}, "zero_optimization": {"stage": 2}}
    Use instead
        {"fp16": {"enabled": true, "initial_scale_power": 16}, "zero_optimization": {"stage": 2}}
    Fix safety
        The key is removed, so that the default holds, and the scale finds its place from there: unsafe.
    Source
        deepspeed/runtime/precision_config.py:199; deepspeed/runtime/fp16/loss_scaler.py:161;
        deepspeed/runtime/fp16/unfused_optimizer.py:248
    """
    power, place = subject.integer("fp16.initial_scale_power"), subject.place("fp16.initial_scale_power")
    dynamic = subject.on("fp16.enabled") and not subject.amount("fp16.loss_scale")
    if place is None or power is None or subject.stage is None or not dynamic:
        return
    largest = LARGEST_POWER[subject.stage > 0]
    if power > largest:
        yield Hit(
            place,
            f"initial_scale_power is {power}, but {largest} is the most at stage {subject.stage}.",
            remove(place, safety="unsafe"),
            at_value=True,
        )


@rule("PR015", "two-loss-scales-at-stage-0", "error", refused="running")
def two_loss_scales_at_stage_0(subject: Subject) -> Iterable[Hit]:
    """Finds autocast to float16 beside bf16 or fp16 at stage 0.

    Why is this bad?
        At stage 0 autocast to float16 scales the loss with torch's GradScaler, which looks for gradients in
        the optimizer; a 16-bit mode wraps that one and hands it gradients later: the first step stops with
        `No inf checks were recorded for this optimizer`.
    Example
        {"bf16": {"enabled": true}, "torch_autocast": {"enabled": true, "dtype": "float16"},
         "zero_optimization": {"stage": 0}}
    Use instead
        {"bf16": {"enabled": true}, "torch_autocast": {"enabled": true, "dtype": "bfloat16"},
         "zero_optimization": {"stage": 0}}
    Fix safety
        Autocast goes to bfloat16 beside bf16; beside fp16 it is switched off: both unsafe.
    Source
        deepspeed/runtime/engine.py:668-672, 3512-3514
    """
    place = subject.place("torch_autocast.dtype")
    word = subject.written("torch_autocast.dtype")
    scaled = subject.on("torch_autocast.enabled") and isinstance(word, str) and DTYPES.get(word) == "fp16"
    if place is None or not scaled or subject.stage != 0 or subject.precision not in ("bf16", "fp16"):
        return
    beside_bf16 = subject.precision == "bf16"
    yield Hit(
        place,
        f"autocast to {word} and {subject.precision} do not go together at stage 0.",
        put(place, "bfloat16") if beside_bf16 else put(("torch_autocast", "enabled"), False),
        at_value=True,
    )
