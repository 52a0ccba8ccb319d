"""How fast the host is at this moment: a few milliseconds of single calls, over those of the shipped tables.

The processor of a virtual machine may go from one pace to another between two steps; sampled before and
after each, the steps that ran at one known pace can be told from the others.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

CALLS = 40
LOOPS = 20_000
WARM = 5
"""Calls that are not timed: what ran before has left other code in the processor's caches."""


class HostPace:
    """Samples the pace of the process that it was made in; each sample leaves no tensor behind."""

    def __init__(self, device: str) -> None:
        self.device = device

    def sample(self) -> float | None:
        """`trimtab.cost.rates.pace_of` single calls right now; nothing else may be running."""
        import torch

        from trimtab.cost.rates import pace_of
        from trimtab.probe.host import single_calls

        found: dict[str, float] = {}
        with torch.no_grad():
            for name, call in single_calls(self.device).items():
                found[name] = self._seconds(call)
        found["mul backward"] = self._backward()
        began = time.perf_counter()
        total = 0
        for number in range(LOOPS):
            total += number
        found["python loop"] = (time.perf_counter() - began) / LOOPS
        return pace_of(found)

    def _seconds(self, call: Callable[[], Any]) -> float:
        for _ in range(WARM):
            call()
        self._wait()
        began = time.perf_counter()
        for _ in range(CALLS):
            call()
        seconds = time.perf_counter() - began
        self._wait()
        return seconds / CALLS

    def _backward(self) -> float:
        import torch

        out = torch.zeros(8, 8, device=self.device, dtype=torch.bfloat16, requires_grad=True)
        for _ in range(CALLS):
            out = out * 1.01
        loss = out.sum()
        self._wait()
        began = time.perf_counter()
        loss.backward()
        seconds = time.perf_counter() - began
        self._wait()
        return seconds / CALLS

    def _wait(self) -> None:
        if self.device == "cuda":
            import torch

            torch.cuda.synchronize()
