"""DeepSpeed's accelerator for the made-up device: CUDA's choices, none of its calls.

The engine asks its accelerator which code path to take; every answer here is CUDA's, so that the engine does
what it would do on a GPU.  Compiled kernels come from `trimtab.rehearse.kernels`.
"""

from __future__ import annotations

import contextlib
import functools
import types
from collections.abc import Iterator
from typing import Any

import torch
from deepspeed.accelerator.cuda_accelerator import CUDA_Accelerator

from trimtab.rehearse import corners, kernels, streams
from trimtab.rehearse.ledger import Ledger

PLENTY = 1 << 60


class PhantomAccelerator(CUDA_Accelerator):
    """CUDA's accelerator with the made-up device in the place of the GPU."""

    def __init__(self, ledger: Ledger, *, gpu_memory_bytes: int | None, gpus_per_node: int) -> None:
        self._name = corners.DEVICE
        self._communication_backend_name = "nccl"
        self._compile_backend = "inductor"
        self._nvtx_domains: dict[str, Any] = {}
        self._ledger = ledger
        self._gpu_memory_bytes = gpu_memory_bytes or PLENTY
        self._gpus_per_node = gpus_per_node
        self._stream = streams.COMPUTE_STREAM

    # -- device ------------------------------------------------------------------------------------------

    def device_name(self, device_index: int | None = None) -> str:
        return corners.DEVICE if device_index is None else f"{corners.DEVICE}:0"

    def device(self, device_index: int | None = None) -> torch.device:
        return torch.device(corners.DEVICE, 0)

    def set_device(self, device_index: int) -> None:
        return None

    def current_device(self) -> int:
        return 0

    def current_device_name(self) -> str:
        return f"{corners.DEVICE}:0"

    def device_count(self) -> int:
        return self._gpus_per_node

    def synchronize(self, device_index: int | None = None) -> None:
        if self._ledger.timeline is not None:
            self._ledger.timeline.host_waits(None)

    def is_available(self) -> bool:
        return True

    def on_accelerator(self, tensor: torch.Tensor) -> bool:
        return tensor.device.type == corners.DEVICE

    def is_bf16_supported(self) -> bool:
        return True

    def is_fp16_supported(self) -> bool:
        return True

    def is_triton_supported(self) -> bool:
        return False

    def prefer_triton_grouped_mm(self) -> bool:
        return False

    def communication_backend_version(self) -> tuple[int, int, int]:
        return (2, 27, 0)

    # -- randomness ----------------------------------------------------------------------------------------

    def set_rng_state(self, new_state: Any, device_index: int | None = None) -> None:
        return None

    def get_rng_state(self, device_index: int | None = None) -> torch.Tensor:
        return torch.empty(16, dtype=torch.uint8)

    def manual_seed(self, seed: int) -> None:
        return None

    def manual_seed_all(self, seed: int) -> None:
        return None

    def initial_seed(self) -> int:
        return 0

    def default_generator(self, device_index: int) -> Any:
        return torch.default_generator

    # -- streams -------------------------------------------------------------------------------------------

    @property
    def Stream(self) -> Any:  # noqa: N802
        return streams.Stream

    @property
    def Event(self) -> Any:  # noqa: N802
        return streams.Event

    @contextlib.contextmanager
    def stream(self, stream: Any) -> Iterator[None]:
        outer, self._stream = self._stream, stream or self._stream
        self._ledger.stream = getattr(self._stream, "name", "compute")
        try:
            yield
        finally:
            self._stream = outer
            self._ledger.stream = outer.name

    def current_stream(self, device_index: int | None = None) -> Any:
        return self._stream

    def default_stream(self, device_index: int | None = None) -> Any:
        return streams.COMPUTE_STREAM

    # -- memory --------------------------------------------------------------------------------------------

    def empty_cache(self) -> None:
        self._ledger.cache_drops.append(self._ledger.clock)

    def memory_allocated(self, device_index: int | None = None) -> int:
        return self._ledger.allocated

    def max_memory_allocated(self, device_index: int | None = None) -> int:
        return self._ledger.peak

    memory_cached = memory_reserved = memory_allocated
    max_memory_cached = max_memory_reserved = max_memory_allocated

    def reset_max_memory_allocated(self, device_index: int | None = None) -> None:
        return None

    reset_max_memory_cached = reset_peak_memory_stats = reset_max_memory_allocated

    def memory_stats(self, device_index: int | None = None) -> dict[str, int]:
        return {
            "allocated_bytes.all.current": self._ledger.allocated,
            "allocated_bytes.all.peak": self._ledger.peak,
            "num_alloc_retries": 0,
        }

    def total_memory(self, device_index: int | None = None) -> int:
        return self._gpu_memory_bytes

    def available_memory(self, device_index: int | None = None) -> int:
        return max(0, self._gpu_memory_bytes - self._ledger.allocated)

    def _torch_pin_memory(self, tensor: torch.Tensor) -> torch.Tensor:
        if self._ledger.is_pinned(tensor):
            return tensor
        return self._ledger.mark_pinned(torch.empty_like(tensor, device="cpu"))

    def _torch_empty_pinned(self, tensor: torch.Tensor, shape: Any) -> torch.Tensor:
        return self._ledger.mark_pinned(torch.empty(shape, dtype=tensor.dtype, device="cpu"))

    def _torch_is_pinned(self, tensor: torch.Tensor) -> bool:
        return self._ledger.is_pinned(tensor)

    # -- tensors -------------------------------------------------------------------------------------------

    def _typed(self, dtype: torch.dtype) -> Any:
        return functools.partial(torch.tensor, dtype=dtype, device=corners.DEVICE)

    BFloat16Tensor = property(lambda self: self._typed(torch.bfloat16))
    ByteTensor = property(lambda self: self._typed(torch.uint8))
    DoubleTensor = property(lambda self: self._typed(torch.double))
    FloatTensor = property(lambda self: self._typed(torch.float))
    HalfTensor = property(lambda self: self._typed(torch.half))
    IntTensor = property(lambda self: self._typed(torch.int))
    LongTensor = property(lambda self: self._typed(torch.long))

    # -- graphs, ranges and kernels --------------------------------------------------------------------------

    def is_current_stream_capturing(self) -> bool:
        return False

    def range_push(self, msg: str, domain: Any = None, category: Any = None) -> None:
        return None

    def range_pop(self, domain: Any = None) -> None:
        return None

    def lazy_call(self, callback: Any) -> Any:
        return callback()

    def get_op_builder(self, class_name: str) -> Any:
        return kernels.builder(class_name, self._ledger)

    def create_op_builder(self, class_name: str) -> Any:
        return kernels.builder(class_name, self._ledger)()


def install(accelerator: PhantomAccelerator) -> types.ModuleType:
    """Make ``accelerator`` and its kernels DeepSpeed's own; returns DeepSpeed."""
    import deepspeed
    from deepspeed.accelerator import set_accelerator

    set_accelerator(accelerator)
    corners.use_kernels(accelerator.get_op_builder)
    return deepspeed
