"""A recording of four layers, repeated, against one of all layers; and both ways of playing it."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from measured_cases import bert, gpt2, llama, t5
from trimtab.config import Config
from trimtab.cost import tape
from trimtab.cost.engine import Engine
from trimtab.cost.machine import Weight
from trimtab.cost.memory import profile, settings_of
from trimtab.cost.meter import Meter, Recorder
from trimtab.cost.tape import PHASES, RELEASE, START, Numbers, Recording
from trimtab.cost.workload import recorded, weights_for
from trimtab.job import Job, Lora
from trimtab.model import Model

LAYERS = 7
EVERY = 10**6
MODELS: dict[str, Model] = {
    name: Model.from_hf(hf, name)
    for name, hf in {
        "llama": llama(256, 512, LAYERS, 4, 2, 1000),
        "gemma2": {
            "model_type": "gemma2", "hidden_size": 256, "intermediate_size": 512, "head_dim": 64,
            "num_hidden_layers": LAYERS, "num_attention_heads": 4, "num_key_value_heads": 2,
            "vocab_size": 1000,
        },
        "gpt2": gpt2(256, LAYERS, 4, 1000),
        "gpt_neo": {
            "model_type": "gpt_neo", "hidden_size": 256, "num_layers": LAYERS, "num_heads": 4,
            "vocab_size": 1000, "attention_types": [[["global"], LAYERS]],
        },
        "gptj": {
            "model_type": "gptj", "n_embd": 256, "n_layer": LAYERS, "n_head": 4, "vocab_size": 1000,
            "rotary_dim": 32,
        },
        "gpt_neox": {
            "model_type": "gpt_neox", "hidden_size": 256, "intermediate_size": 512, "vocab_size": 1000,
            "num_hidden_layers": LAYERS, "num_attention_heads": 4,
        },
        "phi": {
            "model_type": "phi", "hidden_size": 256, "intermediate_size": 512, "vocab_size": 1000,
            "num_hidden_layers": LAYERS, "num_attention_heads": 4,
        },
        "opt": {
            "model_type": "opt", "hidden_size": 256, "ffn_dim": 512, "vocab_size": 1000,
            "word_embed_proj_dim": 256, "num_hidden_layers": LAYERS, "num_attention_heads": 4,
        },
        "bert": bert(256, 512, LAYERS, 4, 1000),
        "distilbert": {
            "model_type": "distilbert", "dim": 256, "hidden_dim": 512, "n_layers": LAYERS, "n_heads": 4,
            "vocab_size": 1000,
        },
        "t5": {**t5(256, 512, LAYERS, 4), "num_decoder_layers": 5, "vocab_size": 1000},
    }.items()
}  # fmt: skip
TASKS = {"encoder": "masked-lm", "encoder-decoder": "seq2seq-lm", "causal": "causal-lm"}


def job_of(model: Model, **given: Any) -> Job:
    target = 48 if model.kind == "encoder-decoder" else None
    return Job(task=TASKS[model.kind], sequence_length=64, target_length=target, **given)


LONGER = {
    "llama": {"num_hidden_layers": 12},
    "gptj": {"n_layer": 12},
    "bert": {"num_hidden_layers": 12},
    "t5": {"num_layers": 10, "num_decoder_layers": 10},
}
"""Long enough for layers that stand for others on both sides of the last recomputed one."""


def some_layers(count: int | None, model: Model) -> dict[str, Any]:
    """The job's fields for ``count`` recomputed layers of those there are; None: all of them."""
    return {
        "checkpoint_activations": count != 0,
        "recomputed_layers": None if not count else min(count, model.all_layers),
    }


def told(recording: Recording, weights: tuple[Weight, ...]) -> list[tuple[object, ...]]:
    """Everything that an engine and the allocator hear of two micro steps."""
    heard: list[tuple[object, ...]] = []

    class Ear(Engine):
        hears_uses = True

        def before_use(self, uses: Any, shift: int = 0, *, again: bool = False) -> None:
            heard.append(("again" if again else "use", *(index + shift for index in uses)))

        def after_use(self, uses: Any, shift: int = 0) -> None:
            heard.append(("used", *(index + shift for index in uses)))

        def after_owner(self) -> None:
            heard.append(("owner",))

        def on_view(self, index: int) -> None:
            heard.append(("view", index))

        def on_view_end(self, index: int) -> None:
            heard.append(("viewed", index))

        def on_gradient(self, weight: Weight, gradient: Any) -> None:
            heard.append(("gradient", weight.index, gradient.bytes, gradient.number))

    recorder, meter = Recorder(), Meter()
    config = Config.from_mapping({"train_micro_batch_size_per_gpu": 1, "trimtab": {}})
    ear, other = (
        Ear(recorder, weights, settings_of(config, 1)),
        Engine(meter, weights, settings_of(config, 1)),
    )
    numbers: Numbers = {}
    for _ in range(2):
        before = dict(numbers)
        for phase in PHASES:
            if phase != RELEASE or before:
                known = before if phase == RELEASE else numbers
                recording.play_to_allocate(phase, ear, recorder, known)
                recording.play(phase, other)
            heard.append((phase, meter.live, meter.peak, hash(tuple(recorder.record))))
    return heard


def both(model: Model, job: Job, item: int, *, sharded: bool, fp16: bool = False) -> tuple[Recording, ...]:
    return tuple(
        recorded.__wrapped__(model, job, 2, item, sharded=sharded, fp16=fp16, shown=shown)
        for shown in (4, EVERY)
    )


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(sorted(MODELS)),
    st.none() | st.integers(0, 20),
    st.sampled_from(["sdpa", "eager"]),
    st.sampled_from(["bf16", "fp16", "fp32"]),
    st.booleans(),
)
def test_repeated_layers_are_those_of_the_whole_model(
    name: str, recomputed: int | None, attention: str, precision: str, sharded: bool
) -> None:
    """Also where a stack falls in two: its recomputed layers and the others."""
    model = Model.from_hf({**MODELS[name].hf, **LONGER.get(name, {})}, name)
    job = job_of(model, **some_layers(recomputed, model), attention=attention)
    item = 4 if precision == "fp32" else 2
    short, whole = both(model, job, item, sharded=sharded, fp16=precision == "fp16")
    weights = weights_for(model, job.task, None, item, 1)
    assert told(short, weights) == told(whole, weights)
    assert short.work == whole.work
    assert [short.parts_before(phase) for phase in PHASES] == [whole.parts_before(phase) for phase in PHASES]
    assert (short.order.queue, short.order.reach) == (whole.order.queue, whole.order.reach)


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("recomputed", [0, 1, 3, None])
def test_adapters_repeat_too(recomputed: int | None, sharded: bool) -> None:
    lora = Lora(r=4, lora_dropout=0.1, target_modules=("q_proj", "down_proj"))
    job = job_of(MODELS["llama"], lora=lora, **some_layers(recomputed, MODELS["llama"]))
    short, whole = both(MODELS["llama"], job, 2, sharded=sharded)
    weights = weights_for(MODELS["llama"], job.task, lora, 2, 1)
    assert told(short, weights) == told(whole, weights)


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(["llama", "t5", "bert"]),
    st.sampled_from([0, 1, 2, 3]),
    st.none() | st.integers(0, 7),
    st.sampled_from([1, 2]),
    st.sampled_from([1, 4]),
    st.sampled_from([0, 30_000, 10**9]),
    st.booleans(),
    st.booleans(),
)
def test_the_peak_is_the_same_however_it_is_counted(
    name: str,
    stage: int,
    recomputed: int | None,
    accumulation: int,
    world: int,
    elements: int,
    wide: bool,
    offload: bool,
) -> None:
    """Sums over stretches, storage by storage, and half and half; the first step run, or left out."""
    model = MODELS[name]
    job = job_of(model, **some_layers(recomputed, model))
    config = Config.from_mapping(
        {
            "train_micro_batch_size_per_gpu": 2,
            "gradient_accumulation_steps": accumulation,
            "bf16": {"enabled": True},
            **({"data_types": {"grad_accum_dtype": "fp32"}} if wide else {}),
            "zero_optimization": {
                "stage": stage,
                **({"offload_optimizer": {"device": "cpu"}} if offload and stage else {}),
                "reduce_bucket_size": max(1000, elements),
                "stage3_prefetch_bucket_size": elements,
                "stage3_max_live_parameters": 500_000,
                "stage3_max_reuse_distance": elements,
                "stage3_param_persistence_threshold": 1000,
            },
            "trimtab": job.to_block(),
        }
    )
    plain, quick = profile(config, model, world), profile(config, model, world, allocator=True, whole=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tape, "EDGE", EVERY)
        slow = profile(config, model, world, allocator=True, whole=False)
    assert slow.unseen == 0
    assert sum(plain.peak_parts.values()) == plain.peak
    for other in (quick, slow):
        assert (other.phase_peaks, other.peak, other.live) == (plain.phase_peaks, plain.peak, plain.live)
        assert other.peak_parts == plain.peak_parts


def test_what_lives_as_long_as_the_loss_is_there_when_the_next_step_begins() -> None:
    """T5's cross-attention bias, made to need a gradient by recomputation, and that gradient."""
    model = MODELS["t5"]
    kept = recorded(model, job_of(model, checkpoint_activations=True), 2, 2, sharded=False, fp16=False)
    plain = recorded(model, job_of(model), 2, 2, sharded=False, fp16=False)
    assert sum(kept.parts_before(START)) == 2 * 4 * 48 * 64 * 2
    assert sum(plain.parts_before(START)) == 0


def test_profiles_that_differ_in_the_engine_alone_share_their_recording() -> None:
    model = MODELS["llama"]
    before = recorded.cache_info().misses
    for world, bucket in ((1, 1000), (8, 50_000), (64, 10**8)):
        zero = {"stage": 2, "reduce_bucket_size": bucket}
        given_config = {
            "train_micro_batch_size_per_gpu": 3,
            "zero_optimization": zero,
            "bf16": {"enabled": True},
            "trimtab": {"sequence_length": 96},
        }
        profile(Config.from_mapping(given_config), model, world)
    assert recorded.cache_info().misses == before + 1


@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_weight_gets_one_gradient_a_micro_step(name: str) -> None:
    model = MODELS[name]
    job = job_of(model)
    weights = weights_for(model, job.task, None, 2, 1)
    recording = recorded(model, job, 1, 2, sharded=False, fp16=False)
    gradients = Counter(event[1] for event in told(recording, weights) if event[0] == "gradient")
    assert gradients == {weight.index: 2 for weight in weights}
