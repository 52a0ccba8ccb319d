"""Stage 3: the wrapper that shards parameters, gradients and optimizer states."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from trimtab.cost.engine import GATHER, MAIN, MASTER_ITEM, NORM_ITEM, REDUCE, Engine
from trimtab.cost.machine import Storage, Weight

NORM_CHUNK = 250_000_000  # stage3.py:1960, elements


@dataclass(slots=True)
class Trace:
    """The recorded order of a whole forward and backward pass."""

    uses: list[tuple[Weight, ...]] = field(default_factory=list)
    complete: bool = False


@dataclass(slots=True)
class Gather:
    """One all-gather, whose result lives until every parameter in it was asked for."""

    weights: Sequence[Weight]
    result: Storage
    arrived: bool = False


class ShardedParameters(Engine):
    """Stage 3: ``DeepSpeedZeroOptimizer_Stage3`` (stage3.py, partitioned_param_coordinator.py)."""

    def build(self) -> None:
        """Under ``zero.Init`` every rank holds its shard of each parameter alone."""
        s = self.settings
        self.shards = {weight.name: -(-weight.numel // s.ranks) for weight in self.weights}
        self.gather_stream, self.reduce_stream = (GATHER, REDUCE) if s.overlap_comm else (MAIN, MAIN)
        self.secondary: dict[str, Storage] = {}
        for weight in self.weights:
            whole = self.new(weight.bytes, "parameters")
            self._keep_secondary(weight)
            if s.offload_param == "none":
                self.model.append(self.new(self.shards[weight.name] * s.item, "parameters"))
            del whole

    def initialize(self) -> None:
        """The flat shard, fp32 sub-groups, gradient partition, one bucket (:735-800, :1120-1175, :1301)."""
        s = self.settings
        own = [self.shards[weight.name] for weight in self.trainable]
        self.partition = sum(own)
        self.sub_groups = _sub_groups(own, s.sub_group)
        if s.offload_param == "none":
            frozen = [self.shards[weight.name] * s.item for weight in self.frozen]
            self.model = [self.new(size, "parameters") for size in frozen]
            self.model.append(self.new(self.partition * s.item, "parameters"))
        if s.offload_optimizer == "none":
            for size in self.sub_groups:
                converted = self.new(size * MASTER_ITEM, "temporaries")
                self.held.append(self.new(size * MASTER_ITEM, "master weights"))
                del converted
            self.new(max(self.sub_groups, default=0) * MASTER_ITEM, "temporaries")
        if s.contiguous_gradients:
            self.held.append(self.new(s.reduce_bucket * s.item, "buckets"))
        if s.offload_optimizer == "none":
            self.held.append(self.new(self.partition * s.gradient_item, "gradients"))
        for weight in self.trainable:  # create_reduce_and_remove_grad_hooks gathers each for a moment (:1504)
            self.new(self.shards[weight.name] * s.ranks * s.item, "gathered parameters")
        self._initialize_host()
        self.persistent = self._persistent()
        self.gathered: dict[str, Storage] = {}
        self.in_flight: dict[str, Gather] = {}
        self.trace = Trace()
        self.order: list[tuple[Weight, int]] = []
        self.position = 0
        self.queue_at = 0
        self.fetched_until: dict[str, int] = {}
        self.available = 0
        self.bucket: list[tuple[Weight, Storage | None]] = []
        self.filled = 0

    def _initialize_host(self) -> None:
        s, host = self.settings, self.host
        if s.offload_optimizer != "none":
            in_memory = s.offload_optimizer == "cpu"
            if in_memory:
                for size in self.sub_groups:
                    host.add("master weights", size * MASTER_ITEM, pinned=False)
                    host.add("gradients", size * MASTER_ITEM, pinned=s.pin_memory)
                host.add("optimizer states", self.partition * MASTER_ITEM * s.moments, pinned=False)
            else:
                largest = max(self.sub_groups, default=0)
                self.nvme_bytes += self.partition * MASTER_ITEM * (2 + s.moments)
                host.add("swap buffers", 4 * largest * MASTER_ITEM, pinned=True)
            host.add("gradient partitions", self.partition * s.gradient_item, pinned=s.pin_memory)
        if s.offload_param != "none":
            shards = sum(self.shards.values()) * s.item
            if s.offload_param == "cpu":
                host.add("parameters", shards, pinned=True)
            else:
                self.nvme_bytes += shards

    def _keep_secondary(self, weight: Weight) -> None:
        """hpZ's copy within the node, made when a parameter is partitioned (partition_parameters.py:1900)."""
        s = self.settings
        if 1 < s.hpz < s.ranks and weight.name not in self.secondary:
            self.secondary[weight.name] = self.new(-(-weight.numel // s.hpz) * s.item, "parameters")

    def _persistent(self) -> set[str]:
        """``mark_persistent_parameters`` (parameter_offload.py:317)."""
        chosen: set[str] = set()
        total = 0
        for weight in self.weights:
            if weight.numel + total > self.settings.model_persistence_threshold:
                continue
            if weight.numel <= self.settings.persistence_threshold:
                chosen.add(weight.name)
                total += weight.numel
        return chosen

    # -- gathering -------------------------------------------------------------------------------------

    def begin_micro(self, *, boundary: bool) -> None:
        """``reset_step``: the trace is complete once one pass was recorded."""
        super().begin_micro(boundary=boundary)
        self.in_flight.clear()
        self.trace.complete = bool(self.trace.uses)
        self.position = self.queue_at = 0
        self.fetched_until.clear()
        self.available = 0
        if self.trace.complete and not self.order:
            self.order = [(weight, step) for step, uses in enumerate(self.trace.uses) for weight in uses]

    def before_use(self, weights: tuple[Weight, ...], *, backward: bool) -> None:
        """``fetch_sub_module``: gather what is needed now, then prefetch."""
        unique = tuple(dict.fromkeys(weights))
        if not self.trace.complete:
            self.trace.uses.append(unique)
        missing = [w for w in unique if w.name not in self.gathered and w.name not in self.in_flight]
        self._gather(missing)
        for weight in unique:
            if weight.name in self.in_flight:
                self._arrive(weight.name)
        if self.trace.complete:
            self._advance(unique)
            self._prefetch()
        self.position += 1

    def _gather(self, weights: Sequence[Weight]) -> None:
        if not weights:
            return
        s = self.settings
        self.available += sum(weight.numel for weight in weights)
        sizes = [self.shards[weight.name] * s.ranks * s.item for weight in weights]
        gather = Gather(weights, self.new(sum(sizes), "gathered parameters", self.gather_stream))
        for weight in weights:
            self.in_flight[weight.name] = gather

    def _arrive(self, name: str) -> None:
        """``AllGatherCoalescedHandle.wait``: the first parameter asked for copies all of them out."""
        gather = self.in_flight.pop(name)
        if gather.arrived:
            return
        gather.arrived = True
        if len(gather.weights) == 1:  # gathered straight into the parameter
            self.gathered[name] = gather.result
            return
        for weight in gather.weights:
            size = weight.numel * self.settings.item
            self.gathered[weight.name] = self.new(size, "gathered parameters", self.gather_stream)

    def _advance(self, weights: tuple[Weight, ...]) -> None:
        wanted = {w.name for w in weights if self.fetched_until.get(w.name, -1) < self.position}
        popped: set[str] = set()
        while self.queue_at < len(self.order) and len(popped) < len(wanted):
            weight, step = self.order[self.queue_at]
            self.queue_at += 1
            self.fetched_until[weight.name] = step
            popped.add(weight.name)

    def _prefetch(self) -> None:
        s = self.settings
        limit = min(s.max_live - self.available, s.prefetch_bucket)
        chosen: dict[str, Weight] = {}
        numel = 0
        while self.queue_at < len(self.order) and numel < limit:
            weight, step = self.order[self.queue_at]
            self.queue_at += 1
            absent = weight.name not in self.gathered and weight.name not in self.in_flight
            self.fetched_until[weight.name] = max(self.fetched_until.get(weight.name, -1), step)
            if absent and weight.name not in chosen:
                chosen[weight.name] = weight
                numel += weight.numel
        self._gather(list(chosen.values()))

    def after_use(self, weights: tuple[Weight, ...], *, backward: bool) -> None:
        """``release_sub_module``: let go of what is not used again within the reuse distance."""
        keep = self._kept_for_reuse()
        for weight in dict.fromkeys(weights):
            name = weight.name
            if name in self.persistent or name in keep or name not in self.gathered:
                continue
            if self.trace.complete and self.fetched_until.get(name, -1) > self.position:
                continue
            del self.gathered[name]
            self.available -= weight.numel
            self._keep_secondary(weight)

    def _kept_for_reuse(self) -> set[str]:
        if not self.trace.complete:
            return set()
        kept: set[str] = set()
        numel = 0
        for uses in self.trace.uses[self.position :]:
            if numel >= self.settings.max_reuse_distance:
                break
            for weight in uses:
                kept.add(weight.name)
                numel += weight.numel
        return kept

    # -- gradients -------------------------------------------------------------------------------------

    def on_gradient(self, weight: Weight, gradient: Storage) -> None:
        """Into the bucket; a full bucket is reduced and scattered (stage3.py:1560-1640)."""
        s = self.settings
        if self.filled + weight.numel > s.reduce_bucket and self.filled:
            self._reduce_scatter()
        fits = s.contiguous_gradients and self.filled + weight.numel <= s.reduce_bucket
        self.bucket.append((weight, None if fits else gradient))
        self.filled += weight.numel

    def _reduce_scatter(self) -> None:
        s = self.settings
        if not self.bucket:
            return
        sizes = [self.shards[weight.name] * s.ranks * s.item for weight, _ in self.bucket]
        alone = len(self.bucket) == 1 and self.bucket[0][0].numel % s.ranks == 0
        # coalesced_collectives.py:100-133
        flat = None if alone else self.new(sum(sizes), "temporaries", self.reduce_stream)
        if s.offload_optimizer != "none":  # partition_grads: back on the device, its norm in fp64 (:2006)
            for weight, _ in self.bucket:
                shard = self.shards[weight.name]
                back = self.new(shard * s.gradient_item, "temporaries", self.reduce_stream)
                self.new(min(shard, NORM_CHUNK) * NORM_ITEM, "temporaries", self.reduce_stream)
                self.new(shard * MASTER_ITEM, "temporaries", self.reduce_stream)
                del back
        del flat
        self.bucket.clear()
        self.filled = 0

    def end_backward(self) -> None:
        """Reduce what is left in the bucket."""
        self._reduce_scatter()

    # -- the step --------------------------------------------------------------------------------------

    def step(self) -> None:
        """Sub-group by sub-group: flat gradient, fp32 copy, moments at the first step (:2683-2699, :2873)."""
        s = self.settings
        self.gathered.clear()
        self.in_flight.clear()
        self.secondary.clear()
        if s.offload_optimizer == "none":
            largest = max((self.shards[weight.name] for weight in self.trainable), default=0)
            self.new(largest * NORM_ITEM, "temporaries")
            first = not self.states
            for size in self.sub_groups:
                flat = self.new(size * s.gradient_item, "gradients")
                wide = flat if s.gradient_item == MASTER_ITEM else self.new(size * MASTER_ITEM, "gradients")
                del flat
                if first:
                    self._make_states(size)
                del wide
        for weight in self.weights:
            if weight.name in self.persistent:
                self.gathered[weight.name] = self.new(weight.numel * s.item, "gathered parameters")


def _sub_groups(sizes: Sequence[int], limit: int) -> list[int]:
    """``_create_fp16_sub_groups``: parameters in order, a group closed once it reaches the limit."""
    if not sizes or sum(sizes) <= limit:
        return [sum(sizes)] if sizes else []
    groups, current = [], 0
    for size in sizes:
        current += size
        if current >= limit:
            groups.append(current)
            current = 0
    return [*groups, current] if current else groups
