"""What transformers puts in the place of ``"auto"``: DeepSpeed itself does not know the word.

transformers 5.17: integrations/deepspeed.py, training_args.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trimtab.config import AUTO, Config

TRAINER_MICRO_BATCH = 8  # training_args.py, per_device_train_batch_size
TRAINER_CLIPPING = 1.0  # training_args.py, max_grad_norm
ZERO = "zero_optimization"


def filled(config: Config, hidden_size: int | None) -> tuple[Config, tuple[str, ...]]:
    """``config`` with what follows from the model's width and from nobody stating a batch; notes on both.

    Sizes of buckets follow ``trainer_config_finalize``; what the user's own arguments decide (learning rate,
    clipping, schedule) stays as it is.
    """
    changes: dict[str, Any] = {}
    notes = []
    for key, size, why in _sizes(config, hidden_size or 0):
        if hidden_size and _is_auto(config, f"{ZERO}.{key}"):
            changes[f"{ZERO}.{key}"] = size
            notes.append(f'{key} is "auto": {size}, {why}, as transformers fills it')
    micro = "train_micro_batch_size_per_gpu"
    if _is_auto(config, micro) and config.get("train_batch_size") is None:
        changes[micro] = TRAINER_MICRO_BATCH
        notes.append(f'{micro} is "auto": {TRAINER_MICRO_BATCH}, the default of TrainingArguments')
    return (config.with_values(changes) if changes else config), tuple(notes)


def _sizes(config: Config, hidden_size: int) -> tuple[tuple[str, int, str], ...]:
    squared = hidden_size * hidden_size
    sizes = [("reduce_bucket_size", squared, "hidden size squared")]
    if config.stage == 3:
        sizes += [
            ("stage3_prefetch_bucket_size", int(0.9 * squared), "0.9 of hidden size squared"),
            ("stage3_param_persistence_threshold", 10 * hidden_size, "10 hidden sizes"),
        ]
    return tuple(sizes)


def _is_auto(config: Config, path: str) -> bool:
    value: Any = config.raw
    for key in path.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return bool(value == AUTO)


def for_engine(values: Mapping[str, Any]) -> dict[str, Any]:
    """What the engine takes where nobody fills ``"auto"``.

    A schedule with it is left out, which moves no byte; optimizers have their own defaults.
    """
    found = dict(values)
    if found.get("gradient_clipping") == AUTO:
        found["gradient_clipping"] = TRAINER_CLIPPING
    scheduler = found.get("scheduler")
    if isinstance(scheduler, Mapping) and AUTO in (scheduler.get("params") or {}).values():
        del found["scheduler"]
    optimizer = found.get("optimizer")
    if isinstance(optimizer, Mapping) and isinstance(optimizer.get("params"), Mapping):
        params = {key: value for key, value in optimizer["params"].items() if value != AUTO}
        found["optimizer"] = {**optimizer, "params": params}
    return found
