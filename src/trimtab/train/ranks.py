"""This process among the ranks: who it is, and the few things that ranks tell each other."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from datetime import timedelta
from types import FrameType
from typing import Any

COLLECTIVE_TIMEOUT = timedelta(hours=2)
"""Long enough for rank 0 to tokenize while the others wait."""
SAME_STOP_SECONDS = 2.0
"""Launchers pass one Ctrl-C on more than once; a second signal within this time is the same one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranks:
    """The world as this process sees it."""

    rank: int
    world: int
    local_rank: int
    device: Any

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which speaks and writes for all."""
        return self.rank == 0

    def same(self, value: Any) -> Any:
        """Rank 0's ``value``, on every rank."""
        import torch.distributed as dist

        box = [value]
        if self.world > 1:
            dist.broadcast_object_list(box, src=0)
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """Every rank's ``value``, by rank."""
        import torch.distributed as dist

        if self.world == 1:
            return [value]
        parts: list[Any] = [None] * self.world
        dist.all_gather_object(parts, value)
        return parts

    def wait(self) -> None:
        """Return when every rank is here."""
        import torch.distributed as dist

        if self.world > 1:
            dist.barrier()

    def add(self, *numbers: float) -> tuple[float, ...]:
        """The sums of ``numbers`` over all ranks, in float64."""
        import torch
        import torch.distributed as dist

        if self.world == 1:
            return numbers
        values = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        dist.all_reduce(values)
        return tuple(values.tolist())


def join(device: str, deepspeed: Any) -> Ranks:
    """Join the process group that the launcher's environment describes (one rank if there is none)."""
    import torch

    for name, value in (
        ("RANK", "0"),
        ("WORLD_SIZE", "1"),
        ("LOCAL_RANK", "0"),
        ("MASTER_ADDR", "127.0.0.1"),
    ):
        os.environ.setdefault(name, os.environ.get(_SLURM_NAMES.get(name, ""), value))
    if "MASTER_PORT" not in os.environ:
        os.environ["MASTER_PORT"] = str(29500 + int(os.environ.get("SLURM_JOB_ID", "0")) % 1000)
    local_rank = int(os.environ["LOCAL_RANK"])
    if device == "cuda":
        torch.cuda.set_device(local_rank)
    else:
        local_world = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"]))
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // local_world))
    deepspeed.init_distributed(
        dist_backend="nccl" if device == "cuda" else "gloo",
        verbose=False,
        timeout=COLLECTIVE_TIMEOUT,
        auto_mpi_discovery=False,
    )
    return Ranks(
        rank=int(os.environ["RANK"]),
        world=int(os.environ["WORLD_SIZE"]),
        local_rank=local_rank,
        device=torch.device("cuda", local_rank) if device == "cuda" else torch.device("cpu"),
    )


_SLURM_NAMES = {"RANK": "SLURM_PROCID", "WORLD_SIZE": "SLURM_NTASKS", "LOCAL_RANK": "SLURM_LOCALID"}
"""srun sets these instead of the names that PyTorch reads."""


class StopSignals:
    """Remembers SIGINT or SIGTERM for the next step's end; a second SIGINT, a while later, acts at once."""

    def __init__(self) -> None:
        self.number = 0
        self._since = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.number and number == signal.SIGINT and now - self._since > SAME_STOP_SECONDS:
            os._exit(128 + signal.SIGINT)
        if not self.number:
            self.number, self._since = number, now
