"""OF: offload to the host's memory and to NVMe."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from trimtab.rules.base import Hit, put, remove, rule
from trimtab.rules.shares import shares_of
from trimtab.rules.subject import Subject

OPTIMIZER = "zero_optimization.offload_optimizer"
PARAM = "zero_optimization.offload_param"
ZENFLOW = "zero_optimization.zenflow"
LEAST_SWAPPED_BYTES = (
    1 << 20
)  # MIN_AIO_BYTES, runtime/swap_tensor/utils.py:14: a smaller share stays in memory
BLOCKS: tuple[tuple[str, Literal["optimizer", "param"]], ...] = ((OPTIMIZER, "optimizer"), (PARAM, "param"))


@rule("OF001", "parameter-offload-below-stage-3", "warning")
def parameter_offload_below_stage_3(subject: Subject) -> Iterable[Hit]:
    """Finds parameters offloaded at a stage that keeps them whole on every GPU.

    Why is this bad?
        Stages 0 to 2 accept the block and ignore it: the parameters stay on the GPU, and no message says so.
    Example
        {"zero_optimization": {"stage": 2, "offload_param": {"device": "cpu"}}}
    Use instead
        {"zero_optimization": {"stage": 3, "offload_param": {"device": "cpu"}}}
    Fix safety
        The block is removed, which changes nothing.
    Source
        deepspeed/runtime/engine.py:2773
    """
    place = subject.place(PARAM)
    if place and subject.offload("param") != "none" and subject.stage in (0, 1, 2):
        message = f"offload_param is ignored at stage {subject.stage}: only stage 3 offloads parameters."
        yield Hit(place, message, remove(place))


@rule("OF002", "optimizer-offload-at-stage-0", "error", refused="running")
def optimizer_offload_at_stage_0(subject: Subject) -> Iterable[Hit]:
    """Finds an offloaded optimizer without ZeRO.

    Why is this bad?
        Nothing moves the parameters to the host at stage 0, but the CPU optimizer is built: its first step
        asserts `CPUAdam param is on cuda`.
    Example
        {"zero_optimization": {"stage": 0, "offload_optimizer": {"device": "cpu"}},
         "optimizer": {"type": "AdamW"}}
    Use instead
        {"zero_optimization": {"stage": 1, "offload_optimizer": {"device": "cpu"}},
         "optimizer": {"type": "AdamW"}}
    Fix safety
        The stage becomes 1, the lowest that offloads: unsafe.
    Source
        deepspeed/ops/adam/cpu_adam.py:148
    """
    place = subject.place(OPTIMIZER)
    if place and subject.offload("optimizer") != "none" and subject.stage == 0:
        yield Hit(
            place,
            "offload_optimizer at stage 0: the CPU optimizer gets parameters that are on the GPU, "
            "and its first "
            "step fails.",
            put(("zero_optimization", "stage"), 1),
        )


@rule("OF003", "nvme-below-stage-3", "warning")
def nvme_below_stage_3(subject: Subject) -> Iterable[Hit]:
    """Finds an optimizer offloaded to NVMe at stages 1 and 2.

    Why is this bad?
        These stages silently use the host's memory instead: the memory that NVMe was to save is needed.
    Example
        {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "nvme", "nvme_path": "/nvme"}}}
    Use instead
        {"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "nvme", "nvme_path": "/nvme"}}}
    Fix safety
        The device becomes cpu, which is what happens anyway: safe.
    Source
        deepspeed/runtime/zero/stage_1_and_2.py:220-221
    """
    place = subject.place(f"{OPTIMIZER}.device")
    if place and subject.offload("optimizer") == "nvme" and subject.stage in (1, 2):
        yield Hit(
            place,
            f"offload_optimizer to nvme silently becomes cpu at stage {subject.stage}: only stage "
            "3 uses NVMe.",
            put(place, "cpu", safety="safe"),
            at_value=True,
        )


@rule("OF004", "nvme-without-a-path", "error", refused="building")
def nvme_without_a_path(subject: Subject) -> Iterable[Hit]:
    """Finds NVMe offload without `nvme_path`.

    Why is this bad?
        Stage 3 asserts that the path is given for parameters, and fails in os.path.join for the optimizer.
    Example
        {"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme"}},
         "optimizer": {"type": "AdamW"}}
    Use instead
        {"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme", "nvme_path": "/local_nvme"}},
         "optimizer": {"type": "AdamW"}}
    Source
        deepspeed/runtime/zero/partition_parameters.py:1229; deepspeed/runtime/zero/stage3.py:840
    """
    if subject.stage != 3:
        return
    for block, what in BLOCKS:
        place = subject.place(f"{block}.device")
        path = subject.written(f"{block}.nvme_path")
        if place is None or (subject.loader == "accelerate" and path == "auto"):
            continue
        if subject.offload(what) == "nvme" and subject.value(f"{block}.nvme_path") is None:
            yield Hit(place, f"offload_{what} to nvme needs nvme_path, a folder on the drive.", at_value=True)


@rule("OF005", "partial-offload-below-stage-3", "error", refused="reading")
def partial_offload_below_stage_3(subject: Subject) -> Iterable[Hit]:
    """Finds a share of the optimizer offloaded at a stage that offloads all or nothing.

    Why is this bad?
        The section asserts `Partial offloading only supported for ZeRO Stage 3`.
    Example
        {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu", "ratio": 0.5}}}
    Use instead
        {"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu", "ratio": 0.5}}}
    Fix safety
        The ratio is removed, and all is offloaded: unsafe.
    Source
        deepspeed/runtime/zero/config.py:395-400
    """
    ratio, place = subject.amount(f"{OPTIMIZER}.ratio"), subject.place(f"{OPTIMIZER}.ratio")
    if place and ratio is not None and 0 <= ratio < 1 and subject.stage in (0, 1, 2):
        message = f"ratio {ratio:g} is refused at stage {subject.stage}: partial offload needs stage 3."
        yield Hit(place, message, remove(place, safety="unsafe"), at_value=True)


@rule("OF006", "super-offload-below-stage-3", "warning")
def super_offload_below_stage_3(subject: Subject) -> Iterable[Hit]:
    """Finds SuperOffload at a stage that ignores it.

    Why is this bad?
        The switch does nothing below stage 3.
    Example
        {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu", "super_offload": true}}}
    Use instead
        {"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu", "super_offload": true}}}
    Fix safety
        The key is removed, which changes nothing.
    Source
        deepspeed/runtime/engine.py:2749
    """
    place = subject.place(f"{OPTIMIZER}.super_offload")
    if place and subject.on(f"{OPTIMIZER}.super_offload") and subject.stage in (0, 1, 2):
        yield Hit(
            place, f"super_offload does nothing at stage {subject.stage}: it needs stage 3.", remove(place)
        )


@rule("OF007", "contiguous-gradients-off-with-offload", "info")
def contiguous_gradients_off_with_offload(subject: Subject) -> Iterable[Hit]:
    """Finds `contiguous_gradients` switched off although offload switches it on again.

    Why is this bad?
        Stages 1 and 2 force it on when the optimizer is offloaded: the setting does nothing.
    Example
        {"zero_optimization": {"stage": 2, "contiguous_gradients": false,
         "offload_optimizer": {"device": "cpu"}}}
    Use instead
        {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}
    Fix safety
        The key is removed, which changes nothing.
    Source
        deepspeed/runtime/zero/stage_1_and_2.py:300
    """
    place = subject.place("zero_optimization.contiguous_gradients")
    if (
        place
        and subject.off("zero_optimization.contiguous_gradients")
        and subject.stage in (1, 2)
        and subject.offload("optimizer") != "none"
    ):
        yield Hit(place, "contiguous_gradients false is overruled by offload_optimizer.", remove(place))


@rule("OF008", "zenflow-without-cpu-offload", "error", refused="building")
def zenflow_without_cpu_offload(subject: Subject) -> Iterable[Hit]:
    """Finds ZenFlow without an optimizer on the host, or without ZeRO.

    Why is this bad?
        ZenFlow splits the work between GPU and CPU. Stages 1 and 2 raise unless the optimizer is offloaded to
        cpu, and stage 3 then has nothing there. Stage 0 has none of what it calls: the first steps end in an
        AttributeError.
    Example
        {"zero_optimization": {"stage": 2, "zenflow": {"topk_ratio": 0.1}}, "optimizer": {"type": "AdamW"}}
    Use instead
        {"zero_optimization": {"stage": 2, "zenflow": {"topk_ratio": 0.1},
         "offload_optimizer": {"device": "cpu"}}, "optimizer": {"type": "AdamW"}}
    Fix safety
        The optimizer is offloaded to the host: unsafe. At stage 0 the block is removed: unsafe.
    Source
        deepspeed/runtime/zenflow/zenflow_stage_1_and_2.py:116; deepspeed/runtime/engine.py:3096
    """
    place = subject.place(ZENFLOW)
    if place is None or not isinstance(subject.written(ZENFLOW), Mapping):
        return
    if subject.stage == 0:
        away = remove(place, safety="unsafe")
        yield Hit(place, "zenflow needs a ZeRO stage: at stage 0 it fails.", away, refused="running")
    elif subject.stage in (1, 2, 3) and subject.offload("optimizer") != "cpu":
        mend = None
        if subject.written(OPTIMIZER) is None:
            mend = put(("zero_optimization", "offload_optimizer"), {"device": "cpu"})
        yield Hit(
            place,
            'zenflow needs offload_optimizer with device "cpu".',
            mend,
            severity="warning" if subject.stage == 3 else None,
            refused=None if subject.stage == 3 else "as the rule",
        )


@rule("OF009", "zenflow-interval", "error", refused="building")
def zenflow_interval(subject: Subject) -> Iterable[Hit]:
    """Finds ZenFlow's selection strategy and intervals that contradict each other.

    Why is this bad?
        A fixed select_interval is refused with the strategy "auto", and "auto" with a fixed strategy; and
        selection must not come more often than the update.
    Example
        {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"},
         "zenflow": {"select_strategy": "step", "select_interval": "auto"}}, "optimizer": {"type": "AdamW"}}
    Use instead
        {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"},
         "zenflow": {"select_strategy": "step", "select_interval": 64}}, "optimizer": {"type": "AdamW"}}
    Source
        deepspeed/runtime/zenflow/engine.py:28-69
    """
    block = subject.block(ZENFLOW)
    if not block:
        return
    strategy = subject.text(f"{ZENFLOW}.select_strategy")
    select, update = block.get("select_interval", "auto"), block.get("update_interval", "auto")
    place = subject.place(f"{ZENFLOW}.select_interval") or subject.place(ZENFLOW) or ()
    if strategy == "auto" and _count(select):
        yield Hit(place, f'select_interval {select} is refused with select_strategy "auto".', at_value=True)
    elif strategy in ("step", "epoch") and select == "auto":
        yield Hit(place, f'select_strategy "{strategy}" needs a number as select_interval.', at_value=True)
    elif strategy == "step" and _count(select) and _count(update) and select < update:
        yield Hit(place, f"select_interval {select} is below update_interval {update}.", at_value=True)


def _count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


@rule("OF010", "zenflow-interval-word", "error", refused="reading")
def zenflow_interval_word(subject: Subject) -> Iterable[Hit]:
    """Finds ZenFlow intervals that are texts other than "auto", or below 1.

    Why is this bad?
        The section refuses them; even "64" as a text is refused here.
    Example
        {"zero_optimization": {"stage": 2, "zenflow": {"select_interval": "64"}}}
    Use instead
        {"zero_optimization": {"stage": 2, "zenflow": {"select_strategy": "step", "select_interval": 64},
         "offload_optimizer": {"device": "cpu"}}, "optimizer": {"type": "AdamW"}}
    Fix safety
        A text that says a count becomes the count: safe.
    Source
        deepspeed/runtime/zenflow/zenflow_config.py:58-66
    """
    for name in ("select_interval", "update_interval"):
        place, value = subject.place(f"{ZENFLOW}.{name}"), subject.written(f"{ZENFLOW}.{name}")
        if place is None or value == "auto":
            continue
        if isinstance(value, str):
            mend = put(place, int(value), safety="safe") if value.isascii() and value.isdigit() else None
            yield Hit(
                place, f'{name} is "{value}", but must be "auto" or a whole number.', mend, at_value=True
            )
        elif name == "update_interval" and isinstance(value, (int, float)) and value < 1:
            yield Hit(place, f"update_interval is {value}, but must be at least 1.", at_value=True)


@rule("OF011", "zenflow-offload-without-overlap", "error", refused="building")
def zenflow_offload_without_overlap(subject: Subject) -> Iterable[Hit]:
    """Finds ZenFlow's selective offload without overlapping communication.

    Why is this bad?
        ZenFlow asserts that overlap_comm is on, and at stages 1 and 2 it is off by default.
    Example
        {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"},
         "zenflow": {"offload": true}},
         "optimizer": {"type": "AdamW"}}
    Use instead
        {"zero_optimization": {"stage": 2, "overlap_comm": true, "offload_optimizer": {"device": "cpu"},
         "zenflow": {"offload": true}}, "optimizer": {"type": "AdamW"}}
    Fix safety
        overlap_comm is switched on: unsafe.
    Source
        deepspeed/runtime/zenflow/zenflow_stage_1_and_2.py:76; deepspeed/runtime/zenflow/engine_stage3.py:101
    """
    place = subject.place(f"{ZENFLOW}.offload")
    overlap = subject.value("zero_optimization.overlap_comm")
    missing = subject.stage in (1, 2) and not subject.on("zero_optimization.overlap_comm")
    if place and subject.on(f"{ZENFLOW}.offload") and (missing or (subject.stage == 3 and overlap is False)):
        yield Hit(
            place, "zenflow.offload needs overlap_comm.", put(("zero_optimization", "overlap_comm"), True)
        )


@rule("OF012", "unpinned-offload", "info")
def unpinned_offload(subject: Subject) -> Iterable[Hit]:
    """Finds offload through memory that is not pinned.

    Why is this bad?
        Copies to and from unpinned memory are slower and cannot overlap with computation. Pinned memory
        cannot be swapped out, so a host that is nearly full is the reason to leave it off.
    Example
        {"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu", "pin_memory": false}}}
    Use instead
        {"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu", "pin_memory": true}}}
    Fix safety
        Pinning changes what the host needs: unsafe.
    Source
        deepspeed/runtime/zero/offload_config.py:45, 75 (default true since 0.19.5)
    """
    for block, what in BLOCKS:
        if subject.offload(what) == "none" or subject.on(f"{block}.pin_memory"):
            continue
        place, above = subject.place(f"{block}.pin_memory"), subject.place(block)
        if above is None or (place is None and not isinstance(subject.written(block), Mapping)):
            continue
        yield Hit(
            place or above,
            f"offload_{what} copies through unpinned memory, which is slow.",
            put((*above, "pin_memory"), True),
        )


@rule("OF013", "parameters-offloaded-alone", "info")
def parameters_offloaded_alone(subject: Subject) -> Iterable[Hit]:
    """Finds parameters that lie on the host while the optimizer's states stay on the GPU.

    Why is this bad?
        In every step the engine copies its fp32 masters to the host and turns them into 16 bits there, in
        memory that is not pinned: 3.7 s a step for 1.1 billion parameters on one GPU, whose forward and
        backward passes took 0.6 s. With the optimizer offloaded too, Adam writes the new weights where they
        lie. Keep it only where the step hardly counts, as with many micro steps.
    Example
        {"zero_optimization": {"stage": 3, "offload_param": {"device": "cpu"}}, "bf16": {"enabled": true}}
    Use instead
        {"zero_optimization": {"stage": 3, "offload_param": {"device": "cpu"},
         "offload_optimizer": {"device": "cpu"}}, "bf16": {"enabled": true}}
    Fix safety
        Offloading the optimizer moves its states to the host: unsafe.
    Source
        deepspeed/runtime/zero/stage3.py:2858; aten/src/ATen/native/cuda/Copy.cu, copy_kernel_cuda;
        tinyllama-1.1b-x1-z3-param-keep-m16 in bench/data/grid_x1.jsonl
    """
    alone = subject.offload("param") == "cpu" and subject.offload("optimizer") == "none"
    place = subject.place(PARAM)
    if alone and place and subject.stage == 3:
        yield Hit(
            place,
            "offload_param without offload_optimizer: every step casts all fp32 masters on the host.",
            put(("zero_optimization", "offload_optimizer"), {"device": "cpu"}),
        )


@rule("OF014", "partial-offload-without-cpu-adam", "error", refused="building")
def partial_offload_without_cpu_adam(subject: Subject) -> Iterable[Hit]:
    """Finds a share of the optimizer offloaded whose optimizer is not DeepSpeed's CPU Adam.

    Why is this bad?
        The share that stays on the GPU is updated by torch's AdamW with the settings of DeepSpeedCPUAdam, and
        stage 3 asserts `Hybrid Optimizer Only Supports DeepSpeedCPUAdam`. Of optimizers in the file only Adam
        and AdamW become that one, without `torch_adam` and without ZenFlow.
    Example
        {"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu", "ratio": 0.5}},
         "optimizer": {"type": "Lion", "params": {"lr": 1e-4}}}
    Use instead
        {"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu", "ratio": 0.5}},
         "optimizer": {"type": "AdamW", "params": {"lr": 1e-4}}}
    Fix safety
        The ratio is removed, and all is offloaded: unsafe.
    Source
        deepspeed/runtime/zero/stage3.py:313-316; deepspeed/runtime/engine.py:2378-2400
    """
    ratio, place = subject.amount(f"{OPTIMIZER}.ratio"), subject.place(f"{OPTIMIZER}.ratio")
    if place is None or ratio is None or not 0 <= ratio < 1 or subject.stage != 3:
        return
    if subject.optimizer is None or subject.offload("optimizer") == "none":
        return
    if subject.optimizer not in ("adam", "adamw"):
        other = f"{subject.written('optimizer.type')}"
    elif subject.block("optimizer.params").get("torch_adam"):
        other = "torch_adam"
    elif subject.block(ZENFLOW):
        other = "zenflow"
    else:
        return
    yield Hit(
        place,
        f"ratio {ratio:g} needs DeepSpeed's CPU Adam for the share on the host, which {other} rules out.",
        remove(place, safety="unsafe"),
        at_value=True,
    )


@rule("OF015", "parameter-larger-than-its-buffer", "error", refused="building")
def parameter_larger_than_its_buffer(subject: Subject) -> Iterable[Hit]:
    """Finds parameters offloaded to NVMe of which one GPU's share is larger than a buffer.

    Why is this bad?
        Shares pass through buffers of `buffer_size` elements, a hundred million by default, and the engine
        asserts that each fits: `More elements 525336576 than buffer size 100000000`. The embedding of a
        large vocabulary is the one that does not, on few GPUs.
    Example
        With `--gpus-per-node 1 --nodes 1 --model llama-3.1-8b`:
        {"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme", "nvme_path": "/local_nvme"}},
         "optimizer": {"type": "AdamW"}}
    Use instead
        With `--gpus-per-node 1 --nodes 1 --model llama-3.1-8b`:
        {"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme", "nvme_path": "/local_nvme",
         "buffer_size": 525336576}}, "optimizer": {"type": "AdamW"}}
    Fix safety
        The buffers become as large as the largest share, and there are five of them in pinned memory: unsafe.
    Source
        deepspeed/runtime/swap_tensor/partitioned_param_swapper.py:136-141, 357;
        deepspeed/runtime/zero/partition_parameters.py:1819-1822
    """
    above, buffer = subject.place(PARAM), subject.integer(f"{PARAM}.buffer_size")
    if above is None or buffer is None or subject.stage != 3 or subject.offload("param") != "nvme":
        return
    largest = max(shares_of(subject), key=lambda share: share.elements, default=None)
    if largest is None or largest.elements <= buffer:
        return
    least = max(LEAST_SWAPPED_BYTES, subject.integer("aio.block_size") or 0)
    if largest.elements * (4 if subject.precision == "fp32" else 2) < least:
        return
    place = subject.place(f"{PARAM}.buffer_size")
    written = isinstance(subject.written(PARAM), Mapping)
    yield Hit(
        place or above,
        f"each GPU's share of {largest.name} has {largest.elements} elements, "
        f"more than buffer_size {buffer}{'' if place else ' (the default)'}.",
        put(place or (*above, "buffer_size"), largest.elements) if written else None,
        at_value=place is not None,
    )
