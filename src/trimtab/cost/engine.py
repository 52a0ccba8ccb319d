"""What DeepSpeed allocates around the model: the engine's wrappers as listeners of the counting machine.

Each class mirrors one wrapper of DeepSpeed 0.19.8 (file beside it) and counts its buffers at the moments when
the engine makes and drops them.  The order of things is theirs: parameters in registration order, gradients
as the backward pass makes them, the first step's Adam states, the copies of the step.
"""

from __future__ import annotations

from collections.abc import Sequence

from trimtab.config import TYPE_BYTES
from trimtab.cost.allocator import UNIT
from trimtab.cost.coordinator import Gathering
from trimtab.cost.machine import Weight
from trimtab.cost.meter import PART, Meter, Storage
from trimtab.frozen import dataclass

ALLREDUCE_ELEMENTS = 500_000_000  # engine.py:151, MEMORY_OPT_ALLREDUCE_SIZE
NORM_ITEM = 8  # zero/utils.py:59: norms are taken in fp64
MASTER_ITEM = 4
MAIN, GATHER, REDUCE = 0, 1, 2
"""Streams of the device: the model's, the all-gathers' and the reductions'."""


AIO_BYTES = 1 << 20  # runtime/swap_tensor/utils.py:14, constants.py: the least, and a block's default
AIO_ALIGNMENT = 1024 // MASTER_ITEM  # utils.py:15, elements


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What of a configuration decides memory; elements unless the name says bytes."""

    stage: int
    ranks: int
    accumulation: int
    precision: str
    """The type of a parameter."""
    gradient_type: str
    """That gradients are accumulated in."""
    communication_type: str
    """That a reduction sends."""
    moments: int
    """Elements of optimizer state per parameter."""
    offload_optimizer: str
    offload_param: str
    overlap_comm: bool
    contiguous_gradients: bool
    reduce_scatter: bool
    reduce_bucket: int
    gathering: Gathering
    sub_group: int
    hpz: int
    pin_memory: bool
    """Whether what is offloaded of the optimizer is pinned; of the parameters, ``pin_parameters``."""
    pin_parameters: bool
    swap_buffers: int = 4
    """How many buffers a disk's optimizer states pass through."""
    parameter_buffers: int = 5
    """The same of a disk's parameters, and the elements of each."""
    parameter_buffer: int = 100_000_000
    least_swapped_bytes: int = AIO_BYTES
    """What is smaller is not worth a write to disk."""
    swap_alignment: int = AIO_ALIGNMENT
    """Elements by which such a write is cut; what is over stays in memory."""
    step_copies: int = 1
    """Copies in fp32 of all gradients that a step at stage 0 makes beside them."""
    factored: bool = False
    """Whether a matrix has states by row and by column alone, and the parameters are stepped one by one
    (torch's Adafactor, optim/_adafactor.py; ZeRO's flat partitions are no matrices)."""
    states_of_whole: bool = False
    """Whether it makes its states as soon as it is built, of the model's own parameters (torch's Adagrad)."""
    multi_rank_buckets: bool = True
    """Whether stages 1 and 2 reduce the gradients of several ranks in one call."""
    round_robin: bool = False
    """Whether stages 1 and 2 deal the parameters out to the ranks in turn."""
    master_type: str = "fp32"
    """Of a master weight, and of the gradient that it is stepped with."""
    state_type: str = "fp32"
    quantized_weights: bool = False
    """Whether stage 3 gathers parameters in int8 (ZeRO++)."""
    allgather_sequential: bool = False
    """Whether it gathers every parameter by itself."""
    fetches_by_all_reduce: bool = False
    """Whether it sums zeros and the rank's own part, and parameters are views of that."""
    offload_ratio: float = 1.0
    """The share of stage 3's sub-groups whose optimizer is offloaded; the others come first."""
    step_temporaries: int = 0
    """Copies in fp32 of what it updates that the optimizer's own arithmetic makes (torch's)."""

    @property
    def item(self) -> int:
        """Bytes of a parameter element."""
        return TYPE_BYTES[self.precision]

    @property
    def gradient_item(self) -> int:
        """Bytes of an accumulated gradient's element."""
        return TYPE_BYTES[self.gradient_type]

    @property
    def communication_item(self) -> int:
        """Bytes of an element that is sent."""
        return TYPE_BYTES[self.communication_type]

    @property
    def master_item(self) -> int:
        """Bytes of a master weight."""
        return TYPE_BYTES[self.master_type]

    @property
    def state_item(self) -> int:
        """Bytes of an element of optimizer state."""
        return TYPE_BYTES[self.state_type]


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
        self.item, self.gradient_item = settings.item, settings.gradient_item
        self.master_item = settings.master_item
        self.weights = weights
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

    def new(self, count: int, part: str, stream: int = MAIN) -> Storage:
        """A storage of ``count`` bytes counted as ``part``, made on ``stream``."""
        return Storage(self.meter, count, PART[part], stream)

    def momentary(self, count: int, part: str, stream: int = MAIN) -> None:
        """The same for one that ends at once."""
        self.meter.momentary(count + -count % UNIT, PART[part], stream)

    def build(self, whole: Sequence[Weight], given_up: Sequence[tuple[int, int]] = ()) -> None:
        """The model's own weights, before ``deepspeed.initialize``.

        ``given_up``: of further ones in order, which tying them then frees, after how many of ``whole`` each
        is made, and its elements.
        """
        extra: list[Storage] = []
        left = [*given_up]
        for place, weight in enumerate(whole):
            while left and left[0][0] == place:
                extra += self._built(left.pop(0)[1])
            self.model += self._built(weight.numel, weight.index)
        for _, numel in left:
            extra += self._built(numel)
        del extra

    def _built(self, numel: int, index: int | None = None) -> list[Storage]:
        """What stays of a weight of ``numel`` elements, the model's ``index``-th."""
        return [self.new(numel * self.item, "parameters")]

    def split(self) -> None:
        """AutoTP puts this rank's part in the place of every weight that it splits."""
        for place, weight in enumerate(self.weights):
            if weight.bytes != self.model[place].bytes:
                self.model[place] = self.new(weight.bytes, "parameters")

    def initialize(self) -> None:
        """``deepspeed.initialize``."""

    def after_micro(self) -> object:
        """Leave what a micro step leaves; what decides how the next one goes, None if the last step does.

        Where it is known, a step at a boundary takes no less than any other.
        """
        return None

    @property
    def telling_micros(self) -> int:
        """How many micro steps tell of all: the first and the last."""
        return 2

    def begin_micro(self, *, boundary: bool) -> None:
        """A micro step starts; ``boundary`` if the optimizer steps after it."""
        self.boundary = boundary

    hears_uses = False
    """Whether `before_use` and `after_use` matter to it."""

    def before_use(self, uses: Sequence[int], shift: int = 0, *, again: bool = False) -> None:
        """An operator is about to read the parameters ``shift`` places behind ``uses``, maybe ``again``."""

    def after_use(self, uses: Sequence[int], shift: int = 0) -> None:
        """It has read them."""

    def after_owner(self) -> None:
        """The module that asked for recomputation has its gradients."""

    def on_view(self, index: int) -> None:
        """Autograd keeps a view of the parameter."""

    def on_view_end(self, index: int) -> None:
        """It lets go of one."""

    def on_gradient(self, weight: Weight, gradient: Storage) -> None:
        """Keep the gradient as ``param.grad``; a second one is added in place."""
        self.gradients.setdefault(weight.name, gradient)

    def end_backward(self) -> None:
        """The backward pass of a micro step is done."""

    def step(self) -> None:
        """The optimizer's step at an accumulation boundary."""

    def _keep_states_of_whole(self) -> None:
        """The states of the model's own parameters stay beside those of the engine's."""
        if self.settings.states_of_whole:
            self.held.append(self.new(self.numel * self.settings.item, "optimizer states"))

    def _make_states(self, numel: int) -> None:
        for _ in range(self.settings.moments):
            self.states.append(self.new(numel * self.settings.state_item, "optimizer states"))

    def _compute_step(self, numel: int) -> None:
        """What torch's own optimizers make in between, of ``numel`` elements."""
        s = self.settings
        self.momentary(s.step_temporaries * numel * s.master_item, "temporaries")


class PlainEngine(Engine):
    """Stage 0 in fp32: no wrapper, the optimizer works on the model's own parameters."""

    def end_backward(self) -> None:
        """``buffered_allreduce_fallback``: gradients leave in flat copies of at most 5e8 elements."""
        if self.boundary:
            s = self.settings
            for size in chunks(self.trainable, ALLREDUCE_ELEMENTS):
                if s.communication_type == s.gradient_type:
                    self.momentary(size * s.gradient_item, "temporaries")
                    continue
                flat = self.new(size * s.gradient_item, "temporaries")  # and sent in another type
                self.momentary(size * s.communication_item, "temporaries")
                del flat

    def step(self) -> None:
        """The moments appear at the first step."""
        if not self.states:
            self._make_states(self._own_states)
        self._compute_own_step()
        self.gradients.clear()

    @property
    def _own_states(self) -> int:
        """Elements of a state of the model's own parameters."""
        return sum(map(_factors, self.trainable)) if self.settings.factored else self.numel

    def _compute_own_step(self) -> None:
        """What the optimizer makes in between, of the model's own parameters."""
        if self.settings.factored:
            self.momentary(_adafactor_temporaries(self.trainable) * MASTER_ITEM, "temporaries")
        else:
            self._compute_step(self.numel)


class HalfEngine(PlainEngine):
    """Stage 0 in bf16 or fp16: ``FP16_Optimizer`` (runtime/fp16/fused_optimizer.py)."""

    def initialize(self) -> None:
        """Flat copies, fp32 master weights, and a first step on zeros that makes the moments (:94-135)."""
        item = self.settings.item
        self._keep_states_of_whole()
        clones = [self.new(weight.bytes, "temporaries") for weight in self.trainable]
        flat = self.new(self.numel * item, "parameters")
        del clones
        self.model = [*self._frozen_storages(), flat]
        again = self.new(self.numel * item, "temporaries")
        self.held.append(self.new(self.numel * MASTER_ITEM, "master weights"))
        del again
        zeros = self.new(self.numel * MASTER_ITEM, "gradients")
        self._make_states(self._own_states)
        del zeros

    def _frozen_storages(self) -> list[Storage]:
        return [
            storage for weight, storage in zip(self.weights, self.model, strict=True) if not weight.trainable
        ]

    def step(self) -> None:
        """Every gradient in fp32, then flat, before the narrow ones go (:277-314)."""
        wide = [self.new(weight.numel * MASTER_ITEM, "gradients") for weight in self.trainable]
        if not self.settings.step_copies:
            if self.settings.factored:
                self._compute_own_step()
            self.gradients.clear()
            return
        flat = self.new(self.settings.step_copies * self.numel * MASTER_ITEM, "gradients")
        del wide
        self.gradients.clear()
        self.momentary(self.numel * NORM_ITEM // NORM_ITEM, "temporaries")
        del flat


def _is_matrix(weight: Weight) -> bool:
    return 0 < weight.columns < weight.numel


def _factors(weight: Weight) -> int:
    """Elements of Adafactor's state: a matrix's rows and columns, each in a sum."""
    return weight.numel // weight.columns + weight.columns if _is_matrix(weight) else weight.numel


def _adafactor_temporaries(weights: Sequence[Weight]) -> int:
    """Elements at the highest of ``_single_tensor_adafactor``: a loop whose names outlive their turn.

    The last parameter's ``update`` stays until this one's is there, a vector's ``grad_squared`` until the
    next one's.
    """
    most = update = squared = 0
    for one in weights:
        if _is_matrix(one):
            most = max(most, update + squared + one.numel)
        else:
            most = max(most, update + squared + one.numel, update + 2 * one.numel)
            squared = one.numel
        update = one.numel
    return most


def chunks(weights: Sequence[Weight], limit: int) -> list[int]:
    """Elements of each flat copy of ``allreduce_no_retain``, closed once it exceeds the limit."""
    sizes, current = [], 0
    for weight in weights:
        current += weight.numel
        if current > limit:
            sizes.append(current)
            current = 0
    return [*sizes, current] if current else sizes
