"""Packing, masking, span corruption, padding, and the order in which samples come."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

np = pytest.importorskip("numpy")
pytest.importorskip("torch")
pytest.importorskip("tokenizers")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from trimtab.errors import DataError  # noqa: E402
from trimtab.job import Job  # noqa: E402
from trimtab.train.data.order import GlobalOrder, micro_batches, positions  # noqa: E402
from trimtab.train.data.prepare import IGNORED, DataRequest, Prepared, prepare  # noqa: E402
from trimtab.train.data.samples import (  # noqa: E402
    collate,
    corrupted_spans,
    masked_words,
    raw_length,
    sample_makers,
    span_counts,
)

TEXT = "the quick brown fox jumps over the lazy dog and runs away from the old grey cat. " * 60


@pytest.fixture
def causal(tmp_path: Path) -> tuple[Prepared, Job]:
    return _prepared(tmp_path, "causal-lm", "gpt2", sequence_length=16)


def _prepared(folder: Path, task: str, model_type: str, **job: int) -> tuple[Prepared, Job]:
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    block = Job.from_block({"task": task, **job})
    return prepare(
        DataRequest(sources=(str(folder / "text.txt"),)), block, model_type=model_type, vocab_size=500,
        data=folder / "data", tokenizer_folder=folder / "tokenizer",
    ), block  # fmt: skip


def test_packing_cuts_the_stream_without_loss(causal: tuple[Prepared, Job]) -> None:
    prepared, job = causal
    training, validation = sample_makers(prepared, job, seed=1, validation=0.25)
    stream = prepared.store.stream()
    made = [maker.make(index, 0) for maker in (training, validation) for index in range(len(maker))]
    assert len(made) == len(stream) // 16
    assert np.array_equal(np.concatenate([sample["input_ids"] for sample in made]), stream[: len(made) * 16])
    assert all(np.array_equal(sample["input_ids"], sample["labels"]) for sample in made)
    assert prepared.tokenizer.decode(stream[:-1]) == TEXT
    assert stream[-1] == prepared.tokenizer.eos_token_id


def test_too_little_text_is_said(tmp_path: Path) -> None:
    prepared, _ = _prepared(tmp_path, "causal-lm", "gpt2", sequence_length=16)
    with pytest.raises(DataError, match="less than one sample of 100000"):
        sample_makers(prepared, Job.from_block({"sequence_length": 100000}), seed=1, validation=0)


def test_masking_follows_the_paper() -> None:
    tokens = np.arange(1000, 41000)
    special = np.zeros(len(tokens), dtype=bool)
    special[::100] = True
    inputs, labels = masked_words(
        tokens, special, mask_token=4, vocab_size=900, random=np.random.default_rng(0)
    )
    chosen = labels != IGNORED
    assert not chosen[special].any()
    assert np.array_equal(labels[chosen], tokens[chosen])
    assert np.array_equal(inputs[~chosen], tokens[~chosen])
    assert chosen.mean() == pytest.approx(0.15, abs=0.01)
    assert (inputs[chosen] == 4).mean() == pytest.approx(0.8, abs=0.02)
    assert (inputs[chosen] == tokens[chosen]).mean() == pytest.approx(0.1, abs=0.02)
    assert ((inputs[chosen] != 4) & (inputs[chosen] < 900)).mean() == pytest.approx(0.1, abs=0.02)


def test_masking_is_dynamic_and_repeatable(tmp_path: Path) -> None:
    prepared, job = _prepared(tmp_path, "masked-lm", "bert", sequence_length=32)
    maker, _ = sample_makers(prepared, job, seed=1, validation=0)
    first, again, later = maker.make(3, 0), maker.make(3, 0), maker.make(3, 1)
    assert np.array_equal(first["input_ids"], again["input_ids"])
    assert not np.array_equal(first["labels"], later["labels"])
    assert first["input_ids"][0] == prepared.tokenizer.cls_token_id
    assert len(first["input_ids"]) == 32
    assert (first["labels"] != IGNORED).any()


@settings(max_examples=60, deadline=None)
@given(length=st.integers(2, 700), seed=st.integers(0, 2**32 - 1))
def test_corrupted_spans_put_together_again_give_the_text(length: int, seed: int) -> None:
    tokens = np.arange(1000, 1000 + length)
    sentinels = list(range(100))
    inputs, targets = corrupted_spans(
        tokens, sentinels=sentinels, end=999, random=np.random.default_rng(seed)
    )
    assert inputs[-1] == targets[-1] == 999
    noise, spans = span_counts(length)
    assert len(inputs) == length - noise + spans + 1
    assert len(targets) == noise + spans + 1
    told: dict[int, list[int]] = {}
    for token in targets[:-1]:
        if token < 100:
            told[int(token)] = []
        else:
            told[list(told)[-1]].append(int(token))
    whole = itertools.chain.from_iterable(told[int(t)] if t < 100 else [int(t)] for t in inputs[:-1])
    assert list(whole) == list(tokens)


@given(inputs=st.integers(8, 600), targets=st.integers(6, 200))
def test_raw_length_is_the_longest_that_fits(inputs: int, targets: int) -> None:
    def fits(tokens: int) -> bool:
        noise, spans = span_counts(tokens)
        return tokens - noise + spans + 1 <= inputs and noise + spans + 1 <= targets

    length = raw_length(inputs, targets)
    assert fits(length)
    assert not any(fits(longer) for longer in range(length + 1, length + 20))


def test_span_corruption_fills_the_catalogues_lengths(tmp_path: Path) -> None:
    prepared, job = _prepared(tmp_path, "span-corruption", "t5", sequence_length=48, target_length=12)
    maker, _ = sample_makers(prepared, job, seed=1, validation=0)
    sample = maker.make(0, 0)
    assert len(sample["input_ids"]) <= 48
    assert len(sample["labels"]) <= 12
    assert sample["labels"][0] == prepared.tokenizer.convert_tokens_to_ids("<extra_id_0>")
    assert sample["labels"][-1] == prepared.tokenizer.eos_token_id


@settings(deadline=None)
@given(samples=st.integers(1, 50), micro=st.integers(1, 4), world=st.integers(1, 4), epochs=st.integers(1, 3))
def test_every_sample_comes_once_an_epoch(samples: int, micro: int, world: int, epochs: int) -> None:
    order = GlobalOrder(samples, seed=3)
    seen = [order[position] for position in range(samples * epochs)]
    for epoch in range(epochs):
        assert sorted(index for number, index in seen if number == epoch) == list(range(samples))
    dealt = [positions(start=0, micro=micro, rank=rank, world=world) for rank in range(world)]
    rounds = [place for _ in range(5) for rank in range(world) for place in next(dealt[rank])]
    assert rounds == list(range(5 * micro * world))


def test_a_resumed_rank_gets_what_it_would_have_got(causal: tuple[Prepared, Job]) -> None:
    maker, _ = sample_makers(*causal, seed=1, validation=0)
    whole = micro_batches(maker, seed=1, start=0, micro=2, rank=1, world=2)
    later = micro_batches(maker, seed=1, start=8, micro=2, rank=1, world=2)
    next(whole), next(whole)
    for _ in range(20):
        assert np.array_equal(next(whole)["input_ids"], next(later)["input_ids"])


def test_worker_processes_give_the_same_batches(causal: tuple[Prepared, Job]) -> None:
    maker, _ = sample_makers(*causal, seed=1, validation=0)
    here = micro_batches(maker, seed=1, start=0, micro=2, rank=0, world=1)
    there = micro_batches(maker, seed=1, start=0, micro=2, rank=0, world=1, workers=1)
    for _ in range(4):
        assert np.array_equal(next(here)["input_ids"], next(there)["input_ids"])


def test_padding_marks_what_is_real() -> None:
    batch = collate(
        [
            {"input_ids": np.array([5, 6, 7]), "labels": np.array([8])},
            {"input_ids": np.array([9]), "labels": np.array([1, 2])},
        ],
        pad_token=0,
    )
    assert batch["input_ids"].tolist() == [[5, 6, 7, 0, 0, 0, 0, 0], [9, 0, 0, 0, 0, 0, 0, 0]]
    assert batch["attention_mask"].sum(1).tolist() == [3, 1]
    assert batch["labels"].tolist() == [[8] + [IGNORED] * 7, [1, 2] + [IGNORED] * 6]
    classes = collate([{"input_ids": np.array([5]), "labels": np.array([1])}] * 2, pad_token=0)
    assert classes["labels"].tolist() == [1, 1]
    assert "attention_mask" not in classes
