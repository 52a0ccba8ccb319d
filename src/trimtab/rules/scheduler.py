"""SC: the scheduler block."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from trimtab.config import AUTO
from trimtab.errors import nearest
from trimtab.findings import Refusal
from trimtab.rules.base import Hit, fix, put, rule, shown
from trimtab.rules.subject import Subject
from trimtab.rules.torch_names import NEED_OBJECTS, REQUIRED
from trimtab.source.edit import SetValue

TYPE = ("scheduler", "type")
WARMING = ("WarmupLR", "WarmupDecayLR", "WarmupCosineLR")
DECAYING = ("WarmupDecayLR", "WarmupCosineLR")


def _params(subject: Subject) -> Mapping[str, Any]:
    return subject.block("scheduler.params")


def _number(value: Any) -> float | None:
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None


@rule("SC001", "scheduler-without-type", "warning")
def scheduler_without_type(subject: Subject) -> Iterable[Hit]:
    """Finds a scheduler block that names no scheduler.

    Why is this bad?
        Without `type` the whole block is ignored and the learning rate stays constant; no message says so.
    Example
        {"scheduler": {"params": {"warmup_num_steps": 2000}}}
    Use instead
        {"scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": 2000}}}
    Fix safety
        WarmupLR is named, or WarmupDecayLR where total_num_steps stands: unsafe.
    Source
        deepspeed/runtime/config.py:329-340
    """
    block = subject.raw.get("scheduler")
    if isinstance(block, Mapping) and block.get("type") is None:
        name = "WarmupDecayLR" if "total_num_steps" in _params(subject) else "WarmupLR"
        message = "the scheduler block has no type: all of it is silently ignored."
        yield Hit(("scheduler",), message, put(TYPE, name))


@rule("SC002", "unknown-scheduler", "error", refused="building")
def unknown_scheduler(subject: Subject) -> Iterable[Hit]:
    """Finds scheduler names that neither DeepSpeed nor torch has.

    Why is this bad?
        The run stops with `DeepSpeed does not recognize LR scheduler`. Names must be exact.
    Example
        {"scheduler": {"type": "inverse_sqrt", "params": {}}}
    Use instead
        {"scheduler": {"type": "WarmupLR", "params": {}}}
    Fix safety
        The same name in another case is safe, a near one is unsafe.
    Source
        deepspeed/runtime/engine.py:1926-1935
    """
    name = subject.written("scheduler.type")
    if name is None or (name == AUTO and subject.fills_auto):
        return
    built_in = [component.name for component in subject.schema.components("scheduler")]
    known = [*built_in, *REQUIRED]
    if not isinstance(name, str):
        yield Hit(TYPE, f"scheduler.type is {shown(name)}, but must be a name.", at_value=True)
    elif name not in known and name not in ("LRScheduler", "_LRScheduler"):
        gone = subject.schema.component_any_version("scheduler", name)
        if gone is not None:
            message = f"{name} is new in DeepSpeed {gone.since}; {subject.schema.version.name} has none."
            yield Hit(TYPE, message, at_value=True)
            return
        same = [other for other in known if other.lower() == name.lower()]
        close = same or list(nearest(name, known, count=1))
        hint = f" Did you mean {close[0]}?" if close else f" There are {', '.join(built_in)}."
        mend = put(TYPE, close[0], safety="safe" if same else "unsafe") if close else None
        yield Hit(TYPE, f"{name} is no scheduler of DeepSpeed or torch.{hint}", mend, at_value=True)


@rule("SC003", "scheduler-without-params", "error", refused="building")
def scheduler_without_params(subject: Subject) -> Iterable[Hit]:
    """Finds a scheduler without `params`, or with params that are no object.

    Why is this bad?
        The engine unpacks them without looking: TypeError `argument after ** must be a mapping`.
    Example
        {"scheduler": {"type": "WarmupLR"}}
    Use instead
        {"scheduler": {"type": "WarmupLR", "params": {}}}
    Fix safety
        Empty params take every default: safe.
    Source
        deepspeed/runtime/engine.py:1932
    """
    block = subject.raw.get("scheduler")
    if (
        isinstance(block, Mapping)
        and block.get("type") is not None
        and not isinstance(block.get("params"), Mapping)
    ):
        absent = block.get("params") is None
        message = "the scheduler has no params, without which the engine fails."
        if not absent:
            message = f"scheduler.params is {shown(block['params'])}, but must be an object {{ }}."
        empty = put(("scheduler", "params"), {}, safety="safe", title="Add empty params")
        yield Hit(("scheduler",), message, empty if absent else None)


@rule("SC004", "scheduler-parameter-missing", "error", refused="building")
def scheduler_parameter_missing(subject: Subject) -> Iterable[Hit]:
    """Finds schedulers without the parameters that they cannot do without.

    Why is this bad?
        The constructor raises TypeError, after the model has been built.
    Example
        {"scheduler": {"type": "WarmupDecayLR", "params": {"warmup_num_steps": 100}}}
    Use instead
        {"scheduler": {"type": "WarmupDecayLR", "params": {"warmup_num_steps": 100,
         "total_num_steps": 10000}}}
    Fix safety
        For Transformers and Accelerate "auto" is added, which they fill: safe. Otherwise nobody knows.
    Source
        deepspeed/runtime/lr_schedules.py:483, 814, 865
    """
    name = subject.scheduler
    block = subject.raw.get("scheduler")
    if name is None or not isinstance(block, Mapping) or not isinstance(block.get("params"), Mapping):
        return
    component = subject.schema.component("scheduler", name)
    needed = (
        [key for key, about in component.params.items() if about.required]
        if component
        else REQUIRED.get(name, ())
    )
    missing = [key for key in needed if key not in _params(subject)]
    if name in NEED_OBJECTS:
        yield Hit(
            TYPE,
            f"{name} takes functions or schedulers, which a file cannot hold: make it in the script.",
            at_value=True,
        )
    elif missing:
        mend = None
        if subject.fills_auto and missing == ["total_num_steps"]:
            mend = fix(
                'Set total_num_steps to "auto"',
                SetValue(key_path=("scheduler", "params", "total_num_steps"), value=AUTO),
            )
        yield Hit(TYPE, f"{name} needs {' and '.join(missing)}.", mend, at_value=True)


@rule("SC005", "warm-up-that-is-no-count", "error", refused="building")
def warm_up_that_is_no_count(subject: Subject) -> Iterable[Hit]:
    """Finds steps of a scheduler that are not whole numbers above 0.

    Why is this bad?
        Since 0.19.6 the schedulers raise ValueError; older releases took 0 for 2. For no warm-up leave the
        scheduler out, or set 1.
    Example
        {"scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": 0}}}
    Use instead
        {"scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": 1}}}
    Fix safety
        0 becomes 1, which comes closest: safe.
    Source
        deepspeed/runtime/lr_schedules.py:734, 371, 527, 875
    """
    if not subject.since("0.19.6"):
        return
    steps = {"LRRangeTest": ("lr_range_test_step_size",), "OneCycle": ("cycle_first_step_size",)}
    for name in (
        ("warmup_num_steps",) if subject.scheduler in WARMING else steps.get(subject.scheduler or "", ())
    ):
        value = _params(subject).get(name, AUTO)
        if value == AUTO or (isinstance(value, int) and not isinstance(value, bool) and value > 0):
            continue
        if value is True:
            continue
        place = ("scheduler", "params", name)
        later = subject.scheduler == "OneCycle" and not isinstance(value, (int, float))
        mend = put(place, 1, safety="safe") if _number(value) == 0 else None
        if isinstance(value, float) and value >= 1 and value.is_integer():
            mend = put(place, int(value), safety="safe")
        yield Hit(
            place,
            f"{name} is {shown(value)}, but must be a whole number above 0.",
            mend,
            at_value=True,
            refused="building" if not later else "running",
        )


@rule("SC006", "total-steps-that-is-no-number", "error", refused="building")
def total_steps_no_number(subject: Subject) -> Iterable[Hit]:
    """Finds `total_num_steps` that is no number.

    Why is this bad?
        The scheduler compares it with the warm-up and fails with a TypeError.
    Example
        {"scheduler": {"type": "WarmupDecayLR", "params": {"total_num_steps": "10000"}}}
    Use instead
        {"scheduler": {"type": "WarmupDecayLR", "params": {"total_num_steps": 10000}}}
    Fix safety
        A text that says a count becomes that count: safe.
    Source
        deepspeed/runtime/lr_schedules.py:826
    """
    value = _params(subject).get("total_num_steps", AUTO)
    if subject.scheduler in DECAYING and value != AUTO and _number(value) is None and value is not True:
        place = ("scheduler", "params", "total_num_steps")
        digits = isinstance(value, str) and value.isascii() and value.isdigit()
        yield Hit(
            place,
            f"total_num_steps is {shown(value)}, but must be a whole number.",
            put(place, int(value), safety="safe") if digits else None,
            at_value=True,
        )


@rule("SC007", "warm-up-longer-than-the-run", "warning")
def warm_up_longer_than_the_run(subject: Subject) -> Iterable[Hit]:
    """Finds a warm-up that ends after the schedule does.

    Why is this bad?
        The learning rate is still rising when the run ends. DeepSpeed warns and goes on.
    Example
        {"scheduler": {"type": "WarmupDecayLR", "params": {"total_num_steps": 500, "warmup_num_steps": 1000}}}
    Use instead
        {"scheduler": {"type": "WarmupDecayLR", "params": {"total_num_steps": 500, "warmup_num_steps": 50}}}
    Fix safety
        A tenth of the run is a usual warm-up: unsafe.
    Source
        deepspeed/runtime/lr_schedules.py:826-828, 893-895
    """
    if subject.scheduler not in DECAYING:
        return
    total = _number(_params(subject).get("total_num_steps"))
    warm = _number(_params(subject).get("warmup_num_steps", 1000))
    if total is not None and warm is not None and warm > total > 0:
        default = "" if "warmup_num_steps" in _params(subject) else " (the default)"
        place = ("scheduler", "params", "warmup_num_steps" if not default else "total_num_steps")
        there = ("scheduler", "params", "warmup_num_steps")
        yield Hit(
            place,
            f"warmup_num_steps {warm:g}{default} is more than total_num_steps {total:g}.",
            put(there, max(1, int(total // 10))),
            at_value=True,
        )


@rule("SC008", "scheduler-overrules-learning-rate", "warning")
def scheduler_overrules_learning_rate(subject: Subject) -> Iterable[Hit]:
    """Finds a scheduler whose peak is not the optimizer's learning rate.

    Why is this bad?
        The scheduler wins: the rate of the optimizer block is never used. WarmupDecayLR without
        warmup_max_lr even rises to its own default, 0.001.
    Example
        {"optimizer": {"type": "AdamW", "params": {"lr": 0.00002}},
         "scheduler": {"type": "WarmupDecayLR", "params": {"total_num_steps": 10000}}}
    Use instead
        {"optimizer": {"type": "AdamW", "params": {"lr": 0.00002}},
         "scheduler": {"type": "WarmupDecayLR", "params": {"total_num_steps": 10000,
         "warmup_max_lr": 0.00002}}}
    Fix safety
        The peak becomes the optimizer's rate, which changes the run: unsafe.
    Source
        deepspeed/runtime/lr_schedules.py:725-745, 814
    """
    if subject.scheduler not in ("WarmupLR", "WarmupDecayLR"):
        return
    rate = _number(subject.block("optimizer.params").get("lr"))
    default = 0.001 if subject.scheduler == "WarmupDecayLR" else None
    given = _params(subject).get("warmup_max_lr", default)
    peak = _number(given)
    if rate is not None and peak is not None and abs(rate - peak) > 1e-9 * max(rate, peak):
        place = ("scheduler", "params", "warmup_max_lr")
        written = "warmup_max_lr" in _params(subject)
        yield Hit(
            place if written else TYPE,
            f"{subject.scheduler} warms up to {peak:g}{'' if written else ' (its default)'}, not to the "
            f"optimizer's lr {rate:g}, which is never used.",
            put(place, rate),
            at_value=True,
        )


@rule("SC009", "unknown-warm-up-type", "warning")
def unknown_warm_up_type(subject: Subject) -> Iterable[Hit]:
    """Finds `warmup_type` other than log and linear.

    Why is this bad?
        DeepSpeed warns and warms up along a logarithm, which reaches most of the rate in the first steps.
    Example
        {"scheduler": {"type": "WarmupLR", "params": {"warmup_type": "cosine"}}}
    Use instead
        {"scheduler": {"type": "WarmupLR", "params": {"warmup_type": "linear"}}}
    Fix safety
        linear is what most people mean: unsafe.
    Source
        deepspeed/runtime/lr_schedules.py:746-749
    """
    value = _params(subject).get("warmup_type", "log")
    if subject.scheduler in WARMING and value not in ("log", "linear", AUTO):
        place = ("scheduler", "params", "warmup_type")
        message = f"warmup_type {shown(value)} is taken for log; there are log and linear."
        hashable = isinstance(value, (str, int, float, bool)) or value is None
        yield Hit(
            place,
            message,
            put(place, "linear"),
            at_value=True,
            severity=None if hashable else "error",
            refused=None if hashable else "building",
        )


@rule("SC010", "torch-scheduler-with-a-wrapped-optimizer", "error", refused="building")
def torch_scheduler_with_a_wrapped_optimizer(subject: Subject) -> Iterable[Hit]:
    """Finds a scheduler of torch's with ZeRO or a 16-bit mode.

    Why is this bad?
        The engine hands it the optimizer that it has wrapped, and torch refuses what is not its own:
        TypeError `DeepSpeedZeroOptimizer is not an Optimizer`. Only stage 0 in fp32, or under autocast, wraps
        nothing. A script may make the scheduler itself and pass it to `deepspeed.initialize`.
    Example
        {"zero_optimization": {"stage": 2}, "optimizer": {"type": "AdamW", "params": {"lr": 0.0001}},
         "scheduler": {"type": "CosineAnnealingLR", "params": {"T_max": 10000}}}
    Use instead
        {"zero_optimization": {"stage": 2}, "optimizer": {"type": "AdamW", "params": {"lr": 0.0001}},
         "scheduler": {"type": "WarmupCosineLR", "params": {"total_num_steps": 10000,
         "warmup_num_steps": 100}}}
    Source
        deepspeed/runtime/engine.py:1926-1935; torch/optim/lr_scheduler.py, LRScheduler.__init__
    """
    name = subject.scheduler
    if name is None or name not in REQUIRED or subject.schema.component("scheduler", name) is not None:
        return
    wrapped = f"ZeRO stage {subject.stage}" if subject.stage in (1, 2, 3) else None
    if subject.stage == 0 and subject.precision in ("bf16", "fp16"):
        wrapped = subject.precision
    if wrapped:
        own = ", ".join(component.name for component in subject.schema.components("scheduler"))
        yield Hit(
            TYPE,
            f"{name} is torch's, which refuses the optimizer that {wrapped} wraps. There are {own}.",
            at_value=True,
        )


@rule("SC011", "schedule-value-that-is-no-number", "error", refused="building")
def schedule_value_no_number(subject: Subject) -> Iterable[Hit]:
    """Finds rates and ratios of a scheduler that are texts, and more of them than there are groups.

    Why is this bad?
        The scheduler computes with them: a text stops it with a TypeError as it is built, or in the first
        step. A list holds one rate for each group of parameters, and of a file's optimizer there is one.
    Example
        {"scheduler": {"type": "WarmupLR", "params": {"warmup_max_lr": "2e-5"}}}
    Use instead
        {"scheduler": {"type": "WarmupLR", "params": {"warmup_max_lr": 2e-5}}}
    Fix safety
        A text that says a number becomes that number: safe.
    Source
        deepspeed/runtime/lr_schedules.py:362, 541, 743
    """
    component = subject.schema.component("scheduler", subject.scheduler) if subject.scheduler else None
    for name, key in component.params.items() if component else ():
        value, place = _params(subject).get(name, AUTO), ("scheduler", "params", name)
        if value == AUTO or "number" not in key.types:
            continue
        later: Refusal = "building" if subject.scheduler in WARMING else "running"
        if isinstance(value, (str, dict)):
            said = _said(value)
            yield Hit(
                place,
                f"{name} is {shown(value)}, but must be a number.",
                None if said is None else put(place, said, safety="safe"),
                at_value=True,
                refused=later,
            )
        elif isinstance(value, list) and len(value) > 1 and subject.optimizer not in (None, "muon"):
            yield Hit(place, f"{name} has {len(value)} values, but one group of parameters.", at_value=True)


def _said(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None
