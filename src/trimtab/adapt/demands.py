"""What machines demand whatever the memory: a number format, an attention, a batch that divides."""

from __future__ import annotations

from collections.abc import Iterator

from trimtab.architecture import BF16_FAMILIES
from trimtab.cluster import Cluster
from trimtab.config import Config
from trimtab.errors import RefusedConfig
from trimtab.model import Model
from trimtab.moves import Move, attention, micro_batch, precision, secondary_partition
from trimtab.moves.batch import stated_micro_batch
from trimtab.moves.writing import data_parallel, global_batch, with_micro_batch
from trimtab.plan.candidates import NEEDS_BF16


def demanded(
    config: Config, model: Model, cluster: Cluster, train: int
) -> Iterator[tuple[Move, Config, str]]:
    """The moves that the machines ask for, whatever the memory."""
    gpu = cluster.gpu
    if config.precision == "bf16" and not gpu.bf16:
        reason = f"{gpu.name} has no bf16 units"
        if model.model_type in NEEDS_BF16:
            form = "fp32"
            reason += f"; {model.name}'s activations pass fp16's largest number, 65,504"
        else:
            form = "fp16"
            if model.model_type in BF16_FAMILIES:
                reason += f"; {model.name} was trained in bf16, so watch the loss scale: fp16 ends at 65,504"
        move = precision(form)
        config = move.apply(config, cluster)
        yield move, config, reason
    move = attention("sdpa")
    reason = (
        attention("flash").applies(config.with_values({"trimtab.attention": "sdpa"}), model, cluster) or ""
    )
    if config.job.attention == "flash" and reason:
        config = move.apply(config, cluster)
        yield move, config, reason
    size = int(config.zero("zero_hpz_partition_size"))
    if config.stage == 3 and size > 1 and size != cluster.gpus_per_node:
        move = secondary_partition(cluster.gpus_per_node if cluster.nodes > 1 else 1)
        config = move.apply(config, cluster)
        yield move, config, f"a node has {cluster.gpus_per_node} GPUs, and {size} is not one node's"
    ranks = data_parallel(config, cluster)
    micro = stated_micro_batch(config, cluster) or 1
    size = max((n for n in range(1, micro + 1) if train % (n * ranks) == 0), default=0)
    if not size:
        return
    after = with_micro_batch(config, cluster, size, train)
    solved = global_batch(config, cluster) == train and solves(config, cluster)
    if not solved:
        steps = train // (size * ranks)
        yield (
            micro_batch(size),
            after,
            f"{ranks} rank{'s' * (ranks > 1)}: {size} samples x {steps} micro step{'s' * (steps > 1)} "
            f"x {ranks} keep the global batch of {train}",
        )


def solves(config: Config, cluster: Cluster) -> bool:
    """Whether the batch keys agree with each other and with the number of ranks."""
    try:
        config.batch(cluster.world_size)
    except RefusedConfig:
        return False
    return True
