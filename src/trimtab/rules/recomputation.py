"""RC: activation checkpointing, which the configuration alone never turns on."""

from __future__ import annotations

from collections.abc import Iterable

from trimtab.rules.base import Hit, put, remove, rule
from trimtab.rules.subject import Subject

BLOCK = "activation_checkpointing"
JOB = ("trimtab", "checkpoint_activations")


def _turned_on(subject: Subject) -> bool:
    return (
        any(
            subject.on(f"{BLOCK}.{name}")
            for name in ("partition_activations", "cpu_checkpointing", "contiguous_memory_optimization")
        )
        or subject.integer(f"{BLOCK}.number_checkpoints") is not None
    )


@rule("RC001", "recomputation-that-is-never-configured", "warning")
def recomputation_never_configured(subject: Subject) -> Iterable[Hit]:
    """Finds an `activation_checkpointing` block, which alone recomputes nothing.

    Why is this bad?
        The engine only stores it. It acts where the model's own code calls
        `deepspeed.checkpointing.configure` and `deepspeed.checkpointing.checkpoint`, as Megatron's does. A
        Hugging Face model recomputes with `model.gradient_checkpointing_enable()`, which never reads it.
    Example
        {"activation_checkpointing": {"partition_activations": true}}
    Use instead
        {"trimtab": {"checkpoint_activations": true}}
    Fix safety
        The job is told to recompute, and the block goes: Trimtab's own runs then do it. A script of your own
        must still call gradient_checkpointing_enable(): unsafe.
    Source
        deepspeed/runtime/activation_checkpointing/checkpointing.py:1121-1152
    """
    place = subject.place(BLOCK)
    if place is None or not subject.block(BLOCK) or not _turned_on(subject):
        return
    mend = None
    if subject.job is not None and not subject.has("trimtab.checkpoint_activations"):
        mend = put(JOB, True, title="Recompute in the job instead")
        mend = type(mend)(title=mend.title, safety="unsafe", edits=(*remove(place).edits, *mend.edits))
    yield Hit(
        place,
        "activation_checkpointing alone recomputes nothing: only a model that calls "
        "deepspeed.checkpointing reads "
        "it. For Hugging Face models call gradient_checkpointing_enable().",
        mend,
    )


@rule("RC002", "activations-partitioned-over-one-gpu", "info")
def activations_partitioned_over_one_gpu(subject: Subject) -> Iterable[Hit]:
    """Finds `partition_activations` without model parallelism.

    Why is this bad?
        Activations are split over the model-parallel group, which is one GPU without Megatron's: it saves
        nothing and costs a copy. Data-parallel GPUs hold different activations.
    Example
        {"activation_checkpointing": {"partition_activations": true}}
    Use instead
        {"activation_checkpointing": {"partition_activations": false}}
    Fix safety
        The key is removed, which changes nothing: safe.
    Source
        deepspeed/runtime/activation_checkpointing/checkpointing.py:42-44, 260-273, 1235-1243
    """
    place = subject.place(f"{BLOCK}.partition_activations")
    if (
        place
        and subject.on(f"{BLOCK}.partition_activations")
        and not subject.on(f"{BLOCK}.contiguous_memory_optimization")
    ):
        message = "partition_activations splits over model-parallel GPUs only: with one it saves nothing."
        yield Hit(place, message, remove(place))


@rule("RC003", "contiguous-checkpoints-without-partition", "error", refused="running")
def contiguous_without_partition(subject: Subject) -> Iterable[Hit]:
    """Finds contiguous checkpoint buffers without what they need.

    Why is this bad?
        `deepspeed.checkpointing.configure` asserts that partition_activations is on and that
        number_checkpoints is given.
    Example
        {"activation_checkpointing": {"contiguous_memory_optimization": true}}
    Use instead
        {"activation_checkpointing": {"contiguous_memory_optimization": true, "partition_activations": true,
         "number_checkpoints": 32}}
    Fix safety
        The key is removed: unsafe.
    Source
        deepspeed/runtime/activation_checkpointing/checkpointing.py:1229-1231
    """
    place = subject.place(f"{BLOCK}.contiguous_memory_optimization")
    if place is None or not subject.on(f"{BLOCK}.contiguous_memory_optimization"):
        return
    lacking = [] if subject.on(f"{BLOCK}.partition_activations") else ["partition_activations"]
    lacking += [] if subject.integer(f"{BLOCK}.number_checkpoints") else ["number_checkpoints"]
    if lacking:
        yield Hit(
            place,
            f"contiguous_memory_optimization needs {' and '.join(lacking)}.",
            remove(place, safety="unsafe"),
        )


@rule("RC004", "too-few-checkpoints", "error", refused="running")
def too_few_checkpoints(subject: Subject) -> Iterable[Hit]:
    """Finds fewer checkpoints than the model has blocks.

    Why is this bad?
        number_checkpoints sizes the buffers: it is the number of checkpointed calls in one forward pass,
        usually one a layer. With fewer the pass ends in an IndexError. The square root of the layers, often
        given as a rule, belongs to another scheme.
    Example
        {"activation_checkpointing": {"partition_activations": true, "contiguous_memory_optimization": true,
         "number_checkpoints": 4}, "trimtab": {"model": "llama-7b"}}
    Use instead
        {"activation_checkpointing": {"partition_activations": true, "contiguous_memory_optimization": true,
         "number_checkpoints": 32}, "trimtab": {"model": "llama-7b"}}
    Fix safety
        The number of layers is set: unsafe.
    Source
        deepspeed/runtime/activation_checkpointing/checkpointing.py:405-432
    """
    place, count = (
        subject.place(f"{BLOCK}.number_checkpoints"),
        subject.integer(f"{BLOCK}.number_checkpoints"),
    )
    if place is None or count is None or not subject.on(f"{BLOCK}.contiguous_memory_optimization"):
        return
    if subject.model is not None:
        layers = subject.model.all_layers
        if count < layers:
            yield Hit(
                place,
                f"number_checkpoints is {count}, but {subject.model.name} has {layers} blocks: the "
                "forward pass ends in an IndexError.",
                put(place, layers),
                at_value=True,
            )
    elif count < 12:  # no model of the catalogue but T5 small has fewer blocks
        yield Hit(
            place,
            f"number_checkpoints is {count}: it must be the number of checkpointed blocks, not its "
            "square root.",
            at_value=True,
            severity="warning",
            refused=None,
        )


@rule("RC005", "checkpoints-on-the-host-alone", "info")
def checkpoints_on_the_host_alone(subject: Subject) -> Iterable[Hit]:
    """Finds `cpu_checkpointing` without `partition_activations`.

    Why is this bad?
        DeepSpeed documents it as an option of partitioned activations; alone it takes a second, little used
        path.
    Example
        {"activation_checkpointing": {"cpu_checkpointing": true}}
    Use instead
        {"activation_checkpointing": {"cpu_checkpointing": true, "partition_activations": true}}
    Source
        deepspeed/runtime/activation_checkpointing/checkpointing.py:1183, 606-614
    """
    place = subject.place(f"{BLOCK}.cpu_checkpointing")
    if (
        place
        and subject.on(f"{BLOCK}.cpu_checkpointing")
        and not subject.on(f"{BLOCK}.partition_activations")
    ):
        yield Hit(place, "cpu_checkpointing is documented only together with partition_activations.")


@rule("RC006", "more-recomputed-layers-than-there-are", "error")
def more_recomputed_layers_than_there_are(subject: Subject) -> Iterable[Hit]:
    """Finds a `checkpoint_activations` that names more layers than the model has.

    Why is this bad?
        A number says how many of the layers are recomputed: the first in order of execution, an encoder's
        before its decoder's. More than there are is a slip, or a number for another model: Trimtab's
        commands refuse it.
    Example
        {"trimtab": {"model": "llama-7b", "checkpoint_activations": 40}}
    Use instead
        {"trimtab": {"model": "llama-7b", "checkpoint_activations": 32}}
    Fix safety
        All layers are recomputed, the most there can be: unsafe.
    Source
        trimtab.job; the model's own config.json (num_hidden_layers)
    """
    job, model = subject.job, subject.model
    if job is None or model is None or job.recomputed_layers is None:
        return
    if job.recomputed_layers > model.all_layers:
        yield Hit(
            JOB,
            f"checkpoint_activations is {job.recomputed_layers}, but {model.name} has {model.all_layers} "
            "layers.",
            put(JOB, True),
            at_value=True,
        )
