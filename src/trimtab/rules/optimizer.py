"""OP: the optimizer block, and which optimizer goes with which stage and offload."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from trimtab.config import AUTO, DEEPSPEED_OPTIMIZERS, ZERO_OPTIMIZERS
from trimtab.errors import nearest
from trimtab.findings import Refusal
from trimtab.rules.base import Hit, fix, put, remove, rule, shown
from trimtab.rules.subject import Subject
from trimtab.rules.torch_names import OPTIMIZERS
from trimtab.source.edit import Edit, RemoveKey, SetValue

ONE_BIT = frozenset(("onebitadam", "onebitlamb", "zerooneadam"))
ADAM_CLASSES = frozenset(("fusedadam", "cpuadam", "deepspeedcpuadam"))
"""DeepSpeed's classes, which it takes by itself for Adam and AdamW (runtime/engine.py:2486-2494)."""
TYPE = ("optimizer", "type")


def _params(subject: Subject) -> Mapping[str, Any]:
    return subject.block("optimizer.params")


@rule("OP001", "optimizer-without-type", "error", refused="building")
def optimizer_without_type(subject: Subject) -> Iterable[Hit]:
    """Finds an optimizer block that names no optimizer.

    Why is this bad?
        Without `type` the whole block, learning rate included, is ignored, and no message says so. Stages 1
        and 2 then stop for want of an optimizer, stage 3 and stage 0 in the first backward pass.
    Example
        {"zero_optimization": {"stage": 2}, "optimizer": {"params": {"lr": 0.0003}}}
    Use instead
        {"zero_optimization": {"stage": 2}, "optimizer": {"type": "AdamW", "params": {"lr": 0.0003}}}
    Fix safety
        AdamW is named, which most people mean: unsafe.
    Source
        deepspeed/runtime/config.py:288-300
    """
    block = subject.raw.get("optimizer")
    if isinstance(block, Mapping) and block.get("type") is None:
        at_building = subject.stage in (1, 2)
        yield Hit(
            ("optimizer",),
            "the optimizer block has no type: all of it is silently ignored.",
            put(TYPE, "AdamW"),
            refused="building" if at_building else "running",
        )


@rule("OP002", "one-bit-optimizer", "error", refused="building")
def one_bit_optimizer(subject: Subject) -> Iterable[Hit]:
    """Finds 1-bit optimizers: OneBitAdam, OneBitLamb, ZeroOneAdam.

    Why is this bad?
        DeepSpeed 0.19.7 removed them; the run stops with `is not a supported DeepSpeed Optimizer`. Before,
        they were refused together with ZeRO stages 2 and 3. To send less over a slow network, accumulate
        more steps, or use ZeRO++ (zero_quantized_gradients, zero_quantized_weights) at stage 3.
    Example
        {"optimizer": {"type": "OneBitAdam", "params": {"lr": 0.0001, "freeze_step": 2000}}}
    Use instead
        {"optimizer": {"type": "AdamW", "params": {"lr": 0.0001}}}
    Fix safety
        The plain optimizer of the same family takes its place, and the parameters of compression go: unsafe.
    Source
        deepspeed/runtime/engine.py:2016-2019 (0.19.8); deepspeed/runtime/engine.py of 0.18.9, where the
        engine asserts that 1-bit Adam is not used with ZeRO
    """
    name = subject.written("optimizer.type")
    if not isinstance(name, str) or name.lower() not in ONE_BIT:
        return
    version = subject.schema.version.name
    if subject.since("0.19.7"):
        message = f"{name} was removed in DeepSpeed 0.19.7: the run stops."
    elif subject.stage in (1, 2, 3):
        message = f"{name} is refused together with ZeRO (stage {subject.stage}) in DeepSpeed {version}."
    else:
        return
    yield Hit(TYPE, message, _plain_optimizer(subject, name), at_value=True)


def _plain_optimizer(subject: Subject, name: str) -> Any:
    plain = "Lamb" if "lamb" in name.lower() else "AdamW"
    component = subject.schema.component("optimizer", plain)
    known = component.params if component else {}
    gone = [RemoveKey(key_path=("optimizer", "params", key)) for key in _params(subject) if key not in known]
    edits: list[Edit] = [SetValue(key_path=TYPE, value=plain), *gone]
    if plain == "Lamb" and subject.stage in (1, 2, 3) and not subject.on("zero_allow_untested_optimizer"):
        edits.append(SetValue(key_path=("zero_allow_untested_optimizer",), value=True))
    return fix(f"Use {plain}", *edits, safety="unsafe")


@rule("OP003", "unknown-optimizer", "error", refused="building")
def unknown_optimizer(subject: Subject) -> Iterable[Hit]:
    """Finds optimizer names that neither DeepSpeed nor torch has.

    Why is this bad?
        The run stops with `is not a supported DeepSpeed Optimizer`. DeepSpeed's own names may be written in
        any case; torch's must be exact: SGD works and sgd does not.
    Example
        {"optimizer": {"type": "sgd", "params": {"lr": 0.1}}}
    Use instead
        {"optimizer": {"type": "SGD", "params": {"lr": 0.1}}}
    Fix safety
        Torch's name in another case is what was meant: safe. A near name is unsafe.
    Source
        deepspeed/runtime/engine.py:1985-1986, 2016-2019
    """
    name = subject.written("optimizer.type")
    if name is None or (name == AUTO and subject.fills_auto):
        return
    if not isinstance(name, str):
        yield Hit(
            TYPE, f"optimizer.type is {shown(name)}, but must be a name.", at_value=True, refused="reading"
        )
        return
    lower = name.lower()
    if lower in DEEPSPEED_OPTIMIZERS or name in OPTIMIZERS or lower in ONE_BIT:
        if subject.schema.component("optimizer", name) is None and lower in DEEPSPEED_OPTIMIZERS:
            since = getattr(subject.schema.component_any_version("optimizer", name), "since", None)
            yield Hit(
                TYPE,
                f"{name} is new in DeepSpeed {since}; {subject.schema.version.name} has none.",
                at_value=True,
            )
        return
    same = [known for known in OPTIMIZERS if known.lower() == lower]
    built_in = [component.name for component in subject.schema.components("optimizer")]
    own = ["AdamW"] if lower in ADAM_CLASSES else []
    close = same or own or list(nearest(name, [*built_in, *OPTIMIZERS], count=1))
    hint = f" Did you mean {close[0]}?" if close else f" There are {', '.join(built_in)} and torch.optim's."
    mend = put(TYPE, close[0], safety="safe" if same else "unsafe") if close else None
    yield Hit(TYPE, f"{name} is no optimizer of DeepSpeed or torch.optim.{hint}", mend, at_value=True)


@rule("OP004", "optimizer-untested-with-zero", "error", refused="building")
def optimizer_untested_with_zero(subject: Subject) -> Iterable[Hit]:
    """Finds an optimizer that ZeRO has not been tested with, without the switch that allows it.

    Why is this bad?
        ZeRO hands the optimizer flat slices of the weights. It asserts that the optimizer is one that is
        known to work so, unless `zero_allow_untested_optimizer` is on. Lamb's layer-wise scale and
        Adafactor's rows and columns are lost on flat slices.
    Example
        {"zero_optimization": {"stage": 2}, "optimizer": {"type": "Lamb", "params": {"lr": 0.006}}}
    Use instead
        {"zero_optimization": {"stage": 2}, "zero_allow_untested_optimizer": true,
         "optimizer": {"type": "Lamb", "params": {"lr": 0.006}}}
    Fix safety
        The switch is set: unsafe.
    Source
        deepspeed/runtime/engine.py:2298-2301; deepspeed/runtime/zero/utils.py:45-77
    """
    name = subject.optimizer
    if name is None or name in ZERO_OPTIMIZERS or subject.stage not in (1, 2, 3):
        return
    known = name in OPTIMIZERS or name in DEEPSPEED_OPTIMIZERS
    if known and not subject.on("zero_allow_untested_optimizer"):
        shard = f"at ZeRO stage {subject.stage}"
        yield Hit(
            TYPE,
            f"{subject.written('optimizer.type')} {shard} needs zero_allow_untested_optimizer.",
            put(("zero_allow_untested_optimizer",), True),
            at_value=True,
        )


@rule("OP005", "clipping-in-the-optimizer", "error", refused="building")
def clipping_in_the_optimizer(subject: Subject) -> Iterable[Hit]:
    """Finds `max_grad_norm` among the optimizer's parameters.

    Why is this bad?
        DeepSpeed raises ValueError for it: clipping is `gradient_clipping` at the top of the file.
    Example
        {"optimizer": {"type": "AdamW", "params": {"lr": 0.0001, "max_grad_norm": 0.5}}}
    Use instead
        {"gradient_clipping": 0.5, "optimizer": {"type": "AdamW", "params": {"lr": 0.0001}}}
    Fix safety
        The value moves to gradient_clipping unless that is set, which is what was meant: safe.
    Source
        deepspeed/runtime/engine.py:2481
    """
    place = ("optimizer", "params", "max_grad_norm")
    if "max_grad_norm" not in _params(subject) or subject.optimizer is None:
        return
    value = _params(subject)["max_grad_norm"]
    edits: list[Any] = [RemoveKey(key_path=place)]
    usable = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not subject.has("gradient_clipping") and usable:
        edits.append(SetValue(key_path=("gradient_clipping",), value=value))
    mend = fix("Write it as gradient_clipping", *edits) if usable else None
    yield Hit(
        place,
        "max_grad_norm is no parameter of an optimizer: DeepSpeed refuses it. Use gradient_clipping.",
        mend,
        refused="building" if usable or isinstance(value, bool) else "reading",
    )


@rule("OP006", "lamb-with-fixed-loss-scale", "error", refused="building")
def lamb_with_fixed_loss_scale(subject: Subject) -> Iterable[Hit]:
    """Finds Lamb with a fixed fp16 loss scale.

    Why is this bad?
        The engine asserts that Lamb has a dynamic loss scale; it looks even where fp16 is off.
    Example
        {"optimizer": {"type": "Lamb"}, "fp16": {"enabled": true, "loss_scale": 128}}
    Use instead
        {"optimizer": {"type": "Lamb"}, "fp16": {"enabled": true, "loss_scale": 0}}
    Fix safety
        The scale becomes dynamic: unsafe.
    Source
        deepspeed/runtime/engine.py:2021-2024
    """
    place = subject.place("fp16.loss_scale")
    if place and subject.optimizer == "lamb" and subject.amount("fp16.loss_scale"):
        yield Hit(place, "Lamb needs a dynamic loss scale: loss_scale 0.", put(place, 0), at_value=True)


@rule("OP007", "muon-with-reduce-scatter", "error", refused="building")
def muon_with_reduce_scatter(subject: Subject) -> Iterable[Hit]:
    """Finds Muon at stage 3 with reduce_scatter, which is on by default.

    Why is this bad?
        Muon needs whole gradients; stage 3 raises ValueError unless reduce_scatter is off, and never goes
        with quantized gradients.
    Example
        {"zero_optimization": {"stage": 3}, "optimizer": {"type": "Muon", "params": {"lr": 0.02}}}
    Use instead
        {"zero_optimization": {"stage": 3, "reduce_scatter": false},
         "optimizer": {"type": "Muon", "params": {"lr": 0.02}}}
    Fix safety
        reduce_scatter is switched off, as Muon needs: safe.
    Source
        deepspeed/runtime/zero/stage3.py:360-363
    """
    if subject.optimizer == "muon" and subject.stage == 3 and subject.on("zero_optimization.reduce_scatter"):
        place = subject.place("zero_optimization.reduce_scatter") or TYPE
        switch = put(("zero_optimization", "reduce_scatter"), False, safety="safe")
        yield Hit(place, "Muon at stage 3 needs reduce_scatter off.", switch)


@rule("OP008", "amsgrad-with-fused-optimizer", "error", refused="building")
def amsgrad_with_fused_optimizer(subject: Subject) -> Iterable[Hit]:
    """Finds AMSGrad with one of DeepSpeed's own optimizers.

    Why is this bad?
        FusedAdam, CPUAdam and FusedLamb raise RuntimeError: they have no AMSGrad variant.
    Example
        {"optimizer": {"type": "AdamW", "params": {"lr": 0.0001, "amsgrad": true}}}
    Use instead
        {"optimizer": {"type": "AdamW", "params": {"lr": 0.0001, "amsgrad": true, "torch_adam": true}}}
    Fix safety
        The parameter is removed: unsafe.
    Source
        deepspeed/ops/adam/fused_adam.py:88; deepspeed/ops/adam/cpu_adam.py:108;
        deepspeed/ops/lamb/fused_lamb.py:56
    """
    params = _params(subject)
    own = subject.optimizer in ("adam", "adamw", "lamb") and not params.get("torch_adam")
    if own and params.get("amsgrad") is True:
        place = ("optimizer", "params", "amsgrad")
        yield Hit(place, "amsgrad is refused by DeepSpeed's own optimizers.", remove(place, safety="unsafe"))


@rule("OP009", "adam-that-is-adamw", "info")
def adam_that_is_adamw(subject: Subject) -> Iterable[Hit]:
    """Finds Adam with weight decay, which DeepSpeed runs as AdamW.

    Why is this bad?
        `"type": "Adam"` decays weights like AdamW unless `adam_w_mode` is false. It is only a surprise, but
        it makes a run differ from the same optimizer elsewhere.
    Example
        {"optimizer": {"type": "Adam", "params": {"lr": 0.0001, "weight_decay": 0.01}}}
    Use instead
        {"optimizer": {"type": "AdamW", "params": {"lr": 0.0001, "weight_decay": 0.01}}}
    Fix safety
        AdamW is what runs anyway: safe.
    Source
        deepspeed/runtime/engine.py:2486-2493; deepspeed/runtime/config.py:72-73
    """
    if (
        subject.optimizer == "adam"
        and _params(subject).get("weight_decay")
        and "adam_w_mode" not in _params(subject)
    ):
        yield Hit(
            TYPE,
            "Adam decays weights like AdamW here (adam_w_mode is true).",
            put(TYPE, "AdamW", safety="safe"),
            at_value=True,
        )


@rule("OP010", "torch-optimizer-with-offload", "error", refused="running")
def torch_optimizer_with_offload(subject: Subject) -> Iterable[Hit]:
    """Finds optimizers without a CPU version, and torch's Adam, together with offload.

    Why is this bad?
        Offload keeps the optimizer's slices on the host. Lamb has only a CUDA kernel and fails on them;
        torch's own optimizers work, several times slower than DeepSpeed's CPU ones.
    Example
        {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}},
         "zero_allow_untested_optimizer": true, "optimizer": {"type": "Lamb"}}
    Use instead
        {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}},
         "optimizer": {"type": "AdamW"}}
    Source
        deepspeed/ops/lamb/fused_lamb.py:41; deepspeed/runtime/engine.py:2381-2384
    """
    if subject.offload("optimizer") == "none" or subject.stage not in (1, 2, 3) or subject.optimizer is None:
        return
    if subject.optimizer == "lamb":
        yield Hit(TYPE, "Lamb has no CPU version: it fails on an offloaded optimizer.", at_value=True)
    elif subject.optimizer in OPTIMIZERS:
        message = f"{subject.optimizer} has no CPU version of DeepSpeed: offloaded, it steps slowly."
        yield Hit(TYPE, message, at_value=True, severity="warning", refused=None)
    elif _params(subject).get("torch_adam") and subject.optimizer in ("adam", "adamw"):
        place = ("optimizer", "params", "torch_adam")
        message = "torch_adam keeps DeepSpeed's CPU Adam out, which is several times faster."
        yield Hit(place, message, remove(place, safety="unsafe"), severity="warning", refused=None)


@rule("OP011", "unknown-torch-optimizer-parameter", "error", refused="building")
def unknown_torch_optimizer_parameter(subject: Subject) -> Iterable[Hit]:
    """Finds parameters that torch's optimizer of that name does not take.

    Why is this bad?
        The run stops with a TypeError. `scale_parameter`, `relative_step` and `warmup_init` are those of
        Hugging Face's Adafactor; the name leads to torch's.
    Example
        {"optimizer": {"type": "Adafactor", "params": {"lr": 0.001, "relative_step": false}}}
    Use instead
        {"optimizer": {"type": "Adafactor", "params": {"lr": 0.001}}}
    Fix safety
        The parameter is removed: unsafe.
    Source
        deepspeed/runtime/engine.py:2547-2549; torch/optim
    """
    taken = OPTIMIZERS.get(subject.optimizer or "")
    if taken is None:
        return
    for name in _params(subject):
        if name not in taken and name != "max_grad_norm":
            place = ("optimizer", "params", name)
            close = nearest(name, taken, count=1)
            hint = f" Did you mean {close[0]}?" if close else ""
            yield Hit(
                place,
                f"torch.optim.{subject.optimizer} takes no parameter '{name}'.{hint}",
                remove(place, safety="unsafe"),
            )


@rule("OP012", "optimizer-parameters-not-a-block", "error", refused="reading")
def optimizer_parameters_not_a_block(subject: Subject) -> Iterable[Hit]:
    """Finds `optimizer.params` that is no object.

    Why is this bad?
        The engine looks for keys in it as it reads the file.
    Example
        {"optimizer": {"type": "AdamW", "params": [0.0001]}}
    Use instead
        {"optimizer": {"type": "AdamW", "params": {"lr": 0.0001}}}
    Source
        deepspeed/runtime/config.py:726
    """
    block = subject.raw.get("optimizer")
    if isinstance(block, Mapping) and block.get("type") is not None and "params" in block:
        params = block["params"]
        if params is not None and not isinstance(params, Mapping):
            place = ("optimizer", "params")
            yield Hit(
                place, f"optimizer.params is {shown(params)}, but must be an object {{ }}.", at_value=True
            )


@rule("OP013", "wrong-optimizer-value", "error", refused="building")
def wrong_optimizer_value(subject: Subject) -> Iterable[Hit]:
    """Finds parameters of the optimizer of a wrong type or outside their range.

    Why is this bad?
        torch's constructors refuse them, and the first step fails on a text in place of a number. DeepSpeed's
        own optimizers take any number: with betas of 1 and more every weight is soon NaN.
    Example
        {"optimizer": {"type": "AdamW", "params": {"lr": "2e-5", "betas": [0.9, 1.5]}}}
    Use instead
        {"optimizer": {"type": "AdamW", "params": {"lr": 2e-5, "betas": [0.9, 0.999]}}}
    Fix safety
        A text that says a number becomes that number: safe.
    Source
        torch/optim/adamw.py; deepspeed/ops/adam/fused_adam.py:78-90
    """
    yield from _wrong_values(subject)


def _wrong_values(subject: Subject) -> Iterator[Hit]:
    if subject.optimizer is None:
        return
    of_torch = subject.optimizer in OPTIMIZERS or _params(subject).get("torch_adam")
    range_refused: Refusal | None = "building" if of_torch else None
    for name, value in _params(subject).items():
        place = ("optimizer", "params", name)
        if value == AUTO:
            continue
        if name in ("lr", "eps", "weight_decay", "momentum", "muon_lr", "adam_lr"):
            if isinstance(value, str) or value is None or isinstance(value, (bool, list, dict)):
                if value is None and name == "lr":
                    continue
                yield Hit(
                    place,
                    f"{name} is {shown(value)}, but must be a number.",
                    _as_number(place, value),
                    at_value=True,
                    refused="running",
                )
            elif value < 0:
                message = f"{name} is {value:g}, but must not be below 0."
                yield Hit(place, message, at_value=True, refused=range_refused)
        elif name == "betas":
            pair = isinstance(value, list) and len(value) == 2
            if not pair or not all(_is_number(beta) and 0 <= beta < 1 for beta in value):
                yield Hit(
                    place,
                    f"betas are {shown(value)}, but must be two numbers from 0 to below 1.",
                    at_value=True,
                    refused=range_refused if pair and all(map(_is_number, value)) else "running",
                )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float))


def _as_number(place: tuple[str, ...], value: Any) -> Any:
    if isinstance(value, str):
        try:
            return put(place, float(value), safety="safe")
        except ValueError:
            return None
    return None
