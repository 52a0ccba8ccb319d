"""The batch: how the samples of one optimizer step are cut into micro steps."""

from __future__ import annotations

from trimtab.cluster import Cluster
from trimtab.config import Config
from trimtab.errors import RefusedConfig
from trimtab.model import Model
from trimtab.moves.move import Kind, Move, Value, moved
from trimtab.moves.writing import data_parallel, global_batch, with_micro_batch

MOST_SAMPLES = 4096


def micro_batch(size: int) -> Move:
    """``size`` samples per GPU and micro step; the accumulation follows, the global batch stays."""

    def refuses(config: Config, model: Model, cluster: Cluster) -> str | None:
        train, ranks = global_batch(config, cluster), data_parallel(config, cluster)
        if train is None:
            return "the file states no global batch that its keys agree on"
        if train % (size * ranks):
            return f"a global batch of {train} does not split into micro batches of {size} over {ranks} ranks"
        return None

    def apply(config: Config, cluster: Cluster) -> Config:
        train = global_batch(config, cluster)
        return config if train is None else with_micro_batch(config, cluster, size, train)

    return moved(
        "micro-batch",
        size,
        title=f"Micro batches of {size}, accumulation to match",
        saves="activations, which grow with the micro batch",
        costs="smaller micro batches: more micro steps for the same batch, each less efficient",
        needs="a global batch that divides",
        source="runtime/config.py:590-656",
        refuses=refuses,
        apply=apply,
    )


def sizes(config: Config, model: Model, cluster: Cluster) -> tuple[Value, ...]:
    """Every micro batch that the global batch splits into, the largest first."""
    train, ranks = global_batch(config, cluster), data_parallel(config, cluster)
    if train is None or train % ranks:
        return ()
    share = train // ranks
    return tuple(n for n in range(min(share, MOST_SAMPLES), 0, -1) if share % n == 0)


def stated_micro_batch(config: Config, cluster: Cluster) -> int | None:
    """The micro batch of ``config``: as stated, else as the other keys give it on ``cluster``."""
    stated = config.get("train_micro_batch_size_per_gpu")
    if isinstance(stated, int):
        return stated
    try:
        return config.batch(cluster.world_size).micro
    except RefusedConfig:
        return None


KINDS = (
    Kind(
        name="micro-batch",
        title="Samples per GPU and micro step, at the same global batch",
        make=micro_batch,
        options=sizes,
        read=int,
    ),
)
