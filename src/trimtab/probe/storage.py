"""Bytes that leave the device: copies over the host link, pinned or not, and files on a local disk."""

from __future__ import annotations

import contextlib
import mmap
import os
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from trimtab.errors import UsageError
from trimtab.probe.notes import Notes

FRESH_COPIES = (16 * 2**20, 256 * 2**20)
COPIES = (4 * 2**10, 64 * 2**10, 2**20, 16 * 2**20, 256 * 2**20)
BLOCK_BYTES = 8 * 2**20
FILE_BYTES = 2**30
THREADS = (1, 4, 8)


def measure_copies(notes: Notes, *, ranks: int) -> None:
    """Pinned copies both ways; ``ranks`` of this host copy at the same time."""
    if not notes.on_gpu:
        return
    import torch

    for size in COPIES:
        host = torch.empty(size, dtype=torch.uint8, pin_memory=True)
        device = torch.empty(size, dtype=torch.uint8, device="cuda")
        what = {"bytes": size, "ranks": ranks}
        for direction, target, source in (("to device", device, host), ("to host", host, device)):
            notes.kernel(
                "copy", [partial(target.copy_, source, non_blocking=True)], direction=direction, **what
            )
    for size in FRESH_COPIES:
        _fresh(notes, size, ranks)


def _fresh(notes: Notes, size: int, ranks: int) -> None:
    """Copies of ``size`` bytes that change their type on the host, in memory that nobody touched before.

    As the engine's do when parameters or optimizer states are offloaded, one without the other.
    """
    import torch

    wide = torch.zeros(size // 4, dtype=torch.float32, device="cuda")
    narrow_host = torch.zeros(size // 4, dtype=torch.bfloat16, pin_memory=True)
    narrow = torch.zeros(size // 2, dtype=torch.bfloat16, device="cuda")
    wide_host = torch.zeros(size // 2, dtype=torch.float32, pin_memory=True)
    for direction, target, source in (("to host", narrow_host, wide), ("to device", narrow, wide_host)):
        samples = []
        for _ in range(3):
            notes.wait()
            began = time.perf_counter()
            target.copy_(source)
            notes.wait()
            samples.append(time.perf_counter() - began)
        notes.add("fresh copy", samples, direction=direction, bytes=size, ranks=ranks)


def measure_disk(notes: Notes, folder: Path, *, ranks: int, rank: int) -> None:
    """Write and read a file in ``folder`` past the page cache, as DeepSpeed's aio does.

    Raises:
        UsageError: the folder cannot be written.
    """
    file = folder / f"trimtab-probe-{rank}.bin"
    size = FILE_BYTES if notes.on_gpu else 4 * BLOCK_BYTES
    block = mmap.mmap(-1, BLOCK_BYTES)  # aligned to a page, as O_DIRECT wants
    block.write(os.urandom(2**16) * (BLOCK_BYTES // 2**16))
    try:
        for threads in THREADS:
            what = {"bytes": size, "threads": threads, "ranks": ranks}
            for direction in ("write", "read"):
                seconds = _transfer(file, block, size, threads, direction)
                notes.add("disk", [seconds], direction=direction, **what)
    except OSError as error:
        raise UsageError(f"{folder}: cannot measure this disk: {error.strerror}") from None
    finally:
        with contextlib.suppress(OSError):
            file.unlink()


def _transfer(file: Path, block: mmap.mmap, size: int, threads: int, direction: str) -> float:
    flags = (os.O_RDWR | os.O_CREAT) if direction == "write" else os.O_RDONLY
    try:
        handle = os.open(file, flags | getattr(os, "O_DIRECT", 0), 0o600)
    except OSError:  # a file system without O_DIRECT
        handle = os.open(file, flags, 0o600)
    buffers = [block if direction == "write" else mmap.mmap(-1, BLOCK_BYTES) for _ in range(threads)]
    offsets = range(0, size, BLOCK_BYTES)

    def work(number: int) -> None:
        for offset in offsets[number::threads]:
            if direction == "write":
                os.pwrite(handle, buffers[number], offset)
            else:
                os.preadv(handle, [buffers[number]], offset)

    try:
        if direction == "read" and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(handle, 0, size, os.POSIX_FADV_DONTNEED)
        began = time.perf_counter()
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(work, range(threads)))
        if direction == "write":
            os.fsync(handle)
        return time.perf_counter() - began
    finally:
        os.close(handle)
