"""What a rank measures with, and writes its measurements into."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

Row = dict[str, Any]
"""One measurement: ``kind``, what was measured, ``seconds`` (the median) and ``samples`` (each of them)."""

SAMPLES = 3
SAMPLE_SECONDS = 2e-3
"""A sample repeats a kernel until it takes about this long."""
MOST_REPEATS = 40
REST = 4
"""Idle time before a sample, in samples: kernels that draw much power run slower the longer they run alone,
and among the others of a step they never run long."""
COLD_BYTES = 192 * 2**20
"""Operands that together exceed every cache (an H200's second level holds 60 MB, a B200's 126 MB)."""


@dataclass(slots=True)
class Notes:
    """The rows of one rank, and the clock that fits its device."""

    device: str
    """``cuda`` or ``cpu``; the CPU runs small sizes only, to try the path."""
    rows: list[Row] = field(default_factory=list)
    _first: Any = None
    """The first captured graph: its memory serves all others, since none runs beside another."""

    @property
    def on_gpu(self) -> bool:
        """Whether kernels run on a GPU."""
        return self.device == "cuda"

    def add(self, kind: str, samples: Sequence[float], **what: Any) -> None:
        """Keep one measurement."""
        rounded = [float(f"{sample:.6g}") for sample in samples]
        self.rows.append({"kind": kind, **what, "seconds": statistics.median(rounded), "samples": rounded})

    def skip(self, kind: str, reason: str, **what: Any) -> None:
        """Keep that something could not be measured, and why."""
        self.rows.append({"kind": kind, **what, "seconds": None, "skipped": reason})

    def kernel(self, kind: str, bodies: Sequence[Callable[[], Any]], **what: Any) -> None:
        """Measure a kernel's own time on the device: ``bodies`` do the same with different operands."""
        import torch

        try:
            self.add(kind, self._device_samples(bodies), **what)
        except (RuntimeError, NotImplementedError) as error:  # an operator that this card or release lacks
            if self.on_gpu:
                torch.cuda.synchronize()
            self.skip(kind, str(error).strip().partition("\n")[0][:200], **what)

    def host(self, kind: str, body: Callable[[], Any], *, calls: int, **what: Any) -> None:
        """Measure how long the host takes to issue ``body``, which makes ``calls`` of what is asked."""
        samples = []
        for _ in range(SAMPLES + 1):
            self.wait()
            began = time.perf_counter()
            body()
            samples.append((time.perf_counter() - began) / calls)
        self.wait()
        self.add(kind, samples[1:], **what)

    def wait(self) -> None:
        """Until the device has done all it was asked."""
        if self.on_gpu:
            import torch

            torch.cuda.synchronize()

    def _device_samples(self, bodies: Sequence[Callable[[], Any]]) -> list[float]:
        for body in bodies:  # warm up: choose kernels, load them, fill workspaces
            body()
        if not self.on_gpu:
            return [self._seconds(bodies[0]) for _ in range(SAMPLES)]

        bodies[0]()
        once = self._seconds(bodies[0])
        repeats = max(1, min(MOST_REPEATS, round(SAMPLE_SECONDS / max(once, 1e-6))))
        calls = [bodies[number % len(bodies)] for number in range(max(repeats, len(bodies)))]
        if once > SAMPLE_SECONDS:
            calls = calls[:2]
            samples = []
            for _ in range(SAMPLES):
                time.sleep(REST * once)
                samples.append(self._seconds(*calls) / len(calls))
            return samples
        graph = self._captured(calls)
        if graph is None:
            return [self._seconds(*calls) / len(calls) for _ in range(SAMPLES)]
        graph.replay()
        samples = []
        for _ in range(SAMPLES):
            time.sleep(REST * once * len(calls))
            samples.append(self._seconds(graph.replay) / len(calls))
        return samples

    def _captured(self, calls: Sequence[Callable[[], Any]]) -> Any:
        """The calls as one graph, whose replay leaves the host's launches out; None if they refuse."""
        import torch

        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            pool = () if self._first is None else (self._first.pool(),)
            try:
                # NCCL's watchdog asks for events from a thread of its own meanwhile
                graph.capture_begin(*pool, capture_error_mode="thread_local")
            except RuntimeError:
                return None
            try:
                for call in calls:
                    call()
            except RuntimeError:
                with contextlib.suppress(RuntimeError):
                    graph.capture_end()
                torch.cuda.synchronize()
                return None
            graph.capture_end()
        torch.cuda.synchronize()
        self._first = self._first or graph
        return graph

    def _seconds(self, *calls: Callable[[], Any]) -> float:
        if not self.on_gpu:
            began = time.perf_counter()
            for call in calls:
                call()
            return time.perf_counter() - began
        import torch

        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for call in calls:
            call()
        end.record()
        torch.cuda.synchronize()
        return float(start.elapsed_time(end)) / 1e3


def copies_for(operand_bytes: int, most: int = 8) -> int:
    """How many sets of operands of ``operand_bytes`` keep a loop over them out of the caches."""
    return max(1, min(most, -(-COLD_BYTES // max(operand_bytes, 1))))
