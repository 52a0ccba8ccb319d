"""The rehearsal on a GPU itself, in a process of its own: ``python -m trimtab.rehearse.gpu_run ANSWER``.

Reads a `trimtab.rehearse.on_gpu.GpuRequest` as JSON from standard input and writes ``{"rehearsal": ...}``
with the fields of `GpuRehearsal`, or ``{"error": {"kind", "message"}}``, to the file ANSWER.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

from trimtab.config import Config
from trimtab.errors import TrimtabError, Unsupported
from trimtab.rehearse.on_gpu import GpuRequest
from trimtab.units import format_bytes

STEPS = 3
"""The first makes the optimizer's states; the last is measured."""
UNEVEN = 0.02
"""Cards of one name differ by this share of their usable memory, at most."""


class Memory:
    """CUDA's allocator, read phase by phase; on the CPU there is nothing to read."""

    def __init__(self, device: str) -> None:
        self.on_gpu = device == "cuda"
        self.peaks: dict[str, int] = {}
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


def run(request: GpuRequest) -> dict[str, Any]:
    """Build, initialize and step; returns the fields of `GpuRehearsal`."""
    started = time.perf_counter()
    _open_world(request)
    import psutil
    import torch

    from trimtab.rehearse.corners import versions
    from trimtab.train.engine import import_deepspeed
    from trimtab.train.model import Build, build_model, prepare_config, quiet_transformers
    from trimtab.train.samples import random_batch

    gpu = _hold_memory(request)
    deepspeed = import_deepspeed(request.device)
    if request.world_size == 1:
        backend = "nccl" if request.device == "cuda" else "gloo"
        deepspeed.init_distributed(dist_backend=backend, verbose=False, auto_mpi_discovery=False)
    quiet_transformers()
    config, notes = _as_rehearsed(request)
    hf = _hf_config(request)
    notes += prepare_config(hf, config.job)
    batch = config.batch(request.world_size)
    memory = Memory(request.device)
    seen: dict[str, Any] = {"parameters": 0, "trainable": 0, "step_seconds": None, "loss": None}
    out_of_memory = None
    try:
        built = build_model(config, hf, Build(initialize=False), device=request.device)
        seen.update(parameters=built.parameters, trainable=built.trainable)
        engine, *_ = deepspeed.initialize(
            model=built.module,
            model_parameters=[p for p in built.module.parameters() if p.requires_grad],
            config=config.deepspeed(),
            dist_init_required=False,
        )
        memory.close("init")
        for step in range(STEPS):
            measured = step == STEPS - 1
            if measured:
                memory.close("first steps")
            began = time.perf_counter()
            for _ in range(batch.accumulation):
                values = random_batch(config.job, hf, samples=batch.micro, device=engine.device)
                loss = engine(**values).loss
                if measured:
                    memory.close("forward")
                engine.backward(loss)
                if measured:
                    memory.close("backward")
                engine.step()
                if measured:
                    memory.close("step")
            seen["step_seconds"] = time.perf_counter() - began
        seen["loss"] = float(loss)
    except torch.OutOfMemoryError as short:
        memory.close("before memory ran out")
        out_of_memory = str(short).splitlines()[0]
    # optimizers make their states, and their scratch, in the first step: it starts the run, as init does
    first = memory.peaks.pop("first steps", 0)
    if "init" in memory.peaks:
        memory.peaks["init"] = max(memory.peaks["init"], first)
    return {
        **seen,
        "phases": memory.peaks,
        "reserved_bytes": memory.reserved,
        "host_bytes": psutil.Process().memory_info().rss,
        "out_of_memory": out_of_memory,
        "gpu": gpu,
        "notes": notes,
        "versions": versions(),
        "seconds": time.perf_counter() - started,
    }


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
    torch.cuda.set_per_process_memory_fraction(min(1.0, request.memory_bytes / here), 0)
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


def main(answer_file: str) -> int:
    """Read a request from standard input, run it, write the answer to ``answer_file``."""
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    try:
        answer: dict[str, Any] = {"rehearsal": run(GpuRequest(**json.load(sys.stdin)))}
    except TrimtabError as error:
        answer = {"error": {"kind": type(error).__name__, "message": str(error)}}
    except Exception as error:  # noqa: BLE001  the parent decides what a failure of the engine means
        traceback.print_exc()
        answer = {"error": {"kind": "Engine", "message": f"{type(error).__name__}: {error}"}}
    Path(answer_file).write_text(json.dumps(answer), encoding="utf-8")
    return 0


if __name__ == "__main__":
    code = main(sys.argv[1])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # a made-up process group cannot be taken down in order
