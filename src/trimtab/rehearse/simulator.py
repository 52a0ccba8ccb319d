"""A recorded step replayed: the host issues, the device's streams run, and they wait as recorded.

The record is that of a phantom rehearsal (`trimtab.rehearse.timeline`), the seconds are those of
`trimtab.cost.rates`.  Collectives run on a stream of their own for each group, as NCCL's do.
"""

from __future__ import annotations

import json
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trimtab.config import Config
from trimtab.cost.race import LAUNCH_QUEUE
from trimtab.cost.rates import Rates
from trimtab.cost.speed import Speed
from trimtab.errors import UnreadableFile
from trimtab.rehearse.durations import (
    SILU_BACKWARD,
    device_seconds,
    flops_of,
    has_kernel,
    host_seconds,
    plain_name,
    size_of,
)
from trimtab.rehearse.handovers import WAYS, handing, linked_bytes
from trimtab.rehearse.request import PHASES, Collective, Operator, Rehearsal
from trimtab.rehearse.timeline import STREAMS

COLLECTIVES = {
    "allreduce": "all_reduce", "allgather": "all_gather", "allgather_base": "all_gather",
    "reduce_scatter": "reduce_scatter", "reduce_scatter_base": "reduce_scatter",
    "reduce": "all_reduce", "broadcast": "broadcast", "alltoall": "all_to_all", "alltoall_base": "all_to_all",
}  # fmt: skip
"""c10d's names and NCCL's."""
SIMULATED_SPREAD = (0.85, 1.2)
"""Bounds about the expected value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Something that ran: seconds from the start of the step."""

    name: str
    lane: str
    start: float
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulated:
    """A simulated optimizer step; seconds."""

    step_seconds: float
    phases: Mapping[str, float]
    compute_seconds: float
    """The computing stream at work."""
    communication_seconds: float
    """Collectives that nothing else hid."""
    offload_seconds: float
    """Copies over the host link, Adam on the host and disks, where nothing else ran."""
    host_seconds: float
    """The computing stream idle because the host had not issued its next kernel."""
    kernels: int
    spans: tuple[Span, ...] = field(repr=False)


def simulate(
    record: Rehearsal, rates: Rates, *, accumulation: int, stage: int, nodes: int = 1, split: int = 1
) -> Simulated:
    """Replay the measured step of ``record``.

    Args:
        accumulation: micro steps of the whole step; the record holds two or three of them.
        stage: ZeRO stage, for what the engine's hooks cost the host.
        nodes: hosts that the ranks of the world lie on.
        split: ranks that share every layer by tensor parallelism.
    """
    replay = _Replay(record, rates, stage, nodes, split)
    replay.run()
    return replay.answer(accumulation)


class _Replay:
    """Clocks of the host and of every stream while the entries go by."""

    def __init__(self, record: Rehearsal, rates: Rates, stage: int, nodes: int, split: int) -> None:
        self.record, self.rates, self.stage, self.nodes = record, rates, stage, nodes
        self.split = split
        self.host_costs = rates.host
        self.host = 0.0
        self.offloaded = 0.0
        """Seconds of the host's own arithmetic that the computing stream has not waited for."""
        self.phase = ""
        self.stream = 0
        self.clocks = [0.0] * max(1, len(record.streams))
        self.queues = [deque[float](maxlen=LAUNCH_QUEUE) for _ in self.clocks]
        """When the kernels that were launched last on each stream begin."""
        self.lanes: dict[int, float] = {}
        self.debts: list[tuple[float, float]] = []
        """Collectives on their way whose time the computing stream has neither waited for nor lost."""
        self.slowest = self.slowest_then = 0.0
        """The host of the rank that is furthest behind, now and as it issued the last collective.

        All ranks do the same but for the gradients that they hand over.
        """
        self.behind = 0.0
        """Seconds that this rank's device is ahead of the slowest's until the next collective."""
        self.works: list[float] = []
        self.events: dict[int, float] = {}
        self.idle: defaultdict[str, float] = defaultdict(float)
        self.busy = 0.0
        self.kernels = 0
        self.spans: list[Span] = []
        self.marks: list[tuple[int, float, defaultdict[str, float], float]] = []
        self.kernel_seconds = [
            device_seconds(one, rates) if has_kernel(one) else 0.0 for one in record.operators
        ]
        self.linked = linked_bytes(record)
        self.exchanges = any("alltoall" in one.name and one.phase == "forward" for one in record.collectives)
        """Whether ranks share samples (Ulysses)."""
        self.names = [plain_name(one.name) for one in record.operators]
        self.micro_steps = sum(kind == "phase" and PHASES[index] == "forward" for kind, index in record.order)

    # -- clocks --------------------------------------------------------------------------------------------

    def _launch(self, name: str, seconds: float, cause: str | None = None) -> None:
        """A kernel on the stream in force, once it is issued and what came before it is done."""
        queue, free = self.queues[self.stream], self.clocks[self.stream]
        if len(queue) == LAUNCH_QUEUE:
            self._host_waits(queue[0])
        start = max(free, self.host)
        if self.stream == 0 and start > free:
            self._blame(start - free)
        if self.stream == 0:
            start = self._pay(start, seconds)
        self.clocks[self.stream] = start + seconds
        queue.append(start)
        if cause is None and self.stream == 0:
            self.busy += seconds
        elif self.stream == 0:
            self.idle[cause or ""] += seconds
        self.spans.append(
            Span(name=name, lane=self.record.streams[self.stream], start=start, seconds=seconds)
        )

    def _pay(self, start: float, seconds: float) -> float:
        """When a kernel really starts that runs beside collectives: it loses their time (`Rates.beside`)."""
        while self.debts and self.debts[0][0] < start + seconds:
            lost = self.debts.pop(0)[1]
            self.idle["communication"] += lost
            start += lost
        return start

    def _wait(self, stream: int, until: float, cause: str) -> None:
        if until > self.clocks[stream]:
            if stream == 0:
                waited = until - self.clocks[stream]
                self.idle[cause] += waited
                while self.debts and waited > 0:  # what was waited for needs not be lost again
                    at, owed = self.debts.pop(0)
                    if owed > waited:
                        self.debts.insert(0, (at, owed - waited))
                    waited -= owed
            self.clocks[stream] = until

    def _blame(self, gap: float) -> None:
        """Say what the computing stream was idle for: the host's arithmetic, or its issuing."""
        offloaded = min(gap, self.offloaded)
        self.idle["offload"] += offloaded
        self.idle["host"] += gap - offloaded
        self.offloaded = 0.0

    def _issue(self, seconds: float) -> None:
        self.host += seconds
        self.slowest += seconds

    def _host_waits(self, until: float) -> None:
        self.host = max(self.host, until)
        self.slowest = max(self.slowest, until)

    # -- entries -------------------------------------------------------------------------------------------

    def run(self) -> None:
        """All entries in order."""
        steps = {
            "operator": self._operator,
            "collective": self._collective,
            "copy": self._copy,
            "stream": self._set_stream,
            "join": self._join,
            "record": self._record,
            "wait_event": self._wait_event,
            "await": self._await,
            "host": self._host,
            "host_event": self._host_event,
            "module": self._module,
            "checkpoint": self._checkpoint,
            "gradient": self._gradient,
            "handover": self._handover,
            "phase": self._phase,
        }
        pending: list[int] = []
        for kind, index in self.record.order:
            if kind == "operator":  # a run of operators that CUDA has one kernel for?
                pending.append(index)
                if self._is_silu_backward(pending):
                    for _ in SILU_BACKWARD:
                        pending.pop()
                    self._silu_backward(index)
                    continue
                if len(pending) > len(SILU_BACKWARD):
                    steps["operator"](pending.pop(0))
                continue
            while pending:
                steps["operator"](pending.pop(0))
            steps[kind](index)
        while pending:
            steps["operator"](pending.pop(0))
        self._host_waits(max(*self.clocks, *self.lanes.values(), 0.0))
        self._blame(max(0.0, self.host - self.clocks[0]))
        self._phase(len(PHASES))

    def _is_silu_backward(self, pending: Sequence[int]) -> bool:
        return (
            self.names[pending[-1]] == "mul"
            and tuple(self.names[one] for one in pending[-len(SILU_BACKWARD) :]) == SILU_BACKWARD
        )

    def _silu_backward(self, last: int) -> None:
        product = self.record.operators[last]
        moved = 3 * size_of(product.outputs)
        self.kernels += 1
        self._issue(self.host_costs.backward)
        self._launch("silu_backward", self.rates.moving(moved, "silu_backward"))

    def _operator(self, index: int) -> None:
        one = self.record.operators[index]
        if one.host:
            seconds = host_seconds(one, self.rates, self._neighbours)
            if seconds > 1e-5:
                self.spans.append(Span(name=self.names[index], lane="host", start=self.host, seconds=seconds))
                self._issue(seconds)
                self.offloaded += seconds
            return
        if not has_kernel(one):
            if self.phase == "step":
                self._issue(self.host_costs.step)
            return
        self.kernels += 1
        self._issue(self._dispatch(one))
        self._launch(self.names[index], self.kernel_seconds[index])

    def _collective(self, index: int) -> None:
        one: Collective = self.record.collectives[index]
        name = COLLECTIVES.get(one.name, "all_reduce")
        exchanges = self.exchanges and name == "all_to_all" and self.phase != "step"
        self._issue(self.host_costs.exchange if exchanges else self.host_costs.collective)
        nodes = self._nodes_of(one.group_size)
        seconds = self.rates.collective(name, one.bytes, one.group_size, nodes)
        start = max(self.host, self.clocks[self.stream], self.lanes.get(one.group_size, 0.0))
        if one.group_size > 1:
            start = max(start, self.slowest, self.clocks[self.stream] + self.behind)
        self.slowest_then, self.behind = self.slowest, 0.0
        self.lanes[one.group_size] = start + seconds
        self.debts.append((start, self.rates.beside(name, one.bytes, one.group_size, nodes)))
        self.works.append(start + seconds)
        lane = f"collectives of {one.group_size}"
        self.spans.append(Span(name=one.name, lane=lane, start=start, seconds=seconds))

    def _nodes_of(self, size: int) -> int:
        """Nodes that a group of ``size`` lies on; ranks that share layers are neighbours, others not."""
        if size == self.split > 1:
            return -(-size // self.rates.cluster.gpus_per_node)
        if self.split > 1:
            return min(self.nodes, size)
        return max(1, min(self.nodes, size * self.nodes // max(1, self._world)))

    @property
    def _world(self) -> int:
        return max((one.group_size for one in self.record.collectives), default=1)

    @property
    def _neighbours(self) -> int:
        """Ranks of this world on one node."""
        if self.split > 1:
            return self.rates.cluster.gpus_per_node
        return max(1, self._world // self.nodes)

    def _copy(self, index: int) -> None:
        one = self.record.copies[index]
        self._issue(self.host_costs.engine)
        if one.direction in ("to_disk", "from_disk"):
            seconds = self.rates.disk(one.direction, one.bytes)
            start = max(self.host, self.lanes.get(-1, 0.0))
            self.lanes[-1] = start + seconds
            self.spans.append(Span(name=one.direction, lane="disk", start=start, seconds=seconds))
            return
        way = WAYS[one.direction]
        seconds = self.rates.copy(way, one.bytes, pinned=one.pinned)
        self._launch(f"copy {way}", seconds, cause="offload")
        if not one.pinned:  # a pageable copy returns when it is done
            self._host_waits(self.clocks[self.stream])

    def _set_stream(self, index: int) -> None:
        self.stream = index

    def _module(self, _: int) -> None:
        if self.phase == "forward":  # a recomputed one's is in its kernels'
            self._issue(self.host_costs.module)

    def _checkpoint(self, _: int) -> None:
        forward = self.phase == "forward"
        self._issue(self.host_costs.checkpoint if forward else self.host_costs.recompute)

    def _gradient(self, _: int) -> None:
        if self.stage == 2 or (self.stage == 1 and self._last):  # stage 3's way is in its fetches'
            self._issue(self.host_costs.gradient)

    def _handover(self, index: int) -> None:
        """Ranks hand over their own gradients of a bucket, and the next collective waits for the slowest.

        Each keeps neighbouring parameters, so most of a bucket is one rank's, which is not this one.
        """
        others, micro = self.record.handovers[index][1:], self._micro_step
        if not others:
            return
        handed = [
            handing(
                sizes,
                self.linked.get(micro, {}),
                self.rates,
                stage=self.stage,
                first=micro == 1,
                last=micro == self.micro_steps,
            )
            for sizes in others
        ]
        issued, done = (max(seconds) for seconds in zip(*handed, strict=True))
        reduced = self.works[-1]
        self.slowest = max(self.slowest_then + issued, reduced + done if micro == self.micro_steps else 0.0)
        self.behind = max(0.0, reduced + done - self.clocks[self.stream])

    @property
    def _micro_step(self) -> int:
        """The micro step that runs; the first is 1."""
        return sum(PHASES[index] == "forward" for index, *_ in self.marks)

    @property
    def _last(self) -> bool:
        """Whether the last micro step of the step runs, after which gradients are reduced."""
        return self._micro_step == self.micro_steps

    def _join(self, index: int) -> None:
        if self.stage == 3:  # partitioned_param_coordinator.py:415, at the end of each fetch
            self._issue(self.host_costs.fetch if self.phase == "forward" else self.host_costs.fetch_back)
        waiter, waited = divmod(index, STREAMS)
        self._wait(waiter, self.clocks[waited], "communication")

    def _record(self, index: int) -> None:
        self.events[index] = self.clocks[self.stream]

    def _wait_event(self, index: int) -> None:
        self._wait(self.stream, self.events.get(index, 0.0), "communication")

    def _await(self, index: int) -> None:
        self._wait(self.stream, self.works[index], "communication")

    def _host(self, index: int) -> None:
        self._host_waits(max(self.clocks) if index < 0 else self.clocks[index])

    def _host_event(self, index: int) -> None:
        self._host_waits(self.events.get(index, 0.0))

    def _dispatch(self, one: Operator) -> float:
        """Seconds of the host for one kernel of the phase that runs, with what is around it."""
        if self.phase == "forward":
            own = self.stage == 3 and one.module_class == "Linear" and plain_name(one.name) in ("mm", "addmm")
            return self.host_costs.forward + own * self.host_costs.function
        if self.phase == "backward":
            return (
                self.host_costs.backward
                if one.module_class or one.name.startswith("attention.")
                else self.host_costs.engine
            )
        return self.host_costs.step

    def _phase(self, index: int) -> None:
        self.phase = PHASES[index] if index < len(PHASES) else ""
        now = max(self.clocks[0], self.host)
        self.marks.append((index, now, self.idle.copy(), self.busy))

    # -- the answer ----------------------------------------------------------------------------------------

    def answer(self, accumulation: int) -> Simulated:
        """The whole step: micro steps that the record lacks take as long as its last but one."""
        total = self.marks[-1][1]
        phases: defaultdict[str, float] = defaultdict(float)
        for (phase, start, *_), (_, end, *_) in zip(self.marks, self.marks[1:], strict=False):
            phases[PHASES[phase]] += end - start
        idle, busy = self.idle.copy(), self.busy
        forwards = [place for place, mark in enumerate(self.marks) if mark[0] == PHASES.index("forward")]
        if accumulation > len(forwards) > 1:
            more = accumulation - len(forwards)
            first, second = self.marks[forwards[-2]], self.marks[forwards[-1]]
            total += more * (second[1] - first[1])
            busy += more * (second[3] - first[3])
            for cause in set(second[2]):
                idle[cause] += more * (second[2][cause] - first[2][cause])
            for (phase, start, *_), (_, end, *_) in zip(
                self.marks[forwards[-2] : forwards[-1]], self.marks[forwards[-2] + 1 :], strict=False
            ):
                phases[PHASES[phase]] += more * (end - start)
        rest = total - busy - idle["communication"] - idle["offload"]
        return Simulated(
            step_seconds=total,
            phases=dict(phases),
            compute_seconds=busy,
            communication_seconds=idle["communication"],
            offload_seconds=idle["offload"],
            host_seconds=max(0.0, rest),
            kernels=self.kernels,
            spans=tuple(self.spans),
        )


def speed_of(simulated: Simulated, record: Rehearsal, config: Config, rates: Rates) -> Speed:
    """A simulated step in the closed form's terms."""
    batch, job = config.batch(rates.cluster.world_size), config.job
    parts = {
        "kernels": simulated.compute_seconds,
        "communication": simulated.communication_seconds,
        "offload": simulated.offload_seconds,
        "issuing": simulated.host_seconds,
    }
    micros = sum(1 for kind, index in record.order if kind == "phase" and PHASES[index] == "forward")
    total = simulated.step_seconds
    return Speed(
        step_seconds=total,
        low_seconds=total * SIMULATED_SPREAD[0],
        high_seconds=total * SIMULATED_SPREAD[1],
        compute_seconds=simulated.compute_seconds,
        communication_seconds=simulated.communication_seconds,
        offload_seconds=simulated.offload_seconds,
        host_seconds=simulated.host_seconds,
        tokens_per_step=batch.micro * batch.accumulation * job.sequence_length,
        samples_per_step=batch.micro * batch.accumulation,
        model_flops=_model_flops(record) / max(1, micros) * batch.accumulation,
        parts=tuple((name, seconds) for name, seconds in parts.items() if seconds),
        source=rates.source,
    )


def _model_flops(record: Rehearsal) -> float:
    """Operations of products and attention, those that recomputation repeats left out."""
    done: defaultdict[str, float] = defaultdict(float)
    for one in record.operators:
        done[one.phase] += one.count * flops_of(one)
    backward = done["backward"]
    return done["forward"] + max(done["forward"], backward - record.recomputed * done["forward"])


def trace(simulated: Simulated) -> dict[str, Any]:
    """The spans in the Trace Event Format that Chrome's about:tracing and Perfetto read."""
    lanes = list(dict.fromkeys(span.lane for span in simulated.spans))
    events: list[dict[str, Any]] = [
        {"name": "thread_name", "ph": "M", "pid": 0, "tid": number, "args": {"name": lane}}
        for number, lane in enumerate(lanes)
    ]
    events += [
        {
            "name": span.name,
            "ph": "X",
            "ts": round(span.start * 1e6, 3),
            "dur": round(span.seconds * 1e6, 3),
            "pid": 0,
            "tid": lanes.index(span.lane),
        }
        for span in simulated.spans
    ]
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def write_timeline(simulated: Simulated, file: Path) -> None:
    """Write `trace` to ``file``.

    Raises:
        UnreadableFile: the file cannot be written.
    """
    try:
        file.write_text(json.dumps(trace(simulated)), encoding="utf-8")
    except OSError as error:
        raise UnreadableFile(f"{file}: cannot be written: {error.strerror}") from None
