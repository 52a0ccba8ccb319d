"""Every live byte of a phantom run, and everything that ran, in order.

`Ledger` sits above torch's fake tensors as a dispatch mode.  It notes each new storage with the phase, module
and operator that made it, and its end through a weak reference; sizes are rounded as CUDA's allocator rounds
them.  In the measured step it also notes every operator, collective and copy.
"""

from __future__ import annotations

import math
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode

from trimtab.cost.allocator import UNIT
from trimtab.cost.reduction import reduction_bytes
from trimtab.rehearse import corners
from trimtab.rehearse.fakes import Fakes
from trimtab.rehearse.timeline import Timeline

ALIVE = 1 << 62
READABLE = 64
"""Tensors made from no more values than this give them back when read."""

aten = torch.ops.aten
_ITEM = aten._local_scalar_dense.default
_DEVICE = torch.ops.prim.device.default
_PRODUCTS = frozenset((aten.mm.default, aten.addmm.default, aten.bmm.default, aten.baddbmm.default))
_SUM = aten.sum.dim_IntList
_SUM_ALL, _EQUAL = aten.sum.default, aten.eq.Scalar
_ADD, _ADD_IN_PLACE = aten.add.Tensor, aten.add_.Tensor
_DROPOUT = aten.native_dropout.default  # native/cuda/Dropout.cu dropout_cuda makes the mask first
_COPIES = (aten._to_copy.default, aten.copy_.default)


class Allocation:
    """One storage: its size, where it lives, who made it, and when it came and went."""

    __slots__ = (
        *("size", "host", "pinned", "cached", "stream", "born", "died"),
        *("phase", "module", "operator", "recomputed", "label"),
    )

    def __init__(self, size: int, host: bool, born: int, phase: str) -> None:
        self.size, self.host, self.born, self.phase = size, host, born, phase
        self.died = ALIVE
        self.pinned = self.cached = self.recomputed = False
        self.label: str | None = None
        self.module = self.operator = self.stream = ""


class _Storage(weakref.ref):  # type: ignore[type-arg]
    __slots__ = ("allocation", "key")
    allocation: Allocation
    key: int


class Ledger(TorchDispatchMode):
    """Counts live bytes on the made-up device and on the host while it is active."""

    # what operators make inside, on a GPU, and free when they return: before their result, or after it
    _before: ClassVar[dict[Any, Callable[..., Any]]] = {
        # aten/src/ATen/native/TensorCompare.cpp isinf: self.abs() == infinity
        aten.isinf.default: lambda x, *_: torch.empty_like(x) if x.is_floating_point() else None,
    }
    _after: ClassVar[dict[Any, Callable[..., Any]]] = {
        # aten/src/ATen/native/transformers/attention.cpp _safe_softmax: which of the scores are masked
        aten._safe_softmax.default: lambda x, *_: torch.empty_like(x, dtype=torch.bool),
        # aten/src/ATen/native/cuda/SoftMax.cu softmax_backward_cuda_out: tmp = grad * output
        aten._softmax_backward_data.default: lambda gradient, *_: torch.empty_like(gradient),
    }

    def __init__(self, *, all_true: bool = True) -> None:
        super().__init__()
        self.fakes = Fakes()
        self.all_true = all_true
        self.clock = 0
        self.allocations: list[Allocation] = []
        self.allocated = self.peak = 0
        self.peak_at: Allocation | None = None
        self.host = self.host_peak = self.pinned = self.pinned_peak = 0
        self.phase = "build"
        self.recording = False
        self.operators: dict[Any, int] = {}
        self.collectives: dict[Any, int] = {}
        self.copies: dict[Any, int] = {}
        self.timeline: Timeline | None = None
        """The order of what is recorded, if it is asked for."""
        self.cache_drops: list[int] = []
        self.files: dict[str, int] = {}
        self.first_product: dict[str, int] = {}
        """When each phase first multiplied matrices: then its thread's cuBLAS handle takes its workspace."""
        self.stream = "compute"
        self.module_names: dict[int, str] = {}
        self.module_stack: list[str] = []
        self.module_of_node: dict[int, str] = {}
        self.module_classes: dict[str, str] = {}
        self._live: dict[int, _Storage] = {}
        self._pinned_free: Counter[int] = Counter()
        self._values: dict[int, list[Any]] = {}
        self._operator = ""
        self._alone: tuple[int, int, int] | None = None
        self._handlers: dict[Any, Callable[..., Any]] = {
            _ITEM: self._item,
            aten.lift_fresh.default: self._lift,
            aten.is_pinned.default: self._is_pinned,
            aten._pin_memory.default: self._pin,
            aten.equal.default: lambda *_: True,
            aten.all.default: self._all,
        }

    # -- dispatch ------------------------------------------------------------------------------------

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Without torch's wrapper around every call, which keeps it from being compiled: nothing is here."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is _DEVICE:
            return args[0].fake_device if isinstance(args[0], FakeTensor) else args[0].device
        handler = self._handlers.get(func)
        if handler is not None:
            with self.fakes.mode:
                return handler(*args, **(kwargs or {}))
        if func.namespace == "c10d":
            return self._collective(func, args, kwargs or {})
        if func.name() == "deepspeed::dim_zero_all_to_all" and self.recording:  # Ulysses' own operator
            sent = args[0]
            size, ranks = sent.numel() * sent.element_size(), sent.shape[0]
            key = ("alltoall_base", self.phase, size, ranks, self.stream)
            self._count(self.collectives, "collective", key)
        self._operator = func
        if func is _ADD and self.phase == "backward" and self._sums_in_place(args):
            func = _ADD_IN_PLACE
        if func in _PRODUCTS:
            self.first_product.setdefault(self.phase, self.clock)
        if self._values and func._schema.is_mutable:
            self._forget(args[0])
        before, after = self._before.get(func), self._after.get(func)
        taken = None if before is None else self._take(before, args)
        if func is _SUM:
            taken = self._partial_sums(args)
        result = self.fakes.run(func, args, kwargs)
        if type(result) is FakeTensor:
            self._see(result)
        elif isinstance(result, (tuple, list)):
            for item in reversed(result) if func is _DROPOUT else result:
                if isinstance(item, torch.Tensor):
                    self._see(item)
        elif isinstance(result, torch.Tensor):
            self._see(result)
        if after is not None:
            self._take(after, args)
        del taken
        if func is _SUM_ALL or func is _EQUAL:
            self._follow(func, args, result)
        if kwargs and kwargs.get("pin_memory"):
            self.mark_pinned(result)
        if self.module_stack:  # in the backward pass too: recomputation runs forward code
            self.module_of_node[torch._C._autograd._get_sequence_nr() - 1] = self.module_stack[-1]
        if self.recording:
            self._note(func, args, kwargs, result)
        return result

    def learn_references(self) -> None:
        """See what the references to a gradient are that nobody but the engine's buffer holds."""
        phase, self.phase = self.phase, "backward"
        start = torch.ones(2, requires_grad=True)
        middle = start.clone()
        (middle.sin() + middle.cos()).sum().backward()
        self.phase = phase

    def _sums_in_place(self, args: Sequence[Any]) -> bool:
        """Whether autograd would add this gradient into the one that waits (input_buffer.cpp, accumulate).

        It does if nobody else holds that one; under a dispatch mode it never does.
        """
        waiting, new = args
        if torch.is_grad_enabled() or not isinstance(new, FakeTensor) or not corners.engine_is_calling():
            return False
        references = corners.references(waiting)
        if self._alone is None:
            self._alone = references
        alike = waiting.dtype is new.dtype and waiting.shape == new.shape
        return alike and references == self._alone and _is_dense(waiting)

    def _partial_sums(self, args: Sequence[Any]) -> Any:
        """The global buffer of a sum over a contiguous tensor's leading dimensions, if CUDA takes one."""
        summed, kept = args[0], args[0].dim() - len(args[1] or ())
        if summed.fake_device.type != corners.DEVICE or not 0 < kept < summed.dim():
            return ()
        if sorted(d % summed.dim() for d in args[1]) != list(range(summed.dim() - kept)):
            return ()
        columns = math.prod(summed.shape[-kept:])
        if not columns or not summed.is_contiguous():
            return ()
        size = reduction_bytes(summed.numel() // columns, columns, summed.element_size())
        if not size:
            return ()
        buffer = self._take(lambda: torch.empty(size, dtype=torch.uint8, device=corners.DEVICE), ())
        self.label(buffer, "temporaries")
        return buffer

    def _take(self, make: Callable[..., Any], args: Sequence[Any]) -> Any:
        with self.fakes.mode:
            made = make(*args)
        if made is not None:
            self._see(made)
        return made

    def _see(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._live:
            return
        place = tensor.device.type
        if place == "meta":
            return
        host = place != corners.DEVICE
        size = storage.nbytes()
        if not host:
            size = -(-size // UNIT) * UNIT
        self.clock += 1
        allocation = Allocation(size, host, self.clock, self.phase)
        allocation.operator = str(self._operator)
        allocation.stream = self.stream
        if self.module_stack:
            allocation.module = self.module_stack[-1]
            allocation.recomputed = self.phase == "backward"
        elif self.phase == "backward":
            node = torch._C._current_autograd_node()
            if node is not None:
                allocation.module = self.module_of_node.get(node._sequence_nr(), "")
        self.allocations.append(allocation)
        reference = _Storage(storage, self._drop)
        reference.key, reference.allocation = key, allocation
        self._live[key] = reference
        if host:
            self.host += size
            self.host_peak = max(self.host_peak, self.host)
            return
        self.allocated += size
        if self.allocated > self.peak:
            self.peak, self.peak_at = self.allocated, allocation

    def _drop(self, reference: _Storage) -> None:
        allocation = reference.allocation
        if self._live.get(reference.key) is reference:
            del self._live[reference.key]
            self._values.pop(reference.key, None)
        self.clock += 1
        allocation.died = self.clock
        if not allocation.host:
            self.allocated -= allocation.size
            return
        if allocation.cached:
            self._pinned_free[allocation.size] += 1
            return
        self.host -= allocation.size
        if allocation.pinned:
            self.pinned -= allocation.size

    # -- values ------------------------------------------------------------------------------------------

    def remember(self, tensor: torch.Tensor, values: list[Any]) -> torch.Tensor:
        """Make reading ``tensor`` give ``values``; other tensors read as 1, or as no for flags."""
        self._see(tensor)
        self._values[tensor.untyped_storage()._cdata] = values
        return tensor

    def _forget(self, changed: Any) -> None:
        for tensor in _tensors(changed) if _is_tensors(changed) else ():
            self._values.pop(tensor.untyped_storage()._cdata, None)

    def values_of(self, tensor: torch.Tensor) -> list[Any] | None:
        """What `remember` was told of ``tensor``'s storage."""
        return self._values.get(tensor.untyped_storage()._cdata)

    def _item(self, tensor: torch.Tensor) -> Any:
        if self.timeline is not None and tensor.fake_device.type == corners.DEVICE:
            self.timeline.host_waits(self.stream)
        known = self._values.get(tensor.untyped_storage()._cdata)
        if known is not None and tensor.storage_offset() < len(known):
            value = known[tensor.storage_offset()]
            return float(value) if tensor.is_floating_point() else value
        if tensor.dtype == torch.bool:
            return False
        if tensor.dtype == torch.uint8:
            return 0
        return 1.0 if tensor.is_floating_point() else 1

    def _follow(self, func: Any, args: Sequence[Any], result: torch.Tensor) -> None:
        # transformers.masking_utils.fast_all: mask.sum() == mask.numel()
        if func is _SUM_ALL:
            if args[0].dtype is torch.bool:
                self.remember(result, [args[0].numel() if self.all_true else 0])
        elif (known := self.values_of(args[0])) is not None and len(known) == result.numel():
            self.remember(result, [value == args[1] for value in known])

    def _all(self, tensor: torch.Tensor) -> torch.Tensor:
        # transformers asks whether nothing is padded or packed
        return self.remember(tensor.new_empty((), dtype=torch.bool), [self.all_true])

    def _lift(self, tensor: torch.Tensor) -> torch.Tensor:
        if isinstance(tensor, FakeTensor):
            return tensor
        values = corners.real_values(tensor) if tensor.numel() <= READABLE else None
        fresh = torch.empty(tensor.shape, dtype=tensor.dtype)
        return fresh if values is None else self.remember(fresh, values)

    # -- pinned memory -------------------------------------------------------------------------------------

    def mark_pinned(self, tensor: torch.Tensor, *, cached: bool = True) -> torch.Tensor:
        """Count ``tensor``'s storage as page-locked; ``cached`` if torch's own host allocator gives it.

        That one (aten/src/ATen/core/CachingHostAllocator.h) rounds sizes up to a power of two, and keeps a
        block that is free for the next request of its size: it never gives one back.
        """
        self._see(tensor)
        allocation = self._live[tensor.untyped_storage()._cdata].allocation
        if not allocation.host or allocation.pinned:
            return tensor
        allocation.pinned = True
        fresh = allocation.size
        if cached and allocation.size:
            self.host -= allocation.size
            allocation.size, allocation.cached = 1 << (allocation.size - 1).bit_length(), True
            fresh = 0 if self._pinned_free[allocation.size] else allocation.size
            self._pinned_free[allocation.size] -= not fresh
            self.host += fresh
        self.pinned += fresh
        self.host_peak = max(self.host_peak, self.host)
        self.pinned_peak = max(self.pinned_peak, self.pinned)
        return tensor

    def is_pinned(self, tensor: torch.Tensor) -> bool:
        """Whether ``tensor`` lives in page-locked memory."""
        reference = self._live.get(tensor.untyped_storage()._cdata)
        return reference is not None and reference.allocation.pinned

    def _is_pinned(self, tensor: torch.Tensor, *_: Any) -> bool:
        return self.is_pinned(tensor)

    def _pin(self, tensor: torch.Tensor, *_: Any) -> torch.Tensor:
        return self.mark_pinned(torch.empty_like(tensor))

    # -- labels ------------------------------------------------------------------------------------------

    def label(self, tensor: Any, part: str) -> None:
        """Say what ``tensor``'s storage is for; the first label stays."""
        if isinstance(tensor, FakeTensor):
            reference = self._live.get(tensor.untyped_storage()._cdata)
            if reference is not None and reference.allocation.label is None:
                reference.allocation.label = part

    def reset_peaks(self) -> None:
        """Start counting the device's peak from what is alive now."""
        self.peak, self.peak_at = self.allocated, None

    def alive(self, at: int, *, host: bool = False) -> Iterable[Allocation]:
        """The allocations alive at tick ``at`` of the clock."""
        return (a for a in self.allocations if a.host == host and a.born <= at < a.died)

    # -- the record -----------------------------------------------------------------------------------------

    def _note(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any] | None, result: Any) -> None:
        if func in _COPIES:
            target = result if isinstance(result, torch.Tensor) else args[0]
            source = args[0] if func is aten._to_copy.default else args[1]
            if isinstance(source, torch.Tensor) and source.device.type != target.device.type:
                self._note_transfer(
                    target, source, waits=not (kwargs or {}).get("non_blocking", args[2:3] == (True,))
                )
                return
        module = self.module_stack[-1] if self.module_stack else ""
        if not module and self.phase == "backward":
            node = torch._C._current_autograd_node()
            module = self.module_of_node.get(node._sequence_nr(), "") if node is not None else ""
        there = list(_device_tensors((args, result)))
        uneven = not func.is_view and len({_layout(one) for one in there}) > 1
        key = (
            func,
            self.phase,
            self.module_classes.get(module, ""),
            tuple(_signatures(args)) + (tuple(_signatures(kwargs.values())) if kwargs else ()),
            tuple(_signatures((result,))),
            not there,
            uneven,
        )
        self._count(self.operators, "operator", key)

    def _note_transfer(self, target: torch.Tensor, source: torch.Tensor, *, waits: bool) -> None:
        """Note a copy over the host link; one that waits and changes the type does so on the host.

        native/cuda/Copy.cu, ``copy_kernel_cuda``: the host's side is then a fresh tensor, not pinned.
        """
        to_device = target.device.type == corners.DEVICE
        changes = waits and target.dtype != source.dtype
        moved = source if changes and not to_device else target
        pinned = self.is_pinned(source if to_device else target) and not changes
        size = moved.numel() * moved.element_size()
        self.note_copy("to_device" if to_device else "to_host", size, pinned)

    def note_copy(self, direction: str, size: int, pinned: bool) -> None:
        """Note one copy between host and device or host and disk."""
        if self.recording:
            self._count(self.copies, "copy", (direction, self.phase, size, pinned, self.stream))

    def note_kernel(self, name: str, tensors: Iterable[torch.Tensor], *, host: bool) -> None:
        """Note one of DeepSpeed's own kernels, which the dispatcher never sees."""
        if self.recording:
            key = (name, self.phase, "", tuple(_signatures(tensors)), (), host, False)
            self._count(self.operators, "operator", key)

    def _count(self, table: dict[Any, int], kind: str, key: Any) -> None:
        count = table.get(key, 0)
        table[key] = count + 1
        if self.timeline is not None:
            self.timeline.count(kind, key, self.stream)

    def _awaited(self) -> Callable[[], None]:
        """What a collective's handle calls when it is waited for."""
        timeline = self.timeline if self.recording else None
        if timeline is None:
            return lambda: None
        number = timeline.collectives - 1
        return lambda: timeline.awaited(number, self.stream)

    def _collective(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        given = [a for a in (*args, *kwargs.values()) if _is_tensors(a)]
        sizes = [sum(t.numel() * t.element_size() for t in _tensors(a)) for a in given]
        group = next((a for a in (*args, *kwargs.values()) if isinstance(a, torch.ScriptObject)), None)
        name = func._schema.name.removeprefix("c10d::").strip("_")
        if self.recording and sizes:
            size = corners.group_size_of(group) if group is not None else 1
            self._count(self.collectives, "collective", (name, self.phase, max(sizes), size, self.stream))
        if "allgather" in name:
            for tensor in _tensors(given[0]):
                self.label(tensor, "gathered_parameters")
        work = corners.finished_work(self._awaited())
        returns = func._schema.returns
        if len(returns) == 2:
            return args[0], work
        return work if returns else None


def _device_tensors(values: Iterable[Any]) -> Iterator[FakeTensor]:
    """The tensors of a call that live on the device."""
    for value in values:
        if isinstance(value, FakeTensor):
            if value.fake_device.type == corners.DEVICE:
                yield value
        elif isinstance(value, (list, tuple)):
            yield from _device_tensors(value)


def _is_dense(tensor: torch.Tensor) -> bool:
    """Whether the elements fill their stretch of memory without gaps or overlaps, in any order."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1:
            if stride != expected:
                return False
            expected *= size
    return True


def _layout(tensor: torch.Tensor) -> tuple[tuple[int, int], ...]:
    """Sizes and strides; kernels walk straight over operands whose layouts are all the same."""
    return tuple(pair for pair in zip(tensor.shape, tensor.stride(), strict=True) if pair[0] != 1)


def _is_tensors(value: Any) -> bool:
    return isinstance(value, torch.Tensor) or (
        isinstance(value, (list, tuple)) and bool(value) and _is_tensors(value[0])
    )


def _tensors(value: Any) -> Iterable[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    else:
        for item in value:
            yield from _tensors(item)


def _signatures(values: Iterable[Any]) -> Iterable[tuple[torch.dtype, tuple[int, ...]]]:
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value.dtype, tuple(value.shape)
        elif isinstance(value, (list, tuple)):
            yield from _signatures(value)
