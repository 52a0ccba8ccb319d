"""Stages 1 and 2: wrappers that shard the optimizer's states, and at stage 2 the gradients."""

from __future__ import annotations

from collections.abc import Sequence

from trimtab.cost.allocator import EMPTY, FLATTEN
from trimtab.cost.engine import MAIN, MASTER_ITEM, NORM_ITEM, REDUCE, Engine
from trimtab.cost.machine import Weight
from trimtab.cost.meter import Storage

FLAT_ALIGNMENT = 2  # stage_1_and_2.py: nccl_start_alignment_factor


class ShardedOptimizer(Engine):
    """Stages 1 and 2: ``DeepSpeedZeroOptimizer`` (runtime/zero/stage_1_and_2.py)."""

    def initialize(self) -> None:
        """One flat group, an fp32 partition, and zeros that stand in for its gradient (:439-575, :934)."""
        s = self.settings
        self._keep_states_of_whole()
        self.partition = _ceil(self.numel, FLAT_ALIGNMENT * s.ranks) // s.ranks
        frozen = [x for weight, x in zip(self.weights, self.model, strict=True) if not weight.trainable]
        self.meter.mark(EMPTY)  # :449
        self.meter.mark(FLATTEN)
        flat = self.new(self.partition * s.ranks * s.item, "parameters")
        self.model = [*frozen, flat]
        del frozen
        clone = self.new(self.partition * s.item, "temporaries")
        largest = max((weight.numel for weight in self.trainable), default=0)
        self.own = _owned(self.trainable, self.partition)
        self.own_numel = sum(weight.numel for weight in self.own)
        self._owned_names = {weight.name for weight in self.own}
        self.reduce_stream = REDUCE if s.overlap_comm else MAIN  # :1601, :2240
        self.compact = s.gradient_item == MASTER_ITEM != s.item  # an fp32 partition of its own, :1259
        self.starts: dict[int, int] = {}
        start = 0
        for weight in self.trainable:
            self.starts[weight.index] = start
            start += weight.numel
        if s.offload_optimizer == "none":
            self.held.append(self.new(self.partition * MASTER_ITEM, "master weights"))
            del clone
            self.momentary(self.partition * MASTER_ITEM, "gradients")
        else:
            del clone
            self._initialize_host(largest)
            self.held.append(self.new(largest * s.item, "buckets"))  # temp_grad_buffer_for_gpu_offload, :659
        self.buckets: list[Storage] = []
        self.filled = 0
        self.waiting: list[Weight] = []
        self.partition_gradients: Storage | None = None
        self.accumulated: Storage | None = None

    def _initialize_host(self, largest: int) -> None:
        s, host, n = self.settings, self.host, self.partition
        pinned = s.pin_memory
        host.add("master weights", n * MASTER_ITEM, pinned=pinned)  # :563
        host.add("parameter copies", n * s.item, pinned=pinned)  # :567
        host.add("gradients", n * MASTER_ITEM, pinned=pinned)  # :937
        host.add("optimizer states", n * MASTER_ITEM * s.moments, pinned=False)
        host.add("buffers", largest * s.item, pinned=pinned)  # :653
        if s.accumulation > 1:
            for weight in self.own:  # accumulated_grads_in_cpu, :1822
                host.add("accumulated gradients", weight.numel * s.item, pinned=pinned)

    # -- gradients -------------------------------------------------------------------------------------

    @property
    def telling_micros(self) -> int:
        """One between too, where the last reduces gradients as they come and the others keep them all."""
        return 3 if self.settings.stage == 1 and self.settings.overlap_comm else 2

    def on_gradient(self, weight: Weight, gradient: Storage) -> None:
        """``process_gradients``: the first one makes the buckets; stage 2 fills them at once (:2284)."""
        s = self.settings
        self._setup_buckets()
        wide = s.stage == 1 and s.gradient_item != s.item
        if wide:  # grad_accum instead of grad, :1234
            if weight.name not in self.gradients:
                self.gradients[weight.name] = self.new(weight.numel * s.gradient_item, "gradients")
        else:
            self.gradients.setdefault(weight.name, gradient)
        del gradient
        if s.stage == 2 or (s.overlap_comm and self.boundary):
            self._reduce(weight)

    def _setup_buckets(self) -> None:
        s = self.settings
        if self.buckets or not s.contiguous_gradients:
            return
        item = s.gradient_item if s.stage == 1 else s.item
        for _ in range(2 if s.overlap_comm else 1):
            self.buckets.append(self.new(s.reduce_bucket * item, "buckets"))

    def _reduce(self, weight: Weight) -> None:
        s = self.settings
        if self.filled + weight.numel > s.reduce_bucket:
            self._flush()
        self.waiting.append(weight)
        self.filled += weight.numel
        if weight.numel > s.reduce_bucket and s.contiguous_gradients and s.offload_optimizer != "none":
            item = s.gradient_item if s.stage == 1 else s.item
            self.momentary(weight.numel * item, "gradients")  # cloned beside what it was, :1446
        if weight.numel <= s.reduce_bucket and s.contiguous_gradients:
            self.gradients.pop(weight.name, None)  # it is a view of the bucket now, :1458

    def _flush(self) -> None:
        s = self.settings
        if not self.waiting:
            return
        self._average(s.gradient_item if s.stage == 1 else s.item)
        for weight in self.waiting:
            owned = weight.name in self._owned_names
            if owned and s.offload_optimizer != "none":
                portion = self._portion(weight)
                if self.boundary:
                    self.momentary(portion * NORM_ITEM, "temporaries", self.reduce_stream)  # its norm, :1873
                    if MASTER_ITEM not in (s.item, s.gradient_item):
                        self.momentary(portion * MASTER_ITEM, "temporaries", self.reduce_stream)  # :1903
                self.gradients.pop(weight.name, None)
            elif owned:
                self._copy_to_partition(weight)
                self.gradients.pop(weight.name, None)
            elif s.stage == 2:
                self.gradients.pop(weight.name, None)
        self.waiting.clear()
        self.filled = 0

    def _portion(self, weight: Weight) -> int:
        """Elements of one of the rank's own parameters that lie in its partition (:1755, :1866)."""
        return min(weight.numel, self.partition - self.starts[weight.index])

    def _average(self, item: int) -> None:
        """``average_tensor``: slices by rank, flattened bucket by bucket where there are several (:1599)."""
        s = self.settings
        if not s.reduce_scatter:
            return
        if (
            self.compact
            and self.accumulated is None
            and any(w.name in self._owned_names for w in self.waiting)
        ):
            self.accumulated = self.new(self.partition * s.gradient_item, "gradients", self.reduce_stream)
        bucket: list[tuple[int, int]] = []
        filled = 0
        for rank, numel in [*self._slices(), (-1, 0)]:
            if rank >= 0:
                bucket.append((rank, numel))
                filled += numel
            if bucket and (rank < 0 or filled > s.reduce_bucket):
                flat = self._sent(filled * item) if len(bucket) > 1 else None
                if (
                    s.communication_item != item
                ):  # and goes on in the type that is sent, allreduce_bucket (:2377)
                    flat = self._sent(filled * s.communication_item)
                for owner, count in bucket if self.compact else ():
                    if owner == 0 and s.communication_item != s.gradient_item:
                        # added to the fp32 partition through a copy, :1325
                        self.momentary(count * s.gradient_item, "temporaries", self.reduce_stream)
                del flat
                bucket, filled = [], 0

    def _sent(self, count: int) -> Storage:
        return self.new(count, "temporaries", self.reduce_stream)

    def _slices(self) -> list[tuple[int, int]]:
        """What waits, as ranks and the elements that are theirs; neighbours of one rank are one slice."""
        slices: list[tuple[int, int]] = []
        for weight in self.waiting:
            at, left = self.starts[weight.index], weight.numel
            while left:
                rank = at // self.partition
                numel = min(left, (rank + 1) * self.partition - at)
                whole = not (self.compact and rank == 0)
                if slices and slices[-1][0] == rank and whole:
                    slices[-1] = (rank, slices[-1][1] + numel)
                else:
                    slices.append((rank, numel))
                at, left = at + numel, left - numel
        return slices

    def _copy_to_partition(self, weight: Weight) -> None:
        """``copy_grads_in_partition``: one buffer for all gradients of the own partition (:2160-2201)."""
        s = self.settings
        if not self.compact and self.partition_gradients is None:
            self.partition_gradients = self.new(self.own_numel * s.item, "gradients", self.reduce_stream)

    def end_backward(self) -> None:
        """``independent_gradient_partition_epilogue`` (:1016)."""
        s = self.settings
        if s.stage == 1 and not self.boundary:
            return
        if s.stage == 1 and not s.overlap_comm:
            for weight in self.trainable:
                self._reduce(weight)
        self._flush()
        if self.accumulated is None:
            self.accumulated = self.partition_gradients
        self.partition_gradients = None
        self.buckets.clear()
        self.gradients.clear()

    # -- the step --------------------------------------------------------------------------------------

    def step(self) -> None:
        """Norm in fp64, the flat partition, its fp32 copy, the moments at the first step (:3013-3132)."""
        s = self.settings
        if s.offload_optimizer != "none":
            self.accumulated = None
            return
        largest = max((self._portion(weight) for weight in self.own), default=0)
        self.momentary(largest * NORM_ITEM, "temporaries")
        if s.gradient_item == MASTER_ITEM and s.stage == 2 and s.item != MASTER_ITEM:
            wide = self.accumulated  # already flat and fp32
        else:
            flat = self.new(self.partition * s.gradient_item, "gradients")
            wide = (
                flat
                if s.gradient_item == MASTER_ITEM
                else self.new(self.partition * MASTER_ITEM, "gradients")
            )
            del flat
        self.accumulated = None
        if not self.states:
            self._make_states(self.partition)
        del wide


class WideOptimizer(Engine):
    """Stage 1 in bf16 with fp32 accumulation: ``BF16_Optimizer`` (runtime/bf16_optimizer.py)."""

    def initialize(self) -> None:
        """Flat weights, an fp32 partition, and fp32 gradients of the whole model (:160-200)."""
        s = self.settings
        self._keep_states_of_whole()
        self.partition = _ceil(self.numel, FLAT_ALIGNMENT * s.ranks) // s.ranks
        frozen = [x for weight, x in zip(self.weights, self.model, strict=True) if not weight.trainable]
        self.model = [*frozen, self.new(self.partition * s.ranks * s.item, "parameters")]
        del frozen
        clone = self.new(self.partition * s.item, "temporaries")
        self.held.append(self.new(self.partition * MASTER_ITEM, "master weights"))
        del clone
        self.held.append(self.new(self.partition * s.ranks * s.gradient_item, "gradients"))

    def end_backward(self) -> None:
        """Narrow gradients join the fp32 ones through wide copies, and stay (:503-523)."""
        s = self.settings
        for weight in self.trainable:
            self.momentary(weight.numel * s.gradient_item, "temporaries")
        if self.boundary:  # the flat ones, in the type that they are sent in (engine.py:1719)
            self.momentary(self.partition * s.ranks * s.item, "temporaries")

    def step(self) -> None:
        """The moments appear at the first step; the narrow gradients go after it."""
        if not self.states:
            self._make_states(self.partition)
        self.gradients.clear()


def _ceil(numel: int, alignment: int) -> int:
    return -(-numel // alignment) * alignment


def _owned(weights: Sequence[Weight], partition: int) -> list[Weight]:
    """The parameters that touch rank 0's partition, in order."""
    owned, start = [], 0
    for weight in weights:
        if start >= partition:
            break
        owned.append(weight)
        start += weight.numel
    return owned
