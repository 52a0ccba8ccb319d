"""Training samples from stored tokens: packed sequences, masked words, corrupted spans, padded rows.

A sample depends on its index, the epoch and the run's seed alone: any rank, at any time, after any resume,
makes the same one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trimtab.errors import DataError
from trimtab.job import Job
from trimtab.train.data.prepare import IGNORED, STREAM_TASKS, Prepared

MASKED_PART = 0.15  # Devlin et al. 2019, section 3.1, as are the next two
MASK_TOKEN_PART = 0.8
RANDOM_TOKEN_PART = 0.1
NOISE_DENSITY = 0.15  # Raffel et al. 2020, section 3.3.4
MEAN_SPAN_LENGTH = 3  # the same
PAD_TO_MULTIPLE = 8

Sample = dict[str, Any]


def masked_words(
    tokens: Any, special: Any, *, mask_token: int, vocab_size: int, random: np.random.Generator
) -> tuple[Any, Any]:
    """BERT's masked words: ``(inputs, labels)``, labels `IGNORED` where nothing was chosen.

    ``special`` marks (bool, same shape) positions that are never chosen.
    """
    chosen = (random.random(len(tokens)) < MASKED_PART) & ~special
    if not chosen.any():  # a sample that teaches nothing would give a loss of 0/0
        chosen[random.choice(np.flatnonzero(~special))] = True
    fate = random.random(len(tokens))
    inputs = tokens.copy()
    inputs[chosen & (fate < MASK_TOKEN_PART)] = mask_token
    swapped = chosen & (fate >= MASK_TOKEN_PART) & (fate < MASK_TOKEN_PART + RANDOM_TOKEN_PART)
    inputs[swapped] = random.integers(0, vocab_size, int(swapped.sum()))
    return inputs, np.where(chosen, tokens, IGNORED)


def span_counts(tokens: int) -> tuple[int, int]:
    """Corrupted tokens and spans in a sequence of ``tokens``.

    >>> span_counts(568)
    (85, 28)
    """
    noise = min(max(round(tokens * NOISE_DENSITY), 1), tokens - 1)
    spans = max(1, min(round(noise / MEAN_SPAN_LENGTH), noise, tokens - noise))
    return noise, spans


def raw_length(inputs: int, targets: int) -> int:
    """The longest text, in tokens, whose corrupted form fits ``inputs`` and ``targets`` with their end marks.

    >>> raw_length(512, 114)
    568
    """
    best = 0
    for tokens in range(2, 2 * inputs + 2):
        noise, spans = span_counts(tokens)
        if tokens - noise + spans + 1 <= inputs and noise + spans + 1 <= targets:
            best = tokens
    if not best:
        raise DataError(f"span corruption needs more room than {inputs} input and {targets} target tokens")
    return best


def corrupted_spans(
    tokens: Any, *, sentinels: Sequence[int], end: int, random: np.random.Generator
) -> tuple[Any, Any]:
    """T5's span corruption: ``(inputs, targets)``, each span replaced by a sentinel and told after it.

    >>> import numpy as np
    >>> inputs, targets = corrupted_spans(np.arange(10, 20), sentinels=[90, 91], end=1,
    ...                                   random=np.random.default_rng(0))
    >>> sorted([*inputs, *targets]) == sorted([*range(10, 20), 90, 90, 1, 1])
    True
    """
    noise, spans = span_counts(len(tokens))
    spans = min(spans, len(sentinels))
    kept = _random_lengths(len(tokens) - noise, spans, random)
    lost = _random_lengths(noise, spans, random)
    inputs: list[int] = []
    targets: list[int] = []
    place = 0
    for number in range(spans):
        inputs += [*tokens[place : place + kept[number]], sentinels[number]]
        place += kept[number]
        targets += [sentinels[number], *tokens[place : place + lost[number]]]
        place += lost[number]
    return np.asarray([*inputs, end], dtype=np.int64), np.asarray([*targets, end], dtype=np.int64)


def _random_lengths(total: int, parts: int, random: np.random.Generator) -> list[int]:
    """``parts`` lengths of at least 1 that add up to ``total``."""
    cuts = np.sort(random.choice(total - 1, parts - 1, replace=False)) + 1
    return [int(length) for length in np.diff(np.concatenate(([0], cuts, [total])))]


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleMaker:
    """Samples of one task from one part (training or validation) of the prepared data."""

    prepared: Prepared
    job: Job
    seed: int
    vocab_size: int
    indices: Any
    """The sample numbers of this part, int64."""

    def __len__(self) -> int:
        return len(self.indices)

    def make(self, index: int, epoch: int) -> Sample:
        """Sample ``index`` of this part as numpy arrays; ``epoch`` moves the random parts."""
        number = int(self.indices[index])
        tokenizer = self.prepared.tokenizer
        if self.job.task not in STREAM_TASKS:
            return {name: values.astype(np.int64) for name, values in self.prepared.store.row(number).items()}
        length = stream_length(self.job)
        tokens = self.prepared.store.stream()[number * length : (number + 1) * length].astype(np.int64)
        if self.job.task == "causal-lm":
            return {"input_ids": tokens, "labels": tokens}
        random = np.random.default_rng((self.seed, epoch, number))
        if self.job.task == "masked-lm":
            whole = np.concatenate(([tokenizer.cls_token_id], tokens, [tokenizer.sep_token_id]))
            special = np.isin(whole, tokenizer.all_special_ids)
            if special.all():
                special[1:-1] = False
            inputs, labels = masked_words(
                whole,
                special,
                mask_token=tokenizer.mask_token_id,
                vocab_size=len(tokenizer),
                random=random,
            )
            return {"input_ids": inputs, "labels": labels}
        sentinels = tokenizer.convert_tokens_to_ids([f"<extra_id_{n}>" for n in range(100)])
        inputs, targets = corrupted_spans(
            tokens, sentinels=sentinels, end=tokenizer.eos_token_id, random=random
        )
        return {"input_ids": inputs, "labels": targets}


def stream_length(job: Job) -> int:
    """Tokens of the stream that one sample takes."""
    if job.task == "masked-lm":
        return job.sequence_length - 2  # its class and separator marks
    if job.task == "span-corruption":
        assert job.target_length is not None
        return raw_length(job.sequence_length, job.target_length)
    return job.sequence_length


def sample_makers(
    prepared: Prepared, job: Job, *, seed: int, validation: float
) -> tuple[SampleMaker, SampleMaker]:
    """The training and the validation part; of a stream the end, of rows a choice that the seed fixes.

    Raises:
        DataError: the data do not fill one sample.
    """
    if job.task in STREAM_TASKS:
        length = stream_length(job)
        samples = len(prepared.store.stream()) // length
        if not samples:
            raise DataError(
                f"the data hold {len(prepared.store.stream())} tokens, less than one sample of {length}; "
                "give more "
                "data or lower sequence_length (--set trimtab.sequence_length=…)"
            )
        order = np.arange(samples)
    else:
        samples = len(prepared.store)
        order = np.random.default_rng((seed, 0)).permutation(samples)
    aside = min(round(samples * validation), samples - 1)
    if validation and not aside and samples > 1:
        aside = 1
    parts = (order[: samples - aside], order[samples - aside :])
    vocab_size = len(prepared.tokenizer)
    first, second = (
        SampleMaker(prepared=prepared, job=job, seed=seed, vocab_size=vocab_size, indices=part)
        for part in parts
    )
    return first, second


def collate(samples: Sequence[Sample], *, pad_token: int) -> Mapping[str, Any]:
    """One micro batch of int64 tensors: rows padded to the longest, with an attention mask where any is
    shorter.
    """
    import torch

    batch: dict[str, Any] = {}
    padded = False
    for name in samples[0]:
        rows = [sample[name] for sample in samples]
        if name in ("start_positions", "end_positions") or (name == "labels" and max(map(len, rows)) == 1):
            batch[name] = torch.as_tensor(np.concatenate(rows))
            continue
        longest = max(len(row) for row in rows)
        if any(len(row) != longest for row in rows):
            longest = -(-longest // PAD_TO_MULTIPLE) * PAD_TO_MULTIPLE
            padded = padded or name == "input_ids"
        fill = {"input_ids": pad_token, "labels": IGNORED}.get(name, 0)
        table: Any = np.full((len(rows), longest), fill, dtype=np.int64)
        for number, row in enumerate(rows):
            table[number, : len(row)] = row
        batch[name] = torch.as_tensor(table)
    if padded:
        lengths = torch.as_tensor([len(sample["input_ids"]) for sample in samples])
        batch["attention_mask"] = (torch.arange(batch["input_ids"].shape[1]) < lengths[:, None]).long()
    return batch
