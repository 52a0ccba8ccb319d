"""Ways to split one replica over several GPUs, and the compiler: what DeepSpeed has and a script must do."""

from __future__ import annotations

from typing import Any

from trimtab.cluster import Cluster
from trimtab.config import Config
from trimtab.errors import RefusedConfig
from trimtab.model import Model
from trimtab.moves.batch import stated_micro_batch
from trimtab.moves.move import Kind, Move, Value, moved, single
from trimtab.moves.writing import global_batch, with_micro_batch
from trimtab.parameters.sequence_parallel import why_not as spread_why_not
from trimtab.parameters.tensor_parallel import why_not as split_why_not


def _resplit(
    config: Config, cluster: Cluster, changes: dict[str, Any], train: int | None, micro: int | None
) -> Config:
    """``config`` with ``changes`` that leave other data-parallel ranks; ``train`` samples a step stay."""
    after = config.with_values(changes)
    if train is None or micro is None:
        return after
    for size in range(micro, 0, -1):
        found = with_micro_batch(after, cluster, size, train)
        try:
            if found.batch(cluster.world_size).train == train:
                return found
        except RefusedConfig:
            continue
    return config


def _outside(after: Config, size: int, cluster: Cluster) -> str | None:
    """Why the cluster has no groups of ``size`` GPUs inside its nodes; None where it has."""
    if size > cluster.gpus_per_node:
        return f"{size} GPUs reach over nodes of {cluster.gpus_per_node}: every layer would use the network"
    if cluster.world_size % after.data_parallel_divisor:
        return f"{cluster.world_size} GPUs cannot be split into groups of {after.data_parallel_divisor}"
    return None


def pipeline(stages: int) -> Move:
    """The layers over ``stages`` GPUs, one after the other."""
    return moved(
        "pipeline",
        stages,
        title=f"{stages} pipeline stages",
        saves="parameters of the layers that stand on other GPUs; sends activations alone",
        costs="idle GPUs while the pipeline fills and empties",
        needs="PipelineModule in the script, ZeRO stage 0 or 1",
        source="Huang et al. 2019 (GPipe); runtime/pipe/module.py:142",
        counted=False,
        refuses=lambda *where: (
            "Hugging Face models are no PipelineModule (runtime/pipe/module.py:142), and no key makes them "
            "one; ZeRO stage 3 spreads the layers instead"
        ),
        apply=lambda config, cluster: _resplit(
            config,
            cluster,
            {"trimtab.pipeline_stages": stages if stages > 1 else None},
            global_batch(config, cluster),
            stated_micro_batch(config, cluster),
        ),
    )


def sequence_parallel(size: int) -> Move:
    """Ulysses: the tokens of a sample over ``size`` GPUs."""

    def refuses(config: Config, model: Model, cluster: Cluster) -> str | None:
        after = config.with_values({"sequence_parallel_size": size})
        return _outside(after, size, cluster) or (spread_why_not(after, model) if size > 1 else None)

    return moved(
        "sequence-parallel",
        size,
        title=f"Sequences over {size} GPUs (Ulysses)" if size > 1 else "Whole sequences on every GPU",
        saves="activations and logits: each GPU holds its share of the tokens",
        costs="four all-to-alls around every attention, gradients reduced in fp32, fewer data-parallel ranks",
        needs="a script that cuts samples (`trimtab train` does), heads and tokens that divide",
        source="Jacobs et al. 2023 (DeepSpeed-Ulysses); runtime/sequence_parallel/ulysses_sp.py",
        refuses=refuses,
        apply=lambda config, cluster: _resplit(
            config,
            cluster,
            {"sequence_parallel_size": size if size > 1 else None},
            global_batch(config, cluster),
            stated_micro_batch(config, cluster),
        ),
    )


def tensor_parallel(size: int) -> Move:
    """AutoTP: every layer's matrices over ``size`` GPUs.

    ``train_batch_size`` goes, for the engine counts every rank of a group in it (runtime/config.py:455-475).
    """

    def refuses(config: Config, model: Model, cluster: Cluster) -> str | None:
        after = config.with_values({"tensor_parallel.autotp_size": size})
        return _outside(after, size, cluster) or (split_why_not(after, model) if size > 1 else None)

    def apply(config: Config, cluster: Cluster) -> Config:
        if config.tensor_parallel == size:
            return config
        block = {"tensor_parallel": None} if size == 1 else {"tensor_parallel.autotp_size": size}
        train = global_batch(config, cluster)
        micro = stated_micro_batch(config, cluster)
        stated = {"train_batch_size": None, "train_micro_batch_size_per_gpu": micro}
        return _resplit(config, cluster, {**block, **stated}, train, micro)

    return moved(
        "tensor-parallel",
        size,
        title=f"Layers over {size} GPUs (AutoTP)" if size > 1 else "Whole layers on every GPU",
        saves="parameters, gradients and part of the activations",
        costs="four to seven all-reduces of activations in every layer, fewer data-parallel ranks",
        needs="a script that feeds a group the same samples (`trimtab train` does), a fast link in the node",
        source="Shoeybi et al. 2019 (Megatron-LM), section 3; module_inject/layers.py:204, 287",
        refuses=refuses,
        apply=apply,
    )


def deepcompile() -> Move:
    """DeepCompile: ZeRO's collectives placed by the compiler."""

    def refuses(config: Config, model: Model, cluster: Cluster) -> str | None:
        if not config.stage:
            return "stage 0 falls back to torch.compile (runtime/engine.py:5803)"
        if config.get("managed_gradient_accumulation") is False:
            return "it needs managed accumulation (runtime/engine.py:2030)"
        if config.get("gradient_allreduce_op") == "sum":
            return 'gradient_allreduce_op "sum" is refused with it (runtime/config.py:694)'
        return (
            "the script must call engine.compile() (runtime/engine.py:5803), which `trimtab train` does not"
        )

    return moved(
        "deepcompile",
        None,
        title="DeepCompile",
        saves="waiting for gathers and reductions, which the compiler schedules",
        costs="minutes of compilation, and recompilation where shapes change",
        needs="engine.compile() in the script, ZeRO stage 1 to 3",
        source="Tanaka et al. 2025 (DeepCompile); compile/config.py:12-77",
        counted=False,
        refuses=refuses,
        apply=lambda config, cluster: config.with_values({"compile.deepcompile": True}),
    )


def _sizes(config: Config, model: Model, cluster: Cluster) -> tuple[Value, ...]:
    return tuple(size for size in (2, 4, 8) if size <= cluster.world_size)


KINDS = (
    Kind(name="pipeline", title="Layers after one another", make=pipeline, options=_sizes, read=int),
    Kind(
        name="sequence-parallel",
        title="Tokens side by side (Ulysses)",
        make=sequence_parallel,
        options=_sizes,
        read=int,
    ),
    Kind(
        name="tensor-parallel",
        title="Matrices side by side (AutoTP)",
        make=tensor_parallel,
        options=_sizes,
        read=int,
    ),
    single("deepcompile", "Collectives placed by the compiler", deepcompile),
)
