"""What the host needs for its work, from measured phases: the costs of ``trimtab.cost.rates.Host``.

    python bench/fit_host.py            prints the costs, and how each measured phase lies to them
    python bench/fit_host.py --count    counts the work of the rows of paced_steps.jsonl anew (5 minutes)
    python bench/fit_host.py --exchange what an exchange of Ulysses takes (a minute)

A row of ``bench/data/paced_steps.jsonl`` has what each phase took its host, begun with the GPU idle, and the
host's pace before and after it (``profile``, scripts/profiled_step.py): what single calls took at that
moment, over those of the shipped tables.  ``--count`` rehearses each as a phantom and writes
``bench/data/host_counts.jsonl``: how often a phase of the last micro step does what each cost is for.
The costs are the least squares of
``counts @ costs = measured / pace``, each phase weighed by its own length, none below zero.
"""

from __future__ import annotations

import argparse
import json
import operator
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import speed_accuracy
from trimtab.cost.rates import Host, rates_of
from trimtab.rehearse.request import PHASES
from trimtab.rehearse.simulator import _Replay

DATA = Path(__file__).resolve().parent / "data"
ROWS, COUNTS = DATA / "paced_steps.jsonl", DATA / "host_counts.jsonl"
FITTED = {
    "forward": ("forward", "module", "fetch", "function", "checkpoint"),
    "backward": ("backward", "engine", "gradient", "fetch_back", "recompute"),
    "step": ("step", "collective"),
}
"""The phases, and the costs that each tells."""
BUSY = 0.7
"""A phase whose kernels take this share of it waits for the GPU: nothing of it tells what the host needs."""


class Phase(NamedTuple):
    """One measured phase: seconds of the host until it returned, and what it did meanwhile."""

    row: str
    name: str
    seconds: float
    pace: float
    device_seconds: float
    counts: dict[str, float]

    @property
    def tells(self) -> bool:
        """Whether the host was what it waited for."""
        offloads = "offload" in self.row or "both" in self.row
        if self.name == "forward":  # nothing there waits for the GPU
            return True
        return not offloads and self.device_seconds < BUSY * self.seconds


class _Counting(_Replay):
    """Adds up what the host is charged in each phase of the last micro step."""

    def _phase(self, index: int) -> None:
        super()._phase(index)
        if self.phase == "forward":
            self.charged: defaultdict[str, float] = defaultdict(float)

    def _issue(self, seconds: float) -> None:
        if hasattr(self, "charged"):
            self.charged[self.phase] += seconds


def counted(case: speed_accuracy.Case) -> dict[str, dict[str, float]]:
    """By phase, how often each cost falls due, and ``device``: seconds of kernels."""
    record, _ = speed_accuracy.rehearsed(case)
    rates, stage = rates_of(case.cluster), case.config.stage
    found: dict[str, dict[str, float]] = {phase: {} for phase in FITTED}
    for name in Host._fields:
        replay = _Counting(record, rates, stage, case.cluster.nodes, 1)
        replay.host_costs = Host(**{field: float(field == name) for field in Host._fields})
        replay.run()
        for phase, counts in found.items():
            if replay.charged[phase]:
                counts[name] = replay.charged[phase]
    seconds: defaultdict[str, float] = defaultdict(float)
    for kind, index in record.order:
        if kind == "phase":
            phase = PHASES[index] if index < len(PHASES) else ""
            if phase == "forward":
                seconds.clear()
        elif kind == "operator":
            seconds[phase] += replay.kernel_seconds[index]
    return {phase: {**counts, "device": seconds[phase]} for phase, counts in found.items()}


def phases() -> Iterator[Phase]:
    """Those that were measured, with their counts."""
    counts = {row["row"]: row["phases"] for row in map(json.loads, COUNTS.read_text("utf-8").splitlines())}
    for row in map(json.loads, ROWS.read_text("utf-8").splitlines()):
        measured = row.get("profile", {}).get("phases")
        if measured is None:
            continue
        for name in FITTED:
            told = dict(counts[row["id"]][name])
            seconds, _, pace = measured[f"{name} last"]
            yield Phase(
                row=row["id"],
                name=name,
                seconds=seconds,
                pace=pace,
                device_seconds=told.pop("device"),
                counts=told,
            )


def sampled() -> list[list[list[float]]]:
    """The paces that measured jobs sampled beside their steps: by job, rank and moment."""
    lines = (line for file in sorted(DATA.glob("*.jsonl")) for line in file.read_text("utf-8").splitlines())
    rows = (row for row in map(json.loads, lines) if row.get("step_seconds"))
    return [row["paces"] for row in rows if row.get("paces")]


def paces() -> list[float]:
    """Of every moment on every rank."""
    return [pace for job in sampled() for rank in job for pace in rank]


def of_jobs(ranks: int | None = None) -> list[tuple[int, float]]:
    """The ranks of each job and the mean of its slowest one's paces; of those of so many ranks."""
    jobs = ((len(job), statistics.mean(map(max, zip(*job, strict=True)))) for job in sampled())
    return [(count, pace) for count, pace in jobs if ranks in (None, count)]


def greatest(moments: list[float], ranks: int) -> float:
    """The expected greatest of ``ranks`` of ``moments``, each drawn by itself."""
    count = len(moments)
    weights = (((at + 1) / count) ** ranks - (at / count) ** ranks for at in range(count))
    return sum(map(operator.mul, sorted(moments), weights))


def fitted(these: list[Phase]) -> Host:
    """The costs, in seconds at the pace of the shipped tables."""
    costs: dict[str, float] = {}
    for name, told in FITTED.items():
        chosen = [one for one in these if one.name == name and one.tells]
        counts = np.array([[one.counts.get(cost, 0.0) for cost in told] for one in chosen])
        seconds = np.array([one.seconds / one.pace for one in chosen])
        costs |= dict(zip(told, _not_negative(counts / seconds[:, None], np.ones(len(chosen))), strict=True))
    return Host(**costs)


def _not_negative(a: Any, b: Any) -> Any:
    """Least squares of ``a @ x = b`` with the columns left out whose ``x`` would fall below zero."""
    used = list(range(a.shape[1]))
    while True:
        found, *_ = np.linalg.lstsq(a[:, used], b, rcond=None)
        if (found >= 0).all():
            answer = np.zeros(a.shape[1])
            answer[used] = found
            return answer
        used = [column for column, value in zip(used, found, strict=True) if value > 0]


def expected(phase: Phase, host: Host) -> float:
    """Seconds of the host, by its costs and its process's pace."""
    return phase.pace * sum(count * getattr(host, cost) for cost, count in phase.counts.items())


def count_all() -> None:
    """Write `COUNTS` anew."""
    lines = []
    for row in map(json.loads, ROWS.read_text("utf-8").splitlines()):
        if "phases" not in row.get("profile", {}):
            continue
        found = counted(speed_accuracy.measured_case(row, row["id"]))
        rounded = {phase: {name: round(n, 6) for name, n in told.items()} for phase, told in found.items()}
        lines.append(json.dumps({"row": row["id"], "phases": rounded}) + "\n")
        print(row["id"], flush=True)
    COUNTS.write_text("".join(lines), encoding="utf-8")


def exchange(case: speed_accuracy.Case) -> float:
    """`Host.exchange` with which the simulated step is as long as measured, in seconds; by bisection."""
    record, accumulation = speed_accuracy.rehearsed(case)
    low, high = 0.0, 1e-3
    for _ in range(20):
        middle = (low + high) / 2
        replay = _Replay(record, case.rates, case.config.stage, case.cluster.nodes, 1)
        replay.host_costs = replay.host_costs._replace(exchange=middle * case.rates.pace)
        replay.run()
        shorter = replay.answer(accumulation).step_seconds < case.seconds
        low, high = (middle, high) if shorter else (low, middle)
    return low


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", action="store_true", help="count the rows' work anew")
    parser.add_argument("--exchange", action="store_true", help="of Ulysses alone")
    asked = parser.parse_args()
    if asked.exchange:
        for case in speed_accuracy.cases():
            if case.name in speed_accuracy.EXCHANGING:
                print(f"{case.name}: {exchange(case) * 1e6:.0f} us")
        return 0
    if asked.count:
        count_all()
    these = list(phases())
    host = fitted(these)
    for one in these:
        said = expected(one, host)
        left = "" if one.tells else "  (not fitted to)"
        print(
            f"{one.row:40} {one.name:9} pace {one.pace:.2f}  measured {one.seconds * 1e3:6.1f} ms  "
            f"expected {said * 1e3:6.1f}  {said / one.seconds - 1:+5.0%}{left}"
        )
    print({name: f"{seconds * 1e6:.1f} us" for name, seconds in host._asdict().items()})
    found = paces()
    print(
        f"pace of {len(found)} processes: median {statistics.median(found):.2f}, "
        f"{min(found):.2f} to {max(found):.2f}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
