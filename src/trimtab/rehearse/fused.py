"""Liger's fused kernels in a phantom: its own Python code runs, its Triton kernels do not.

Liger allocates in Python (``liger_kernel/ops/*.py``) and then starts a kernel that only writes; so the memory
is that of the installed version, and all that is stood in for is Triton, which a machine without a GPU need
not have.  The record has each kernel with the tensors that it is given.  Where Liger asks whether a tensor is
on CUDA, it is read as asking for the made-up device.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types
from collections.abc import Callable
from typing import Any

from trimtab.errors import MissingExtra
from trimtab.rehearse import corners

PROCESSORS = 132  # of an H100 or H200: partial sums are made a multiprocessor each


def apply(model: Any, compute_capability: tuple[int, int]) -> None:
    """Put Liger's kernels into ``model``, as trimtab.train does, for a card of ``compute_capability``.

    Raises:
        MissingExtra: liger-kernel is not installed.
    """
    if importlib.util.find_spec("liger_kernel") is None:
        raise MissingExtra("liger-kernel", "train", 'kernels "fused"')
    import torch

    for name in [name for name in sys.modules if name.partition(".")[0] == "triton"]:
        del sys.modules[name]
    sys.meta_path[:0] = [_NoTriton(), _OnOurDevice()]
    card = types.SimpleNamespace(multi_processor_count=PROCESSORS)
    torch.cuda.get_device_properties = lambda *_: card
    torch.cuda.get_device_capability = lambda *_: compute_capability
    from liger_kernel.transformers import _apply_liger_kernel_to_instance

    _apply_liger_kernel_to_instance(model=model)


class _Anything(types.ModuleType):
    """A module, a type or a number of Triton's: whatever is asked of it, it has."""

    __version__ = "3.5.0"
    __path__: list[str] = []  # noqa: RUF012  a package

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _KNOWN.get(name) or _Anything(name)

    def __call__(self, *_: Any, **__: Any) -> Any:
        return self


class _Kernel:
    """A compiled function: started on a grid, it does nothing, and is noted with its tensors."""

    def __init__(self, name: str) -> None:
        self._name = f"triton.{name}"

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        return self._start

    def _start(self, *given: Any, **named: Any) -> None:
        from torch import Tensor

        from trimtab.rehearse.streams import note_kernel

        note_kernel(self._name, *(one for one in (*given, *named.values()) if isinstance(one, Tensor)))


def _decorated(function: Any = None, **_: Any) -> Any:
    return _decorated if function is None else _Kernel(function.__name__)


_KNOWN: dict[str, Any] = {
    "jit": _decorated,
    "autotune": lambda *_, **__: lambda kernel: kernel,
    "heuristics": lambda *_, **__: lambda kernel: kernel,
    "cdiv": lambda whole, part: -(-whole // part),
    "next_power_of_2": lambda count: 1 << (count - 1).bit_length(),
}


class _NoTriton(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds everything called ``triton``."""

    def find_spec(self, name: str, *_: Any) -> importlib.machinery.ModuleSpec | None:
        if name.partition(".")[0] != "triton":
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return _Anything(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        """There is nothing to run."""


class _OnOurDevice(importlib.abc.MetaPathFinder):
    """Loads Liger's operators with the made-up device in the place of CUDA."""

    def find_spec(self, name: str, path: Any = None, *_: Any) -> importlib.machinery.ModuleSpec | None:
        if not name.startswith("liger_kernel.ops."):
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is not None and isinstance(spec.loader, importlib.machinery.SourceFileLoader):
            spec.loader = _Loader(name, spec.loader.path)
        return spec


class _Loader(importlib.machinery.SourceFileLoader):
    def get_code(self, fullname: str) -> types.CodeType:
        text = self.get_data(self.path).decode()
        for compared in ("==", "!="):
            text = text.replace(
                f'device.type {compared} "cuda"', f'device.type {compared} "{corners.DEVICE}"'
            )
        return compile(text, self.path, "exec")
