"""The configurations that a plan chooses from: every combination of moves on one plain file for the job."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from trimtab import moves
from trimtab.architecture import EAGER_ONLY
from trimtab.cluster import Cluster
from trimtab.config import Config
from trimtab.errors import UsageError
from trimtab.moves import Move, recomputation
from trimtab.moves.communication import SMALL_BUCKET
from trimtab.plan.wishes import Wishes

NEEDS_BF16 = frozenset(("t5", "mt5", "gemma", "gemma2", "gemma3_text"))
"""Model types trained in bf16 whose activations pass fp16's largest number (transformers 5.17
models/t5/modeling_t5.py:467,488,500; Gemma Team 2024, and transformers issue 29715)."""


DEVICES = {"none": 0, "cpu": 1, "nvme": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """A configuration whose micro batch is open, and the moves that made it."""

    config: Config
    moves: tuple[Move, ...]

    @property
    def name(self) -> tuple[str, ...]:
        """The moves' names; smaller buckets are a way out within a family."""
        return tuple(move.name for move in self.moves if move.kind != "reduce-bucket")

    @property
    def sharding(self) -> tuple[str, ...]:
        """The name without recomputation."""
        return tuple(move.name for move in self.moves if move.kind not in ("reduce-bucket", "recomputation"))

    @property
    def is_partial(self) -> bool:
        """Whether some of the layers are recomputed and the others not."""
        return self.config.job.recomputed_layers is not None

    @property
    def recomputes(self) -> bool:
        """Whether any layers are recomputed."""
        return self.config.job.checkpoint_activations

    @property
    def offloads(self) -> tuple[int, int]:
        """Where parameters and the optimizer are: 0 for the GPU, 1 for the host, 2 for its disks."""
        return DEVICES[self.config.offload_param], DEVICES[self.config.offload_optimizer]

    def recomputing(self, layers: bool | int, cluster: Cluster) -> Family:
        """The same with so many layers recomputed."""
        move = recomputation(layers)
        others = tuple(one for one in self.moves if one.kind != "recomputation")
        return Family(config=move.apply(self.config, cluster), moves=(*others, move))

    @property
    def complexity(self) -> tuple[int, ...]:
        """Smaller is simpler: what leaves the GPU first, then recomputation, the stage, and the rest.

        All layers recomputed are simpler than some: nothing to adjust when the sequence or the card changes.
        """
        config = self.config
        plain = ("zero-stage", "recomputation", "offload-optimizer", "offload-param")
        return (
            *self.offloads,
            config.job.checkpoint_activations + self.is_partial,
            config.stage,
            sum(move.kind not in plain for move in self.moves),
        )


def plain(wishes: Wishes, cluster: Cluster) -> Config:
    """The file for the job on ``cluster`` before any move but those of its number format: stage 0."""
    batch = wishes.batch_for(cluster.world_size)
    job = wishes.job.to_block()
    if wishes.model.model_type in EAGER_ONLY:
        job["attention"] = "eager"
    raw: dict[str, Any] = {
        "train_batch_size": batch,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": max(1, batch // cluster.world_size),
        "zero_optimization": {"stage": 0},
        **wishes.recipe.sections(wishes.steps(batch), batch * wishes.tokens_per_sample),
        "trimtab": job,
    }
    form = number_format(wishes, cluster)
    if form == "fp32":
        raw["bf16"] = {"enabled": False}  # said, so that nobody takes it for forgotten
    config = moves.precision(form).apply(Config.from_mapping(raw, name="plan"), cluster)
    if job["attention"] == "flash":
        asked = moves.attention("flash")
        reason = asked.applies(config.with_values({"trimtab.attention": "sdpa"}), wishes.model, cluster)
        if reason is not None:
            raise UsageError(f"--attention flash: {reason}")
    return config


def number_format(wishes: Wishes, cluster: Cluster) -> str:
    """bf16 where the card has it, else fp16 where the model bears it, else fp32."""
    if cluster.gpu.bf16:
        return "bf16"
    return "fp32" if wishes.model.model_type in NEEDS_BF16 else "fp16"


def families(wishes: Wishes, cluster: Cluster) -> tuple[Family, ...]:
    """Every combination of sharding, offload, recomputation and communication, the simplest first."""
    return _all(wishes, cluster, _shardings(cluster))


def on_disk(wishes: Wishes, cluster: Cluster) -> tuple[Family, ...]:
    """Those with NVMe: as much GPU memory as with the host's, and slower, so only for where that is short."""
    third = moves.zero_stage(3)
    states = moves.offload_optimizer("nvme")
    return _all(
        wishes,
        cluster,
        ((third, states, moves.offload_param("cpu")), (third, states, moves.offload_param("nvme"))),
    )


def split_layers(wishes: Wishes, cluster: Cluster) -> tuple[Family, ...]:
    """Those whose layers AutoTP splits inside a node: where one sample a GPU is too much, or all there is.

    ZeRO stage 3 does not go with it, and what AutoTP leaves whole is sharded by the lower stages.
    """
    shardings = (
        (moves.zero_stage(1),),
        (moves.zero_stage(2),),
        (moves.zero_stage(2), moves.offload_optimizer("cpu")),
    )
    return _shared(wishes, cluster, shardings, moves.tensor_parallel)


def split_samples(wishes: Wishes, cluster: Cluster) -> tuple[Family, ...]:
    """Those that spread every sample's tokens inside a node (Ulysses): where one sample a GPU is too much."""
    third = moves.zero_stage(3)
    shardings = (
        (moves.zero_stage(1),),
        (third,),
        (third, moves.offload_optimizer("cpu")),
        (third, moves.offload_optimizer("cpu"), moves.offload_param("cpu")),
    )
    return _shared(wishes, cluster, shardings, moves.sequence_parallel)


def _shared(
    wishes: Wishes,
    cluster: Cluster,
    shardings: Iterable[tuple[Move, ...]],
    shared: Callable[[int], Move],
) -> tuple[Family, ...]:
    sizes = [size for size in (2, 4, 8) if size <= cluster.gpus_per_node]
    chains = ((*sharding, shared(size)) for sharding in shardings for size in sizes)
    return _all(wishes, cluster, chains)


def _all(wishes: Wishes, cluster: Cluster, shardings: Iterable[tuple[Move, ...]]) -> tuple[Family, ...]:
    start = plain(wishes, cluster)
    made = (
        _made(start, (*sharding, moves.recomputation(recompute)), wishes, cluster)
        for sharding in shardings
        for recompute in (False, True)
    )
    return tuple(sorted((one for one in made if one is not None), key=lambda one: one.complexity))


def _made(start: Config, chain: tuple[Move, ...], wishes: Wishes, cluster: Cluster) -> Family | None:
    config, done = start, []
    for move in chain:
        if _is_so(config, move):
            continue
        if move.applies(config, wishes.model, cluster) is not None:
            return None
        config = move.apply(config, cluster)
        done.append(move)
    return Family(config=config, moves=tuple(done))


def _is_so(config: Config, move: Move) -> bool:
    """Whether a plain file has it already: stage 0, activations kept, nothing offloaded."""
    return move.value in (0, False, "none") and move.kind != "overlap-comm"


def _shardings(cluster: Cluster) -> Iterator[tuple[Move, ...]]:
    """Stage, places and communication; a smaller bucket is a way out, tried by the search where it helps."""
    yield (moves.zero_stage(0),)
    for stage in (1, 2):
        yield (moves.zero_stage(stage),)
        if cluster.world_size > 1:
            yield (moves.zero_stage(stage), moves.overlap_comm(True))
        yield (moves.zero_stage(stage), moves.offload_optimizer("cpu"))
    third = moves.zero_stage(3)
    for network in _networks(cluster):
        yield (third, *network)
    yield (third, moves.offload_optimizer("cpu"))
    yield (third, moves.offload_param("cpu"))
    yield (third, moves.offload_optimizer("cpu"), moves.offload_param("cpu"))


def _networks(cluster: Cluster) -> Iterator[tuple[Move, ...]]:
    """ZeRO++ for several nodes; what rounds weights or gradients is never chosen unasked."""
    yield ()
    if cluster.nodes > 1 and cluster.gpus_per_node > 1:
        yield (moves.secondary_partition(cluster.gpus_per_node),)


def smaller_bucket(family: Family, wishes: Wishes, cluster: Cluster) -> Family | None:
    """The family with small reduction buckets, where it has any: less memory, more collectives."""
    move = moves.reduce_bucket(SMALL_BUCKET)
    if move.applies(family.config, wishes.model, cluster) is not None:
        return None
    return Family(config=move.apply(family.config, cluster), moves=(*family.moves, move))


def with_micro_batch(family: Family, size: int, cluster: Cluster) -> Config:
    """The family's configuration with its micro batch settled."""
    return moves.micro_batch(size).apply(family.config, cluster)
