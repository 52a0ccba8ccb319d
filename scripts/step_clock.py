"""Seconds of whole steps and of their phases, and the host's pace before and after each step."""

from __future__ import annotations

import itertools
import statistics
import time
from typing import Any

from host_pace import HostPace


def of_all_ranks(paces: list[float | None], device: Any) -> list[list[float]]:
    """The paces that each rank's host had before the first timed step and after each, to 1 %."""
    import torch
    import torch.distributed as dist

    own = torch.tensor([pace or 0.0 for pace in paces], device=device)
    found = [own]
    if dist.get_world_size() > 1 and dist.get_backend() != "fake":
        found = [torch.empty_like(own) for _ in range(dist.get_world_size())]
        dist.all_gather(found, own)
    return [[round(pace, 3) for pace in one.tolist()] for one in found]


class Clock:
    """Seconds of whole steps by the wall clock, of their phases by the device's own, and the host's pace."""

    def __init__(self, device: str) -> None:
        self.device, self.keep = device, False
        self.host = HostPace(device)
        self.steps: list[float] = []
        self.paces: list[float | None] = []
        """Before the first timed step, and after each."""
        self.marks: list[list[tuple[str, object]]] = []

    def begin(self, *, keep: bool) -> None:
        self.keep = keep
        synchronize(self.device)
        if keep and not self.paces:
            self.paces.append(self.host.sample())
        together(self.device)
        self.started = time.perf_counter()
        if keep:
            self.marks.append([])
            self.mark("begin")

    def mark(self, phase: str) -> None:
        """The end of ``phase`` in the device's order of work; nothing waits for it."""
        if not self.keep:
            return
        if self.device == "cuda":
            import torch

            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.marks[-1].append((phase, event))
        else:
            self.marks[-1].append((phase, time.perf_counter()))

    def end(self) -> None:
        synchronize(self.device)
        if self.keep:
            self.steps.append(time.perf_counter() - self.started)
            self.paces.append(self.host.sample())

    def phases(self) -> dict[str, float]:
        """Of each phase, the median over the timed steps of its seconds in a step."""
        sums: dict[str, list[float]] = {}
        for marks in self.marks:
            total: dict[str, float] = {}
            for (_, before), (phase, after) in itertools.pairwise(marks):
                total[phase] = total.get(phase, 0.0) + self.between(before, after)
            for phase, seconds in total.items():
                sums.setdefault(phase, []).append(seconds)
        return {phase: round(statistics.median(values), 4) for phase, values in sums.items()}

    def micro_steps(self) -> list[float]:
        """Of each micro step of a step, the median over the timed steps; the last holds the optimizer's."""
        steps: list[list[float]] = []
        for marks in self.marks:
            ends = [moment for phase, moment in marks if phase in ("begin", "step")]
            steps.append([self.between(*pair) for pair in itertools.pairwise(ends)])
        return [round(statistics.median(one), 6) for one in zip(*steps, strict=True)]

    def between(self, before: Any, after: Any) -> float:
        """Seconds from one mark to another."""
        return before.elapsed_time(after) / 1000 if self.device == "cuda" else after - before


def synchronize(device: str) -> None:
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


def together(device: str) -> None:
    """Until all real ranks are here, so that none begins a step while another's pace is sampled."""
    import torch.distributed as dist

    if dist.get_world_size() > 1 and dist.get_backend() != "fake":
        dist.barrier()
        synchronize(device)
