"""BT: the batch identity, train = micro x accumulation x data-parallel ranks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from trimtab.config import AUTO
from trimtab.findings import Fix
from trimtab.rules.base import Hit, fix, put, remove, rule, shown
from trimtab.rules.subject import Subject
from trimtab.source.edit import SetValue

TRAIN = "train_batch_size"
MICRO = "train_micro_batch_size_per_gpu"
STEPS = "gradient_accumulation_steps"
KEYS = (TRAIN, MICRO, STEPS)


def _counts(subject: Subject) -> tuple[int | None, int | None, int | None] | None:
    """The three counts, None where absent; None at all where one is nonsense or left to the loader."""
    found: list[int | None] = []
    for name in KEYS:
        value = subject.raw.get(name)
        if value == AUTO and subject.fills_auto:
            return None
        if value is not None and not _is_count(value):
            return None
        found.append(None if value is None else int(value))
    return found[0], found[1], found[2]


def _is_count(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return value is True
    return value >= 1 and float(value).is_integer()


@rule("BT001", "no-batch-size", "error", refused="reading")
def no_batch_size(subject: Subject) -> Iterable[Hit]:
    """Finds configurations without a batch size.

    Why is this bad?
        DeepSpeed stops with `Either train_batch_size or train_micro_batch_size_per_gpu needs to be
        provided`; the accumulation alone is not enough. Transformers and Accelerate fill it in only where the
        file says "auto".
    Example
        {"gradient_accumulation_steps": 8}
    Use instead
        {"train_micro_batch_size_per_gpu": 4, "gradient_accumulation_steps": 8}
    Fix safety
        A micro batch of 1 is added, the smallest there is: unsafe. For Transformers and Accelerate it is
        "auto", which is what they expect: safe.
    Source
        deepspeed/runtime/config.py:649
    """
    if subject.raw.get(TRAIN) is None and subject.raw.get(MICRO) is None:
        if subject.fills_auto:
            return  # the Trainer sets the micro batch itself where the file is silent
        yield Hit(
            (),
            f"neither {TRAIN} nor {MICRO} is given, and DeepSpeed needs one of them.",
            put((MICRO,), 1),
        )


@rule("BT002", "batch-not-a-count", "error", refused="reading")
def batch_not_a_count(subject: Subject) -> Iterable[Hit]:
    """Finds batch sizes and accumulation steps that are not whole numbers above 0.

    Why is this bad?
        DeepSpeed asserts that they are above 0 and fails with a TypeError in its arithmetic on texts; a
        fraction passes and fails later, in the data loader.
    Example
        {"train_micro_batch_size_per_gpu": "8", "gradient_accumulation_steps": 0}
    Use instead
        {"train_micro_batch_size_per_gpu": 8, "gradient_accumulation_steps": 1}
    Fix safety
        A text that says a count becomes that count: safe.
    Source
        deepspeed/runtime/config.py:590-605
    """
    for name in KEYS:
        value = subject.raw.get(name)
        if value is None or _is_count(value) or value == AUTO:
            continue
        later = isinstance(value, float) and value > 0 and engine_passes(subject)
        mend = None
        if isinstance(value, str) and value.strip().isascii() and value.strip().isdigit() and int(value):
            mend = put((name,), int(value), safety="safe")
        yield Hit(
            (name,),
            f"{name} is {shown(value)}, but must be a whole number above 0.",
            mend,
            at_value=True,
            refused="running" if later else "reading",
        )


def engine_passes(subject: Subject) -> bool:
    """Whether the engine's own arithmetic passes the numbers as they stand, fractions included.

    In a world of unknown size it is asked for one GPU (runtime/config.py:455-656).
    """
    train, micro, steps = (subject.raw.get(name) for name in KEYS)
    numbers = [value for value in (train, micro, steps) if value is not None]
    if not all(isinstance(value, (int, float)) and value > 0 for value in numbers):
        return False
    shared = subject.raw.get("sequence_parallel_size", 1)
    if not isinstance(shared, (int, float)) or shared <= 0:
        return False
    ranks = (subject.world.size or 1) / shared / (subject.job.pipeline_stages if subject.job else 1)
    if train is None:
        return micro is not None
    if micro is None:
        micro = train // ranks // (steps or 1) if steps is not None else train // ranks
    steps = (
        steps if steps is not None else train // micro // ranks if subject.raw.get(MICRO) is not None else 1
    )
    return bool(micro > 0 and steps > 0 and train == micro * steps * ranks)


@rule("BT003", "batch-that-does-not-multiply", "error", refused="reading")
def batch_that_does_not_multiply(subject: Subject) -> Iterable[Hit]:
    """Finds batch sizes that no number of GPUs, or not the stated number, can make.

    Why is this bad?
        DeepSpeed requires train_batch_size = train_micro_batch_size_per_gpu x gradient_accumulation_steps
        x data-parallel GPUs and stops with `Check batch related parameters`.
    Example
        {"train_batch_size": 128, "train_micro_batch_size_per_gpu": 12}
    Use instead
        {"train_batch_size": 128, "train_micro_batch_size_per_gpu": 16}
    Fix safety
        train_batch_size is removed, so that DeepSpeed works it out; the global batch changes: unsafe.
    Source
        deepspeed/runtime/config.py:602-656
    """
    counts = _counts(subject)
    if counts is None or counts[0] is None or subject.shares_a_batch is None:
        return
    train, (_, micro, steps) = counts[0], counts
    ranks = _ranks(subject)
    if ranks is None:
        piece = (micro or 1) * (steps or 1)
        if train % piece:
            given = [f"{micro} ({MICRO})"] * (micro is not None) + [f"{steps} ({STEPS})"] * (
                steps is not None
            )
            yield Hit(
                (TRAIN,),
                f"{TRAIN} is {train}, which is no multiple of {' x '.join(given)}"
                f"{f' = {piece}' if len(given) > 1 else ''}: it fits no number of GPUs. "
                f"{_near(train, piece)}",
                remove((TRAIN,), safety="unsafe") if micro else None,
                at_value=True,
            )
        return
    solved = _solved(train, micro, steps, ranks)
    if train != solved[0] * solved[1] * ranks or min(solved) < 1:
        yield Hit(
            (TRAIN,),
            f"{TRAIN} is {train}, but {solved[0]} ({MICRO}) x {solved[1]} ({STEPS}) x {ranks} (data-parallel "
            f"GPUs) = {solved[0] * solved[1] * ranks}. {_near(train, (micro or 1) * (steps or 1) * ranks)}",
            remove((TRAIN,), safety="unsafe") if micro else _fitting(train, steps or 1, ranks),
            at_value=True,
        )


def _ranks(subject: Subject) -> int | None:
    size, shared = subject.world.size, subject.shares_a_batch
    if size is None or shared is None or size % shared:
        return None
    return size // shared


def _solved(train: int, micro: int | None, steps: int | None, ranks: int) -> tuple[int, int]:
    """Micro batch and accumulation by DeepSpeed's own rules (runtime/config.py:612-650)."""
    if micro is None:
        return train // ranks // (steps or 1), steps or 1
    return micro, steps if steps is not None else train // micro // ranks


def _near(train: int, piece: int) -> str:
    """Which batches near ``train`` would do."""
    sizes = [size for size in (train // piece * piece, -(-train // piece) * piece) if size]
    return f"{' or '.join(str(size) for size in dict.fromkeys(sizes))} would do."


def _fitting(train: int, steps: int, ranks: int) -> Fix | None:
    size = -(-train // (steps * ranks)) * steps * ranks
    return fix(f"Set {TRAIN} to {size}", SetValue(key_path=(TRAIN,), value=size), safety="unsafe")


@rule("BT004", "world-that-does-not-divide", "error", refused="reading")
def world_that_does_not_divide(subject: Subject) -> Iterable[Hit]:
    """Finds sequence, tensor and pipeline parallelism that does not divide the GPUs.

    Why is this bad?
        What is left is the data-parallel size. Tensor and pipeline groups cannot be formed. Of a sequence
        parallelism DeepSpeed computes it by division: three batch keys fail on the fraction, with fewer
        the engine counts a fraction of a GPU and trains, until Ulysses forms its groups in the script:
        `world_size (8) is not divisible by sequence_parallel_size 3`.
    Example
        With `--gpus-per-node 8 --nodes 1`:
        {"train_micro_batch_size_per_gpu": 1, "sequence_parallel_size": 3}
    Use instead
        With `--gpus-per-node 8 --nodes 1`:
        {"train_micro_batch_size_per_gpu": 1, "sequence_parallel_size": 4}
    Source
        deepspeed/runtime/config.py:468; deepspeed/utils/groups.py:171;
        deepspeed/runtime/sequence_parallel/parallel_state_sp.py:37
    """
    size, shared = subject.world.size, subject.shares_a_batch
    if size is None or shared is None:
        return
    shared *= max(1, subject.integer("tensor_parallel.autotp_size") or 1)
    if shared == 1 or size % shared == 0:
        return
    names = ("sequence_parallel_size", "tensor_parallel.autotp_size", "trimtab.pipeline_stages")
    trains = shared == subject.integer(names[0]) and engine_passes(subject)
    for name in names:
        place = subject.place(name)
        if place is not None:
            yield Hit(
                place,
                f"{size} GPUs cannot be split into groups of {shared}, which is what sequence, tensor and "
                "pipeline parallelism ask for together.",
                at_value=True,
                severity="warning" if trains else "error",
                refused=None if trains else "building" if engine_passes(subject) else "reading",
            )
            return
