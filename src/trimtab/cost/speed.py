"""How long an optimizer step takes, by a closed form over the counted work.

The GPU's time is the sum over every kernel that the counting machine ran, each at its measured rate
(`trimtab.cost.rates`), and over what the engine adds around them; the host's time is what Python and the
engine's hooks need to issue them, and the two race from one stack of layers to the next
(`trimtab.cost.race`).  Collectives, copies and Adam on the host come on top as far as the engine does not
hide them.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import NamedTuple

from trimtab.cluster import Cluster
from trimtab.config import Config
from trimtab.cost.meter import COLLECTIVES
from trimtab.cost.race import LAUNCH_QUEUE, Race
from trimtab.cost.rates import Rates, rates_of
from trimtab.cost.timing import of_a_card, tally, timed
from trimtab.cost.workload import Workload
from trimtab.frozen import dataclass

ENGINE_BYTES = {0: 4.1, 1: 5.0, 2: 5.0, 3: 4.2}
"""What the engine moves in the backward pass for a byte of gradients: into buckets, divided, out again.

In bytes at the rate of `_Step._stream`, from the simulated seconds of rehearsed steps of a billion parameters
and more: llama-1b-z0-m4, llama-1b-z2-m8, llama-1b-z3-m4 and llama-7b-z3-m4-recompute of
bench/data/quiet_steps.jsonl.
"""
GATHER_BYTES = (
    0.7  # stage 3 lays shards and whole parameters together: 0.36 (llama-7b-z3) to 1.1 (neox-20b-z3)
)
STEP_BYTES = {0: 58, 1: 73, 2: 73, 3: 61}
"""Of a step for a parameter that this rank owns: norms, copies, FusedAdam's 28; found in the same way."""
ADAM_BYTES = 28
STEP_DISPATCHES = {0: 21, 3: 10}
"""Operators and views of a step for a tensor that this rank owns: GPT-2's in bench/data/host_counts.jsonl."""
STEP_STRETCHES = ((13, 8), (4, 14), (1, 7))
"""The same of stages 1 and 2, from one moment at which the host waits to the next, and of `STEP_BYTES` those
that its kernels move meanwhile: the phantom engine's record of llama-1b-z2-m8."""
STEP_REST = 5
"""After the last of them, for every tensor that trains: views of the new weights."""
HOST_STEP_BYTES = 42  # of an offloaded step for a parameter: norms, copies, Adam's 28; llama-z2-offload
NVME_STATE_BYTES = 24  # master and two moments in and out
LOW = {"kernels": 0.88, "host": 0.55, "links": 0.7}
HIGH = {"kernels": 1.12, "host": 1.2, "links": 1.5}
"""Bounds of what kernels, the host (above: by `SLOW_HOST`) and links take, about what is expected."""
SLOW_HOST = 1.5
"""How much slower another host may be: all but two of 323 jobs stayed below."""
SETTLING_BYTES = 16
"""Of `STEP_BYTES` those after the host's last wait, beside Adam's: weights into the model's precision."""


class Hooks(NamedTuple):
    """What the engine does for a gradient that this rank keeps: kernels, and copies over the host link."""

    kept: int
    """As it is reduced, beside the one that lays every gradient into a bucket."""
    added: int
    """In all micro steps but the first, which writes where they add; at stages 0 and 1 for every gradient."""
    added_bytes: int
    """What that moves, for a byte of the gradient: an add reads two and writes one."""
    handed: int = 0
    """Before a step on the host: norms, checks and the copy; at stages 1 and 2 the host waits for each."""


HOOKS = {
    (0, False): Hooks(kept=0, added=1, added_bytes=3),
    (1, False): Hooks(kept=1, added=1, added_bytes=3),
    (2, False): Hooks(kept=1, added=1, added_bytes=3),
    (3, False): Hooks(kept=1, added=0, added_bytes=1),  # in a copy's place, which moves two
    (1, True): Hooks(kept=0, added=1, added_bytes=3, handed=16),
    (2, True): Hooks(kept=1, added=2, added_bytes=3, handed=16),  # fetched first, stage_1_and_2.py:1855
    (3, True): Hooks(kept=2, added=1, added_bytes=3, handed=6),
}
"""By stage, and by whether the optimizer is offloaded: as the phantom engine's records have them."""


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
    slow_host_seconds: float = 0.0
    """The step where the host needs longer by `SLOW_HOST` for all that it does; 0 where nobody asked."""
    tokens_per_step: int
    samples_per_step: int
    model_flops: float
    """Of one step and rank: what forward and backward need, recomputation left out."""
    parts: tuple[tuple[str, float], ...] = ()
    """Finer parts, by name; they sum to ``step_seconds``."""
    source: str = ""
    """Where the rates come from."""

    @property
    def careful_seconds(self) -> float:
        """Between what is expected and a slow host (`SLOW_HOST`): a choice has to be good beside both."""
        return (self.step_seconds + (self.slow_host_seconds or self.step_seconds)) / 2


def step_speed(config: Config, profile: Workload, cluster: Cluster, rates: Rates | None = None) -> Speed:
    """The time of one optimizer step of ``config`` on ``cluster``, from its counted work.

    Args:
        rates: of the cluster; those that are known of it unless given.
    """
    return _Step(config, profile, cluster, rates or rates_of(cluster)).speed()


class _Step:
    """One configuration's step, part by part."""

    def __init__(self, config: Config, profile: Workload, cluster: Cluster, rates: Rates) -> None:
        self.config, self.profile, self.cluster, self.rates = config, profile, cluster, rates
        self.batch = config.batch(cluster.world_size)
        self.ranks = max(1, cluster.world_size // config.tensor_parallel)
        """Those that reduce gradients and shard states together: of a sample's tokens each has its own."""
        self.tally = tally(profile.work)
        self.sharded = config.stage == 3
        self.offloads = config.stage > 0 and config.offload_optimizer != "none"
        self.hooks = HOOKS[config.stage, self.offloads]
        self.weight_bytes = profile.own_parameters * config.parameter_bytes
        self.gradient_bytes = profile.own_trainable * config.parameter_bytes
        self.owned = profile.own_trainable / (self.ranks if config.stage else 1)
        # all ranks wait for the one with the most tensors when they agree that nothing overflowed
        self.stepped = profile.fullest(self.ranks) if config.stage in (1, 2) else profile.trainable_tensors
        """Tensors that the slowest rank steps."""
        precision = config.precision if config.precision in ("bf16", "fp16") else "fp32"
        card = of_a_card(rates.gpu, rates.tables)
        self.kernels, self.stretches = timed(profile.stretches, precision, card)
        """Seconds of one micro step's kernels, by kind and by stretch."""

    def speed(self) -> Speed:
        """All parts together."""
        count = self.batch.accumulation
        kernels = self.kernels
        engine = self._engine()
        summed = self._within_layers()
        device = sum(kernels.values()) + engine + summed
        waiting, lead = self._raced(device, 1.0)
        step, step_waiting = self._step(lead, 1.0)
        waiting_more, lead = self._raced(device, SLOW_HOST)
        slow = waiting_more - waiting + self._step(lead, SLOW_HOST)[1] - step_waiting
        reduced, gathered = self._communication(device + waiting / count)
        offload = self._offload(device * count + waiting)
        parts = {
            **{name: seconds * count for name, seconds in kernels.items()},
            "engine": engine * count + step,
            "issuing": waiting + step_waiting,
            "reducing gradients": reduced,
            "gathering parameters": gathered,
            "exchanging activations": summed * count,
            "offload": offload,
        }
        total = sum(parts.values())
        communication = reduced + gathered + summed * count
        unsure = waiting + step_waiting
        sure = total - unsure - communication - offload
        job = self.config.job
        flops = self.tally.flops["forward"] + self.tally.flops["backward"]
        return Speed(
            step_seconds=total,
            low_seconds=sure * LOW["kernels"]
            + unsure * LOW["host"]
            + (communication + offload) * LOW["links"],
            high_seconds=sure * HIGH["kernels"]
            + (unsure + slow) * HIGH["host"]
            + (communication + offload) * HIGH["links"],
            compute_seconds=sum(kernels.values()) * count + engine * count + step,
            communication_seconds=communication,
            offload_seconds=offload,
            host_seconds=unsure,
            slow_host_seconds=total + slow,
            tokens_per_step=self.batch.micro * count * job.sequence_length,
            samples_per_step=self.batch.micro * count,
            model_flops=float(flops * count),
            parts=tuple((name, seconds) for name, seconds in parts.items() if seconds),
            source=self.rates.source,
        )

    # -- the GPU -------------------------------------------------------------------------------------------

    def _engine(self) -> float:
        """Seconds of the engine's own kernels in one micro step."""
        config = self.config
        reduces = config.stage >= 2 or self.batch.accumulation == 1
        moved = self.gradient_bytes * (ENGINE_BYTES[config.stage] if reduces else 0.0)
        there = self.gradient_bytes if config.stage < 2 else self.owned * config.parameter_bytes
        moved += there * self.hooks.added_bytes * self._later
        if self.sharded and self.ranks > 1:
            moved += 2 * GATHER_BYTES * self.weight_bytes
        return self._stream(moved)

    def _stream(self, moved: float) -> float:
        """Seconds of large kernels that move so many bytes together, mostly from one type to another."""
        return self.rates.moving(moved, "to fp32") if moved else 0.0

    def _step(self, lead: float, slower: float) -> tuple[float, float]:
        """Seconds of the optimizer's step on the GPU, and of the GPU waiting for the host there.

        Small kernels look for overflows and take norms, which the host issues more slowly than they run; then
        it waits for the result, and Adam and the new weights come on top.

        Args:
            lead: seconds that the GPU still works on the backward pass when the host begins.
            slower: how much longer the host needs than usual.
        """
        config, profile = self.config, self.profile
        one = self.rates.host.step * slower
        rest = profile.trainable_tensors * STEP_REST * one
        if config.stage in (1, 2):
            host = self.stepped * sum(issued for issued, _ in STEP_STRETCHES) * one + rest
        else:
            host = self.stepped * STEP_DISPATCHES[config.stage] * one
        if self.sharded and self.ranks > 1:  # stage3.py gathers the small parameters that stay whole
            least = int(config.zero("stage3_param_persistence_threshold"))
            host += sum(numel <= least for numel in profile.trained) * self.rates.host.collective * slower
        if self.offloads:
            if not self.sharded:  # by one rank after the other: the next bucket's reduction waits for all
                handed = profile.trainable_tensors * self.hooks.handed * self.rates.host.engine
                host += handed * slower
            return 0.0, host
        before = self._stream(self.owned * (STEP_BYTES[config.stage] - ADAM_BYTES - SETTLING_BYTES))
        after = self._stream(self.owned * SETTLING_BYTES)
        after += self.rates.moving(self.owned * ADAM_BYTES, "FusedAdam")
        if config.stage < 2 and self.batch.accumulation > 1:
            after += self._stream(self.gradient_bytes * ENGINE_BYTES[config.stage])
        if config.stage not in (1, 2):
            return before + after, max(0.0, host - before)
        waiting, lead = max(0.0, rest - after), min(lead, LAUNCH_QUEUE * one)
        for issued, moved in STEP_STRETCHES:
            waiting += max(0.0, self.stepped * issued * one - lead - self._stream(self.owned * moved))
            lead = 0.0
        return before + after, waiting

    def _raced(self, device: float, slower: float) -> tuple[float, float]:
        """Seconds that the GPU waits for the host in all micro steps, and the host's lead at their end.

        The first begins with both at rest; the others as the one before them left it.

        Args:
            device: of the kernels of one micro step.
            slower: how much longer the host needs than usual.
        """
        forward, backward = self._issue()
        share = device / max(1e-9, sum(self.kernels.values()))
        issuing = {
            phase: seconds * slower / max(1, sum(one.kernels for one in self.stretches if one.phase == phase))
            for phase, seconds in (("forward", forward), ("backward", backward))
        }
        race, ends = Race(), [0.0]
        for _ in range(min(2, self.batch.accumulation)):
            for phase, kernels, seconds in self.stretches:
                race.run(kernels, issuing=kernels * issuing[phase], running=seconds * share)
            ends.append(max(race.host, race.device))
        total = ends[1] + (self.batch.accumulation - 1) * (ends[-1] - ends[-2])
        return max(0.0, total - self.batch.accumulation * device), race.lead

    def _issue(self) -> tuple[float, float]:
        """Seconds of the host to issue a forward and a backward pass: operators, views, modules, hooks."""
        _, kernels, collectives = self.tally
        host, profile = self.rates.host, self.profile
        shared = host.exchange if self.config.sequence_parallel > 1 else host.collective
        forward = kernels["forward"] * host.forward + collectives["forward"] * shared
        forward += profile.tensors * host.module  # a module for each tensor, nearly
        forward += profile.recomputed_layers * host.checkpoint
        backward = (kernels["recompute"] + kernels["backward"]) * host.backward
        backward += (collectives["recompute"] + collectives["backward"]) * shared
        backward += profile.recomputed_layers * host.recompute
        backward += self._gradient_kernels() * host.engine
        if self.config.stage in (1, 2):
            backward += profile.trainable_tensors * self._reducing * host.gradient
        if self.sharded:
            first = profile.uses / (2 + profile.recomputed_layers / profile.layers)
            forward += first * host.fetch + profile.linears * host.function
            backward += (profile.uses - first) * host.fetch  # about what its fetches take one by one
        return forward, backward

    def _gradient_kernels(self) -> float:
        """Kernels of the engine's, and copies over the host link, for gradients in a mean micro step."""
        hooks, whole, own = self.hooks, self.profile.trainable_tensors, self.stepped
        kernels = (whole + hooks.kept * own) * self._reducing
        kernels += hooks.added * (own if self.config.stage >= 2 else whole) * self._later
        if self.sharded:  # nobody waits for what is handed over
            kernels += hooks.handed * own / self.batch.accumulation
        return kernels

    @property
    def _reducing(self) -> float:
        """The share of micro steps that reduce gradients: all, or the last."""
        return 1.0 if self.config.stage >= 2 else 1.0 / self.batch.accumulation

    @property
    def _later(self) -> float:
        """The share of micro steps that find gradients of earlier ones."""
        return 1.0 - 1.0 / self.batch.accumulation

    # -- links ---------------------------------------------------------------------------------------------

    def _collective(self, name: str, size: float, bucket: float, window: float = 0.0) -> float:
        """Seconds of a collective over ``size`` bytes, ``bucket`` at a time, that ``window`` cannot hide.

        Args:
            window: seconds of kernels that run meanwhile; 0 where the engine waits.
        """
        if not size or self.ranks == 1:
            return 0.0
        calls = max(1, min(self.profile.tensors, math.ceil(size / bucket)))  # a bucket takes one at least
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

    def _offload(self, beside: float) -> float:
        """Seconds of the host link, the host and disks that nothing hides.

        Args:
            beside: of all micro steps: parameters are fetched meanwhile, on a stream of their own.
        """
        config, rates, cluster = self.config, self.rates, self.cluster
        count, share = self.batch.accumulation, self.profile.own_trainable / self.ranks
        local = min(cluster.world_size, cluster.gpus_per_node)
        seconds = 0.0
        if config.offload_optimizer != "none":
            seconds += rates.host_moving(share * HOST_STEP_BYTES, local)
            seconds += self._gradients_to_host()
            fresh = self.sharded and config.offload_param == "none"  # stage 3 casts its masters on the way
            seconds += rates.copy("to device", share * config.parameter_bytes, pinned=not fresh)
        elif config.offload_param != "none":  # stage3.py, _reassign_or_swap_out_partitioned_parameters
            seconds += rates.copy("to host", share * 4, pinned=False)
        if config.offload_optimizer == "nvme":
            node = share * local * NVME_STATE_BYTES / 2
            seconds += node / cluster.nvme_read_bytes_per_second + node / cluster.nvme_write_bytes_per_second
        if config.offload_param != "none":
            reads = self.profile.own_parameters / self.ranks * config.parameter_bytes * 2 * count
            seconds += max(0.0, rates.copy("to device", reads) - beside)
            if config.offload_param == "nvme":
                seconds += reads * local / cluster.nvme_read_bytes_per_second
        return seconds

    def _gradients_to_host(self) -> float:
        """Seconds of copying them: in float32 for the step, and before as they are added up.

        Stage 2 fetches what there is after its first micro step (zero/stage_1_and_2.py:1855), stage 3 hands
        each on and fetches it again (stage3.py:2024).
        """
        count, stage = self.batch.accumulation, self.config.stage
        there = {1: 0, 2: count if count > 1 else 0, 3: count}[stage]
        back = {1: 0, 2: count - 1, 3: count}[stage]
        item = self.config.gradient_bytes if self.sharded else self.config.parameter_bytes
        copy, seconds = self.rates.copy, 0.0
        for numel, tensors in Counter(self.profile.trained).items():
            own = numel / self.ranks
            seconds += tensors * copy("to host", 4 * own)
            seconds += tensors * (there * copy("to host", item * own) + back * copy("to device", item * own))
        return seconds
