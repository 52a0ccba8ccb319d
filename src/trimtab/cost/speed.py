"""How long an optimizer step takes, by a closed form over the counted work.

GPU time is a roofline over every operator that the counting machine ran; the host's time is what Python and
the engine's hooks need to issue them, and the step takes the longer of the two.  Collectives add what
bandwidth and their number cost; offload adds copies and Adam on the host's cores.  Constants are measured on
H200s with the cases named beside them; they are coarse, and `Speed` says within which bounds.
"""

from __future__ import annotations

from dataclasses import dataclass

from trimtab.cluster import Cluster
from trimtab.config import Config
from trimtab.cost.memory import Profile

# of the vendor's dense rate: an 8192-cube bf16 product ran at 793 of 989 TFLOP/s, a training step's products
# at 0.77 of that (llama-7b-z2, llama-1b-z1, neox-20b-z3 as rank 0 of their worlds)
MATRIX_EFFICIENCY = 0.80 * 0.77
# of the vendor's bandwidth: a copy moved 4.3 of 4.8 TB/s, element-wise kernels about 0.85 of a copy
MEMORY_EFFICIENCY = 0.90 * 0.85 * 0.77
HOST_SECONDS_PER_OPERATOR = 85e-6  # t5-large-z2, bert-large-mlm-z2: forward, backward and hooks
HOST_SECONDS_PER_OPERATOR_STAGE_3 = 300e-6  # llama-7b-z3, llama-70b-z3: fetching and releasing modules
HOST_SECONDS_PER_PARAMETER = 60e-6  # bert-large-mlm-z2: norms and copies of each gradient in the step
HOST_SECONDS_PER_SLICE = 5e-6  # llama-70b-z3 of 64 ranks: every gathered parameter is cut into rank slices
LINK_EFFICIENCY = 0.75  # four H200s: 323 to 354 GB/s of bus bandwidth over links of 450 GB/s
NETWORK_EFFICIENCY = 0.70  # assumed: no network was measured
COLLECTIVE_SECONDS = 250e-6  # llama-7b-z3 on four H200s against one as rank 0 of four
HOST_LINK_EFFICIENCY = 0.6  # pinned copies ran at 38 and 32 GB/s over PCIe 5
HOST_ADAM_CORE_SECONDS = (
    5.5e-9  # llama-13b-z3-offload, gpt_neox_20b_zero3: 1.6e9 and 2.6e9 elements on 16 cores
)
STEP_BYTES_PER_PARAMETER = (
    44  # fp32 copies and FusedAdam: gradient 2+4+4, master 8, moments 16, weights 2, norms 8
)
NVME_STATE_BYTES = 24  # master and two moments in and out
SPREAD = (0.70, 1.75)
"""Bounds about the expected value that hold every measured H200 case; GPT-2's odd vocabulary is the worst."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """Seconds of one optimizer step, and where they go."""

    step_seconds: float
    low_seconds: float
    high_seconds: float
    compute_seconds: float
    communication_seconds: float
    offload_seconds: float
    tokens_per_step: int
    samples_per_step: int
    model_flops: float
    """Of one step and rank: what forward and backward need, recomputation left out."""


def step_speed(config: Config, profile: Profile, cluster: Cluster) -> Speed:
    """The time of one optimizer step of ``config`` on ``cluster``, from its counted work."""
    batch = config.batch(cluster.world_size)
    compute = _compute(config, profile, cluster) * batch.accumulation + _optimizer(config, profile, cluster)
    communication = _communication(config, profile, cluster, batch.accumulation)
    offload = _offload(config, profile, cluster, batch.accumulation)
    total = compute + communication + offload
    job = config.job
    flops = sum(flops * count for (phase, flops, _), count in profile.work.items() if phase != "recompute")
    return Speed(
        step_seconds=total,
        low_seconds=total * SPREAD[0],
        high_seconds=total * SPREAD[1],
        compute_seconds=compute,
        communication_seconds=communication,
        offload_seconds=offload,
        tokens_per_step=batch.micro * batch.accumulation * job.sequence_length,
        samples_per_step=batch.micro * batch.accumulation,
        model_flops=float(flops * batch.accumulation),
    )


def _compute(config: Config, profile: Profile, cluster: Cluster) -> float:
    """Seconds of one micro step on the GPU, or on the host that issues it if that is longer."""
    dtype = {"bf16": "bf16", "fp16": "fp16"}.get(config.precision, "tf32")
    rate = cluster.gpu.matrix_flops(dtype) * MATRIX_EFFICIENCY
    bandwidth = cluster.gpu.memory_bytes_per_second * MEMORY_EFFICIENCY
    device = 0.0
    operators = 0
    for (_, flops, moved), count in profile.work.items():
        device += count * max(flops / rate, moved / bandwidth)
        operators += count
    per_operator = HOST_SECONDS_PER_OPERATOR_STAGE_3 if config.stage == 3 else HOST_SECONDS_PER_OPERATOR
    host = operators * per_operator
    if config.stage == 3:
        host += 4 * profile.tensors * cluster.world_size * HOST_SECONDS_PER_SLICE
    return max(device, host)


def _ranks(config: Config, cluster: Cluster) -> int:
    return max(1, cluster.world_size // config.data_parallel_divisor)


def _optimizer(config: Config, profile: Profile, cluster: Cluster) -> float:
    host = profile.trainable_tensors * HOST_SECONDS_PER_PARAMETER
    if config.offload_optimizer != "none":
        return host
    share = profile.trainable / (_ranks(config, cluster) if config.stage else 1)
    device = share * STEP_BYTES_PER_PARAMETER / (cluster.gpu.memory_bytes_per_second * MEMORY_EFFICIENCY)
    return max(device, host)


def _communication(config: Config, profile: Profile, cluster: Cluster, accumulation: int) -> float:
    """Seconds of collectives that the step does not hide: all of them, as measured pairs show."""
    ranks = _ranks(config, cluster)
    if ranks == 1:
        return 0.0
    weights = profile.parameters * config.parameter_bytes
    gradients = profile.trainable * config.parameter_bytes
    share = (ranks - 1) / ranks
    if config.stage == 3:
        inside = int(config.zero("zero_hpz_partition_size")) >= cluster.gpus_per_node > 1
        wide = weights + gradients + (0 if inside else weights)
        near = weights if inside and cluster.nodes > 1 else 0
        calls = 3 * profile.tensors // 2
        seconds = wide * share / _bandwidth(cluster) + near / _inside(cluster) + calls * COLLECTIVE_SECONDS
        return seconds * accumulation
    reduced = 2 * gradients * (accumulation if config.stage == 2 else 1)
    gathered = gradients if config.stage else 0
    return (reduced + gathered) * share / _bandwidth(cluster)


def _inside(cluster: Cluster) -> float:
    return cluster.intra_link.bytes_per_second * LINK_EFFICIENCY


def _bandwidth(cluster: Cluster) -> float:
    """Bytes a second of one rank's ring: the slower of its link and its share of the node's network."""
    inside = _inside(cluster) if cluster.gpus_per_node > 1 else float("inf")
    if cluster.nodes == 1:
        return inside
    return min(inside, cluster.node_bytes_per_second * NETWORK_EFFICIENCY)


def _offload(config: Config, profile: Profile, cluster: Cluster, accumulation: int) -> float:
    link = cluster.gpu.host_link.bytes_per_second * HOST_LINK_EFFICIENCY
    ranks = _ranks(config, cluster)
    share = profile.trainable / ranks
    seconds = 0.0
    if config.offload_optimizer != "none":
        cores = max(1.0, cluster.cpu_cores / cluster.gpus_per_node)
        seconds += share * HOST_ADAM_CORE_SECONDS / cores
        seconds += share * (accumulation * config.gradient_bytes + config.parameter_bytes + 4) / link
    if config.offload_optimizer == "nvme":
        node = share * min(ranks, cluster.gpus_per_node) * NVME_STATE_BYTES / 2
        seconds += node / cluster.nvme_read_bytes_per_second + node / cluster.nvme_write_bytes_per_second
    if config.offload_param != "none":
        shard = profile.parameters / ranks * config.parameter_bytes
        reads = shard * 2 * accumulation
        seconds += reads / link
        if config.offload_param == "nvme":
            seconds += reads * min(ranks, cluster.gpus_per_node) / cluster.nvme_read_bytes_per_second
    return seconds
