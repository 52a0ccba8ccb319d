"""What CUDA's sum over the rows of a matrix takes while it runs; no tensor shows it."""

from __future__ import annotations

PARTIAL_SUM_BYTES = 4  # sums of 16- and 32-bit floats are kept in fp32 (Reduce.cuh, acc_type)


def reduction_bytes(rows: int, columns: int, item: int, processors: int = 132) -> int:
    """Bytes that CUDA's sum over the rows of a matrix takes while it runs (a bias's or norm's gradient).

    The launch arithmetic of ``aten/src/ATen/native/cuda/Reduce.cuh``: ``setReduceConfig`` splits a long sum
    over blocks of threads, and ``global_memory_size`` holds a partial sum of every thread.  ``processors`` is
    the card's count of multiprocessors (132 on H100 and H200).
    """
    vector = 4 if columns % 4 == 0 and item <= 4 else 1
    width_limit = 512 // vector
    across = columns // vector
    width = min(_power_below(across, width_limit), 32)
    height = min(_power_below(rows, width_limit), width_limit // width)
    width = min(_power_below(across, width_limit), width_limit // height)
    values = rows
    if values < min(height * 16, 256):
        return 0
    values = -(-values // height)
    grid = -(-across // width)
    target = processors * (2048 // (width * height))
    if values < 256 or grid > target:
        return 0
    blocks = max(min(-(-target // grid), -(-values // 16)), -(-values // 256))
    return PARTIAL_SUM_BYTES * columns * blocks * width * vector if blocks > 1 else 0


def _power_below(count: int, limit: int) -> int:
    return limit if count >= limit else 1 << (count.bit_length() - 1)
