"""What the ranks send each other: buckets, overlap, and ZeRO++."""

from __future__ import annotations

from trimtab.cluster import Cluster
from trimtab.config import ZERO_DEFAULTS, Config
from trimtab.model import Model
from trimtab.moves.move import ALREADY, Kind, Move, Value, moved, single, switch
from trimtab.moves.writing import data_parallel, with_zero
from trimtab.parameters.shares import QUANTIZED_TOGETHER, odd_module, shares

SMALL_BUCKET, MIDDLE_BUCKET = 50_000_000, 200_000_000
"""Elements.  Below, messages grow many; the guide's sizes for Ethernet and for InfiniBand."""
_ZERO_PLUS_PLUS = "Wang et al. 2023 (ZeRO++), section"


def _alone(config: Config, cluster: Cluster) -> str | None:
    return None if data_parallel(config, cluster) > 1 else "one rank has nobody to send to"


def _stage_3(config: Config, what: str) -> str | None:
    return None if config.stage == 3 else f"only stage 3 has {what}, not stage {config.stage}"


def reduce_bucket(elements: int) -> Move:
    """The portion in which gradients are reduced."""

    def refuses(config: Config, model: Model, cluster: Cluster) -> str | None:
        return (
            "stage 0 reduces in buckets of a fixed size (runtime/engine.py:151)" if not config.stage else None
        )

    return moved(
        "reduce-bucket",
        elements,
        title=f"Gradients reduced in buckets of {elements:,} elements",
        saves="the bucket: its elements in the gradients' type, twice with overlap_comm at stages 1 and 2",
        costs="smaller buckets: more collectives, each with its latency",
        needs="ZeRO stage 1 to 3",
        source="runtime/zero/config.py:113; runtime/zero/stage_1_and_2.py:3256-3278",
        refuses=refuses,
        apply=lambda config, cluster: with_zero(config, {"reduce_bucket_size": elements}),
    )


def allgather_bucket(elements: int) -> Move:
    """The portion in which parameters were once gathered; it decides nothing any more."""

    return moved(
        "allgather-bucket",
        elements,
        title=f"Parameters gathered in buckets of {elements:,} elements",
        saves="nothing any more",
        costs="nothing",
        source="runtime/utils.py:1019-1022",
        refuses=lambda *where: (
            "allgather_bucket_size decides nothing: stages 1 and 2 gather each group in one call, and "
            "stage 3 never took it (runtime/utils.py:1019-1022)"
        ),
        apply=lambda config, cluster: with_zero(config, {"allgather_bucket_size": elements}),
    )


def prefetch_bucket(elements: int) -> Move:
    """How many elements stage 3 gathers ahead."""

    return moved(
        "prefetch-bucket",
        elements,
        title=f"Prefetch of {elements:,} elements",
        saves="gathered parameters that wait for their use: 2 bytes an element",
        costs="a smaller prefetch: gathers that the GPU waits for",
        needs="ZeRO stage 3",
        source="runtime/zero/config.py:222",
        refuses=lambda config, model, cluster: _stage_3(config, "prefetching"),
        apply=lambda config, cluster: with_zero(config, {"stage3_prefetch_bucket_size": elements}),
    )


def persistence_threshold(elements: int) -> Move:
    """The size up to which stage 3 keeps parameters whole on every GPU."""

    return moved(
        "persistence-threshold",
        elements,
        title=f"Parameters up to {elements:,} elements stay whole",
        saves="a higher threshold: the gathers of small parameters; a lower one: their memory",
        costs="a higher threshold: 2 bytes an element of what stays; a lower one: more gathers",
        needs="ZeRO stage 3",
        source="runtime/zero/config.py:228; runtime/zero/parameter_offload.py:317-335",
        refuses=lambda config, model, cluster: _stage_3(config, "persistent parameters"),
        apply=lambda config, cluster: with_zero(config, {"stage3_param_persistence_threshold": elements}),
    )


def overlap_comm(on: bool) -> Move:
    """Reductions beside the backward pass."""

    def refuses(config: Config, model: Model, cluster: Cluster) -> str | None:
        if not config.stage:
            return "stage 0 reduces after the backward pass, whatever the key says"
        if on and config.job.pipeline_stages > 1:
            return "a pipeline switches it off (runtime/engine.py:2663)"
        if on and config.stage == 1 and config.get("managed_gradient_accumulation") is False:
            return "it is refused with unmanaged accumulation at stage 1 (runtime/engine.py:2030)"
        if not on and config.get("zero_optimization.zenflow.offload"):
            return "zenflow.offload needs it (zenflow_stage_1_and_2.py:115)"
        if bool(config.zero("overlap_comm")) == on:
            return ALREADY
        return None

    return moved(
        "overlap-comm",
        on,
        title="Reductions beside the backward pass" if on else "Reductions after the backward pass",
        saves="time: gradients leave while the next are computed" if on else "memory: the second bucket",
        costs="a second bucket at stages 1 and 2" if on else "time: the GPU waits for the reductions",
        needs="ZeRO stage 1 to 3",
        source="runtime/zero/config.py:138, 382-387; runtime/zero/stage_1_and_2.py:3256-3278",
        refuses=refuses,
        apply=lambda config, cluster: (
            config if bool(config.zero("overlap_comm")) == on else with_zero(config, {"overlap_comm": on})
        ),
    )


def secondary_partition(size: int) -> Move:
    """hpZ: a second copy of the weights, spread over ``size`` GPUs, so that gathers stay in the node."""

    def refuses(config: Config, model: Model, cluster: Cluster) -> str | None:
        ranks = data_parallel(config, cluster)
        if config.stage != 3:
            return _stage_3(config, "a secondary partition")
        if size > 1 and cluster.nodes == 1:
            return "one node has no slower network to keep gathers from"
        if size > 1 and ranks % size:
            return f"{size} does not divide {ranks} ranks (runtime/utils/groups.py:944)"
        if size > cluster.gpus_per_node:
            return f"{size} GPUs reach over nodes of {cluster.gpus_per_node}, which it exists to avoid"
        return None

    return moved(
        "secondary-partition",
        size,
        title=f"Backward gathers within {size} GPUs (hpZ)" if size > 1 else "No second copy of the weights",
        saves="the network: the backward pass gathers inside the node" if size > 1 else "that copy's memory",
        costs="memory: 2 bytes a parameter over those GPUs"
        if size > 1
        else "backward gathers cross the network",
        needs="ZeRO stage 3, several nodes",
        source=f"{_ZERO_PLUS_PLUS} 3.2; runtime/zero/config.py:324; utils/groups.py:944",
        refuses=refuses,
        apply=lambda config, cluster: (
            config
            if int(config.zero("zero_hpz_partition_size")) == size
            else with_zero(config, {"zero_hpz_partition_size": size if size > 1 else None})
        ),
    )


def quantized_weights(on: bool) -> Move:
    """qwZ: parameters gathered in 8 bits."""

    def refuses(config: Config, model: Model, cluster: Cluster) -> str | None:
        if on and config.get("torch_autocast.enabled"):
            return "it is refused with torch_autocast (runtime/torch_autocast.py:32)"
        return (
            _stage_3(config, "quantized gathers") or _alone(config, cluster) or uneven(config, model, cluster)
        )

    def uneven(config: Config, model: Model, cluster: Cluster) -> str | None:
        ranks = data_parallel(config, cluster)
        odd = odd_module(shares(model, config.job.task, config.job.lora, ranks)) if on else None
        if odd is None:
            return None
        return (
            f"each of {ranks} ranks holds {odd[1]:,} elements of {odd[0]}, no multiple of "
            f"{QUANTIZED_TOGETHER} (runtime/zero/partition_parameters.py:883)"
        )

    return moved(
        "quantized-weights",
        on,
        title="Parameters gathered in 8 bits (qwZ)" if on else "Parameters gathered as they are",
        saves="half of the bytes that gathers move" if on else "quantizing and back",
        costs="rounding of the gathered weights, and kernels that quantize" if on else "twice the bytes",
        needs="ZeRO stage 3, CUDA",
        source=f"{_ZERO_PLUS_PLUS} 3.1; runtime/zero/config.py:328",
        effect="rounding",
        refuses=refuses,
        apply=lambda config, cluster: _flag(config, "zero_quantized_weights", on),
    )


def quantized_gradients(on: bool) -> Move:
    """qgZ: gradients reduced in 4 and 8 bits between nodes."""

    def refuses(config: Config, model: Model, cluster: Cluster) -> str | None:
        if on and cluster.nodes == 1:
            return "it acts only between nodes (utils/groups.py:738-764)"
        if on and not config.zero("reduce_scatter"):
            return "it needs reduce_scatter (runtime/zero/stage3.py:390)"
        if on and config.optimizer_type == "muon":
            return "Muon needs whole gradients (runtime/zero/stage3.py:360)"
        return _stage_3(config, "quantized reductions")

    return moved(
        "quantized-gradients",
        on,
        title="Gradients reduced in 4 bits (qgZ)" if on else "Gradients reduced as they are",
        saves="three quarters of the bytes that reductions send between nodes"
        if on
        else "quantizing and back",
        costs="rounding of the gradients, and kernels that quantize" if on else "four times the bytes",
        needs="ZeRO stage 3, several nodes, CUDA",
        source=f"{_ZERO_PLUS_PLUS} 3.3; runtime/zero/config.py:340; utils/groups.py:738-764",
        effect="rounding",
        refuses=refuses,
        apply=lambda config, cluster: _flag(config, "zero_quantized_gradients", on),
    )


def _flag(config: Config, key: str, on: bool) -> Config:
    return config if bool(config.zero(key)) == on else with_zero(config, {key: True if on else None})


def one_bit_optimizer() -> Move:
    """1-bit Adam, 1-bit LAMB and 0/1 Adam: gone from DeepSpeed."""
    return moved(
        "one-bit-optimizer",
        None,
        title="1-bit Adam, 1-bit LAMB or 0/1 Adam",
        saves="most of the bytes of each reduction",
        costs="another training, and memory for the error that compression leaves",
        needs="a DeepSpeed before 0.19.7, ZeRO stage 0 or 1",
        source="Tang et al. 2021 (1-bit Adam); runtime/config.py:52-66",
        effect="training",
        counted=False,
        refuses=lambda *where: (
            "DeepSpeed removed its 1-bit optimizers in 0.19.7 (runtime/config.py:52-66); to send less, use "
            "larger micro batches, secondary-partition, quantized-weights or quantized-gradients"
        ),
        apply=lambda config, cluster: config.with_values({"optimizer.type": "OneBitAdam"}),
    )


def _buckets(config: Config, model: Model, cluster: Cluster) -> tuple[Value, ...]:
    return (int(ZERO_DEFAULTS["reduce_bucket_size"]), MIDDLE_BUCKET, SMALL_BUCKET)


def _no_values(config: Config, model: Model, cluster: Cluster) -> tuple[Value, ...]:
    return ()


def _prefetches(config: Config, model: Model, cluster: Cluster) -> tuple[Value, ...]:
    return (200_000_000, int(ZERO_DEFAULTS["stage3_prefetch_bucket_size"]), 0)


def _thresholds(config: Config, model: Model, cluster: Cluster) -> tuple[Value, ...]:
    return (1_000_000, int(ZERO_DEFAULTS["stage3_param_persistence_threshold"]), 0)


def _partitions(config: Config, model: Model, cluster: Cluster) -> tuple[Value, ...]:
    return tuple(dict.fromkeys((1, cluster.gpus_per_node)))


KINDS = (
    Kind(
        name="reduce-bucket", title="Bucket of the reductions", make=reduce_bucket, options=_buckets, read=int
    ),
    Kind(
        name="allgather-bucket",
        title="Bucket of the gathers at stages 1 and 2",
        make=allgather_bucket,
        options=_no_values,
        read=int,
    ),
    Kind(
        name="prefetch-bucket",
        title="What stage 3 gathers ahead",
        make=prefetch_bucket,
        options=_prefetches,
        read=int,
    ),
    Kind(
        name="persistence-threshold",
        title="What stage 3 leaves whole",
        make=persistence_threshold,
        options=_thresholds,
        read=int,
    ),
    switch("overlap-comm", "Reductions beside the backward pass", overlap_comm),
    Kind(
        name="secondary-partition",
        title="ZeRO++ hpZ: weights once more in every node",
        make=secondary_partition,
        options=_partitions,
        read=int,
    ),
    switch("quantized-weights", "ZeRO++ qwZ: gathers in 8 bits", quantized_weights),
    switch("quantized-gradients", "ZeRO++ qgZ: reductions in 4 bits", quantized_gradients),
    single("one-bit-optimizer", "1-bit optimizers", one_bit_optimizer),
)
