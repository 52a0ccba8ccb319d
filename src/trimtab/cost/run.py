"""A whole run: days and dollars for a number of tokens, with the interruptions that a run of that length has.

The time that checkpoints, lost steps and restarts add follows J. W. Young, "A first order approximation to
the optimum checkpoint interval", CACM 17 (1974), as J. T. Daly, FGCS 22 (2006), restates it.
"""

from __future__ import annotations

import math

from trimtab.frozen import dataclass

# Llama 3 405B (arXiv 2407.21783, table 5): 419 unexpected interruptions of 16,384 H100s in 54 days
GPU_HOURS_BETWEEN_INTERRUPTIONS = 54 * 24 * 16_384 / 419
# a rank that hangs is noticed when a collective times out: DeepSpeed's default, deepspeed/constants.py:19
NOTICE_SECONDS = 600.0
DAY_SECONDS = 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class WholeRun:
    """What a run over ``tokens`` takes; seconds and dollars."""

    tokens: int
    steps: int
    training_seconds: float
    """Steps alone, without saving or interruptions."""
    interruptions: float
    """Expected number of unexpected ones."""
    seconds_between_interruptions: float
    checkpoint_bytes: int
    """Of one checkpoint, all ranks together."""
    save_seconds: float
    restart_seconds: float
    """Until a hang is noticed, and loading the checkpoint."""
    checkpoint_interval_seconds: float
    """Young's: saving more often costs more than it saves."""
    effective_ratio: float
    """Share of the wall clock that trains."""
    seconds: float
    usd: float | None

    @property
    def days(self) -> float:
        """Wall clock in days."""
        return self.seconds / DAY_SECONDS


def whole_run(
    tokens: int,
    *,
    tokens_per_second: float,
    tokens_per_step: int,
    gpus: int,
    checkpoint_bytes: int,
    write_bytes_per_second: float,
    read_bytes_per_second: float,
    usd_per_hour: float | None,
) -> WholeRun:
    """Days, dollars and interruptions of a run.

    Args:
        tokens_per_second, tokens_per_step: of all GPUs together.
        write_bytes_per_second, read_bytes_per_second: of all nodes' storage together.

    >>> run = whole_run(10**12, tokens_per_second=1e6, tokens_per_step=2**22, gpus=1024, usd_per_hour=None,
    ...     checkpoint_bytes=10**12, write_bytes_per_second=1e11, read_bytes_per_second=1e11)
    >>> round(run.training_seconds / 86400, 2), round(run.interruptions, 1), run.effective_ratio > 0.98
    (11.57, 5.7, True)
    """
    training = tokens / tokens_per_second
    between = GPU_HOURS_BETWEEN_INTERRUPTIONS * 3600 / gpus
    save = checkpoint_bytes / write_bytes_per_second
    restart = NOTICE_SECONDS + checkpoint_bytes / read_bytes_per_second
    interval = max(save, math.sqrt(2 * save * between))
    lost = save / interval + (interval / 2 + restart) / between
    ratio = 1 / (1 + lost)
    seconds = training / ratio
    return WholeRun(
        tokens=tokens,
        steps=math.ceil(tokens / tokens_per_step),
        training_seconds=training,
        interruptions=seconds / between,
        seconds_between_interruptions=between,
        checkpoint_bytes=checkpoint_bytes,
        save_seconds=save,
        restart_seconds=restart,
        checkpoint_interval_seconds=interval,
        effective_ratio=ratio,
        seconds=seconds,
        usd=None if usd_per_hour is None else usd_per_hour * seconds / 3600,
    )
