"""How moves write: DeepSpeed's aliases and deprecated forms give way to the one key that is set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trimtab.cluster import Cluster
from trimtab.config import HOST_OPTIMIZERS, STAGE_3_ONLY, Config
from trimtab.errors import RefusedConfig

ZERO = "zero_optimization"
_STAGE_3_ALONE = frozenset(
    (*STAGE_3_ONLY, *(name.removeprefix("stage3_") for name in STAGE_3_ONLY), "offload_param")
)
# what stage 3 never takes (runtime/zero/stage_1_and_2.py:327)
_NOT_STAGE_3 = frozenset(("round_robin_gradients", "allgather_bucket_size"))
# what stage 0 never takes: no ZeRO optimizer is built (runtime/engine.py:2294-2325)
_NOT_STAGE_0 = frozenset((
    "offload_optimizer", "zenflow", "cpu_offload", "overlap_comm", "reduce_bucket_size",
    "allgather_bucket_size", "round_robin_gradients", "contiguous_gradients", "reduce_scatter",
    "allgather_partitions",
))  # fmt: skip


def zero_block(config: Config) -> dict[str, Any]:
    """A copy of ``zero_optimization`` as an object; ``true`` means stage 1 (runtime/zero/config.py:60-75)."""
    block = config.raw.get(ZERO)
    if isinstance(block, bool):
        return {"stage": int(block)}
    return dict(block) if isinstance(block, Mapping) else {}


def with_zero(config: Config, changes: Mapping[str, Any]) -> Config:
    """``config`` with keys of ``zero_optimization`` set, or removed where None; aliases of them go."""
    block = zero_block(config)
    for key, value in changes.items():
        block.pop(key.removeprefix("stage3_"), None) if key.startswith("stage3_") else None
        if value is None:
            block.pop(key, None)
        else:
            block[key] = value
    return config.with_values({ZERO: block})


def without_unread(config: Config) -> Config:
    """``config`` without the keys of ``zero_optimization`` that its stage ignores or refuses."""
    block, stage = zero_block(config), config.stage
    gone = _NOT_STAGE_3 if stage == 3 else _STAGE_3_ALONE
    if stage == 0:
        gone = gone | _NOT_STAGE_0
    if stage in (0, 3):
        gone = gone | {"compute_grad_norm"}
    if config.offload_optimizer != "cpu" or stage == 0:
        gone = gone | {"zenflow"}
    kept = {key: value for key, value in block.items() if key not in gone}
    device = kept.get("offload_optimizer")
    if stage < 3 and isinstance(device, Mapping):
        kept["offload_optimizer"] = {
            key: "cpu" if key == "device" and value == "nvme" else value
            for key, value in device.items()
            if key not in ("super_offload", "ratio", "nvme_path", "pipeline_read", "pipeline_write")
        }
    return config if kept == block else config.with_values({ZERO: kept})


def global_batch(config: Config, cluster: Cluster) -> int | None:
    """Samples of one optimizer step: as stated, else what the keys give on ``cluster``; None if unsolved."""
    stated = config.get("train_batch_size")
    if isinstance(stated, int) and not isinstance(stated, bool):
        return stated // config.tensor_parallel
    try:
        return config.batch(cluster.world_size).train
    except RefusedConfig:
        return None


def data_parallel(config: Config, cluster: Cluster) -> int:
    """Data-parallel ranks of ``config`` on ``cluster``."""
    return max(1, cluster.world_size // config.data_parallel_divisor)


def with_micro_batch(config: Config, cluster: Cluster, size: int, train: int) -> Config:
    """``config`` with micro batches of ``size`` and a global batch of ``train``, if that divides.

    What is stated stays stated, and no batch key joins that the others give anyway.
    """
    ranks = data_parallel(config, cluster)
    if train % (size * ranks):
        return config
    changes: dict[str, Any] = {"train_micro_batch_size_per_gpu": size}
    stated = config.get("train_batch_size") is not None
    if stated:
        changes["train_batch_size"] = train * config.tensor_parallel
    if not stated or config.get("gradient_accumulation_steps") is not None:
        changes["gradient_accumulation_steps"] = train // (size * ranks)
    return config.with_values(changes)


def optimizer_runs_on_host(config: Config) -> str | None:
    """None where DeepSpeed has a CPU version of the optimizer, else why it cannot be offloaded well."""
    name = config.optimizer_type
    if name is None:
        return "the file names no optimizer, so DeepSpeed cannot choose its CPU version"
    if config.optimizer_params.get("torch_adam"):
        return "torch_adam keeps DeepSpeed's CPU Adam out, which offload needs to be fast"
    if name not in HOST_OPTIMIZERS:
        return f"{config.get('optimizer.type')} has no CPU version in DeepSpeed"
    return None
