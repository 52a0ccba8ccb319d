"""``trimtab rehearse``: its answer beside the arithmetic's, what stands in for it, and what it refuses."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from sources import python
from trimtab import catalogue
from trimtab.cli.main import main
from trimtab.cluster import Cluster
from trimtab.config import Config
from trimtab.cost.rates import rates_of
from trimtab.cost.reduction import reduction_bytes
from trimtab.errors import EngineMoved, RefusedConfig, Unsupported
from trimtab.estimate import estimate
from trimtab.model import find_model
from trimtab.moves import recomputation
from trimtab.rehearse import answer as answers
from trimtab.rehearse import child
from trimtab.rehearse.request import (
    MICRO_STEPS_ENOUGH,
    MOMENTS,
    PHASES,
    Module,
    Moment,
    Operator,
    Part,
    PhantomRequest,
    Phase,
    Rehearsal,
)
from trimtab.rehearse.way_out import way_out
from trimtab.units import GIB, MIB

Capture = pytest.CaptureFixture[str]
NAME = "llama_7b_single_node"
WORKSPACE = 64 * MIB
COHERE = {
    "model_type": "cohere",
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 1000,
}
ADAM = {"type": "AdamW", "params": {"lr": 1e-4, "torch_adam": True}}
needs_engine = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("torch", "deepspeed", "transformers")),
    reason="needs trimtab[train]",
)


def rehearsal(peak: int = 20 * GIB) -> Rehearsal:
    """A phantom's answer with this peak over a step, of which half are parameters."""
    tensors = peak - WORKSPACE - 512
    sizes = (
        Part(name="model_buffers", bytes=tensors // 2),
        Part(name="step_temporaries", bytes=tensors // 4),
    )
    parts = (*sizes, Part(name="activations", bytes=tensors - sum(part.bytes for part in sizes)))
    return Rehearsal(
        parameters=1000,
        trainable_parameters=900,
        moments=tuple(
            Moment(
                name=name,
                allocated_bytes=tensors,
                peak_bytes=tensors,
                blocks_bytes=peak,
                peak_blocks_bytes=peak // 2 if name == "engine" else peak,
                reserved_bytes=peak,
                peak_reserved_bytes=peak + GIB,
                host_bytes=GIB,
                host_pinned_bytes=0,
                parts=parts,
            )
            for name in MOMENTS
        ),
        phases=(
            Phase(name="forward", peak_bytes=tensors - 1, at="", parts=()),
            Phase(name="backward", peak_bytes=tensors, at="", parts=parts),
        ),
        workspace_bytes=WORKSPACE,
        init_peak_bytes=peak // 2,
        step_peak_bytes=tensors,
        host_peak_bytes=GIB,
        host_pinned_peak_bytes=0,
        nvme_bytes=0,
        modules=tuple(
            Module(name=f"layer.{n}", class_name="Layer", kept_bytes=GIB, calls=1) for n in range(4)
        ),
        operators=(),
        collectives=(),
        copies=(),
        smallest_capacity_bytes=peak + GIB // 2,
        optimizer="FusedAdam",
        engine_optimizer="DeepSpeedZeroOptimizer",
        assumptions=("nothing is real",),
        versions={"torch": "0"},
        seconds=1.5,
    )


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[PhantomRequest]:
    """Answers every phantom rehearsal with `rehearsal`; returns the requests."""
    requests: list[PhantomRequest] = []

    def stand_in(request: PhantomRequest, **_: Any) -> Rehearsal:
        requests.append(request)
        return rehearsal()

    monkeypatch.setattr(answers, "rehearse_phantom", stand_in)
    return requests


def refuse(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def stand_in(*_: Any, **__: Any) -> Rehearsal:
        raise error

    monkeypatch.setattr(answers, "rehearse_phantom", stand_in)


def run_json(capsys: Capture, *arguments: str) -> tuple[int, dict[str, Any]]:
    code = main(["rehearse", *arguments, "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_the_step_is_replayed_and_drawn(
    capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path))
    shape = ("bfloat16", (8192, 8192))
    product = Operator(
        name="aten.mm.default",
        phase="forward",
        module_class="Linear",
        inputs=(shape, shape),
        outputs=(shape,),
        count=600,
        view=False,
    )
    order = (("phase", PHASES.index("forward")), *[("operator", 0)] * 300) * 2
    record = dataclasses.replace(rehearsal(), operators=(product,), order=order, streams=("compute",))
    monkeypatch.setattr(answers, "rehearse_phantom", lambda *_, **__: record)
    file = tmp_path / "step.json"
    code, answer = run_json(capsys, NAME, "--phantom", "--gpu", "h200", "--timeline", str(file))
    speed = answer["speed"]
    # four micro steps of 300 products
    one = rates_of(Cluster.of("h200")).product("bf16", 8192, 8192, 8192)
    assert code == 0
    assert 2 * 8192**3 / one == pytest.approx(700e12, rel=0.05)
    assert speed["step_seconds"]["expected"] == pytest.approx(1200 * one, rel=0.01)
    assert sum(part["seconds"] for part in speed["parts"]) == pytest.approx(speed["step_seconds"]["expected"])
    tokens = 4 * 4 * 2048
    assert speed["tokens_per_second_per_gpu"] == pytest.approx(tokens / speed["step_seconds"]["expected"])
    ratio = speed["step_seconds"]["expected"] / answer["predicted"]["speed"]["step_seconds"]["expected"]
    assert answer["cost"]["usd_per_billion_tokens"] == pytest.approx(
        answer["predicted"]["cost"]["usd_per_billion_tokens"] * ratio
    )
    assert "simulated from the recorded step" in " ".join(answer["assumptions"])
    assert len(json.loads(file.read_text(encoding="utf-8"))["traceEvents"]) == 601
    assert main(["rehearse", NAME, "--phantom", "--gpu", "h200"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("a step  ") for line in lines)
    assert max(map(len, lines)) <= 80


def test_a_timeline_needs_a_record(asked: list[PhantomRequest], capsys: Capture, tmp_path: Path) -> None:
    assert main(["rehearse", NAME, "--phantom", "--timeline", str(tmp_path / "x.json")]) == 2
    assert "--timeline: only a phantom rehearsal records a step's order" in capsys.readouterr().err
    assert asked


@pytest.fixture
def cohere(tmp_path: Path) -> tuple[str, ...]:
    """The arguments of a job whose architecture the arithmetic does not know."""
    model, file = tmp_path / "config.json", tmp_path / "ds.json"
    model.write_text(json.dumps(COHERE), encoding="utf-8")
    zero = {"stage": 2, "reduce_bucket_size": 1_000_000}
    config = {
        "train_micro_batch_size_per_gpu": 2,
        "bf16": {"enabled": True},
        "zero_optimization": zero,
        "optimizer": ADAM,
    }
    file.write_text(json.dumps(config), encoding="utf-8")
    return (str(file), "--model", str(model), "--gpu", "t4", "--sequence-length", "64", "--phantom")


# -- the answer ------------------------------------------------------------


def test_the_answer_has_the_estimates_form_and_the_estimate(
    asked: list[PhantomRequest], capsys: Capture
) -> None:
    code, answer = run_json(capsys, NAME, "--phantom")
    assert main(["estimate", NAME, "--json"]) == 0
    estimate = json.loads(capsys.readouterr().out)
    assert (code, answer["method"], answer["predicted"]["method"]) == (0, "phantom", "arithmetic")
    assert set(estimate) - set(answer) == set()
    for key in ("gpu", "host", "nvme", "speed", "cost", "parameters"):
        assert set(answer["predicted"][key]) == set(estimate[key])
    assert answer["predicted"]["gpu"] == estimate["gpu"]
    assert answer["parameters"] == {"total": 1000, "trainable": 900}
    assert answer["gpu"]["peak_allocated_bytes"]["expected"] == 20 * GIB
    assert sum(part["bytes"] for part in answer["gpu"]["parts"]) == 20 * GIB
    assert [phase["name"] for phase in answer["gpu"]["phases"]] == ["init", "forward", "backward"]
    needed = answer["gpu"]["needed_bytes"]
    assert 20 * GIB < needed["low"] < needed["expected"] < needed["high"]
    assert len(answer["modules"]) == 4


def test_parts_have_the_arithmetics_names(asked: list[PhantomRequest], capsys: Capture) -> None:
    _, answer = run_json(capsys, NAME, "--phantom")
    seen = {part["name"] for part in answer["gpu"]["parts"]}
    assert seen == {"parameters", "temporaries", "activations", "workspace, slack"}


def test_the_request_is_the_job_on_that_card(asked: list[PhantomRequest], capsys: Capture) -> None:
    run_json(capsys, NAME, "--phantom", "--gpu", "h100", "--rank", "3", "--micro-batch", "1")
    (request,) = asked
    assert (request.rank, request.world_size, request.micro_batch) == (3, 8, 1)
    assert request.compute_capability == (9, 0)
    assert request.accumulation <= MICRO_STEPS_ENOUGH
    assert request.find_capacity


def test_what_does_not_fit_is_exit_1_and_names_a_way_out(
    asked: list[PhantomRequest], capsys: Capture
) -> None:
    code, answer = run_json(capsys, NAME, "--phantom", "--gpu", "t4")
    assert (code, answer["fits"], answer["fits_probability"]) == (1, False, 0.0)
    out = answer["way_out"]
    # smaller micro batches are the ladder's first rung, and are not needed
    assert [move["name"] for move in out["moves"]] == ["zero-stage-3", "offload-optimizer-cpu"]
    assert out["needed_bytes"] <= answer["gpu"]["capacity_bytes"]
    assert ["zero_optimization", "stage"] in [change["key_path"] for change in out["changes"]]
    main(["rehearse", NAME, "--phantom", "--gpu", "t4"])
    assert "would fit: ZeRO stage 3; then Optimizer in the host's memory (" in capsys.readouterr().out


def test_a_way_out_needs_what_the_rehearsal_needed_beyond_the_prediction() -> None:
    config, model = catalogue.load_config(NAME), find_model("llama-7b")
    cluster = Cluster.of("a100-40gb", 8)
    near = way_out(config, cluster, model)
    far = way_out(config, cluster, model, beyond_bytes=20 * GIB)
    assert near is not None
    assert far is not None
    assert far.predicted.needed.expected + 20 * GIB == far.needed_bytes <= cluster.gpu.usable_bytes
    assert far.predicted.needed.expected < near.predicted.needed.expected
    assert way_out(config, cluster, model, beyond_bytes=40 * GIB) is None


def test_a_way_out_recomputes_no_more_layers_than_it_takes() -> None:
    kept = {"trimtab.checkpoint_activations": False, "trimtab.sequence_length": 4096}
    batch = {"train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": None}
    config = catalogue.load_config(NAME).with_values({**kept, **batch})
    cluster = Cluster.of("a100-40gb", 8)
    found = way_out(config, cluster, find_model("llama-7b"))
    assert found is not None
    (move,) = found.moves
    assert isinstance(move.value, int)
    assert 1 < move.value < 32
    fewer = estimate(recomputation(move.value - 1).apply(config, cluster), cluster)
    assert fewer.needed.expected > cluster.gpu.usable_bytes or not fewer.fits


def test_the_text_holds_both_figures_and_their_difference(
    asked: list[PhantomRequest], capsys: Capture
) -> None:
    assert main(["rehearse", NAME, "--phantom", "--modules", "3"]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    peak = next(line.split() for line in text.splitlines() if line.startswith("peak allocated"))
    assert peak[2:] == ["28.7", "GiB", "20.0", "GiB", "-30.4%"]
    assert "layer.2" in text
    assert "layer.3" not in text
    assert "1 more" in text


def test_an_unknown_architecture_has_no_prediction(
    asked: list[PhantomRequest], cohere: tuple[str, ...], capsys: Capture
) -> None:
    code, answer = run_json(capsys, *cohere, "--gpu", "h100")
    assert (code, answer["predicted"], answer["speed"]["mfu"]) == (0, None, None)
    assert answer["cost"]["usd_per_hour"] > 0
    assert answer["warnings"] == []
    code, old = run_json(capsys, *cohere, "--gpu", "v100-32gb")
    assert (code, old["warnings"]) == (0, ["v100-32gb has no bf16 arithmetic: the run needs fp16 instead"])
    assert main(["rehearse", *cohere, "--gpu", "h100"]) == 0
    assert "rehearsed" in capsys.readouterr().out
    assert main(["estimate", *cohere[:-1]]) == 2


# -- what stands in, and what is refused ------------------------------------------------------------


def test_an_engine_that_moved_leaves_the_arithmetic(
    monkeypatch: pytest.MonkeyPatch, cohere: tuple[str, ...], capsys: Capture
) -> None:
    refuse(monkeypatch, EngineMoved("torch.corner is gone"))
    code, answer = run_json(capsys, NAME, "--phantom")
    assert (code, answer["method"]) == (0, "arithmetic")
    assert "torch.corner is gone" in answer["assumptions"][0]
    assert answer["gpu"] == answer["predicted"]["gpu"]
    assert main(["rehearse", NAME, "--phantom"]) == 0
    assert capsys.readouterr().out.startswith("not rehearsed: torch.corner is gone")
    assert main(["rehearse", *cohere]) == 2
    assert capsys.readouterr().err == "error: torch.corner is gone\n"


def test_a_missing_package_names_its_extra(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "deepspeed" else object())
    assert main(["rehearse", NAME, "--phantom"]) == 2
    assert "needs deepspeed, which is not installed: pip install 'trimtab[train]'" in capsys.readouterr().err


def test_no_gpu_says_phantom(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setattr("trimtab.cli.rehearse.gpu_is_here", lambda: False)
    assert main(["rehearse", NAME, "--no-phantom"]) == 2
    assert "--phantom" in capsys.readouterr().err


def test_without_a_gpu_the_phantom_is_the_default(
    monkeypatch: pytest.MonkeyPatch, asked: list[PhantomRequest], capsys: Capture
) -> None:
    monkeypatch.setattr("trimtab.cli.rehearse.gpu_is_here", lambda: False)
    assert run_json(capsys, NAME)[1]["method"] == "phantom"


def test_a_rank_outside_the_world_is_refused(asked: list[PhantomRequest], capsys: Capture) -> None:
    assert main(["rehearse", NAME, "--phantom", "--rank", "8"]) == 2
    assert "0 to 7" in capsys.readouterr().err
    assert asked == []


def test_torchs_long_message_is_cut() -> None:
    message = (
        "NotImplementedError: Could not run 'aten::fly' with arguments from the 'phantom' backend. This " * 9
    )
    error = child._error("Engine", message)
    assert isinstance(error, Unsupported)
    assert "it calls aten::fly where" in str(error)
    assert type(child._error("Engine", "ValueError: no\nmore")) is RefusedConfig
    assert str(child._error("Engine", "ValueError: no\nmore")).endswith("ValueError: no")


# -- through the engine ------------------------------------------------------------


@needs_engine
@pytest.mark.engine
def test_an_architecture_that_only_transformers_knows(cohere: tuple[str, ...], capsys: Capture) -> None:
    code, answer = run_json(capsys, *cohere, "--gpus-per-node", "2", "--no-cache")
    assert (code, answer["method"], answer["predicted"]) == (0, "phantom", None)
    assert answer["parameters"]["total"] > COHERE["vocab_size"] * COHERE["hidden_size"]  # type: ignore[operator]
    parts = {part["name"]: part["bytes"] for part in answer["gpu"]["parts"]}
    assert parts["parameters"] >= 2 * answer["parameters"]["total"]


@needs_engine
@pytest.mark.engine
def test_phantom_and_arithmetic_agree_on_a_small_model() -> None:
    raw = {
        "train_micro_batch_size_per_gpu": 2,
        "bf16": {"enabled": True},
        "zero_optimization": {"stage": 2, "reduce_bucket_size": 5_000_000},
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-4}},
        "trimtab": {"model": "gpt2", "sequence_length": 256},
    }
    answer = answers.rehearse(Config.from_mapping(raw), Cluster.of("h100", 2), use_cache=False)
    assert answer.seen is not None
    assert answer.predicted is not None
    assert answer.seen.peak.expected == pytest.approx(answer.predicted.peak_allocated.expected, rel=0.02)
    assert answer.seen.parts["parameters"] == pytest.approx(
        answer.predicted.profile.peak_parts["parameters"], rel=0.001
    )


@needs_engine
@pytest.mark.engine
def test_a_sum_over_rows_takes_its_buffer() -> None:
    """4096 rows of 3072 halves: 96 MiB on an H200 (the gradient of BERT's widest bias)."""
    assert reduction_bytes(4096, 3072, 2) == 96 * MIB
    program = """
import torch
from trimtab.rehearse import corners
from trimtab.rehearse.ledger import Ledger
corners.make_device()
with Ledger() as ledger:
    x = torch.empty(4, 1024, 3072, dtype=torch.half, device=corners.DEVICE)
    sizes = []
    for summed in (lambda: x.sum((0, 1)), lambda: x.sum(-1), lambda: x.transpose(1, 2).sum((0, 1))):
        ledger.reset_peaks()
        before = ledger.allocated
        summed()
        sizes.append(ledger.peak - before)
print(sizes)
"""
    done = python("-W", "ignore", "-c", program)
    assert done.stdout.strip() == str([96 * MIB + 6144, 8192, 2048]), done.stderr
