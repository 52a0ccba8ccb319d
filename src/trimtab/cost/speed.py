"""How long an optimizer step takes, by a closed form over the counted work.

The GPU's time is the sum over every kernel that the counting machine ran, each at its measured rate
(`trimtab.cost.rates`), and over what the engine adds around them; the host's time is what Python and the
engine's hooks need to issue them, and a micro step takes the longer of the two.  Collectives, copies and Adam
on the host come on top as far as the engine does not hide them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from trimtab.cluster import Cluster
from trimtab.config import Config
from trimtab.cost.memory import Profile
from trimtab.cost.meter import COLLECTIVES, Kernel
from trimtab.cost.rates import HOST, Rates, rates_of

ENGINE_BYTES = {0: 4.0, 1: 6.5, 2: 5.4, 3: 6.5}
"""Bytes that the engine moves in the backward pass for a byte of gradients: into buckets, divided, out again.

Counted in rehearsed steps: bert-base-cls-z0, llama-1b-z1, llama-7b-z2 and llama-7b-z3 of four ranks.
"""
GATHER_BYTES = (
    0.7  # stage 3 lays shards and whole parameters together: 0.36 (llama-7b-z3) to 1.1 (neox-20b-z3)
)
STEP_BYTES = {0: 64, 1: 74, 2: 74, 3: 70}
"""Bytes of a step for a parameter that this rank owns: norms, copies, FusedAdam's 28; the same rehearsals."""
STEP_DISPATCHES = {0: 20, 1: 24, 2: 24, 3: 8}
"""Operators and views of a step for a tensor that this rank owns: overflow check, norm; as above."""
VIEWS = {"forward": 1.1, "backward": 1.2}
"""Views, and operators that are not counted, for a kernel: 927 for 870 forward of llama-z1, 1690 for 1450
backward."""
MODULES = 0.34  # calls of modules for a forward kernel: 586 for llama-z1's 1740
HOST_STEP_BYTES = 42  # of an offloaded step for a parameter: norms, copies, Adam's 28; llama-z2-offload
NVME_STATE_BYTES = 24  # master and two moments in and out
LOW = {"kernels": 0.88, "host": 0.55, "links": 0.7}
HIGH = {"kernels": 1.12, "host": 1.6, "links": 1.5}
"""Bounds of what kernels, the host and links take, about the expected value."""
HOST_SLACK = 0.25  # a slower host shows where this one is hidden: hosts of the measured cases differ twofold


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """Seconds of one optimizer step, and where they go."""

    step_seconds: float
    low_seconds: float
    high_seconds: float
    compute_seconds: float
    """Kernels of the model, the engine and the optimizer on the GPU."""
    communication_seconds: float
    """Collectives that nothing hides."""
    offload_seconds: float
    """Copies over the host link, Adam on the host, and disks."""
    host_seconds: float = 0.0
    """The GPU waiting for its next kernel to be issued."""
    tokens_per_step: int
    samples_per_step: int
    model_flops: float
    """Of one step and rank: what forward and backward need, recomputation left out."""
    parts: tuple[tuple[str, float], ...] = ()
    """Finer parts, by name; they sum to ``step_seconds``."""
    source: str = ""
    """Where the rates come from."""


def step_speed(config: Config, profile: Profile, cluster: Cluster) -> Speed:
    """The time of one optimizer step of ``config`` on ``cluster``, from its counted work."""
    return _Step(config, profile, cluster, rates_of(cluster)).speed()


class _Step:
    """One configuration's step, part by part."""

    def __init__(self, config: Config, profile: Profile, cluster: Cluster, rates: Rates) -> None:
        self.config, self.profile, self.cluster, self.rates = config, profile, cluster, rates
        self.batch = config.batch(cluster.world_size)
        self.ranks = max(1, cluster.world_size // config.tensor_parallel)
        """Those that reduce gradients and shard states together: of a sample's tokens each has its own."""
        self.sharded = config.stage == 3
        self.weight_bytes = profile.own_parameters * config.parameter_bytes
        self.gradient_bytes = profile.own_trainable * config.parameter_bytes
        self.owned = profile.own_trainable / (self.ranks if config.stage else 1)
        self.precision = config.precision if config.precision in ("bf16", "fp16") else "fp32"

    def speed(self) -> Speed:
        """All parts together."""
        count = self.batch.accumulation
        kernels = self._kernels()
        engine = self._engine()
        summed = self._within_layers()
        device = sum(kernels.values()) + engine + summed
        first = self._forward_share * device
        host_forward, host_backward = self._issue()
        # the device ends with its own work, or with what the host issued last
        waiting = max(0.0, host_forward - first, host_forward + host_backward - device)
        step, step_waiting = self._step()
        reduced, gathered = self._communication(device + waiting)
        offload = self._offload()
        parts = {
            **{name: seconds * count for name, seconds in kernels.items()},
            "engine": engine * count + step,
            "issuing": waiting * count + step_waiting,
            "reducing gradients": reduced,
            "gathering parameters": gathered,
            "exchanging activations": summed * count,
            "offload": offload,
        }
        total = sum(parts.values())
        communication = reduced + gathered + summed * count
        sure = total - waiting * count - step_waiting - communication - offload
        unsure = waiting * count + step_waiting
        job = self.config.job
        flops = sum(one.flops * runs for one, runs in self.profile.work.items() if one.phase != "recompute")
        return Speed(
            step_seconds=total,
            low_seconds=sure * LOW["kernels"]
            + unsure * LOW["host"]
            + (communication + offload) * LOW["links"],
            high_seconds=sure * HIGH["kernels"]
            + (unsure + HOST_SLACK * (host_forward + host_backward) * count) * HIGH["host"]
            + (communication + offload) * HIGH["links"],
            compute_seconds=sum(kernels.values()) * count + engine * count + step,
            communication_seconds=communication,
            offload_seconds=offload,
            host_seconds=waiting * count + step_waiting,
            tokens_per_step=self.batch.micro * count * job.sequence_length,
            samples_per_step=self.batch.micro * count,
            model_flops=float(flops * count),
            parts=tuple((name, seconds) for name, seconds in parts.items() if seconds),
            source=self.rates.source,
        )

    # -- the GPU -------------------------------------------------------------------------------------------

    def _kernels(self) -> Mapping[str, float]:
        """Seconds of one micro step's kernels, by kind."""
        found = {"products": 0.0, "attention": 0.0, "memory-bound kernels": 0.0}
        names = {"product": "products", "attention": "attention"}
        for kernel, runs in self.profile.work.items():
            if kernel.name in COLLECTIVES:
                continue
            found[names.get(kernel.name, "memory-bound kernels")] += runs * self._seconds(kernel)
        return found

    def _seconds(self, kernel: Kernel) -> float:
        rates = self.rates
        if kernel.name == "product":
            batch, rows, inner, columns, item = kernel.shape
            precision = self.precision if item == 2 else "fp32"
            return rates.product(precision, rows, inner, columns, batch)
        if kernel.name == "attention":
            calls, queries, keys, width, causal, dropout, masked = kernel.shape
            return rates.attention(
                self.precision,
                calls,
                queries,
                keys,
                width,
                causal=bool(causal),
                backward=kernel.phase == "backward",
                dropout=bool(dropout),
                masked=bool(masked),
            )
        return rates.moving(kernel.moved)

    def _engine(self) -> float:
        """Seconds of the engine's own kernels in one micro step."""
        config = self.config
        reduces = config.stage >= 2 or self.batch.accumulation == 1
        moved = self.gradient_bytes * (ENGINE_BYTES[config.stage] if reduces else 0.0)
        if self.sharded and self.ranks > 1:
            moved += 2 * GATHER_BYTES * self.weight_bytes
        return self._stream(moved)

    @property
    def _forward_share(self) -> float:
        """The forward pass's share of a micro step's kernels, by their operations."""
        flops = {"forward": 0, "recompute": 0, "backward": 0}
        for kernel, runs in self.profile.work.items():
            flops[kernel.phase] += kernel.flops * runs
        return flops["forward"] / max(1, sum(flops.values()))

    def _stream(self, moved: float) -> float:
        """Seconds of large kernels that move so many bytes together."""
        return self.rates.moving(moved) if moved else 0.0

    def _step(self) -> tuple[float, float]:
        """Seconds of the optimizer's step on the GPU, and of the GPU waiting for the host there."""
        config, profile = self.config, self.profile
        tensors = profile.trainable_tensors / (self.ranks if config.stage in (1, 2) else 1)
        host = tensors * STEP_DISPATCHES[config.stage] * HOST.step
        if config.offload_optimizer != "none":
            return 0.0, host
        device = self._stream(self.owned * STEP_BYTES[config.stage])
        if config.stage < 2 and self.batch.accumulation > 1:
            device += self._stream(self.gradient_bytes * ENGINE_BYTES[config.stage])
        return device, max(0.0, host - device)

    def _issue(self) -> tuple[float, float]:
        """Seconds of the host to issue a forward and a backward pass: operators, views, modules, hooks."""
        kernels = {"forward": 0, "recompute": 0, "backward": 0}
        collectives = {"forward": 0, "recompute": 0, "backward": 0}
        for kernel, runs in self.profile.work.items():
            (collectives if kernel.name in COLLECTIVES else kernels)[kernel.phase] += runs
        each = HOST.forward * (1 + VIEWS["forward"]) + HOST.module * MODULES
        forward = kernels["forward"] * each
        backward = kernels["recompute"] * each
        backward += kernels["backward"] * HOST.backward * (1 + VIEWS["backward"])
        forward += collectives["forward"] * HOST.collective
        backward += (collectives["recompute"] + collectives["backward"]) * HOST.collective
        if self.config.stage == 2 or (self.config.stage == 1 and self.batch.accumulation == 1):
            backward += self.profile.trainable_tensors * HOST.hook
        if self.sharded:
            calls = self.profile.uses * HOST.fetch + 2 * self.profile.tensors * self.ranks * HOST.engine
            first = 1 / (3 if self.config.job.checkpoint_activations else 2)
            forward, backward = forward + calls * first, backward + calls * (1 - first)
            backward += self.profile.trainable_tensors * HOST.fetch
        return forward, backward

    # -- links ---------------------------------------------------------------------------------------------

    def _collective(self, name: str, size: float, bucket: float, window: float = 0.0) -> float:
        """Seconds of a collective over ``size`` bytes, ``bucket`` at a time, that ``window`` cannot hide.

        Args:
            window: seconds of kernels that run meanwhile; 0 where the engine waits.
        """
        if not size or self.ranks == 1:
            return 0.0
        calls = max(1, math.ceil(size / bucket))
        each, nodes = size / calls, self.cluster.nodes
        groups = self.config.tensor_parallel  # each has ranks on every node
        total = calls * self.rates.collective(name, each, self.ranks, nodes, groups)
        if not window:
            return total
        beside = calls * self.rates.beside(name, each, self.ranks, nodes)
        return beside + max(0.0, total - beside - window)

    def _within_layers(self) -> float:
        """Seconds of a micro step's collectives over the ranks that share it; nothing hides them."""
        size = self.config.tensor_parallel * self.config.sequence_parallel
        nodes = -(-size // self.cluster.gpus_per_node)
        return sum(
            runs * self.rates.collective(kernel.name, kernel.moved, size, nodes)
            for kernel, runs in self.profile.work.items()
            if kernel.name in COLLECTIVES
        )

    def _communication(self, compute: float) -> tuple[float, float]:
        """Seconds of reducing gradients and of gathering parameters in a step that nothing hides.

        Args:
            compute: seconds of one micro step without communication.
        """
        if self.ranks == 1:
            return 0.0, 0.0
        config, count = self.config, self.batch.accumulation
        bucket = float(config.zero("reduce_bucket_size")) * config.parameter_bytes
        backward = compute * 2 / 3  # forward takes a third of what both take
        if config.stage == 3:
            return self._communication_sharded(bucket, compute, count)
        window = backward if config.stage and config.zero("overlap_comm") else 0.0
        times = count if config.stage == 2 else 1
        # zero/stage_1_and_2.py:1594, allreduce_and_scatter: whole buckets, of which each rank keeps its part
        reduced = times * self._collective("all_reduce", self.gradient_bytes, bucket, window)
        gathered = self._collective("all_gather", self.gradient_bytes, math.inf) if config.stage else 0.0
        return reduced, gathered

    def _communication_sharded(self, bucket: float, compute: float, count: int) -> tuple[float, float]:
        config, cluster = self.config, self.cluster
        prefetch = float(config.zero("stage3_prefetch_bucket_size")) * config.parameter_bytes
        module = min(
            max(1.0, self.weight_bytes), max(2 * self.weight_bytes / self.profile.tensors, prefetch / 2)
        )
        quantized = 0.5 if config.zero("zero_quantized_weights") else 1.0
        window = compute / 3 if config.zero("overlap_comm") else 0.0
        forward = self._collective("all_gather", self.weight_bytes * quantized, module, window)
        backward = forward
        if 1 < int(config.zero("zero_hpz_partition_size")) <= cluster.gpus_per_node and cluster.nodes > 1:
            ranks = int(config.zero("zero_hpz_partition_size"))
            calls = max(1, math.ceil(self.weight_bytes / module))
            backward = calls * self.rates.collective("all_gather", self.weight_bytes / calls, ranks)
        if config.zero("zero_quantized_gradients"):
            reduced = self._collective("all_to_all", self.gradient_bytes / 4, bucket, window)
        else:
            reduced = self._collective("reduce_scatter", self.gradient_bytes, bucket, window)
        return reduced * count, (forward + backward) * count

    # -- the host's memory and disks ------------------------------------------------------------------------

    def _offload(self) -> float:
        config, rates, cluster = self.config, self.rates, self.cluster
        count, share = self.batch.accumulation, self.profile.own_trainable / self.ranks
        local = min(cluster.world_size, cluster.gpus_per_node)
        seconds = 0.0
        if config.offload_optimizer != "none":
            seconds += rates.host_moving(share * HOST_STEP_BYTES, local)
            seconds += rates.copy("to host", count * share * config.gradient_bytes)
            seconds += rates.copy("to device", share * config.parameter_bytes)
        if config.offload_optimizer == "nvme":
            node = share * local * NVME_STATE_BYTES / 2
            seconds += node / cluster.nvme_read_bytes_per_second + node / cluster.nvme_write_bytes_per_second
        if config.offload_param != "none":
            reads = self.profile.own_parameters / self.ranks * config.parameter_bytes * 2 * count
            seconds += rates.copy("to device", reads)
            if config.offload_param == "nvme":
                seconds += reads * local / cluster.nvme_read_bytes_per_second
        return seconds
