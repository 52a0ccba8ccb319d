"""``trimtab rehearse`` on a GPU: its answer, where memory ran out, and the same path run on the CPU."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sources import SRC
from trimtab import catalogue
from trimtab.cli.main import main
from trimtab.cluster import Cluster
from trimtab.cost.need import outside_allocator
from trimtab.errors import Unsupported
from trimtab.rehearse import answer as answers
from trimtab.rehearse import proving
from trimtab.rehearse.child import NoAnswer
from trimtab.rehearse.on_gpu import GpuRehearsal, GpuRequest, Shortage, from_json, rehearse_on_gpu
from trimtab.rehearse.shortage import memory_that_ran_out, shortage
from trimtab.units import GIB, MIB

Capture = pytest.CaptureFixture[str]
NAME = "llama_7b_single_node"
LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 100,
}
ADAM = {"type": "AdamW", "params": {"lr": 1e-4, "torch_adam": True}}
needs_engine = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("torch", "deepspeed", "transformers")),
    reason="needs trimtab[train]",
)


def run_json(capsys: Capture, *arguments: str) -> tuple[int, dict[str, Any]]:
    code = main(["rehearse", *arguments, "--json"])
    return code, json.loads(capsys.readouterr().out)


def gpu_rehearsal(**changes: Any) -> GpuRehearsal:
    values: dict[str, Any] = {
        "parameters": 1000,
        "trainable": 1000,
        "phases": {"init": 9 * GIB, "forward": 18 * GIB, "backward": 20 * GIB, "step": 15 * GIB},
        "peak_bytes": 20 * GIB,
        "live": {"start": 10 * GIB, "forward": 18 * GIB, "backward": 12 * GIB, "step": 10 * GIB},
        "held": {
            "parameters": 6 * GIB,
            "model_buffers": MIB,
            "optimizer_states": 4 * GIB,
            "gathered_parameters": 5,
        },
        "reserved_bytes": 22 * GIB,
        "outside_bytes": GIB,
        "host_bytes": 2 * GIB,
        "host_peak_bytes": 3 * GIB,
        "step_seconds": (0.5, 0.6, 0.4),
        "phase_seconds": {"forward": 0.1, "backward": 0.2, "step": 0.2},
        "loss": 4.0,
        "out_of_memory": None,
        "gpu": "NVIDIA H200",
        "notes": ("no communication ran",),
        "versions": {},
        "seconds": 30.0,
    }
    return GpuRehearsal(**{**values, **changes})


SHORT = Shortage(
    message="CUDA out of memory. Tried to allocate 2.00 GiB",
    memory="gpu",
    step=2,
    phase="backward",
    asked_bytes=2 * GIB,
    allocated_bytes=37 * GIB,
    reserved_bytes=38 * GIB,
    module="model.layers.3.mlp",
    module_class="LlamaMLP",
    frame="transformers/models/llama/modeling_llama.py:182 in forward",
)


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> list[GpuRequest]:
    """A machine with an H200, on which every rehearsal answers `gpu_rehearsal`; returns the requests."""
    requests: list[GpuRequest] = []

    def stand_in(request: GpuRequest, **_: Any) -> GpuRehearsal:
        requests.append(request)
        return gpu_rehearsal()

    monkeypatch.setattr(answers, "rehearse_on_gpu", stand_in)
    monkeypatch.setattr("trimtab.cli.rehearse.gpu_is_here", lambda: True)
    return requests


def test_a_gpus_answer(on_gpu: list[GpuRequest], capsys: Capture) -> None:
    code, answer = run_json(capsys, NAME)
    assert (code, answer["method"], answer["out_of_memory"]) == (0, "rehearsal", None)
    (request,) = on_gpu
    assert request.memory_bytes == answer["gpu"]["capacity_bytes"]
    # the CUDA context and NCCL have their share of a real card too
    assert request.allocator_bytes == request.memory_bytes - outside_allocator(8, 2)
    assert answer["measured"]["allocator_bytes"] == request.allocator_bytes
    assert answer["gpu"]["peak_allocated_bytes"]["expected"] == 20 * GIB
    needed = answer["gpu"]["needed_bytes"]
    assert needed["low"] <= needed["expected"] <= needed["high"] <= answer["gpu"]["capacity_bytes"]
    assert "no communication ran" in answer["assumptions"]


def test_a_gpu_tells_the_parts_that_stay(on_gpu: list[GpuRequest], capsys: Capture) -> None:
    _, answer = run_json(capsys, NAME)
    parts = {part["name"]: part["bytes"] for part in answer["gpu"]["parts"]}
    assert parts == {
        "parameters": 6 * GIB + MIB,
        "optimizer states": 4 * GIB,
        "activations and the rest": 10 * GIB - MIB,
    }
    assert main(["rehearse", NAME]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    rest = next(line for line in lines if line.startswith("activations and the rest"))
    assert rest.endswith("%")


def test_a_steps_time_counts_on_the_very_card(on_gpu: list[GpuRequest], capsys: Capture) -> None:
    _, elsewhere = run_json(capsys, NAME)
    assert elsewhere["speed"] == elsewhere["predicted"]["speed"]
    # three micro steps ran of the four of a step: forward and backward take longer, the step does not
    assert elsewhere["measured"]["step_seconds_without_communication"] == pytest.approx(4 / 3 * 0.3 + 0.2)
    _, same = run_json(capsys, NAME, "--gpu", "h200", "--grad-accum", "8")
    communication = same["predicted"]["speed"]["communication_seconds"]
    alone = 8 / 3 * 0.3 + 0.2
    assert same["measured"]["step_seconds_without_communication"] == pytest.approx(alone)
    assert same["speed"]["step_seconds"]["expected"] == pytest.approx(alone + communication)
    assert same["speed"]["step_seconds"]["low"] < alone < same["speed"]["step_seconds"]["high"]
    assert main(["rehearse", NAME, "--gpu", "h200"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    backward = next(line.split() for line in lines if line.startswith("backward  ") and "ms" in line)
    assert backward == ["backward", "267", "ms"]


def test_a_gpu_without_memory_says_where_it_ended(
    on_gpu: list[GpuRequest], monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    short = gpu_rehearsal(out_of_memory=SHORT, held={}, step_seconds=(), phase_seconds={}, loss=None)
    monkeypatch.setattr(answers, "rehearse_on_gpu", lambda *_, **__: short)
    code, answer = run_json(capsys, NAME)
    assert (code, answer["fits"], answer["gpu"]["parts"]) == (1, False, [])
    assert answer["out_of_memory"]["module"] == "model.layers.3.mlp"
    assert answer["speed"] == answer["predicted"]["speed"]
    # tensors held 37 GiB and 2 more were asked for; the CUDA context and NCCL come on top
    assert answer["gpu"]["needed_bytes"]["low"] == 39 * GIB + outside_allocator(8, 2)
    assert main(["rehearse", NAME]) == 1
    text = capsys.readouterr().out
    assert "GPU memory ran out in step 2, backward, in model.layers.3.mlp (LlamaMLP)" in text
    assert "2.0 GiB were asked for; tensors held 37.0 GiB" in text


def fail_in_a_layer() -> RuntimeError:
    """An exception with the traceback of a forward pass that found no memory."""

    class Layer:
        def forward(self) -> None:
            raise RuntimeError(
                "CUDA out of memory. Tried to allocate 1.50 GiB. GPU 0 has a total capacity of 80 GiB"
            )

    layer = Layer()
    try:
        layer.forward()
    except RuntimeError as error:
        return error
    raise AssertionError


def test_a_shortage_is_read_from_its_traceback() -> None:
    error = fail_in_a_layer()
    layer = error.__traceback__.tb_next.tb_frame.f_locals["self"]  # type: ignore[union-attr]
    found = shortage(
        error,
        memory="gpu",
        step=1,
        phase="forward",
        modules={id(layer): "layers.0"},
        allocated_bytes=1,
        reserved_bytes=2,
    )
    assert found.message == "CUDA out of memory. Tried to allocate 1.50 GiB"
    assert (found.asked_bytes, found.module, found.module_class) == (3 * GIB // 2, "layers.0", "Layer")
    assert found.frame is not None
    assert found.frame.startswith(f"{__file__}:")
    assert found.frame.endswith(" in forward")


@pytest.mark.parametrize(
    ("error", "memory"),
    [
        (RuntimeError("CUDA error: out of memory"), "gpu"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), "gpu"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."), "host"),
        (MemoryError(), "host"),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), None),
        (ValueError("no"), None),
    ],
)
def test_which_memory_ran_out(error: Exception, memory: str | None) -> None:
    assert memory_that_ran_out(error) == memory


def test_a_rehearsal_that_was_killed_is_a_candidate_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """The host's memory ran out, say: a plan that probes goes on with the next one."""

    def killed(request: GpuRequest, *, timeout_seconds: float) -> GpuRehearsal:
        raise NoAnswer("the rehearsal was killed")

    monkeypatch.setattr(answers, "rehearse_on_gpu", killed)
    config = catalogue.load_config(NAME)
    proof = proving.on_this_gpu(config, Cluster.of("a100-80gb", 8))
    assert not proof.fits
    assert proof.fits_probability == 0
    assert proof.said == "the rehearsal was killed"


def test_no_gpu_cannot_be_rehearsed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trimtab.rehearse.on_gpu.gpu_is_here", lambda: False)
    with pytest.raises(Unsupported, match="--phantom"):
        rehearse_on_gpu(gpu_request(1))


def gpu_request(world: int, device: str = "cuda") -> GpuRequest:
    zero = {"stage": 2, "reduce_bucket_size": 100_000}
    config = {
        "train_micro_batch_size_per_gpu": 2,
        "gradient_accumulation_steps": 8,
        "bf16": {"enabled": True},
        "zero_optimization": zero,
        "optimizer": ADAM,
        "trimtab": {"sequence_length": 16},
    }
    return GpuRequest(
        config=config,
        name="tiny",
        hf=LLAMA,
        world_size=world,
        ranks_per_node=8,
        rank=0,
        accumulation=2,
        memory_bytes=GIB,
        allocator_bytes=GIB,
        device=device,
    )


@needs_engine
@pytest.mark.engine
@pytest.mark.parametrize("shared", [{"tensor_parallel": {"autotp_size": 2}}, {"sequence_parallel_size": 2}])
def test_ranks_that_share_layers_or_samples_are_rehearsed(shared: dict[str, Any]) -> None:
    request = gpu_request(4, "cpu")
    hf = {**request.hf, "tie_word_embeddings": True}
    seen = rehearse_on_gpu(dataclasses.replace(request, hf=hf, config={**request.config, **shared}))
    whole = 95_040 - 6_400
    assert seen.parameters == whole
    half = "tensor_parallel" in shared
    assert seen.held["parameters"] == pytest.approx(2 * whole * (0.5 if half else 1), rel=0.02)
    assert seen.held["master_weights"] == pytest.approx(4 * whole / 4, rel=0.02)


@needs_engine
@pytest.mark.engine
def test_the_gpus_path_runs_on_the_cpu() -> None:
    seen = rehearse_on_gpu(gpu_request(4, "cpu"))
    assert list(seen.phases) == ["init", "first step", "forward", "backward", "step"]
    assert list(seen.live) == ["start", "forward", "backward", "step"]
    # bf16 weights, a quarter of the fp32 copies and of Adam's two moments; blocks are of 512 bytes
    assert seen.held["parameters"] == pytest.approx(2 * 95_040, rel=0.02)
    assert seen.held["master_weights"] == pytest.approx(4 * 95_040 / 4, rel=0.02)
    assert seen.held["optimizer_states"] == pytest.approx(8 * 95_040 / 4, rel=0.02)
    assert seen.parameters == seen.trainable == 95_040
    assert seen.loss == pytest.approx(4.6, abs=0.5)
    assert seen.host_peak_bytes >= seen.host_bytes > 100 * MIB
    assert len(seen.step_seconds) == 5
    assert set(seen.phase_seconds) == {"forward", "backward", "step"}
    assert min(seen.phase_seconds.values()) > 0
    assert any("2 of 8 micro steps" in note for note in seen.notes)


LIMITED = """
import dataclasses, json, sys
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from trimtab.rehearse.gpu_run import Run
from trimtab.rehearse.on_gpu import GpuRequest

__name__ = "torch.limit"  # its frames are torch's, as the allocator's would be

class Limit(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        # the hidden layer of a feed-forward block, two samples of 16 tokens, found no place
        if isinstance(made, torch.Tensor) and run.step == 2 and made.shape[1:] == (16, 128):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB. GPU 0 has none")
        return made

run = Run(GpuRequest(**json.load(sys.stdin)))
with Limit():
    print("answer", json.dumps(dataclasses.asdict(run.go())))
import os; sys.stdout.flush(); os._exit(0)
"""


@needs_engine
@pytest.mark.engine
def test_where_memory_ran_out_in_a_real_run(tmp_path: Path) -> None:
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(SRC)}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LIMITED],
        input=json.dumps(dataclasses.asdict(gpu_request(4, "cpu"))),
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
        check=False,
    )
    line = next((line for line in done.stdout.splitlines() if line.startswith("answer ")), done.stderr)
    seen = from_json(json.loads(line.removeprefix("answer ")))
    short = seen.out_of_memory
    assert short is not None
    assert (short.step, short.phase, short.memory, short.asked_bytes) == (2, "forward", "gpu", 2 * MIB)
    assert (short.module, short.module_class) == ("model.layers.0.mlp.gate_proj", "Linear")
    assert short.frame is not None
    assert short.frame.startswith("transformers/models/llama/modeling_llama.py:")
    assert seen.step_seconds == ()
    assert list(seen.phases) == ["init", "first step", "forward"]
