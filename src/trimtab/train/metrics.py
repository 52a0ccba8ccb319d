"""What a run says while it goes: one JSON line an event, and one line of progress on the terminal."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from trimtab.units import format_bytes, format_count, format_seconds

PLAIN_LINES = 20
"""Progress lines that a whole run prints at most where there is no terminal to rewrite."""


class Events:
    """Appends events to ``RUN/events.jsonl``, one write a line; a failing disk never stops the run."""

    def __init__(self, path: Path | None) -> None:
        self._path = path

    def write(self, event: str, **values: Any) -> None:
        """Append one event; numbers that are not finite become null."""
        if self._path is None:
            return
        row = {"event": event, "time": round(time.time(), 3)} | {k: _finite(v) for k, v in values.items()}
        try:
            with open(self._path, "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        except OSError as error:
            print(f"events not written: {error}", file=sys.stderr)  # noqa: T201
            self._path = None


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_events(path: Path) -> Iterator[dict[str, Any]]:
    """The events of a run; a torn last line is passed over."""
    if not path.exists():
        return
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict):
                yield row


def read_steps(path: Path) -> list[dict[str, Any]]:
    """The step events of a run, each step once: what a resume trained again replaces what was lost."""
    steps: dict[int, dict[str, Any]] = {}
    for row in read_events(path):
        if row["event"] == "resume":
            steps = {number: step for number, step in steps.items() if number <= row["step"]}
        elif row["event"] == "step":
            steps[row["step"]] = row
    return [steps[number] for number in sorted(steps)]


def memory_peak_bytes(device: Any) -> int:
    """The most memory that this rank held: allocated on the GPU since it was last asked, or, on the CPU,
    resident since the start.
    """
    if device.type == "cuda":
        import torch

        peak = int(torch.cuda.max_memory_allocated(device))
        torch.cuda.reset_peak_memory_stats(device)
        return peak
    import resource

    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(resident if sys.platform == "darwin" else resident * 1024)


class Progress:
    """Shows the steps of a run on stderr: one rewritten line on a terminal, a few plain lines elsewhere."""

    def __init__(self, *, total: int, start: int, shown: bool) -> None:
        self.total, self.start, self.shown = total, start, shown
        self._every = max(1, (total - start) // PLAIN_LINES)
        self._bar: Any = None
        self._task: Any = None
        self._started = time.monotonic()

    def __enter__(self) -> Progress:
        if self.shown and sys.stderr.isatty() and not os.environ.get("CI"):
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn
            from rich.progress import Progress as Bar

            self._bar = Bar(
                TextColumn("step {task.completed}/{task.total}"),
                BarColumn(bar_width=24),
                TextColumn("{task.fields[line]}"),
                console=Console(stderr=True),
            )
            self._bar.start()
            self._task = self._bar.add_task("train", total=self.total, completed=self.start, line="")
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def say(self, text: str) -> None:
        """A line above the progress."""
        if not self.shown:
            return
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=sys.stderr, flush=True)  # noqa: T201

    def step(self, row: Mapping[str, Any]) -> None:
        """Show one step event."""
        if not self.shown:
            return
        number = int(row["step"])
        left = (time.monotonic() - self._started) / (number - self.start) * (self.total - number)
        line = (
            f"loss {row['loss']:.4f}  {format_count(row['tokens_per_second'])} tokens/s  "
            f"{format_bytes(row['memory_peak_bytes'])}  {format_seconds(left)} left"
        )
        if self._bar is not None:
            self._bar.update(self._task, completed=number, line=line)
        elif (number - self.start) % self._every == 0 or number == self.total or number == self.start + 1:
            print(f"step {number}/{self.total}  {line}", file=sys.stderr, flush=True)  # noqa: T201
