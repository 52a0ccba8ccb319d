"""The rehearsal on a GPU itself, in a process of its own: ``python -m trimtab.rehearse.gpu_run ANSWER``.

Reads a `trimtab.rehearse.on_gpu.GpuRequest` as JSON from standard input and writes ``{"rehearsal": ...}``
with the fields of `GpuRehearsal`, or ``{"error": {"kind", "message"}}``, to the file ANSWER.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import socket
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

from trimtab.auto import for_engine
from trimtab.config import Config
from trimtab.cost.allocator import UNIT
from trimtab.errors import Unsupported
from trimtab.rehearse.child import answer_with
from trimtab.rehearse.on_gpu import PHASES, GpuRehearsal, GpuRequest
from trimtab.rehearse.shortage import memory_that_ran_out, shortage
from trimtab.units import format_bytes

TIMED_STEPS = 5
"""Steps that are timed, at most; after the first, which makes the states, and the second, which is read."""
TIMED_SECONDS = 60.0
"""No further step is timed once this much time has gone."""
UNEVEN = 0.02
"""Cards of one name differ by this share of their usable memory, at most."""


class Memory:
    """CUDA's allocator, read phase by phase; on the CPU there is nothing to read."""

    def __init__(self, device: str) -> None:
        self.on_gpu = device == "cuda"
        self.peaks: dict[str, int] = {}
        self.live: dict[str, int] = {}
        self.reserved = 0

    def close(self, phase: str) -> None:
        """Keep what ``phase`` took at most, and start the next one."""
        if not self.on_gpu:
            self.peaks[phase] = 0
            return
        import torch

        torch.cuda.synchronize()
        self.peaks[phase] = max(self.peaks.get(phase, 0), torch.cuda.max_memory_allocated())
        self.reserved = max(self.reserved, torch.cuda.max_memory_reserved())
        torch.cuda.reset_peak_memory_stats()

    def allocated(self) -> int:
        """What tensors hold now."""
        if not self.on_gpu:
            return 0
        import torch

        return int(torch.cuda.memory_allocated())

    def outside(self) -> int | None:
        """What of the GPU is taken beside this allocator: its context, libraries, other processes."""
        if not self.on_gpu:
            return None
        import torch

        free, total = torch.cuda.mem_get_info()
        return int(total - free - torch.cuda.memory_reserved())


class Held:
    """What the model and the engine hold on ``device`` at this moment, by part."""

    def __init__(self, engine: Any, model: Any, device: str) -> None:
        from trimtab.rehearse import parts

        self.device = device
        self.bytes: Counter[str] = Counter()
        self._seen: set[int] = set()
        parts.label_model(self, model)
        parts.label_engine(self, engine)

    def label(self, tensor: Any, part: str) -> None:
        """Count ``tensor``'s storage for ``part``, unless it was counted before."""
        import torch

        if not isinstance(tensor, torch.Tensor) or tensor.device.type != self.device:
            return
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._seen:
            self._seen.add(storage.data_ptr())
            self.bytes[part] += -(-storage.nbytes() // UNIT) * UNIT


class Clock:
    """Instants of the work itself: CUDA events, which cost the host nothing; on the CPU the host's clock."""

    def __init__(self, device: str) -> None:
        self.on_gpu = device == "cuda"

    def now(self) -> Any:
        """An instant, once everything that was started before it is done."""
        if not self.on_gpu:
            return time.perf_counter()
        import torch

        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, start: Any, end: Any) -> float:
        """From ``start`` to ``end``; waits for both."""
        if not self.on_gpu:
            return float(end - start)
        end.synchronize()
        return float(start.elapsed_time(end) / 1e3)


class Run:
    """One rehearsal: builds, initializes, steps, and keeps what was seen; it knows where it stands."""

    def __init__(self, request: GpuRequest) -> None:
        self.request = request
        self.memory, self.clock = Memory(request.device), Clock(request.device)
        self.step, self.phase = 0, "build"
        self.modules: dict[int, str] = {}
        self.parameters = self.trainable = 0
        self.step_seconds: list[float] = []
        self.phase_seconds: list[dict[str, float]] = []
        self.held: dict[str, Counter[str]] = {}
        self.outside: int | None = None
        self.loss: float | None = None
        self.engine: Any = None
        self.model: Any = None
        self.output: Any = None
        self.shared, self.weight = 1, 1.0
        """Ranks that share the tokens of a sample, and what their gradients are multiplied by."""

    def go(self) -> GpuRehearsal:
        """Build, initialize and step until all is seen or memory runs out."""
        started = time.perf_counter()
        request, memory = self.request, self.memory
        _open_world(request)
        gpu = _hold_memory(request)
        from trimtab.rehearse.corners import versions

        config, notes = _as_rehearsed(request)
        short = None
        try:
            notes += self._run(config)
        except Exception as error:
            which = memory_that_ran_out(error)
            if which is None:
                raise
            allocated = 0
            with contextlib.suppress(RuntimeError):  # a context that broke cannot be asked
                allocated = memory.allocated()
                memory.close("first step" if self.step == 1 else self._phase_of_peaks)
            short = shortage(
                error,
                memory=which,
                step=self.step,
                phase=self.phase,
                modules=self.modules,
                allocated_bytes=allocated,
                reserved_bytes=memory.reserved,
            )
        stepping = [size for name, size in memory.peaks.items() if name in (*PHASES, "timed")]
        memory.peaks.pop("timed", None)
        return GpuRehearsal(
            parameters=self.parameters,
            trainable=self.trainable,
            phases=memory.peaks,
            peak_bytes=max(stepping or memory.peaks.values(), default=0),
            live=memory.live,
            held=self._held_at_the_peak(),
            reserved_bytes=memory.reserved,
            outside_bytes=self.outside,
            host_bytes=_host_bytes("VmRSS"),
            host_peak_bytes=_host_bytes("VmHWM"),
            step_seconds=tuple(self.step_seconds),
            phase_seconds={
                name: statistics.median(step[name] for step in self.phase_seconds)
                for name in PHASES
                if self.phase_seconds
            },
            loss=self.loss,
            out_of_memory=short,
            gpu=gpu,
            notes=notes,
            versions=versions(),
            seconds=time.perf_counter() - started,
        )

    @property
    def _phase_of_peaks(self) -> str:
        return "init" if self.step == 0 else self.phase if self.step == 2 else "timed"

    def _run(self, config: Config) -> tuple[str, ...]:
        from trimtab.rehearse import corners
        from trimtab.train.engine import import_deepspeed, settle
        from trimtab.train.model import Build, build_model, prepare_config, quiet_transformers
        from trimtab.train.samples import random_batch
        from trimtab.train.sequences import share_attention, weight_of_part

        request, memory = self.request, self.memory
        deepspeed = import_deepspeed(request.device)
        if request.world_size == 1:
            backend = "nccl" if request.device == "cuda" else "gloo"
            deepspeed.init_distributed(dist_backend=backend, verbose=False, auto_mpi_discovery=False)
        quiet_transformers()
        hf = _hf_config(request)
        notes = prepare_config(hf, config.job)
        built = build_model(config, hf, Build(initialize=False), device=request.device)
        self.model, self.parameters, self.trainable = built.module, built.parameters, built.trainable
        self.modules = {id(module): name or "the model" for name, module in built.module.named_modules()}
        self.phase = "initialize"
        if config.data_parallel_divisor > 1:
            corners.take_group_over()
        if config.tensor_parallel > 1:
            corners.split_layers(config.tensor_parallel)
        micro = config.batch(request.world_size).micro
        self.engine, *_ = deepspeed.initialize(
            model=built.module,
            model_parameters=[p for p in built.module.parameters() if p.requires_grad],
            config=for_engine(config.deepspeed()),
            mpu=share_attention(
                built.module, config.sequence_parallel, micro=micro, length=config.job.sequence_length
            ),
            dist_init_required=False,
        )
        if config.tensor_parallel > 1:
            corners.trust_samples(self.engine)
        memory.close("init")
        self.shared, self.weight = config.sequence_parallel, weight_of_part(config)

        def batch() -> dict[str, Any]:
            return random_batch(config.job, hf, samples=micro, device=self.engine.device)

        self._step(batch, lambda _, last: None)
        memory.close("first step")
        settle()
        self._step(batch, self._read)
        deadline = time.perf_counter() + TIMED_SECONDS
        while len(self.step_seconds) < TIMED_STEPS and (
            not self.step_seconds or time.perf_counter() < deadline
        ):
            self._timed_step(batch)
        memory.close("timed")
        self.outside = memory.outside()
        return notes

    def _loss(self, values: dict[str, Any]) -> Any:
        from trimtab.train.sequences import loss_of_part, part_of

        if self.shared == 1:
            return self.engine(**values).loss
        part = part_of(values, self.request.rank % self.shared, self.shared)
        return loss_of_part(self.engine, part, self.shared)

    def _step(self, batch: Callable[[], dict[str, Any]], border: Callable[[str, bool], None]) -> None:
        """One optimizer step; ``border`` is told where each phase of each micro step ends, and the last."""
        self.step += 1
        for micro in range(self.request.accumulation):
            last = micro == self.request.accumulation - 1
            self.phase = "forward"
            values = batch()
            border("start", last)
            # as in a training loop, the last loss and what its graph still holds live until the next one
            self.output = self._loss(values)
            border("forward", last)
            self.phase = "backward"
            self.engine.backward(self.output * self.weight if self.shared > 1 else self.output)
            border("backward", last)
            self.phase = "step"
            self.engine.step()
            border("step", last)

    def _read(self, border: str, last: bool) -> None:
        if border in PHASES:
            self.memory.close(border)
        if last:
            self.memory.live[border] = self.memory.allocated()
            self.held[border] = Held(self.engine, self.model, self.request.device).bytes

    def _timed_step(self, batch: Callable[[], dict[str, Any]]) -> None:
        """A step that nothing disturbs."""
        clock = self.clock
        marks: list[tuple[str, Any]] = []
        self._step(batch, lambda border, _: marks.append((border, clock.now())))
        seconds = dict.fromkeys(PHASES, 0.0)
        for (_, start), (phase, end) in pairwise(marks):
            if phase in seconds:
                seconds[phase] += clock.seconds(start, end)
        self.phase_seconds.append(seconds)
        self.step_seconds.append(clock.seconds(marks[0][1], marks[-1][1]))
        self.loss = float(self.output)

    def _held_at_the_peak(self) -> dict[str, int]:
        reached = {name: size for name, size in self.memory.peaks.items() if name in PHASES}
        if len(reached) < len(PHASES):
            return {}
        highest = max(reached, key=lambda name: reached[name])
        before, after = (self.held[name] for name in ("start", *PHASES)[PHASES.index(highest) :][:2])
        return {name: size for name in before if (size := min(before[name], after[name]))}


def _open_world(request: GpuRequest) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    os.environ.update(
        RANK=str(request.rank),
        WORLD_SIZE=str(request.world_size),
        LOCAL_RANK="0",
        LOCAL_WORLD_SIZE=str(min(request.world_size, request.ranks_per_node)),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    if request.world_size > 1:
        import torch.distributed as dist
        from torch.testing._internal.distributed.fake_pg import FakeStore

        dist.init_process_group("fake", store=FakeStore(), rank=request.rank, world_size=request.world_size)


def _hold_memory(request: GpuRequest) -> str:
    """Hold the allocator to the card that is asked for; returns the name of the one that is here."""
    if request.device != "cuda":
        return request.device
    import torch

    torch.cuda.set_device(0)
    name, here = torch.cuda.get_device_name(0), torch.cuda.mem_get_info(0)[1]
    if here < request.memory_bytes * (1 - UNEVEN):
        raise Unsupported(
            f"this machine's {name} has {format_bytes(here)}, the card that is asked for "
            f"{format_bytes(request.memory_bytes)}: rehearse with --phantom, or name this card with --gpu"
        )
    torch.cuda.set_per_process_memory_fraction(min(1.0, request.allocator_bytes / here), 0)
    return str(name)


def _as_rehearsed(request: GpuRequest) -> tuple[Config, tuple[str, ...]]:
    """The configuration as it can run here, and what had to change."""
    config = Config.from_mapping(request.config, name=request.name)
    micro, wanted = config.batch(request.world_size).micro, config.batch(request.world_size).accumulation
    changes: dict[str, Any] = {
        "train_batch_size": None,
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": request.accumulation,
        "steps_per_print": 10**9,
    }
    notes = ["torch's fake process group: no communication ran"] if request.world_size > 1 else []
    if request.accumulation != wanted:
        notes.append(f"{request.accumulation} of {wanted} micro steps run: the others take no more memory")
    for key in ("zero_quantized_weights", "zero_quantized_gradients"):
        if request.world_size > 1 and config.zero(key):
            changes[f"zero_optimization.{key}"] = None
            notes.append(f"{key} left out: torch's fake group cannot gather the scales")
    return config.with_values(changes), tuple(notes)


def _hf_config(request: GpuRequest) -> Any:
    from trimtab.train.model import read_model_config

    file = Path("config.json")  # the parent gave this process a folder of its own
    file.write_text(json.dumps(dict(request.hf)), encoding="utf-8")
    return read_model_config(str(file))


def _host_bytes(key: str) -> int:
    """``VmRSS`` or ``VmHWM`` of this process; getrusage's peak would hold the parent's, from before exec."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text(encoding="utf-8").splitlines():
            if line.startswith(f"{key}:"):
                return int(line.split()[1]) * 1024
    import psutil

    return int(psutil.Process().memory_info().rss)


if __name__ == "__main__":
    request = GpuRequest(**json.load(sys.stdin))
    answer_with(lambda: dataclasses.asdict(Run(request).go()), Path(sys.argv[1]))
