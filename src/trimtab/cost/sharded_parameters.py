"""Stage 3: the wrapper that shards parameters, gradients and optimizer states."""

from __future__ import annotations

from collections.abc import Sequence

from trimtab.cost.engine import GATHER, MAIN, MASTER_ITEM, NORM_ITEM, REDUCE, Engine
from trimtab.cost.machine import Weight
from trimtab.cost.meter import Storage

NORM_CHUNK = 250_000_000  # stage3.py:1960, elements


class Order:
    """The order in which a forward and a backward pass use the parameters: DeepSpeed's trace of modules.

    ``uses``: the places of the parameters that each use reads; ``numels``: the parameters' elements by place.
    """

    __slots__ = ("queue", "reach", "steps", "when")

    def __init__(self, uses: Sequence[Sequence[int]], numels: Sequence[int]) -> None:
        self.queue: list[int] = []
        self.when: list[int] = []
        """By place in the queue, the use."""
        self.steps: list[list[int]] = [[] for _ in numels]
        """By parameter, the uses that read it."""
        self.reach = [0]
        """By use, the elements that earlier ones read."""
        read = 0
        for step, used in enumerate(uses):
            for index in used:
                self.queue.append(index)
                self.when.append(step)
                self.steps[index].append(step)
                read += numels[index]
            self.reach.append(read)


class Gather:
    """One all-gather, whose result lives until every parameter in it was asked for."""

    __slots__ = ("arrived", "copies", "indices", "result")

    def __init__(self, indices: Sequence[int], result: Storage) -> None:
        self.indices, self.result, self.arrived = indices, result, False
        self.copies: dict[int, Storage] = {}
        """Parameters that are there by themselves."""


class ShardedParameters(Engine):
    """Stage 3: ``DeepSpeedZeroOptimizer_Stage3`` (stage3.py, partitioned_param_coordinator.py)."""

    hears_uses = True

    def build(self, whole: Sequence[Weight]) -> None:
        """Under ``zero.Init`` every rank holds its shard of each parameter alone."""
        s = self.settings
        self.shards = [-(-weight.numel // s.ranks) for weight in self.weights]
        """By parameter, the elements of a rank's share."""
        self.gather_stream, self.reduce_stream = (GATHER, REDUCE) if s.overlap_comm else (MAIN, MAIN)
        self.secondary: dict[int, Storage] = {}
        for weight in whole:
            gathered = self.new(weight.bytes, "parameters")
            self._keep_secondary(weight.index)
            if s.offload_param == "none":
                self.model.append(self.new(self.shards[weight.index] * s.item, "parameters"))
            del gathered

    def initialize(self) -> None:
        """The flat shard, fp32 sub-groups, gradient partition, one bucket (:735-800, :1120-1175, :1301)."""
        s = self.settings
        own = [self.shards[weight.index] for weight in self.trainable]
        self.partition = sum(own)
        self.sub_groups = _sub_groups(own, s.sub_group)
        if s.offload_param == "none":
            frozen = [self.shards[weight.index] * s.item for weight in self.frozen]
            self.model = [self.new(size, "parameters") for size in frozen]
            self.model.append(self.new(self.partition * s.item, "parameters"))
        if s.offload_optimizer == "none":
            for size in self.sub_groups:
                converted = self.new(size * MASTER_ITEM, "temporaries")
                self.held.append(self.new(size * MASTER_ITEM, "master weights"))
                del converted
            self.momentary(max(self.sub_groups, default=0) * MASTER_ITEM, "temporaries")
        if s.contiguous_gradients:
            self.held.append(self.new(s.reduce_bucket * s.communication_item, "buckets"))
        if s.offload_optimizer == "none":
            self.held.append(self.new(self.partition * s.gradient_item, "gradients"))
        for weight in self.trainable if s.ranks > 1 else ():  # all_gather for a moment (:1504)
            self.momentary(self.shards[weight.index] * s.ranks * s.item, "gathered parameters")
        self._initialize_host()
        self.persistent = self._persistent()
        self.gathered: dict[int, Storage] = {}
        """By place of the parameter, as all that follows."""
        self.in_flight: dict[int, Gather] = {}
        self.numels = [weight.numel for weight in self.weights]
        self.uses: list[Sequence[int]] = []
        self.order: Order | None = None
        self.position = self.queue_at = self.available = 0
        self.fetched_until = [-1] * len(self.weights)
        self.kept: dict[tuple[int, int], bool] = {}
        """Whether a parameter stays after a use, by use and place: as the first pass that knows the order
        decides, for good (``__params_to_release`` is cached, partitioned_param_coordinator.py:637)."""
        self.bucket: list[tuple[Weight, Storage | None]] = []
        self.unwritten: list[Storage] = []
        """Gradients that wait for the optimizer's step because no disk takes them."""
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
                # by posix_memalign, SwapBufferManager; the first step makes the states outside of them
                aligned = largest + -largest % s.swap_alignment
                host.add("swap buffers", s.swap_buffers * aligned * MASTER_ITEM, pinned=False)
                host.add("new optimizer states", s.moments * largest * MASTER_ITEM, pinned=False)
            host.add("gradient partitions", self.partition * s.gradient_item, pinned=s.pin_memory)
        if s.offload_param != "none":
            shards = sum(self.shards) * s.item
            if s.offload_param == "cpu":
                host.add("parameters", shards, pinned=True)  # :906
                for shard in self.shards if s.pin_parameters else ():  # each by itself under zero.Init, which
                    # PyTorch's cache of pinned blocks keeps (partition_parameters.py:1843)
                    host.add("parameters as built", shard * s.item, pinned=True)
            else:
                self.nvme_bytes += shards
                count = s.parameter_buffers * s.parameter_buffer * s.item
                host.add("parameter buffers", count, pinned=False)  # partitioned_param_swapper.py:104-112
                # stage3.py:1018, reserve_partitioned_swap_space
                host.add("parameters in passing", max(self.sub_groups, default=0) * s.item, pinned=True)

    def _keep_secondary(self, index: int) -> None:
        """hpZ's copy within the node, made when a parameter is partitioned (partition_parameters.py:1900)."""
        s = self.settings
        if 1 < s.hpz < s.ranks and index not in self.secondary:
            size = -(-self.weights[index].numel // s.hpz) * s.item
            self.secondary[index] = self.new(size, "parameters")

    def _persistent(self) -> set[int]:
        """``mark_persistent_parameters`` (parameter_offload.py:317)."""
        chosen: set[int] = set()
        total = 0
        for weight in self.weights:
            if weight.numel + total > self.settings.model_persistence_threshold:
                continue
            if weight.numel <= self.settings.persistence_threshold:
                chosen.add(weight.index)
                total += weight.numel
        return chosen

    # -- gathering -------------------------------------------------------------------------------------

    def learn(self, order: Order) -> None:
        """Know the order of uses, as after a first pass."""
        self.order = order

    def after_micro(self) -> object:
        """A boundary takes no less than other steps; hpZ's copies stay until the optimizer steps."""
        if 1 < self.settings.hpz < self.settings.ranks:
            for weight in self.weights:
                if weight.index not in self.persistent:
                    self._keep_secondary(weight.index)
        return self.meter.live, set(self.gathered)

    def begin_micro(self, *, boundary: bool) -> None:
        """``reset_step``: the trace is complete once one pass was recorded."""
        super().begin_micro(boundary=boundary)
        self.in_flight.clear()
        self.position = self.queue_at = 0
        self.fetched_until = [-1] * len(self.weights)
        self.available = 0
        if self.order is None and self.uses:
            self.learn(Order(self.uses, self.numels))

    def before_use(self, uses: Sequence[int], shift: int = 0) -> None:
        """``fetch_sub_module``: gather what is needed now, then prefetch."""
        order, position = self.order, self.position
        if uses:
            gathered, in_flight = self.gathered, self.in_flight
            indices = [index + shift for index in uses]
            missing = [index for index in indices if index not in gathered and index not in in_flight]
            if missing:
                self._gather(missing)
            for index in indices:
                if index in in_flight:
                    self._arrive(index)
            if order is not None:
                self._advance(indices, order)
        if order is None:
            self.uses.append([index + shift for index in uses])
        elif self.available < self.settings.max_live and self.queue_at < len(order.queue):
            self._prefetch(order)
        self.position = position + 1

    def _gather(self, indices: Sequence[int]) -> None:
        s = self.settings
        size = 0
        for index in indices:
            self.available += self.numels[index]
            size += self.shards[index]
        alone = s.ranks == 1  # NoGatherHandle: a view of the rank's own part, or its copy from the host
        count = 0 if alone else size * s.ranks * s.item
        gather = Gather(indices, self.new(count, "gathered parameters", self.gather_stream))
        for index in indices:
            self.in_flight[index] = gather
            if alone and s.offload_param != "none":
                gather.copies[index] = self.new(
                    self.numels[index] * s.item, "gathered parameters", self.gather_stream
                )

    def _arrive(self, index: int) -> None:
        """``AllGatherCoalescedHandle.wait``: the first parameter asked for copies all of them out."""
        gather = self.in_flight.pop(index)
        if gather.arrived:
            return
        gather.arrived = True
        if self.settings.ranks == 1:
            for other in gather.indices:
                self.gathered[other] = gather.copies.get(other, gather.result)
            gather.copies.clear()
            return
        if len(gather.indices) == 1:  # gathered straight into the parameter
            self.gathered[index] = gather.result
            return
        for other in gather.indices:
            size = self.numels[other] * self.settings.item
            self.gathered[other] = self.new(size, "gathered parameters", self.gather_stream)

    def _advance(self, indices: Sequence[int], order: Order) -> None:
        """Take what is used now from the queue, unless it was prefetched and taken before."""
        until, position, queue = self.fetched_until, self.position, order.queue
        wanted = 0
        for index in indices:
            if until[index] < position:
                wanted += 1
        popped: set[int] = set()
        while len(popped) < wanted and self.queue_at < len(queue):
            index = queue[self.queue_at]
            until[index] = order.when[self.queue_at]
            self.queue_at += 1
            popped.add(index)

    def _prefetch(self, order: Order) -> None:
        s, until, queue, when = self.settings, self.fetched_until, order.queue, order.when
        limit = min(s.max_live - self.available, s.prefetch_bucket)
        gathered, in_flight = self.gathered, self.in_flight
        chosen: list[int] = []
        numel, at, end = 0, self.queue_at, len(queue)
        while numel < limit and at < end:
            index = queue[at]
            if until[index] < when[at]:
                until[index] = when[at]
            at += 1
            if index not in gathered and index not in in_flight and index not in chosen:
                chosen.append(index)
                numel += self.numels[index]
        self.queue_at = at
        if chosen:
            self._gather(chosen)

    def after_use(self, uses: Sequence[int], shift: int = 0) -> None:
        """``release_sub_module``: let go of what is not used again within the reuse distance."""
        ordered = self.order is not None
        for one in uses:
            index = one + shift
            if index not in self.gathered or (ordered and (index in self.persistent or self._stays(index))):
                continue
            del self.gathered[index]
            self.available -= self.numels[index]
            self._keep_secondary(index)

    def _stays(self, index: int) -> bool:
        """Whether it was found further up in the queue, or its next use is nearer than the reuse distance."""
        key = (self.position, index)
        if key not in self.kept:
            self.kept[key] = self.fetched_until[index] > self.position or self._is_near(index)
        return self.kept[key]

    def _is_near(self, index: int) -> bool:
        assert self.order is not None
        order = self.order
        for step in order.steps[index]:
            if step >= self.position:
                distance = order.reach[step] - order.reach[self.position]
                return distance < self.settings.max_reuse_distance
        return False

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
        item = s.communication_item
        sizes = [self.shards[weight.index] * s.ranks * item for weight, _ in self.bucket]
        sent = []  # those too large for the bucket, which has this type already (:1935)
        if item != s.item:
            for weight, gradient in self.bucket:
                if gradient is not None:
                    sent.append(self.new(weight.numel * item, "temporaries", self.reduce_stream))
        alone = len(self.bucket) == 1 and self.bucket[0][0].numel % s.ranks == 0
        # coalesced_collectives.py:100-133
        flat = None if alone else self.new(sum(sizes), "temporaries", self.reduce_stream)
        wide = []
        if s.gradient_item != item:  # __avg_scatter_grads: every part in the accumulation's type (:1943)
            for weight, _ in self.bucket:
                size = self.shards[weight.index] * s.gradient_item
                wide.append(self.new(size, "temporaries", self.reduce_stream))
            flat = None
        if s.offload_optimizer != "none":
            waiting = [self._offload(self.shards[weight.index]) for weight, _ in self.bucket]
            del waiting
        del flat, wide, sent
        self.bucket.clear()
        self.filled = 0

    def _offload(self, shard: int) -> Storage | None:
        """``partition_grads``: back on the device; at a boundary its norm in fp64, and it in fp32 (:2006).

        What goes to a disk waits on the device until all of its bucket is there (:1443-1465); what is too
        small to write, or has a rest that is, waits until the optimizer steps (optimizer_utils.py:253-285).
        """
        s = self.settings
        back = self.new(shard * s.gradient_item, "temporaries", self.reduce_stream)
        if not self.boundary:
            return None
        self.momentary(min(shard, NORM_CHUNK) * NORM_ITEM, "temporaries", self.reduce_stream)
        wide = back
        if s.gradient_item != MASTER_ITEM:
            wide = self.new(shard * MASTER_ITEM, "temporaries", self.reduce_stream)
        if s.offload_optimizer != "nvme":
            return None
        if shard * MASTER_ITEM < s.least_swapped_bytes or shard % s.swap_alignment:
            self.unwritten.append(wide)
        return wide

    def end_backward(self) -> None:
        """Reduce what is left in the bucket, then let go of embeddings, which no hook did (gpt2-m-z3)."""
        self._reduce_scatter()
        for index in [index for index in self.gathered if index not in self.persistent]:
            del self.gathered[index]
            self._keep_secondary(index)

    # -- the step --------------------------------------------------------------------------------------

    def step(self) -> None:
        """Sub-group by sub-group: flat gradient, fp32 copy, moments at the first step (:2683-2699, :2873)."""
        s = self.settings
        self.gathered.clear()
        self.in_flight.clear()
        self.secondary.clear()
        self.unwritten.clear()
        if s.offload_optimizer == "none":
            if s.precision == "fp16":  # has_overflow: isinf's absolute values, then what they tell (:3013)
                absolute = self.new(self.partition * s.gradient_item, "temporaries", self.reduce_stream)
                self.momentary(self.partition, "temporaries", self.reduce_stream)
                del absolute
            largest = max((self.shards[weight.index] for weight in self.trainable), default=0)
            self.momentary(largest * NORM_ITEM, "temporaries")
            first = not self.states
            for size in self.sub_groups:
                flat = self.new(size * s.gradient_item, "gradients")
                wide = flat if s.gradient_item == MASTER_ITEM else self.new(size * MASTER_ITEM, "gradients")
                del flat
                if first:
                    self._make_states(size)
                del wide
        for weight in self.weights:
            if weight.index in self.persistent:
                count = weight.numel * s.item if s.ranks > 1 or s.offload_param != "none" else 0
                self.gathered[weight.index] = self.new(count, "gathered parameters")


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
