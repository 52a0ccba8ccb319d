"""Stand-ins for DeepSpeed's compiled kernels: what they allocate, and nothing else.

The optimizer classes around them stay DeepSpeed's own, so the engine's choice among them, the states that
they make and where they make them stay real.
"""

from __future__ import annotations

from typing import Any

import torch

from trimtab.errors import Unsupported
from trimtab.rehearse.ledger import Ledger


def _nothing(*_: Any, **__: Any) -> None:
    return None


class _Fused:
    """Kernels that update in place: fused_adam, fused_lion, cpu_adam, cpu_lion, cpu_adagrad."""

    create_adam = adam_rollback = destroy_adam = staticmethod(_nothing)
    create_lion = destroy_lion = staticmethod(_nothing)
    create_adagrad = destroy_adagrad = staticmethod(_nothing)

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def multi_tensor_adam(self, _: int, __: Any, lists: Any, *___: Any) -> None:
        """csrc/adam/multi_tensor_adam.cu: lists of gradients, parameters and states."""
        self._ledger.note_kernel("deepspeed.multi_tensor_adam", [t for one in lists for t in one], host=False)

    multi_tensor_lion = multi_tensor_adam

    def adam_update(self, *arguments: Any) -> None:
        """csrc/adam/cpu_adam_impl.cpp: parameters, gradients and states as flat tensors."""
        tensors = [one for one in arguments if isinstance(one, torch.Tensor)]
        self._ledger.note_kernel("deepspeed.adam_update", tensors, host=True)

    lion_update = adagrad_update = adam_update


class _Lamb:
    """csrc/lamb/fused_lamb_cuda.cpp:65-87: two buffers of 512 sums, and what it returns."""

    @staticmethod
    def lamb(parameter: torch.Tensor, *_: Any) -> torch.Tensor:
        dtype = torch.float32 if parameter.dtype == torch.float16 else parameter.dtype
        sums = [parameter.new_empty(512, dtype=dtype) for _ in range(2)]
        coefficient = parameter.new_empty(1, dtype=dtype)
        del sums
        return coefficient


class _Quantizer:
    """csrc/quantization/pt_binding.cpp: bytes or half bytes, an fp32 scale a group (two if asymmetric)."""

    Symmetric, Asymmetric = 0, 1

    @staticmethod
    def quantize(values: torch.Tensor, groups: int, bits: int, kind: int) -> list[torch.Tensor]:
        scales = values.new_empty(groups, 1 + kind, dtype=torch.float32)
        *outer, last = values.shape
        return [values.new_empty(*outer, last * bits // 8, dtype=torch.int8), scales]

    @staticmethod
    def dequantize(values: torch.Tensor, _: Any, groups: int, bits: int, kind: int) -> torch.Tensor:
        *outer, last = values.shape
        return values.new_empty(*outer, last * 8 // bits, dtype=torch.float16)

    @staticmethod
    def swizzle_quant(values: torch.Tensor, groups: int, bits: int, kind: int, *_: int) -> list[torch.Tensor]:
        scales = values.new_empty(groups, 1 + kind, dtype=torch.float32)
        return [values.new_empty(values.numel() * bits // 8, dtype=torch.int8), scales]

    @staticmethod
    def quantized_reduction(
        values: torch.Tensor, _: Any, in_groups: int, out_groups: int, bits: int, kind: int, devices: int
    ) -> list[torch.Tensor]:
        scales = values.new_empty(out_groups, 1 + kind, dtype=torch.float32)
        *outer, last = values.shape
        return [values.new_empty(*outer, last // devices, dtype=torch.int8), scales]


class _Flatten:
    """csrc/utils/flatten_unflatten.cpp is torch's own pair."""

    @staticmethod
    def flatten(tensors: Any) -> torch.Tensor:
        return torch._utils._flatten_dense_tensors(tensors)

    @staticmethod
    def unflatten(flat: torch.Tensor, tensors: Any) -> Any:
        return torch._utils._unflatten_dense_tensors(flat, tensors)


def _file_handle(ledger: Ledger) -> type:
    files = ledger.files

    class Handle:
        """An asynchronous file handle (csrc/aio): no file is written, sizes are kept."""

        def __init__(self, *_: Any, **__: Any) -> None:
            self.pending = 0

        def get_block_size(self) -> int:
            return 1 << 20

        def get_intra_op_parallelism(self) -> int:
            return 1

        def is_pinned(self, tensor: torch.Tensor) -> bool:
            return ledger.is_pinned(tensor)

        def new_cpu_locked_tensor(self, count: int, example: torch.Tensor) -> torch.Tensor:
            # csrc/aio/py_lib/deepspeed_pin_tensor_client.cpp: locked pages, not torch's pinned allocator
            return ledger.mark_pinned(torch.empty(count, dtype=example.dtype, device="cpu"), cached=False)

        def free_cpu_locked_tensor(self, _: torch.Tensor) -> bool:
            return True

        def _write(self, tensor: torch.Tensor, name: str, *_: Any) -> int:
            files[name] = tensor.numel() * tensor.element_size()
            ledger.note_copy("to_disk", files[name], True)
            self.pending += 1
            return 0

        def _read(self, tensor: torch.Tensor, name: str, *_: Any) -> int:
            ledger.note_copy("from_disk", tensor.numel() * tensor.element_size(), True)
            self.pending += 1
            return 0

        async_pwrite = _write
        async_pread = _read

        def sync_pwrite(self, tensor: torch.Tensor, name: str, *_: Any) -> int:
            self._write(tensor, name)
            return self.wait()

        def sync_pread(self, tensor: torch.Tensor, name: str, *_: Any) -> int:
            self._read(tensor, name)
            return self.wait()

        read, write = sync_pread, sync_pwrite

        def wait(self) -> int:
            done, self.pending = self.pending, 0
            return done

    return Handle


class _Files:
    def __init__(self, ledger: Ledger) -> None:
        self.aio_handle = _file_handle(ledger)


_KERNELS = {
    "FusedAdamBuilder": _Fused,
    "FusedLionBuilder": _Fused,
    "CPUAdamBuilder": _Fused,
    "CPULionBuilder": _Fused,
    "CPUAdagradBuilder": _Fused,
    "FusedLambBuilder": lambda _: _Lamb,
    "QuantizerBuilder": lambda _: _Quantizer,
    "UtilsBuilder": lambda _: _Flatten,
    "AsyncIOBuilder": _Files,
}


def builder(name: str, ledger: Ledger) -> type:
    """The class that DeepSpeed takes for the builder called ``name``; `load` gives the stand-in."""

    class Builder:
        NAME = name

        def load(self, *_: Any, **__: Any) -> Any:
            if name not in _KERNELS:
                raise Unsupported(
                    "a phantom rehearsal has no stand-in for DeepSpeed's kernel "
                    f"{name.removesuffix('Builder')}; leave out the option that needs it, or use the estimate"
                )
            return _KERNELS[name](ledger)

        def is_compatible(self, *_: Any, **__: Any) -> bool:
            return name in _KERNELS

        def absolute_name(self) -> str:
            return f"trimtab.rehearse.kernels.{name}"

    Builder.__name__ = name
    return Builder
