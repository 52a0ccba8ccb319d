"""What DeepSpeed allocates around the model: the engine's wrappers as listeners of the counting machine.

Each class mirrors one wrapper of DeepSpeed 0.19.8 (file beside it) and counts its buffers at the moments when
the engine makes and drops them.  The order of things is theirs: parameters in registration order, gradients as
the backward pass makes them, the first step's Adam states, the copies of the step.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from trimtab.cost.machine import PART, Meter, Storage, Weight

FLAT_ALIGNMENT = 2  # stage_1_and_2.py: nccl_start_alignment_factor
ALLREDUCE_ELEMENTS = 500_000_000  # engine.py:151, MEMORY_OPT_ALLREDUCE_SIZE
NORM_ITEM = 8  # zero/utils.py:59: norms are taken in fp64
NORM_CHUNK = 250_000_000  # stage3.py:1960, elements
MASTER_ITEM = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What of a configuration decides memory; elements unless the name says bytes."""

    stage: int
    ranks: int
    accumulation: int
    item: int
    """Bytes of a parameter element."""
    gradient_item: int
    moments: int
    """Elements of optimizer state per parameter, fp32."""
    offload_optimizer: str
    offload_param: str
    overlap_comm: bool
    contiguous_gradients: bool
    reduce_scatter: bool
    reduce_bucket: int
    prefetch_bucket: int
    persistence_threshold: int
    model_persistence_threshold: int
    max_live: int
    max_reuse_distance: int
    sub_group: int
    hpz: int
    precision: str
    pin_memory: bool
    fused_optimizer: bool = True


class Host:
    """Host memory of one rank by part, in bytes; pinned sizes round up to a power of two.

    PyTorch's pinned allocator hands out powers of two (aten/src/ATen/core/CachingHostAllocator.h).
    """

    def __init__(self) -> None:
        self.parts: dict[str, int] = {}

    def add(self, part: str, count: int, *, pinned: bool) -> None:
        """Count an allocation of ``count`` bytes."""
        size = 1 << (count - 1).bit_length() if pinned and count > 1 else count
        self.parts[part] = self.parts.get(part, 0) + size

    @property
    def total(self) -> int:
        """All bytes."""
        return sum(self.parts.values())


class Engine:
    """What all wrappers share: the model's weights on the device, and nothing around them."""

    def __init__(self, meter: Meter, weights: Sequence[Weight], settings: Settings) -> None:
        self.meter, self.settings = meter, settings
        self.weights = list(weights)
        self.trainable = [weight for weight in self.weights if weight.trainable]
        self.frozen = [weight for weight in self.weights if not weight.trainable]
        self.numel = sum(weight.numel for weight in self.trainable)
        self.host = Host()
        self.nvme_bytes = 0
        self.held: list[Storage] = []
        self.gradients: dict[str, Storage] = {}
        self.states: list[Storage] = []
        self.model: list[Storage] = []
        self.boundary = True

    def new(self, count: int, part: str) -> Storage:
        """A storage of ``count`` bytes counted as ``part``."""
        return Storage(self.meter, count, PART[part])

    def build(self) -> None:
        """The model's own weights, before ``deepspeed.initialize``."""
        self.model = [self.new(weight.bytes, "parameters") for weight in self.weights]

    def initialize(self) -> None:
        """``deepspeed.initialize``."""

    def begin_micro(self, *, boundary: bool) -> None:
        """A micro step starts; ``boundary`` if the optimizer steps after it."""
        self.boundary = boundary

    def before_use(self, weights: tuple[Weight, ...], *, backward: bool) -> None:
        """An operator is about to read ``weights``."""

    def after_use(self, weights: tuple[Weight, ...], *, backward: bool) -> None:
        """It has read them."""

    def on_gradient(self, weight: Weight, gradient: Storage) -> None:
        """Keep the gradient as ``param.grad``; a second one is added in place."""
        self.gradients.setdefault(weight.name, gradient)

    def end_backward(self) -> None:
        """The backward pass of a micro step is done."""

    def step(self) -> None:
        """The optimizer's step at an accumulation boundary."""

    def _make_states(self, numel: int) -> None:
        for _ in range(self.settings.moments):
            self.states.append(self.new(numel * MASTER_ITEM, "optimizer states"))

    def _flatten(self, items: Iterable[int]) -> Storage | None:
        sizes = list(items)
        return self.new(sum(sizes), "temporaries") if len(sizes) > 1 else None


class PlainEngine(Engine):
    """Stage 0 in fp32: no wrapper, the optimizer works on the model's own parameters."""

    def end_backward(self) -> None:
        """``buffered_allreduce_fallback``: gradients leave in flat copies of at most 5e8 elements."""
        if self.boundary:
            for size in _chunks(self.trainable, ALLREDUCE_ELEMENTS):
                self.new(size * self.settings.gradient_item, "temporaries")

    def step(self) -> None:
        """The moments appear at the first step."""
        if not self.states:
            self._make_states(self.numel)
        self.gradients.clear()


class HalfEngine(PlainEngine):
    """Stage 0 in bf16 or fp16: ``FP16_Optimizer`` (runtime/fp16/fused_optimizer.py)."""

    def initialize(self) -> None:
        """Flat copies, fp32 master weights, and a first step on zeros that makes the moments (:94-135)."""
        item = self.settings.item
        clones = [self.new(weight.bytes, "temporaries") for weight in self.trainable]
        flat = self.new(self.numel * item, "parameters")
        del clones
        self.model = [*self._frozen_storages(), flat]
        again = self.new(self.numel * item, "temporaries")
        self.held.append(self.new(self.numel * MASTER_ITEM, "master weights"))
        del again
        zeros = self.new(self.numel * MASTER_ITEM, "gradients")
        self._make_states(self.numel)
        del zeros

    def _frozen_storages(self) -> list[Storage]:
        return [
            storage for weight, storage in zip(self.weights, self.model, strict=True) if not weight.trainable
        ]

    def step(self) -> None:
        """Every gradient in fp32, then flat, before the narrow ones go (:277-314)."""
        wide = [self.new(weight.numel * MASTER_ITEM, "gradients") for weight in self.trainable]
        flat = self.new(self.numel * MASTER_ITEM, "gradients")
        del wide
        self.gradients.clear()
        self.new(self.numel * NORM_ITEM // NORM_ITEM, "temporaries")
        del flat


class ShardedOptimizer(Engine):
    """Stages 1 and 2: ``DeepSpeedZeroOptimizer`` (runtime/zero/stage_1_and_2.py)."""

    def initialize(self) -> None:
        """One flat group, an fp32 partition, and zeros that stand in for its gradient (:439-575, :934)."""
        s = self.settings
        self.partition = _ceil(self.numel, FLAT_ALIGNMENT * s.ranks) // s.ranks
        frozen = [x for weight, x in zip(self.weights, self.model, strict=True) if not weight.trainable]
        flat = self.new(self.partition * s.ranks * s.item, "parameters")
        self.model = [*frozen, flat]
        del frozen
        clone = self.new(self.partition * s.item, "temporaries")
        largest = max((weight.numel for weight in self.trainable), default=0)
        self.own = _owned(self.trainable, self.partition)
        self.own_numel = sum(weight.numel for weight in self.own)
        self._owned_names = {weight.name for weight in self.own}
        if s.offload_optimizer == "none":
            self.held.append(self.new(self.partition * MASTER_ITEM, "master weights"))
            del clone
            self.new(self.partition * MASTER_ITEM, "gradients")
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

    # -- gradients -------------------------------------------------------------------------------------------

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
        if weight.numel <= s.reduce_bucket and s.contiguous_gradients:
            self.gradients.pop(weight.name, None)  # it is a view of the bucket now, :1458

    def _flush(self) -> None:
        s = self.settings
        if not self.waiting:
            return
        item = s.gradient_item if s.stage == 1 else s.item
        if s.reduce_scatter and _spans_ranks(self.waiting, self._owned_names, s.ranks):
            self.new(self.filled * item, "temporaries")  # allreduce_bucket flattens the slices, :1516
        for weight in self.waiting:
            owned = weight.name in self._owned_names
            if owned and s.offload_optimizer != "none":
                self.new(weight.numel * MASTER_ITEM, "temporaries")  # :1903
                self.gradients.pop(weight.name, None)
            elif owned:
                self._copy_to_partition(weight)
                self.gradients.pop(weight.name, None)
            elif s.stage == 2:
                self.gradients.pop(weight.name, None)
        self.waiting.clear()
        self.filled = 0

    def _copy_to_partition(self, weight: Weight) -> None:
        """``copy_grads_in_partition``: one buffer for all gradients of the own partition (:2160-2201)."""
        s = self.settings
        if s.stage == 2 and s.gradient_item != s.item:
            if self.accumulated is None:  # compact fp32 partition, :1259
                self.accumulated = self.new(self.partition * s.gradient_item, "gradients")
        elif self.partition_gradients is None:
            self.partition_gradients = self.new(self.own_numel * s.item, "gradients")

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

    # -- the step ---------------------------------------------------------------------------------------------

    def step(self) -> None:
        """Norm in fp64, the flat partition, its fp32 copy, the moments at the first step (:3013-3132)."""
        s = self.settings
        if s.offload_optimizer != "none":
            self.accumulated = None
            return
        largest = max((weight.numel for weight in self.own), default=0)
        self.new(min(largest, self.partition) * NORM_ITEM, "temporaries")
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
        """Flat weights, an fp32 partition, and fp32 gradients of the whole model from the start (:160-200)."""
        s = self.settings
        self.partition = _ceil(self.numel, FLAT_ALIGNMENT * s.ranks) // s.ranks
        frozen = [x for weight, x in zip(self.weights, self.model, strict=True) if not weight.trainable]
        self.model = [*frozen, self.new(self.partition * s.ranks * s.item, "parameters")]
        del frozen
        clone = self.new(self.partition * s.item, "temporaries")
        self.held.append(self.new(self.partition * MASTER_ITEM, "master weights"))
        del clone
        self.held.append(self.new(self.partition * s.ranks * s.gradient_item, "gradients"))
        self._make_states(self.partition)

    def end_backward(self) -> None:
        """The narrow gradients are added to the fp32 ones and dropped; the boundary reduces in place."""
        self.gradients.clear()
        if self.boundary:
            for size in _chunks(self.trainable, ALLREDUCE_ELEMENTS):
                self.new(size * self.settings.gradient_item, "temporaries")

    def step(self) -> None:
        """Norms in fp32 of the partition; nothing else is made."""


@dataclass(slots=True)
class Fetch:
    """One use of weights by a module, in the order of the engine's trace."""

    weights: tuple[Weight, ...]
    numel: int


@dataclass(slots=True)
class Trace:
    """The recorded order of a whole forward and backward pass."""

    uses: list[tuple[Weight, ...]] = field(default_factory=list)
    complete: bool = False


class ShardedParameters(Engine):
    """Stage 3: ``DeepSpeedZeroOptimizer_Stage3`` (runtime/zero/stage3.py, partitioned_param_coordinator.py)."""

    def build(self) -> None:
        """Under ``zero.Init`` every rank holds its shard of each parameter alone."""
        s = self.settings
        self.shards = {weight.name: -(-weight.numel // s.ranks) for weight in self.weights}
        if s.offload_param == "none":
            self.model = [self.new(self.shards[w.name] * s.item, "parameters") for w in self.weights]

    def initialize(self) -> None:
        """The flat shard, fp32 sub-groups, the gradient partition, one bucket (:735-800, :1120-1175, :1301)."""
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
        self._initialize_host()
        self.secondary: dict[str, Storage] = {}
        for weight in self.weights:
            self._keep_secondary(weight)
        self.persistent = self._persistent()
        self.gathered: dict[str, Storage] = {}
        self.in_flight: dict[str, list[Storage]] = {}
        self.trace = Trace()
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

    # -- gathering ----------------------------------------------------------------------------------------------

    def begin_micro(self, *, boundary: bool) -> None:
        """``reset_step``: the trace is complete once one pass was recorded."""
        super().begin_micro(boundary=boundary)
        self.in_flight.clear()
        self.trace.complete = bool(self.trace.uses)
        self.position = self.queue_at = 0
        self.fetched_until.clear()
        self.available = 0
        if self.trace.complete and not hasattr(self, "_order"):
            self._order = [(weight, step) for step, uses in enumerate(self.trace.uses) for weight in uses]

    def before_use(self, weights: tuple[Weight, ...], *, backward: bool) -> None:
        """``fetch_sub_module``: gather what is needed now, then prefetch (partitioned_param_coordinator.py)."""
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
        if len(weights) == 1:  # straight into the parameter
            self.in_flight[weights[0].name] = [self.new(sizes[0], "gathered parameters")]
            return
        flat = self.new(sum(sizes), "gathered parameters")  # split into copies when it has arrived
        group = [weight.name for weight in weights]
        for name in group:
            self.in_flight[name] = [flat]
        self._groups = getattr(self, "_groups", {})
        for name in group:
            self._groups[name] = list(weights)

    def _arrive(self, name: str) -> None:
        s = self.settings
        groups = getattr(self, "_groups", {})
        members: Sequence[Weight] = groups.get(name, ())
        if not members:
            self.gathered[name] = self.in_flight.pop(name)[0]
            return
        for weight in members:
            groups.pop(weight.name, None)
            self.gathered[weight.name] = self.new(weight.numel * s.item, "gathered parameters")
        for weight in members:
            self.in_flight.pop(weight.name, None)

    def _advance(self, weights: tuple[Weight, ...]) -> None:
        wanted = {w.name for w in weights if self.fetched_until.get(w.name, -1) < self.position}
        popped: set[str] = set()
        while self.queue_at < len(self._order) and len(popped) < len(wanted):
            weight, step = self._order[self.queue_at]
            self.queue_at += 1
            self.fetched_until[weight.name] = step
            popped.add(weight.name)

    def _prefetch(self) -> None:
        s = self.settings
        limit = min(s.max_live - self.available, s.prefetch_bucket)
        chosen: dict[str, Weight] = {}
        numel = 0
        while self.queue_at < len(self._order) and numel < limit:
            weight, step = self._order[self.queue_at]
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

    # -- gradients ------------------------------------------------------------------------------------------------

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
        flat = None if alone else self.new(sum(sizes), "temporaries")  # coalesced_collectives.py:100-133
        if s.offload_optimizer != "none":  # partition_grads: back on the device, its norm in fp64 (:2006)
            for weight, _ in self.bucket:
                shard = self.shards[weight.name]
                back = self.new(shard * s.gradient_item, "temporaries")
                self.new(min(shard, NORM_CHUNK) * NORM_ITEM, "temporaries")
                self.new(shard * MASTER_ITEM, "temporaries")
                del back
        del flat
        self.bucket.clear()
        self.filled = 0

    def end_backward(self) -> None:
        """Reduce what is left in the bucket."""
        self._reduce_scatter()

    # -- the step ---------------------------------------------------------------------------------------------------

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


def engine_for(meter: Meter, weights: Sequence[Weight], settings: Settings) -> Engine:
    """The wrapper that DeepSpeed chooses (engine.py:2294-2366)."""
    if settings.stage == 3:
        return ShardedParameters(meter, weights, settings)
    if settings.stage == 0:
        return (PlainEngine if settings.item == MASTER_ITEM else HalfEngine)(meter, weights, settings)
    wide = settings.precision == "bf16" and settings.gradient_item == MASTER_ITEM
    if settings.stage == 1 and wide and settings.offload_optimizer != "cpu":
        return WideOptimizer(meter, weights, settings)
    return ShardedOptimizer(meter, weights, settings)


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


def _spans_ranks(waiting: Sequence[Weight], owned: set[str], ranks: int) -> bool:
    return (ranks > 1 and len(waiting) > 1) or (ranks > 1 and not owned.issuperset(w.name for w in waiting))


def _chunks(weights: Sequence[Weight], limit: int) -> list[int]:
    """Elements of the flat copies that ``allreduce_no_retain`` makes: each closes once it exceeds the limit."""
    sizes, current = [], 0
    for weight in weights:
        current += weight.numel
        if current > limit:
            sizes.append(current)
            current = 0
    return [*sizes, current] if current else sizes


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
