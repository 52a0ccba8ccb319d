"""Where memory ran out: the module at work, the line of the model's code, what the allocator was asked for.

Everything is read from the exception itself, so a run that fits pays nothing for it.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

from trimtab.rehearse.on_gpu import Shortage
from trimtab.units import parse_bytes

# c10/cuda/CUDACachingAllocator.cpp: "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ..."
_ASKED = re.compile(r"[Tt]ried to allocate ([0-9.]+ ?[KMGT]?i?B)|you tried to allocate ([0-9]+) bytes")
# what else says that there is no more: cudaHostAlloc and kernels, cuBLAS's handle, malloc
_GPU = ("CUDA out of memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
_HOST = ("DefaultCPUAllocator: ", "Unable to allocate", "Cannot allocate memory")
ENGINE = ("torch", "deepspeed", "accelerate")
"""Packages whose lines are not the model's."""


def memory_that_ran_out(error: BaseException) -> str | None:
    """``gpu`` or ``host`` if ``error`` says that there was no memory left; None if it says something else."""
    text = str(error)
    if type(error).__name__ == "OutOfMemoryError" or any(words in text for words in _GPU):
        return "gpu"
    if isinstance(error, MemoryError) or any(words in text for words in _HOST):
        return "host"
    return None


def shortage(
    error: BaseException,
    *,
    memory: str,
    step: int,
    phase: str,
    modules: Mapping[int, str],
    allocated_bytes: int,
    reserved_bytes: int,
) -> Shortage:
    """What ``error`` and its traceback tell; ``modules`` names the model's modules by ``id``."""
    message = str(error).strip() or type(error).__name__
    module, outside, engine = None, None, None
    for frame, line in _frames(error):
        inside = frame.f_locals.get("self")
        if id(inside) in modules:
            module = inside
        where = f"{_short(Path(frame.f_code.co_filename))}:{line} in {frame.f_code.co_name}"
        if not _is_engine(frame):
            outside = where
        elif str(frame.f_globals.get("__name__", "")).startswith("deepspeed."):
            engine = where
    asked = _ASKED.search(message)
    return Shortage(
        message=message.partition("\n")[0].partition(". GPU 0 has")[0].strip()[:300],
        memory=memory,
        step=step,
        phase=phase,
        asked_bytes=None if asked is None else parse_bytes(asked[1] or asked[2]),
        allocated_bytes=allocated_bytes,
        reserved_bytes=reserved_bytes,
        module=None if module is None else modules[id(module)],
        module_class=None if module is None else type(module).__name__,
        frame=outside or engine,
    )


def _frames(error: BaseException) -> Iterator[tuple[FrameType, int]]:
    """The frames of the traceback, outermost first."""
    entry: Any = error.__traceback__
    while entry is not None:
        yield entry.tb_frame, entry.tb_lineno
        entry = entry.tb_next


def _is_engine(frame: FrameType) -> bool:
    """Whether the frame runs code of torch's or the standard library's, or ours."""
    package = str(frame.f_globals.get("__name__", "")).partition(".")[0]
    ours = Path(__file__).parents[1] in Path(frame.f_code.co_filename).parents
    return ours or package in ENGINE or package in sys.stdlib_module_names


def _short(file: Path) -> str:
    """The path below the folder that packages are installed in; a user's own file as it is."""
    for root in ("site-packages", "dist-packages"):
        if root in file.parts:
            return str(Path(*file.parts[len(file.parts) - file.parts[::-1].index(root) :]))
    return str(file)
