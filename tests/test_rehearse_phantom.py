"""Phantom rehearsals: the engine's own arithmetic, held exactly."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from trimtab.config import Config
from trimtab.cost.memory import profile
from trimtab.errors import EngineMoved, RefusedConfig, Unsupported, UsageError
from trimtab.job import Lora
from trimtab.model import Model
from trimtab.rehearse import cache, corners
from trimtab.rehearse.phantom import rehearse_phantom
from trimtab.rehearse.request import PhantomRequest, Rehearsal

WORLD = 8
LLAMA = {
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": 1000,
}
T5 = {
    "model_type": "t5",
    "d_model": 128,
    "d_ff": 256,
    "num_layers": 2,
    "num_heads": 4,
    "d_kv": 32,
    "vocab_size": 1000,
    "decoder_start_token_id": 0,
    "pad_token_id": 0,
}
GPT2 = {"model_type": "gpt2", "n_embd": 128, "n_layer": 4, "n_head": 4, "vocab_size": 1000}
ADAM = {"type": "AdamW", "params": {"lr": 1e-4}}
needs_engine = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("torch", "deepspeed", "transformers")),
    reason="needs trimtab[train]",
)


def request(stage: int, precision: str = "bf16", *, more: Any = (), **fields: Any) -> PhantomRequest:
    zero = {"stage": stage, "reduce_bucket_size": 1_000_000, **dict(fields.pop("zero", {}))}
    deepspeed: dict[str, Any] = {"zero_optimization": zero, "optimizer": ADAM, **dict(more)}
    if precision != "fp32":
        deepspeed[precision] = {"enabled": True}
    return PhantomRequest(
        **{  # type: ignore[arg-type]
            "deepspeed": deepspeed,
            "hf": LLAMA,
            "micro_batch": 2,
            "sequence_length": 128,
            "world_size": WORLD,
            **fields,
        }
    )


def run(asked: PhantomRequest) -> Rehearsal:
    return rehearse_phantom(asked, use_cache=False)


def parts(answer: Rehearsal, moment: str = "end") -> dict[str, int]:
    return {part.name: part.bytes for part in answer.moment(moment).parts}


def blocks(size: int) -> int:
    return -(-size // 512) * 512


# -- without torch -----------------------------------------------------------------------------------------


def test_importing_the_rehearsal_does_not_import_torch() -> None:
    code = "import sys, trimtab.rehearse.phantom; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, env=_environment()).returncode == 0


def test_a_request_survives_json() -> None:
    asked = request(2, lora=Lora(r=4, target_modules=("q_proj",)), compute_capability=(8, 0))
    assert PhantomRequest.from_json(json.loads(json.dumps(asked.to_json()))) == asked


def test_a_configuration_states_its_request() -> None:
    raw = {
        "train_batch_size": 64,
        "gradient_accumulation_steps": 2,
        "trimtab": {"task": "seq2seq-lm", "sequence_length": 32, "target_length": 16},
    }
    asked = PhantomRequest.of_config(Config.from_mapping(raw), T5, world_size=4)
    assert (asked.micro_batch, asked.accumulation, asked.target_length) == (8, 2, 16)
    assert "trimtab" not in asked.deepspeed


def test_a_corner_that_moved_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corners, "_CORNERS", (("json", "JSONDecoder.fly", "flying"),))
    with pytest.raises(EngineMoved, match=r"json\.JSONDecoder\.fly, which .* needs for flying"):
        corners.probe()


def test_the_key_of_an_answer_follows_the_question(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path))
    assert cache.key(request(2)) == cache.key(request(2))
    assert len({cache.key(request(stage)) for stage in range(4)}) == 4
    assert cache.find(request(2)) is None


# -- with the engine -----------------------------------------------------------------------------------------


@needs_engine
@pytest.mark.engine
def test_every_corner_is_there() -> None:
    code = "from trimtab.rehearse.corners import probe; probe()"
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], check=True, env=_environment(), capture_output=True
    )


@needs_engine
@pytest.mark.engine
@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_sharded_states_are_the_engines_arithmetic(stage: int, precision: str) -> None:
    answer = run(request(stage, precision))
    count = answer.parameters
    held = parts(answer)
    assert (answer.optimizer, answer.engine_optimizer) == ("FusedAdam", "DeepSpeedZeroOptimizer")
    assert held["parameters"] == blocks(2 * count)
    assert held["master_weights"] == blocks(4 * count // WORLD)
    assert held["optimizer_states"] == 2 * blocks(4 * count // WORLD)
    assert answer.moment("engine").allocated_bytes < answer.moment("end").allocated_bytes
    assert answer.step_peak_bytes == max(phase.peak_bytes for phase in answer.phases)
    assert answer.moment("end").host_bytes == 0


@needs_engine
@pytest.mark.engine
def test_stage_0_makes_adams_states_when_it_starts() -> None:
    answer = run(request(0, "fp16"))
    states = parts(answer, "engine")["optimizer_states"]
    assert 8 * answer.parameters <= states < 8 * answer.parameters + 20_000
    assert answer.engine_optimizer == "FP16_Optimizer"


@needs_engine
@pytest.mark.engine
def test_stage_3_partitions_parameters_and_gathers_them() -> None:
    answer = run(request(3, record="ordered"))
    held = parts(answer)
    assert held["master_weights"] == blocks(4 * answer.parameters // WORLD)
    assert 2 * answer.parameters // WORLD <= held["parameters"] < 2 * answer.parameters // WORLD + 20_000
    gathers = [row for row in answer.collectives if row.name.startswith("allgather")]
    assert gathers
    assert all(row.group_size == WORLD for row in gathers)
    assert {phase.name for phase in answer.phases} == {"forward", "backward", "step"}
    kinds = {kind for kind, _ in answer.order}
    assert {"operator", "collective", "phase"} <= kinds
    assert max(i for kind, i in answer.order if kind == "operator") == len(answer.operators) - 1


@needs_engine
@pytest.mark.engine
def test_an_offloaded_optimizer_lives_on_the_host() -> None:
    asked = request(3, zero={"offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "cpu"}})
    answer = run(asked)
    assert answer.optimizer == "DeepSpeedCPUAdam"
    assert "master_weights" not in parts(answer)
    assert "parameters" not in parts(answer)
    # 20 bytes a parameter: 2 itself, 2 gradient, 4 master, 4 its gradient, 8 moments; pinned ones rounded up
    assert answer.moment("end").host_bytes >= 20 * answer.parameters // WORLD
    assert answer.moment("end").host_pinned_bytes > 0
    assert {row.direction for row in answer.copies} >= {"to_device", "to_host"}


@needs_engine
@pytest.mark.engine
def test_every_rank_hands_over_its_share_of_the_gradients() -> None:
    offloaded = {"zero": {"offload_optimizer": {"device": "cpu"}}, "record": "ordered", "world_size": 4}
    first, last = (run(request(2, rank=rank, **offloaded)) for rank in (0, 3))
    assert len(first.handovers) == sum(kind == "handover" for kind, _ in first.order) > 1
    handed = [sum(map(sum, ranks)) for ranks in first.handovers]
    assert sum(handed) == first.trainable_parameters
    own = [sum(ranks[0]) for ranks in first.handovers]
    assert own[0] == 0  # the backward pass begins with the last rank's
    assert sum(own) == pytest.approx(first.trainable_parameters / 4, rel=0.01)
    assert [set(ranks) - {()} for ranks in last.handovers] == [set(ranks) - {()} for ranks in first.handovers]
    assert last.handovers[0][0] == first.handovers[0][1]


@needs_engine
@pytest.mark.engine
def test_nvme_holds_the_optimizer(tmp_path: Path) -> None:
    device = {"device": "nvme", "nvme_path": str(tmp_path)}
    answer = run(request(3, zero={"offload_optimizer": device}, world_size=2))
    assert answer.nvme_bytes >= 12 * answer.parameters // 2
    assert {row.direction for row in answer.copies} >= {"to_disk", "from_disk"}


@needs_engine
@pytest.mark.engine
def test_a_full_gpu_makes_the_engine_flatten_on_the_host() -> None:
    roomy, tight = (run(request(2, gpu_memory_bytes=size)) for size in (None, 4_000_000))
    assert roomy.host_peak_bytes < 2 * roomy.parameters
    assert tight.host_peak_bytes >= 4 * tight.parameters  # each parameter, and the flat copy
    assert tight.step_peak_bytes == roomy.step_peak_bytes


@needs_engine
@pytest.mark.engine
def test_the_smallest_capacity_lies_between_what_is_used_and_what_is_taken() -> None:
    answer = run(request(2, steps=3, find_capacity=True))
    assert answer.smallest_capacity_bytes is not None
    assert answer.peak_allocated_bytes <= answer.smallest_capacity_bytes <= answer.peak_reserved_bytes


@needs_engine
@pytest.mark.engine
def test_lora_at_stage_3_trains_only_its_own_parameters() -> None:
    lora = Lora(r=8, lora_alpha=16, lora_dropout=0.05, target_modules=("q_proj", "v_proj"))
    answer = run(request(3, lora=lora, checkpoint_activations=True))
    # per layer: q 8 x (256 + 256), v 8 x (256 + 64)
    assert answer.trainable_parameters == 2 * 8 * (512 + 320)
    assert parts(answer)["master_weights"] < 4 * answer.trainable_parameters


@needs_engine
@pytest.mark.engine
def test_fp32_accumulation_keeps_a_full_gradient() -> None:
    answer = run(request(1, more={"data_types": {"grad_accum_dtype": "fp32"}}, accumulation=2))
    assert answer.engine_optimizer == "BF16_Optimizer"
    assert parts(answer)["gradients"] == blocks(4 * answer.parameters)


@needs_engine
@pytest.mark.engine
def test_t5s_permuted_bias_takes_the_plain_kernel_and_recomputation_frees_its_scores() -> None:
    asked = {"hf": T5, "task": "seq2seq-lm", "target_length": 64}
    kept = run(request(2, **asked))
    names = {operator.name for operator in kept.operators}
    assert "aten._safe_softmax.default" in names
    again = run(request(2, checkpoint_activations=True, **asked))
    assert parts(again, "after_forward")["activations"] < parts(kept, "after_forward")["activations"] / 2


@needs_engine
@pytest.mark.engine
@pytest.mark.parametrize(
    ("hf", "stage", "more", "some", "lora"),
    [
        (LLAMA, 1, {}, 1, True),
        (GPT2, 3, {}, 2, True),
        (T5, 2, {"task": "seq2seq-lm", "target_length": 64}, 3, False),
    ],
)
def test_some_layers_recomputed_take_what_the_arithmetic_counts(
    hf: dict[str, Any], stage: int, more: dict[str, Any], some: int, lora: bool
) -> None:
    names = {"llama": ("q_proj",), "gpt2": ("c_attn",), "t5": ("q",)}[hf["model_type"]]
    job = {"task": "causal-lm", "sequence_length": 128, "checkpoint_activations": some, **more}
    if lora:
        job["lora"] = {"r": 8, "target_modules": list(names)}
    asked = request(stage)
    raw = {**asked.deepspeed, "train_micro_batch_size_per_gpu": asked.micro_batch, "trimtab": job}
    config = Config.from_mapping(raw)
    model = Model.from_hf(hf)
    answer = run(PhantomRequest.of_config(config, hf, world_size=WORLD))
    assert answer.recomputed == pytest.approx(some / model.all_layers)
    counted = profile(config, model, WORLD)
    assert counted.recomputed_layers / counted.layers == answer.recomputed
    assert counted.peak == pytest.approx(answer.step_peak_bytes, rel=0.01)


@needs_engine
@pytest.mark.engine
def test_quantized_collectives_send_half_and_a_quarter() -> None:
    def moved(**zero: bool) -> dict[str, int]:
        answer = run(request(3, zero=zero, hf={**LLAMA, "vocab_size": 8192}, world_size=16))
        sizes: dict[str, int] = {}
        for row in answer.collectives:
            if row.phase in ("forward", "backward"):
                sizes[row.name] = max(sizes.get(row.name, 0), row.bytes)
        return sizes

    plain = moved()
    quantized = moved(zero_quantized_weights=True, zero_quantized_gradients=True)
    assert quantized["allgather_base"] == plain["allgather_base"] // 2
    assert "alltoall_base" not in plain
    # the largest gradient, 8192 rows of 256, in half bytes, first among the eight ranks of a node
    assert quantized["alltoall_base"] == 8192 * 256 // 2


@needs_engine
@pytest.mark.engine
def test_what_cannot_run_says_why() -> None:
    with pytest.raises(RefusedConfig, match="OneBitAdam is not a supported DeepSpeed Optimizer"):
        run(request(2, more={"optimizer": {"type": "OneBitAdam", "params": {"lr": 1e-4}}}))
    with pytest.raises(UsageError, match='"no-such-model"'):
        run(request(2, hf={"model_type": "no-such-model"}))
    with pytest.raises(Unsupported, match="torch_autocast"):
        run(request(2, "fp32", more={"torch_autocast": {"enabled": True, "dtype": "bfloat16"}}))


@needs_engine
@pytest.mark.engine
def test_an_answer_is_kept_and_found_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path))
    asked = request(2, rank=WORLD - 1)
    first = rehearse_phantom(asked)
    assert cache.find(asked) == first
    assert rehearse_phantom(asked) == first


def _environment() -> dict[str, str]:
    import os

    return {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1] / "src"), "DS_ACCELERATOR": "cpu"}


@needs_engine
@pytest.mark.engine
def test_ranks_share_layers_and_samples() -> None:
    """The collectives inside layers, of groups of two among eight ranks."""
    hf = {**LLAMA, "tie_word_embeddings": True}
    split = {"tensor_parallel": {"autotp_size": 2}}
    seen = rehearse_phantom(request(1, more=split, hf=hf), use_cache=False)
    inside = {
        (one.name, one.phase): one.count
        for one in seen.collectives
        if one.group_size == 2 and one.bytes > 4096
    }
    # o_proj, down_proj and the embedding; q, k, v, gate, up and the head
    assert inside == {("allreduce", "forward"): 2 * 2 + 1, ("allreduce", "backward"): 2 * 5 + 1}
    spread = {"sequence_parallel_size": 2}
    seen = rehearse_phantom(request(3, more=spread), use_cache=False)
    sent = {one.phase: 0 for one in seen.collectives}
    for one in seen.collectives:
        if one.name == "alltoall_base":
            assert one.group_size == 2
            sent[one.phase] += one.count
    assert (sent["forward"], sent["backward"]) == (2 * 4, 2 * 4)  # queries, keys, values and the outcome
