"""Stage 3: the wrapper that shards parameters, gradients and optimizer states."""

from __future__ import annotations

from collections.abc import Sequence

from trimtab.cost.coordinator import (
    AGAIN,
    NONE_KEPT,
    OWNER,
    RELEASE,
    TAKE,
    UNPACK,
    USE,
    USED,
    Act,
    FirstPass,
    Order,
    order_of,
    passed,
)  # fmt: skip
from trimtab.cost.course import EMPTY
from trimtab.cost.engine import GATHER, MAIN, NORM_ITEM, REDUCE, Engine, Settings
from trimtab.cost.machine import Weight
from trimtab.cost.meter import PART, Meter, Storage

NORM_CHUNK = 250_000_000  # stage3.py:1960, elements
GROUP_ELEMENTS = 8000  # partition_parameters.py:859
SCALE_ITEM, HALF_ITEM = 4, 2
SCALES, WIDE = -1, -2
"""What of a quantized gather is no parameter: its scales, and all that was gathered in fp16."""


class Gather:
    """One all-gather, whose result lives until every parameter in it was asked for."""

    __slots__ = ("copies", "indices", "result")

    def __init__(self, indices: Sequence[int]) -> None:
        self.indices = indices
        self.result: Storage | None = None
        self.copies: dict[int, Storage] = {}
        """Parameters that are there by themselves."""


class ShardedParameters(Engine):
    """Stage 3: ``DeepSpeedZeroOptimizer_Stage3`` (stage3.py)."""

    hears_uses = True

    def __init__(self, meter: Meter, weights: Sequence[Weight], settings: Settings) -> None:
        super().__init__(meter, weights, settings)
        self.numels = tuple(weight.numel for weight in weights)
        self.persistent = settings.gathering.persistent(weights)
        self.untrained = frozenset(weight.index for weight in weights if not weight.trainable)
        self.gathered: dict[int, Storage | None] = {}
        """By place of the parameter."""
        self.in_flight: dict[int, Gather] = {}
        """By number in a pass, those of which not every parameter was asked for."""
        self.copies = 1 < settings.hpz <= settings.ranks
        """Whether hpZ keeps copies within the node."""
        self.order: Order | None = None
        self.kept = NONE_KEPT
        self._heard: list[tuple[int, tuple[int, ...]]] = []
        self._gathers = 0

    def build(self, whole: Sequence[Weight], given_up: Sequence[tuple[int, int]] = ()) -> None:
        """Under ``zero.Init`` every rank holds its shard of each parameter alone."""
        s = self.settings
        self.shards = [-(-weight.numel // s.ranks) for weight in self.weights]
        """By parameter, the elements of a rank's share."""
        self.tied = [-(-numel // s.ranks) for _, numel in given_up]
        """The same of those that are built, and then tied to others."""
        self.gather_stream, self.reduce_stream = (GATHER, REDUCE) if s.overlap_comm else (MAIN, MAIN)
        self.secondary: dict[int, Storage] = {}
        self.viewed: dict[int, list[Storage | None]] = {}
        """By parameter, what was gathered of it and autograd still looks at."""
        super().build(whole, given_up)

    def _built(self, numel: int, index: int | None = None) -> list[Storage]:
        s = self.settings
        gathered = self.new(numel * self.item, "parameters")
        if index is not None and self.copies:
            self._let_go(index)
        shard = -(-numel // s.ranks) * self.item
        kept = [self.new(shard, "parameters")] if s.offload_param == "none" else []
        del gathered
        return kept

    def initialize(self) -> None:
        """The flat shard, fp32 sub-groups, gradient partition, one bucket (:735-800, :1120-1175, :1301)."""
        s = self.settings
        own = [self.shards[weight.index] for weight in self.trainable]
        self.partition = sum(own)
        self.sub_groups = _sub_groups(own, s.sub_group)
        self.swapped = self._swapped() if s.offload_optimizer == "nvme" else set()
        """Parameters whose optimizer's states are on a disk."""
        if s.offload_param == "none":
            both = zip(self.model, self.weights, strict=True)
            self.model = [storage for storage, weight in both if not weight.trainable]  # as they are
            del both
            self.meter.mark(EMPTY)  # zero/utils.py:234, once the others are on the host
            self.model.append(self.new(self.partition * s.item, "parameters"))
        here = int((1 - s.offload_ratio) * len(self.sub_groups)) if s.offload_optimizer != "none" else None
        self.on_device = self.sub_groups[:here]
        """Sub-groups that the device steps; of offloaded ones the first (:1100)."""
        for size in self.on_device:
            alike = s.master_type == s.precision
            converted = None if alike else self.new(size * s.master_item, "temporaries")
            self.held.append(self.new(size * s.master_item, "master weights"))
            del converted
        if s.offload_optimizer == "none":
            self.momentary(max(self.sub_groups, default=0) * s.master_item, "temporaries")
        if s.contiguous_gradients:
            self.held.append(self.new(s.reduce_bucket * s.communication_item, "buckets"))
        if s.offload_optimizer == "none":
            self.held.append(self.new(self.partition * s.gradient_item, "gradients"))
        else:  # each has its own (:1345)
            self.held += [self.new(size * s.master_item, "gradients") for size in self.on_device]
        for weight in self.trainable if s.ranks > 1 else ():  # all_gather for a moment (:1504)
            self.momentary(self.shards[weight.index] * s.ranks * s.item, "gathered parameters")
        self._initialize_host()
        self.bucket: list[tuple[Weight, Storage | None]] = []
        self.unwritten: list[Storage] = []
        """Gradients that wait for the optimizer's step because no disk takes them."""
        self.filled = 0

    def _initialize_host(self) -> None:
        s, host = self.settings, self.host
        if s.offload_optimizer != "none":
            if s.offload_optimizer == "cpu":
                away = self.sub_groups[len(self.on_device) :]
            else:
                swapped = [size for size in self.sub_groups if self._is_swapped(size)]
                away = [size for size in self.sub_groups if not self._is_swapped(size)]
                largest = max(swapped, default=0)
                self.nvme_bytes += sum(swapped) * s.master_item * (2 + s.moments)
                # by posix_memalign, SwapBufferManager; the first step makes the states outside of them
                aligned = largest + -largest % s.swap_alignment
                host.add("swap buffers", s.swap_buffers * aligned * s.master_item, pinned=False)
                host.add("new optimizer states", s.moments * largest * s.state_item, pinned=False)
            for size in away:
                host.add("master weights", size * s.master_item, pinned=False)
                host.add("gradients", size * s.master_item, pinned=s.pin_memory)
            host.add("optimizer states", sum(away) * s.state_item * s.moments, pinned=False)
            most = max(away, default=0) * s.step_temporaries
            host.add("the step's temporaries", most * s.master_item, pinned=False)
            host.add("gradient partitions", self.partition * s.gradient_item, pinned=s.pin_memory)
            if s.precision == "fp16":  # as on the device, see `step`
                host.add("overflow check", self.partition * (s.gradient_item + 1), pinned=False)
        if s.offload_param != "none":
            shards = sum(self.shards) * s.item
            self._initialize_secondary()
            if s.offload_param == "cpu":
                host.add("parameters", self.partition * s.item, pinned=True)  # those that train, flat, :906
                # each by itself under zero.Init (partition_parameters.py:1843); of those that train PyTorch's
                # cache of pinned blocks keeps it
                for weight in self.weights:
                    if s.pin_parameters or not weight.trainable:
                        shard = self.shards[weight.index] * s.item
                        host.add("parameters as built", shard, pinned=s.pin_parameters)
                for tied in self.tied if s.pin_parameters else ():
                    host.add("parameters as built", tied * s.item, pinned=True)
            else:
                self.nvme_bytes += shards
                count = s.parameter_buffers * s.parameter_buffer * s.item
                host.add("parameter buffers", count, pinned=False)  # partitioned_param_swapper.py:104-112
                # stage3.py:1018, reserve_partitioned_swap_space
                host.add("parameters in passing", max(self.sub_groups, default=0) * s.item, pinned=True)

    def _swapped(self) -> set[int]:
        found, waiting = set(), list(self.trainable)
        for size in self.sub_groups:
            left = size
            while left:
                weight = waiting.pop(0)
                left -= self.shards[weight.index]
                if self._is_swapped(size):
                    found.add(weight.index)
        return found

    def _initialize_secondary(self) -> None:
        """hpZ's copies lie where the parameters do (partition_parameters.py:1913)."""
        s = self.settings
        if self.copies:
            for weight in self.weights:
                if weight.index not in self.persistent:
                    size = -(-weight.numel // s.hpz) * s.item
                    self.host.add("parameters within the node", size, pinned=s.pin_parameters)

    def _is_swapped(self, sub_group: int) -> bool:
        """Whether a sub-group is large enough for a disk (``_swappable_optimizer_subgroup``, :1262)."""
        return sub_group * self.settings.master_item >= self.settings.least_swapped_bytes

    def _let_go(self, index: int) -> None:
        """hpZ's copy within the node, made when a parameter is partitioned (partition_parameters.py:1900)."""
        s = self.settings
        if self.copies and index not in self.secondary and s.offload_param == "none":
            size = -(-self.weights[index].numel // s.hpz) * s.item
            self.secondary[index] = self.new(size, "parameters")

    # -- gathering -------------------------------------------------------------------------------------

    def learn(self, order: Order) -> None:
        """Know the order of uses, as after a first pass."""
        self.order = order

    def begin_micro(self, *, boundary: bool) -> None:
        """A pass begins too; what waits for the optimizer's step is of the last one alone.

        The first pass tells the order; of those that know it all acts are known as they begin.
        """
        super().begin_micro(boundary=boundary)
        self.unwritten.clear()
        self.in_flight.clear()
        self._gathers = 0
        gathering, gathered = self.settings.gathering, frozenset(self.gathered)
        if self.order is None and self._heard:
            self.learn(order_of(tuple(self._heard), self.numels))
        if self.order is None:
            self._first = FirstPass(self.persistent, gathered, self.untrained)
        else:
            known = passed(
                self.order, gathering, self.persistent, gathered, self.kept, untrained=self.untrained
            )
            self._acts, self.kept = iter(known.acts), known.kept

    def before_use(self, uses: Sequence[int], shift: int = 0, *, again: bool = False) -> None:
        """Gather what is needed now and soon."""
        if acts := next(self._acts) if self.order else self._hear(AGAIN if again else USE, uses, shift):
            self._do(acts)

    def after_use(self, uses: Sequence[int], shift: int = 0) -> None:
        """Let go of what is not needed soon."""
        if acts := next(self._acts) if self.order else self._hear(USED, uses, shift):
            self._do(acts)

    def after_owner(self) -> None:
        """Let go of what was kept for it."""
        self._do(next(self._acts) if self.order else self._hear(OWNER, (), 0))

    def _hear(self, kind: int, uses: Sequence[int], shift: int) -> Sequence[Act]:
        """What the first pass does."""
        indices = tuple([index + shift for index in uses])
        self._heard.append((kind, indices))
        return self._first.hear(kind, indices)

    def _do(self, acts: Sequence[Act]) -> None:
        for kind, about in acts:
            if kind == RELEASE:
                index = about[0]
                if self.copies and index not in self.secondary:
                    self._let_go(index)  # what stays of it is there before it goes
                del self.gathered[index]
            elif kind == TAKE:
                gather = self.in_flight[self._gathers] = Gather(about)
                self._gathers += 1
                self._take(gather)
            elif kind == UNPACK:
                self._unpack(self.in_flight[about[0]])
            else:
                del self.in_flight[about[0]]

    def after_micro(self) -> object:
        """A boundary takes no less than other steps; hpZ's copies stay until the optimizer steps."""
        if self.copies:
            for weight in self.weights:
                if weight.index not in self.persistent:
                    self._let_go(weight.index)
        return self.meter.live, set(self.gathered)

    def _take(self, gather: Gather) -> None:
        """Make what ``gather`` gathers into."""
        s, indices = self.settings, gather.indices
        alone = s.ranks == 1  # NoGatherHandle: a view of the rank's own part, or its copy from the host
        if s.quantized_weights and not alone:
            self._take_quantized(gather)
            return
        if s.allgather_sequential and not alone:
            for index in indices:
                gather.copies[index] = self._gathering(self.shards[index] * s.ranks * s.item)
                self._send((index,))
            return
        count = 0 if alone else sum([self.shards[index] for index in indices]) * s.ranks * self.item
        gather.result = self._gathering(count)
        if not alone and not (s.fetches_by_all_reduce and len(indices) > 1):
            self._send(indices)
        if alone and s.offload_param != "none":
            gather.copies = {index: self._gathering(self.numels[index] * s.item) for index in indices}

    def _send(self, indices: Sequence[int]) -> None:
        """A rank's own shares, brought from the host, until they are sent or laid in their place
        (``_all_gather_sequential``, ``_all_gather_dtype``: partition_parameters.py:1396, :1345)."""
        if self.settings.offload_param == "none":
            return
        if len(indices) == 1:
            self.momentary(self.shards[indices[0]] * self.item, "gathered parameters", self.gather_stream)
        else:
            shares = [self._gathering(self.shards[index] * self.item) for index in indices]
            del shares

    def _unpack(self, gather: Gather) -> None:
        """``AllGatherCoalescedHandle.wait``: the first parameter asked for copies all of them out."""
        if self.settings.quantized_weights and self.settings.ranks > 1:
            self._unpack_quantized(gather)
            return
        s = self.settings
        if s.ranks == 1 or s.allgather_sequential or s.fetches_by_all_reduce:
            for index in gather.indices:
                self.gathered[index] = gather.copies.get(index, gather.result)
            gather.copies.clear()
        elif len(gather.indices) == 1:  # gathered straight into the parameter
            self.gathered[gather.indices[0]] = gather.result
        else:
            for index in gather.indices:
                self.gathered[index] = self._gathering(self.numels[index] * self.item)

    def _gathering(self, count: int) -> Storage:
        return Storage(self.meter, count, PART["gathered parameters"], self.gather_stream)

    def _take_quantized(self, gather: Gather) -> None:
        """All shards as int8 (partition_parameters.py:1421, :1501); this rank's were in fp16 on the way."""
        s, indices = self.settings, gather.indices
        own = sum(self.shards[index] for index in indices)
        scales = quantized_groups(own) * SCALE_ITEM
        gather.result = self._gathering(own * s.ranks)
        together = self._gathering(own * s.item) if len(indices) > 1 else None
        moves = s.precision != "fp16" or (together is None and s.offload_param != "none")
        half = self._gathering(own * HALF_ITEM) if moves else None
        sent = self._gathering(own), self._gathering(scales)
        del together, half
        gather.copies[SCALES] = self._gathering(scales * s.ranks)
        del sent

    def _unpack_quantized(self, gather: Gather) -> None:
        """Back to fp16, then to the parameter's own type (:725, :767)."""
        s = self.settings
        several = len(gather.indices) > 1
        if several:  # what is to be cut up stays until the last has been asked for
            own = sum(self.shards[index] for index in gather.indices)
            gather.copies[WIDE] = self._gathering(own * s.ranks * HALF_ITEM)
        for index in gather.indices:
            found = self._gathering(self.numels[index] * HALF_ITEM)
            if s.precision != "fp16":
                found = self._gathering(self.numels[index] * s.item)
            self.gathered[index] = found

    def on_view(self, index: int) -> None:
        """What is gathered now stays, though the engine may gather it anew meanwhile."""
        self.viewed.setdefault(index, []).append(self.gathered[index])

    def on_view_end(self, index: int) -> None:
        """The latest view ends first, as the backward pass goes."""
        self.viewed[index].pop()

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
        if s.contiguous_gradients and not s.reduce_scatter and self.filled <= s.reduce_bucket:
            self._reduce_bucket()
            return
        size = sum([self.shards[weight.index] for weight, _ in self.bucket]) * s.ranks * item
        sent = []  # those too large for the bucket, which has this type already (:1935)
        if s.communication_type != s.precision:
            for weight, gradient in self.bucket:
                if gradient is not None:
                    sent.append(self.new(weight.numel * item, "temporaries", self.reduce_stream))
        alone = len(self.bucket) == 1 and self.bucket[0][0].numel % s.ranks == 0
        # coalesced_collectives.py:100-133
        flat = None if alone else self.new(size, "temporaries", self.reduce_stream)
        wide = []
        if s.gradient_type != s.communication_type:  # every part in what accumulates (:1943)
            for weight, _ in self.bucket:
                part = self.shards[weight.index] * s.gradient_item
                wide.append(self.new(part, "temporaries", self.reduce_stream))
        if flat is not None or wide:  # else its parts are views of what was sent
            sent.clear()
        if wide:
            flat = None
        self._partition_gradients()
        del flat, wide, sent

    def _reduce_bucket(self) -> None:
        """``__avg_scatter_contiguous_grads``: the bucket itself is sent, and scaled in a copy (:1883)."""
        s = self.settings
        wide = None
        scaled = None
        if s.ranks > 1:
            scaled = self.new(self.filled * s.communication_item, "temporaries", self.reduce_stream)
        if s.gradient_type != s.communication_type:
            wide = self.new(self.filled * s.gradient_item, "temporaries", self.reduce_stream)
            scaled = None
        self._partition_gradients()
        del wide, scaled

    def _partition_gradients(self) -> None:
        if self.settings.offload_optimizer != "none":
            waiting = [self._offload(weight.index) for weight, _ in self.bucket]
            del waiting
        self.bucket.clear()
        self.filled = 0

    def _offload(self, index: int) -> Storage | None:
        """``partition_grads``: back on the device; at a boundary its norm in fp64, and it in fp32 (:2006).

        What goes to a disk waits on the device until all of its bucket is there (:1443-1465); what is too
        small to write, or has a rest that is, waits until the optimizer steps (optimizer_utils.py:253-285).
        """
        s, shard = self.settings, self.shards[index]
        back = self.new(shard * self.gradient_item, "temporaries", self.reduce_stream)
        if not self.boundary:
            return None
        self.momentary(min(shard, NORM_CHUNK) * NORM_ITEM, "temporaries", self.reduce_stream)
        widens = s.gradient_type != s.master_type
        if index not in self.swapped:
            if widens:
                self.momentary(shard * self.master_item, "temporaries", self.reduce_stream)
            return None
        wide = self.new(shard * self.master_item, "temporaries", self.reduce_stream) if widens else back
        if shard * s.master_item < s.least_swapped_bytes or shard % s.swap_alignment:
            self.unwritten.append(wide)
        return wide

    def end_backward(self) -> None:
        """Reduce what is left in the bucket, then let go of embeddings, which no hook did (gpt2-m-z3)."""
        self._reduce_scatter()
        for index in [index for index in self.gathered if index not in self.persistent]:
            if self.copies:
                self._let_go(index)
            del self.gathered[index]

    # -- the step --------------------------------------------------------------------------------------

    def step(self) -> None:
        """Sub-group by sub-group: flat gradient, fp32 copy, moments at the first step (:2683-2699, :2873)."""
        s = self.settings
        self.gathered.clear()
        self.in_flight.clear()
        self.unwritten.clear()
        if s.offload_optimizer == "none":
            if s.precision == "fp16":  # has_overflow: isinf's absolute values, then what they tell (:3013)
                absolute = self.new(self.partition * s.gradient_item, "temporaries", self.reduce_stream)
                self.momentary(self.partition, "temporaries", self.reduce_stream)
                del absolute
            for weight in self.trainable:
                self.momentary(self.shards[weight.index] * NORM_ITEM, "temporaries")
        first = not self.states
        for size in self.on_device:
            wide = None
            if s.offload_optimizer == "none":
                wide = self.new(size * s.gradient_item, "gradients")
                if s.gradient_type != s.master_type:
                    wide = self.new(size * s.master_item, "gradients")
            if first:
                self._make_states(size)
            self._compute_step(size)
            del wide
        for weight in self.weights:
            if weight.index in self.persistent:
                fresh = s.ranks > 1 or s.offload_param != "none" or s.allgather_sequential
                count = weight.numel * s.item if fresh else 0
                self.gathered[weight.index] = self.new(count, "gathered parameters")
        for weight in self.trainable:  # invalidate_secondary_tensor, :2846
            self.secondary.pop(weight.index, None)


def quantized_groups(numel: int) -> int:
    """Groups that share a scale (``CUDAQuantizer.quantize``, partition_parameters.py:867)."""
    groups = -(-numel // GROUP_ELEMENTS)
    while groups < numel and numel % (8 * groups):
        groups += 1
    while numel % (16 * groups) == 0 and numel / groups > GROUP_ELEMENTS:
        groups *= 2
    return groups


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
