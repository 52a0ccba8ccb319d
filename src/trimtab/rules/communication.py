"""CM: buckets, formats of communication, accumulation, logging."""

from __future__ import annotations

from collections.abc import Iterable

from trimtab.config import AUTO
from trimtab.rules.base import Hit, put, remove, rule, shown
from trimtab.rules.subject import Subject

BUCKET = "zero_optimization.reduce_bucket_size"
BYTES = {"bf16": 2, "fp16": 2, "fp32": 4}
TINY_BUCKET = (
    1_000_000  # elements; 2 MB in bf16, below which a link's latency shows (NCCL's own ring step: 512 KiB)
)
HUGE_BUCKET = 1_000_000_000  # elements; 2 GB in bf16, twice that with overlap_comm (stage_1_and_2.py:3256)


@rule("CM001", "unmanaged-accumulation-with-overlap", "error", refused="building")
def unmanaged_accumulation_with_overlap(subject: Subject) -> Iterable[Hit]:
    """Finds `managed_gradient_accumulation` off where the engine needs it.

    Why is this bad?
        It is refused together with overlap_comm below stage 2, and with DeepCompile.
    Example
        {"managed_gradient_accumulation": false, "zero_optimization": {"stage": 1, "overlap_comm": true},
         "optimizer": {"type": "AdamW"}}
    Use instead
        {"managed_gradient_accumulation": false, "zero_optimization": {"stage": 2, "overlap_comm": true},
         "optimizer": {"type": "AdamW"}}
    Fix safety
        The key is removed, and the engine manages accumulation: unsafe.
    Source
        deepspeed/runtime/engine.py:2030-2036
    """
    place = subject.place("managed_gradient_accumulation")
    if place is None or not subject.off("managed_gradient_accumulation"):
        return
    mend = remove(place, safety="unsafe")
    if subject.stage in (0, 1) and subject.on("zero_optimization.overlap_comm"):
        message = (
            f"managed_gradient_accumulation false is refused with overlap_comm at stage {subject.stage}."
        )
        yield Hit(place, message, mend)
    elif subject.on("compile.deepcompile"):
        yield Hit(place, "managed_gradient_accumulation false is refused with DeepCompile.", mend)


@rule("CM002", "bucket-that-was-meant-in-bytes", "info")
def tiny_bucket(subject: Subject) -> Iterable[Hit]:
    """Finds reduce buckets far from the usual sizes.

    Why is this bad?
        The unit is elements, not bytes, and the default is 500,000,000. A tiny bucket sends many small
        messages; a huge one costs its size in memory, twice with overlap_comm at stages 1 and 2.
    Example
        {"zero_optimization": {"stage": 2, "reduce_bucket_size": 50000}}
    Use instead
        {"zero_optimization": {"stage": 2, "reduce_bucket_size": 200000000}}
    Source
        deepspeed/runtime/zero/config.py:113
    """
    size, place = subject.integer(BUCKET), subject.place(BUCKET)
    if place is None or size is None or size < 1 or not subject.stage or subject.written(BUCKET) == AUTO:
        return
    memory = size * BYTES.get(subject.precision or "fp32", 4)
    if size < TINY_BUCKET and subject.job and not subject.job.lora:
        message = f"reduce_bucket_size is {size:,} elements ({memory / 1e6:g} MB): many small messages."
        yield Hit(place, message, at_value=True)
    elif size > HUGE_BUCKET:
        twice = subject.stage < 3 and subject.on("zero_optimization.overlap_comm")
        copies = " twice, because of overlap_comm" if twice else ""
        yield Hit(
            place,
            f"reduce_bucket_size is {size:,} elements: {memory / 1e9:g} GB{copies} on every GPU.",
            at_value=True,
            severity="warning",
        )


@rule("CM003", "larger-bucket-that-is-smaller", "info")
def larger_bucket_that_is_smaller(subject: Subject) -> Iterable[Hit]:
    """Finds buckets smaller than the default in runs over several nodes.

    Why is this bad?
        200,000,000 is often given as a larger bucket for InfiniBand. The default is 500,000,000 elements:
        it is a smaller one. That saves memory and sends more messages.
    Example
        With `--gpus-per-node 8 --nodes 4`:
        {"zero_optimization": {"stage": 2, "reduce_bucket_size": 200000000}}
    Use instead
        With `--gpus-per-node 8 --nodes 4`:
        {"zero_optimization": {"stage": 2}}
    Source
        deepspeed/runtime/zero/config.py:113
    """
    size, place, nodes = subject.integer(BUCKET), subject.place(BUCKET), subject.world.nodes
    if (
        place
        and size
        and nodes
        and nodes > 1
        and TINY_BUCKET <= size < 500_000_000
        and subject.stage
        and subject.written(BUCKET) != AUTO
    ):
        yield Hit(
            place,
            f"reduce_bucket_size {size:,} is smaller than the default, 500,000,000 elements.",
            at_value=True,
        )


@rule("CM004", "allgather-bucket-without-effect", "info")
def allgather_bucket_without_effect(subject: Subject) -> Iterable[Hit]:
    """Finds `allgather_bucket_size`, which no longer decides anything.

    Why is this bad?
        With any torch that has all_gather_into_tensor, stages 1 and 2 gather each group in one call, and
        stage 3 never took it. Tuning it tunes nothing.
    Example
        {"zero_optimization": {"stage": 2, "allgather_bucket_size": 200000000}}
    Use instead
        {"zero_optimization": {"stage": 2}}
    Fix safety
        The key is removed, which changes nothing.
    Source
        deepspeed/runtime/utils.py:1019-1022
    """
    name = "zero_optimization.allgather_bucket_size"
    place = subject.place(name)
    if place and subject.stage in (1, 2) and subject.integer(name) not in (None, 500_000_000):
        yield Hit(
            place, "allgather_bucket_size has no effect: each group is gathered in one call.", remove(place)
        )


@rule("CM005", "stopwatch-left-on", "info")
def stopwatch_left_on(subject: Subject) -> Iterable[Hit]:
    """Finds time and memory breakdowns that slow every step.

    Why is this bad?
        They synchronize the GPU around each part of a step, so that nothing overlaps.
    Example
        {"wall_clock_breakdown": true}
    Use instead
        {"wall_clock_breakdown": false}
    Fix safety
        It is switched off; the log loses its lines: unsafe.
    Source
        deepspeed/utils/timer.py (SynchronizedWallClockTimer)
    """
    for name in ("wall_clock_breakdown", "memory_breakdown"):
        place = subject.place(name)
        if place and subject.written(name) is True:
            yield Hit(
                place,
                f"{name} synchronizes the GPU several times a step: leave it on only to measure.",
                put(place, False),
            )


@rule("CM006", "unknown-log-level", "error", refused="building")
def unknown_log_level(subject: Subject) -> Iterable[Hit]:
    """Finds log levels that DeepSpeed does not know.

    Why is this bad?
        The engine raises ValueError as it sets the level.
    Example
        {"log_level": "verbose"}
    Use instead
        {"log_level": "debug"}
    Source
        deepspeed/utils/logging.py
    """
    key, place = subject.schema.key("log_level"), subject.place("log_level")
    value = subject.written("log_level")
    if key is None or place is None or value is None:
        return
    if not isinstance(value, str) or value.lower() not in key.choices:
        yield Hit(
            place,
            f"log_level is {shown(value)}, but must be {' or '.join(map(shown, key.choices))}.",
            at_value=True,
        )


@rule("CM007", "clipping-off-by-a-default-of-older-releases", "info")
def clipping_by_default(subject: Subject) -> Iterable[Hit]:
    """Finds files that say nothing of gradient clipping, which is now on by default.

    Why is this bad?
        DeepSpeed 0.19.3 changed the default from 0 (off) to 1.0. A run without the key clips where it did
        not.
    Example
        With `--deepspeed 0.19.8`:
        {"train_micro_batch_size_per_gpu": 1}
    Use instead
        With `--deepspeed 0.19.8`:
        {"train_micro_batch_size_per_gpu": 1, "gradient_clipping": 1.0}
    Fix safety
        What happens anyway would be written out; the fix is only shown, since nothing is wrong.
    Source
        deepspeed/runtime/constants.py:198-203
    """
    if (
        not subject.has("gradient_clipping")
        and subject.since("0.19.3")
        and subject.loader == "deepspeed"
        and "max_grad_norm" not in subject.block("optimizer.params")
    ):
        yield Hit(
            (),
            "gradients are clipped at 1.0, the default since DeepSpeed 0.19.3 (before: not at all).",
            put(("gradient_clipping",), 1.0, safety="shown"),
        )


@rule("CM008", "division-by-a-factor-of-zero", "error", refused="running")
def division_by_a_factor_of_zero(subject: Subject) -> Iterable[Hit]:
    """Finds `gradient_predivide_factor` 0 where gradients are divided by it.

    Why is this bad?
        Before each reduction gradients are multiplied by 1 over the factor, after it by the factor: the first
        backward pass of stages 0 to 2 stops with a ZeroDivisionError, and stage 3 makes them infinite.
    Example
        {"zero_optimization": {"stage": 0}, "gradient_predivide_factor": 0}
    Use instead
        {"zero_optimization": {"stage": 0}, "gradient_predivide_factor": 1.0}
    Fix safety
        The key is removed, and gradients are divided once, by the number of GPUs: unsafe.
    Source
        deepspeed/runtime/engine.py:3808; deepspeed/runtime/zero/stage_1_and_2.py:1499;
        deepspeed/runtime/zero/stage3.py:1872
    """
    place = subject.place("gradient_predivide_factor")
    if place is None or subject.amount("gradient_predivide_factor") != 0 or subject.on("prescale_gradients"):
        return
    summed = (subject.text("gradient_allreduce_op") or "mean").lower() == "sum"
    scatters = subject.stage in (1, 2, 3) and subject.on("zero_optimization.reduce_scatter")
    if not summed and not scatters and subject.stage is not None:
        yield Hit(
            place,
            "gradient_predivide_factor is 0, and gradients are divided by it.",
            remove(place, safety="unsafe"),
            at_value=True,
        )


@rule("CM009", "checkpoint-writer-without-the-launcher", "warning")
def checkpoint_writer_without_the_launcher(subject: Subject) -> Iterable[Hit]:
    """Finds `checkpoint.writer`, which only DeepSpeed's own launcher prepares.

    Why is this bad?
        The engine reads the numbers of machines from CROSS_SIZE and CROSS_RANK, which `deepspeed` sets and
        torchrun, accelerate and srun do not: under those it stops with KeyError `CROSS_SIZE` as it is built.
    Example
        {"checkpoint": {"writer": {"type": "FAST"}}}
    Use instead
        {"checkpoint": {"tag_validation": "WARN"}}
    Source
        deepspeed/runtime/model_checkpointing/utils.py:76-78; deepspeed/launcher/launch.py:180-181
    """
    place = subject.place("checkpoint.writer")
    if place is not None and subject.block("checkpoint.writer"):
        yield Hit(place, "checkpoint.writer needs the variables that DeepSpeed's own launcher sets.")
