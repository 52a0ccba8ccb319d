"""Stages 1 and 2: wrappers that shard the optimizer's states, and at stage 2 the gradients."""

from __future__ import annotations

from collections.abc import Sequence

from trimtab.config import TYPE_BYTES
from trimtab.cost.course import EMPTY, FLATTEN
from trimtab.cost.engine import MAIN, NORM_ITEM, REDUCE, Engine
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
        clone = self.new(self.partition * s.item, "master weights")
        largest = max((weight.numel for weight in self.trainable), default=0)
        dealt = _dealt(self.trainable, s.ranks) if s.round_robin else self.trainable
        self.own = _owned(dealt, self.partition)
        self.own_numel = sum(weight.numel for weight in self.own)
        self._owned_names = {weight.name for weight in self.own}
        self.reduce_stream = REDUCE if s.overlap_comm else MAIN  # :1601, :2240
        # an fp32 partition of its own, :1259
        self.compact = s.gradient_type == "fp32" != s.precision
        self.starts: dict[int, int] = {}
        start = 0
        for weight in dealt:
            self.starts[weight.index] = start
            start += weight.numel
        if s.offload_optimizer == "none":
            alike = s.precision == s.master_type
            self.held.append(clone if alike else self.new(self.partition * s.master_item, "master weights"))
            del clone
            self.momentary(self.partition * s.master_item, "gradients")
        else:
            del clone
            self._initialize_host(largest)
            self.held.append(self.new(largest * s.item, "buckets"))  # temp_grad_buffer_for_gpu_offload, :659
        self.buckets: list[Storage] = []
        self.filled = 0
        self.waiting: list[Weight] = []
        self.reduced = False
        """Whether the gradients of the last micro step are."""
        self.clears_late: list[str] = []
        """Gradients of others that wait for the next reduction to go (:2231)."""
        self.partition_gradients: Storage | None = None
        self.accumulated: Storage | list[Storage] | None = None

    def _initialize_host(self, largest: int) -> None:
        s, host, n = self.settings, self.host, self.partition
        pinned = s.pin_memory
        host.add("master weights", n * s.master_item, pinned=pinned)  # :563
        host.add("parameter copies", n * s.item, pinned=pinned)  # :567
        host.add("gradients", n * s.master_item, pinned=pinned)  # :937
        host.add("optimizer states", n * s.state_item * s.moments, pinned=False)
        host.add("the step's temporaries", n * s.master_item * s.step_temporaries, pinned=False)
        host.add("buffers", largest * s.item, pinned=pinned)  # :653
        # stage 1 reduces at boundaries alone; others' wait in the master weights' gradient, :1826
        if s.accumulation > 1 and s.stage == 2 and s.master_type == "fp32":
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
        added = gradient.bytes if weight.name in self.gradients and not self.widens else 0
        if self.widens:  # grad_accum instead of grad, :1234
            made = self.new(weight.numel * s.gradient_item, "gradients")
            self.gradients.setdefault(weight.name, made)
            del made
        else:
            self.gradients.setdefault(weight.name, gradient)
        del gradient
        if s.stage == 2 or (s.overlap_comm and self.boundary):
            self._reduce(weight, added)

    @property
    def widens(self) -> bool:
        """Whether gradients wait in a type of their own, beside the parameters'."""
        return self.settings.stage == 1 and self.settings.gradient_type != self.settings.precision

    def begin_micro(self, *, boundary: bool) -> None:
        """What waited in a type of its own goes as the next forward pass begins (:1150)."""
        super().begin_micro(boundary=boundary)
        if self.reduced:
            self.gradients.clear()
        self.reduced = False

    def _setup_buckets(self) -> None:
        s = self.settings
        if self.buckets or not s.contiguous_gradients:
            return
        for _ in range(2 if s.overlap_comm else 1):
            self.buckets.append(self.new(s.reduce_bucket * self._bucket_item, "buckets"))

    @property
    def _bucket_type(self) -> str:
        """Of what is reduced (``_gradient_reduction_buffer_dtype``, :1243)."""
        return self.settings.gradient_type if self.settings.stage == 1 else self.settings.precision

    @property
    def _bucket_item(self) -> int:
        return TYPE_BYTES[self._bucket_type]

    def _reduce(self, weight: Weight, added: int = 0) -> None:
        """Put into the bucket; ``added``: bytes of this micro step's gradient, gone once it is in the sum."""
        s = self.settings
        if self.filled + weight.numel > s.reduce_bucket:
            self._flush()
        self.waiting.append(weight)
        self.filled += weight.numel
        if weight.numel > s.reduce_bucket and s.contiguous_gradients and s.offload_optimizer != "none":
            clone = weight.numel * self._bucket_item  # beside what it was, :1446
            self.momentary(max(0, clone - added), "gradients")
        if weight.numel <= s.reduce_bucket and s.contiguous_gradients:
            self.gradients.pop(weight.name, None)  # it is a view of the bucket now, :1458

    def _flush(self) -> None:
        s = self.settings
        if not self.waiting:
            return
        self._average()
        for weight in self.waiting:
            owned = weight.name in self._owned_names
            if owned and s.offload_optimizer != "none":
                portion = self._portion(weight)
                if self.boundary:
                    self.momentary(portion * NORM_ITEM, "temporaries", self.reduce_stream)  # its norm, :1873
                    if s.master_type not in (s.precision, s.gradient_type):
                        self.momentary(portion * s.master_item, "temporaries", self.reduce_stream)  # :1903
                    self.gradients.pop(weight.name, None)  # :1916; of other micro steps the last clears it
            elif owned and self.compact and not self.widens:
                continue  # an oversized one's own stays as long as the others', :2169
            elif owned and s.contiguous_gradients:
                self._copy_to_partition(weight)
                self.gradients.pop(weight.name, None)
            elif owned or s.stage == 1:
                continue
            elif s.overlap_comm and not s.contiguous_gradients:
                self.clears_late.append(weight.name)
            else:
                self.gradients.pop(weight.name, None)
        self.waiting.clear()
        self.filled = 0

    def _portion(self, weight: Weight) -> int:
        """Elements of one of the rank's own parameters that lie in its partition (:1755, :1866)."""
        return min(weight.numel, self.partition - self.starts[weight.index])

    def _average(self) -> None:
        """Reduce what waits: all of it (:1616, :2231), or slices by rank (:1628)."""
        s = self.settings
        mine = any(weight.name in self._owned_names for weight in self.waiting)
        if self.compact and self.accumulated is None and mine:
            self.accumulated = self.new(self.partition * s.gradient_item, "gradients", self.reduce_stream)
        if not s.contiguous_gradients:
            for name in self.clears_late:
                self.gradients.pop(name, None)
            self.clears_late.clear()
        slices = self._slices()
        if not s.contiguous_gradients or not s.reduce_scatter:
            self._reduce_slices(slices, flat=not s.contiguous_gradients and len(self.waiting) > 1)
            return
        groups = [slices]
        if not s.multi_rank_buckets:
            ranks = dict.fromkeys(rank for rank, _ in slices)
            groups = [[one for one in slices if one[0] == rank] for rank in ranks]
        for group in groups:
            bucket: list[tuple[int, int]] = []
            filled = 0
            for place, (rank, numel) in enumerate(group):
                bucket.append((rank, numel))
                filled += numel
                if filled > s.reduce_bucket or place == len(group) - 1:
                    self._reduce_slices(bucket, flat=len(bucket) > 1)
                    bucket, filled = [], 0

    def _reduce_slices(self, slices: Sequence[tuple[int, int]], *, flat: bool) -> None:
        """One reduction, in the type that is sent, of what may be made one tensor (``allreduce_bucket``)."""
        s = self.settings
        numel = sum(count for _, count in slices)
        sent = self._sent(numel * self._bucket_item) if flat else None
        if s.communication_type != self._bucket_type:  # :2377
            sent = self._sent(numel * s.communication_item)
        for owner, count in slices if self.compact else ():
            if owner == 0 and s.communication_type != s.gradient_type:
                # added to the fp32 partition through a copy, :1325
                self.momentary(count * s.gradient_item, "temporaries", self.reduce_stream)
        del sent

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
        if self.accumulated is None and not s.contiguous_gradients and not self.compact:
            mine = (self.gradients.get(weight.name) for weight in self.own)  # as they are, :2703
            self.accumulated = [gradient for gradient in mine if gradient is not None]
        elif self.accumulated is None:
            self.accumulated = self.partition_gradients
        self.partition_gradients = None
        self.clears_late.clear()
        self.reduced = True
        self.buckets.clear()
        if not self.widens:
            self.gradients.clear()

    # -- the step --------------------------------------------------------------------------------------

    def step(self) -> None:
        """Norm in fp64, the flat partition, its fp32 copy, the moments at the first step (:3013-3132)."""
        s = self.settings
        if s.offload_optimizer != "none":
            self.accumulated = None
            return
        for weight in self.own:
            self.momentary(self._portion(weight) * NORM_ITEM, "temporaries")
        wide = self.accumulated if self.compact else None  # already flat, and in fp32
        if wide is None:
            if len(self.own) > 1:  # of a single one, ``flatten`` returns a view
                wide = self.new(self.partition * s.gradient_item, "gradients")
            if s.gradient_type != s.master_type:
                wide = self.new(self.partition * s.master_item, "gradients")
        self.accumulated = None
        if not self.states:
            self._make_states(self.partition)
        self._compute_step(self.partition)
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
        self.held.append(self.new(self.partition * s.master_item, "master weights"))
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
        self._compute_step(self.partition)
        self.gradients.clear()


def _ceil(numel: int, alignment: int) -> int:
    return -(-numel // alignment) * alignment


def _dealt(weights: Sequence[Weight], ranks: int) -> list[Weight]:
    """The parameters in the order of ``_round_robin_reorder`` (:899): every rank's in turn."""
    return [weight for rank in range(ranks) for weight in weights[rank::ranks]]


def _owned(weights: Sequence[Weight], partition: int) -> list[Weight]:
    """The parameters that touch rank 0's partition, in order."""
    owned, start = [], 0
    for weight in weights:
        if start >= partition:
            break
        owned.append(weight)
        start += weight.numel
    return owned
