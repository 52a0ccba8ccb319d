"""The "trimtab" block of a configuration."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.errors import UsageError
from trimtab.job import ATTENTIONS, KERNELS, TASKS, Job, Lora

NAMES = st.lists(st.sampled_from(["q_proj", "v_proj", "dense"]), min_size=1, max_size=3, unique=True)
LORAS = st.none() | st.builds(
    Lora,
    r=st.integers(1, 64),
    lora_alpha=st.integers(1, 64),
    lora_dropout=st.sampled_from([0.0, 0.1]),
    target_modules=st.none() | NAMES.map(tuple),
    modules_to_save=st.just(()) | NAMES.map(tuple),
)
JOBS = st.builds(
    lambda checkpoint_activations, **given: Job(
        checkpoint_activations=checkpoint_activations is not None,
        recomputed_layers=checkpoint_activations or None,
        **given,
    ),
    model=st.none() | st.sampled_from(["llama-7b", "gpt2"]),
    task=st.sampled_from(["causal-lm", "masked-lm"]),
    sequence_length=st.integers(1, 4096),
    checkpoint_activations=st.none() | st.integers(0, 80),
    attention=st.sampled_from(ATTENTIONS),
    kernels=st.sampled_from(KERNELS),
    lora=LORAS,
    pipeline_stages=st.integers(1, 8),
)


def test_no_block_is_the_default_job() -> None:
    assert Job.from_block(None) == Job.from_block({}) == Job()
    unset = dict.fromkeys(key for key in Job.__slots__ if key != "recomputed_layers")
    assert Job.from_block(unset) == Job()


@pytest.mark.parametrize(
    ("task", "sequence", "target"),
    [
        ("causal-lm", 2048, None),
        ("masked-lm", 128, None),
        ("question-answering", 128, None),
        ("seq2seq-lm", 512, 128),
        ("span-corruption", 512, 128),
    ],
)
def test_lengths_default_by_task(task: str, sequence: int, target: int | None) -> None:
    job = Job.from_block({"task": task})
    assert (job.sequence_length, job.target_length) == (sequence, target)


@given(JOBS)
def test_a_block_gives_its_job_back(job: Job) -> None:
    assert Job.from_block(job.to_block()) == job


def test_recomputation_is_of_all_layers_of_none_or_of_the_first_few() -> None:
    jobs = [Job.from_block({"checkpoint_activations": value}) for value in (False, 0, 1, 8, True)]
    assert [job.recomputed_of(8, "gpt2") for job in jobs] == [0, 0, 1, 8, 8]
    assert [job.recomputation for job in jobs] == [False, False, 1, 8, True]
    assert len(set(jobs)) == 4  # true is not 1: jobs are keys of what is counted once
    assert [job.activations for job in jobs[1:]] == [
        "kept", "of 1 layer recomputed", "of 8 layers recomputed", "recomputed",
    ]  # fmt: skip


def test_more_layers_than_there_are_are_refused_with_both_numbers() -> None:
    with pytest.raises(UsageError, match="is 13, but gpt2 has 12 layers: give 12 at most, or true for all"):
        Job.from_block({"checkpoint_activations": 13}).recomputed_of(12, "gpt2")


def test_module_names_become_a_tuple() -> None:
    assert Job.from_block({"lora": {"target_modules": "q_proj"}}).lora == Lora(target_modules=("q_proj",))
    assert Job.from_block({"lora": {"target_modules": ["a", "b"]}}).lora == Lora(target_modules=("a", "b"))
    assert Job.from_block({"lora": {"target_modules": None}}).lora == Lora()


@pytest.mark.parametrize(
    ("block", "said"),
    [
        ([], '"trimtab" must be an object, not list'),
        ({"modle": "gpt2"}, 'has no key "modle". Did you mean "model"?'),
        ({"xyzzy": 1}, 'has no key "xyzzy". It knows model, task,'),
        ({"task": "casual-lm"}, '"task" cannot be \'casual-lm\'. Did you mean "causal-lm"?'),
        ({"task": []}, '"task" cannot be []'),
        ({"attention": "flash_attention_2"}, '"attention" cannot be'),
        ({"kernels": "liger"}, "It is one of plain, fused."),
        ({"sequence_length": 0}, '"sequence_length" must be a whole number above 0, not 0'),
        ({"sequence_length": True}, '"sequence_length" must be a whole number above 0, not True'),
        ({"pipeline_stages": "2"}, "\"pipeline_stages\" must be a whole number above 0, not '2'"),
        ({"target_length": 8}, '"target_length" is for seq2seq-lm and span-corruption, not causal-lm'),
        ({"checkpoint_activations": -1}, "must be true, false or a number of layers, not -1"),
        ({"checkpoint_activations": 1.0}, "must be true, false or a number of layers, not 1.0"),
        ({"recomputed_layers": 3}, 'has no key "recomputed_layers"'),
        ({"model": 7}, '"model" must be a name or a path, not 7'),
        ({"lora": 8}, '"lora" must be an object'),
        ({"lora": {"rank": 8}}, '"lora" has no key "rank"'),
        ({"lora": {"r": 0}}, '"lora.r" must be a whole number above 0'),
        ({"lora": {"lora_dropout": 1}}, '"lora.lora_dropout" must be at least 0 and below 1, not 1'),
        ({"lora": {"target_modules": [1]}}, '"lora.target_modules" must be a list of module names'),
    ],
)
def test_what_a_block_cannot_hold_is_named_with_its_cure(block: Any, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        Job.from_block(block, where="mine.json")
    assert said in str(caught.value)
    assert str(caught.value).startswith("mine.json: ")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)


@given(st.dictionaries(st.sampled_from(Job.__slots__) | st.text(max_size=4), JSON, max_size=4))
def test_any_block_becomes_a_job_or_is_refused(block: dict[str, Any]) -> None:
    try:
        task = Job.from_block(block).task
    except UsageError:
        return
    assert task in TASKS
