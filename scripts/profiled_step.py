"""Where one optimizer step's time goes on a real GPU: the host's and the device's seconds, kernel by kernel.

`profiled` is what `prove_on_gpu.py --profile` adds to a row under ``profile``:

``phases``   of each phase, begun with the device idle: seconds until the call returns, until all is done, and
             the host's pace meanwhile (`host_pace.HostPace`), sampled before and after
``calls``    seconds that this process's host needs to issue single calls (`trimtab.probe.host`)
``kernels``  of one step under PyTorch's profiler: ``[phase, operator, shapes, kernel, count, seconds]``
``busy``     seconds of that step in which any kernel ran, ``collectives`` those in which one of NCCL's did
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

from host_pace import HostPace

PHASES = ("forward", "backward", "step")
APART_STEPS = 5
KERNEL_NAME = 90
"""Characters of a kernel's name that are kept."""


def profiled(
    engine: Any, batch: Callable[[], Any], accumulation: int, device: str, *, kernels: bool
) -> dict[str, Any]:
    """Run a few more steps of ``engine`` and say where their time goes, with ``kernels`` one by one."""
    found = {"phases": _apart(engine, batch, accumulation, device), "calls": _calls(device)}
    return {**found, **_traced(engine, batch, accumulation, device)} if kernels else found


def _calls(device: str) -> dict[str, float]:
    from trimtab.probe import host
    from trimtab.probe.notes import Notes

    notes = Notes(device)
    host.measure(notes)
    return {row["name"]: row["seconds"] for row in notes.rows}


def _synchronize(device: str) -> None:
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


def _phase(engine: Any, phase: str, batch: Any, loss: Any) -> Any:
    if phase == "forward":
        return engine(**batch).loss
    if phase == "backward":
        engine.backward(loss)
    else:
        engine.step()
    return loss


def _apart(engine: Any, batch: Callable[[], Any], accumulation: int, device: str) -> dict[str, Any]:
    """Medians by phase and place of the micro step (``last`` or not): issued and done in seconds, and pace.

    The pace is that of a phase's middle step when they are ordered by what they would take at a pace of 1.
    """
    host, found = HostPace(device), defaultdict(list)
    for _ in range(APART_STEPS):
        for micro in range(accumulation):
            loss: Any = None
            samples = batch()
            place = " last" if micro == accumulation - 1 else ""
            for phase in PHASES:
                _synchronize(device)
                before = host.sample()
                began = time.perf_counter()
                loss = _phase(engine, phase, samples, loss)
                issued = time.perf_counter() - began
                _synchronize(device)
                done = time.perf_counter() - began
                pace = statistics.mean([before or 1.0, host.sample() or 1.0])
                found[phase + place].append((issued, done, pace))
    middle = APART_STEPS // 2
    return {
        name: [round(value, 6) for value in sorted(told, key=lambda one: one[0] / one[2])[middle]]
        for name, told in found.items()
    }


def _traced(engine: Any, batch: Callable[[], Any], accumulation: int, device: str) -> dict[str, Any]:
    from torch.profiler import ProfilerActivity, profile, record_function

    kinds = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device == "cuda")
    samples = [batch() for _ in range(accumulation)]
    _synchronize(device)
    with profile(activities=kinds, record_shapes=True) as trace:
        for one in samples:
            loss: Any = None
            for phase in PHASES:
                with record_function(f"phase:{phase}"):
                    loss = _phase(engine, phase, one, loss)
        _synchronize(device)
    return _read(trace.events())


def _read(events: Iterable[Any]) -> dict[str, Any]:
    events = list(events)
    windows = sorted(
        (event.time_range.start, event.name.removeprefix("phase:"))
        for event in events
        if event.name.startswith("phase:") and str(event.device_type).endswith("CPU")
    )
    sums: defaultdict[tuple[str, str, str, str], list[float]] = defaultdict(lambda: [0, 0.0])
    spans: list[tuple[float, float, bool]] = []
    dispatched: defaultdict[str, int] = defaultdict(int)
    for event in events:
        if not str(event.device_type).endswith("CPU"):
            if not event.name.startswith("phase:") and not getattr(event, "is_user_annotation", False):
                spans.append((event.time_range.start, event.time_range.end, "nccl" in event.name.lower()))
            continue
        phase = next((name for start, name in reversed(windows) if start <= event.time_range.start), "before")
        if event.name.startswith("aten::"):
            dispatched[phase] += 1
        for kernel in event.kernels:
            key = (phase, event.name, str(event.input_shapes), kernel.name[:KERNEL_NAME])
            sums[key][0] += 1
            sums[key][1] += kernel.duration / 1e6
    return {
        "kernels": [[*key, count, round(seconds, 7)] for key, (count, seconds) in sorted(sums.items())],
        "dispatched": dict(dispatched),
        "busy": round(_union(spans), 6),
        "collectives": round(_union([span for span in spans if span[2]]), 6),
    }


def _union(spans: list[tuple[float, float, bool]]) -> float:
    """Seconds covered by spans of microseconds."""
    total, reached = 0.0, float("-inf")
    for start, end, _ in sorted(spans):
        if end > reached:
            total += end - max(start, reached)
            reached = end
    return total / 1e6
