"""From rows to stored tokens, once, by one process."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trimtab.errors import DataError, UnreadableFile, UsageError
from trimtab.job import Job
from trimtab.train.data.fields import Fields, find_fields, text_of, value_of
from trimtab.train.data.rows import Row, find_sources, read_rows
from trimtab.train.data.store import Store, StoreWriter
from trimtab.train.data.tokenizer import (
    check_vocabulary,
    load_tokenizer,
    save_tokenizer,
    train_tokenizer,
)

STREAM_TASKS = ("causal-lm", "masked-lm", "span-corruption")
"""Tasks whose documents are joined into one stream and cut into full sequences."""
ROWS_TO_LOOK_AT = 50
TOKENIZER_BATCH = 500
COLUMNS = {
    "sequence-classification": ("input_ids", "token_type_ids", "labels"),
    "token-classification": ("input_ids", "labels"),
    "question-answering": ("input_ids", "token_type_ids", "start_positions", "end_positions"),
    "seq2seq-lm": ("input_ids", "labels"),
}
IGNORED = -100
"""The label that PyTorch's cross entropy skips (ignore_index)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataRequest:
    """What the data of a run depend on: the same request gives the same stored tokens."""

    sources: tuple[str, ...]
    text_field: str | None = None
    target_field: str | None = None
    label_field: str | None = None
    prefix: str | None = None
    tokenizer: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """Stored data and the tokenizer that made them."""

    store: Store
    tokenizer: Any
    labels: tuple[str, ...] | None
    """Class names, by id; None for tasks without classes."""
    notes: tuple[str, ...]
    reused: bool = False


def prepare(
    request: DataRequest,
    job: Job,
    *,
    model_type: str,
    vocab_size: int,
    data: Path,
    tokenizer_folder: Path,
    keep: bool = False,
) -> Prepared:
    """Read, tokenize and store the data, or open what an earlier start of the same run stored.

    ``keep`` refuses to replace stored data by others.

    Raises:
        DataError, UsageError, UnreadableFile: the data or the tokenizer cannot be used; says why and the
        cure.
    """
    sources = find_sources(request.sources)
    fingerprint = _fingerprint(request, sources, job, model_type, vocab_size)
    ready = open_prepared(data, tokenizer_folder)
    if ready is not None and ready.store.facts["request"] == fingerprint:
        return ready
    if keep:
        changed = [
            key
            for key, value in fingerprint.items()
            if ready is None or ready.store.facts["request"][key] != value
        ]
        raise UsageError(
            f"this run began with other data or another tokenizer ({', '.join(changed)} changed); resume "
            "with those, "
            "or start a new run from its model with --from RUN/model"
        )
    rows = read_rows(sources, forgiving=len(sources) > 1)
    first = list(itertools.islice(rows, ROWS_TO_LOOK_AT))
    if not first:
        raise DataError(f"the data are empty: no row in {', '.join(request.sources)}")
    fields = find_fields(
        job.task,
        first,
        text=request.text_field,
        target=request.target_field,
        label=request.label_field,
        prefix=request.prefix,
    )
    if request.tokenizer is not None:
        tokenizer = load_tokenizer(request.tokenizer)
        notes = [fields.describe()]
    else:
        texts = _training_texts(sources, fields)
        tokenizer = train_tokenizer(model_type, texts, vocab_size=vocab_size)
        notes = [fields.describe(), f"a tokenizer of {len(tokenizer)} ids was trained on the data"]
    check_vocabulary(tokenizer, vocab_size, task=job.task)
    save_tokenizer(tokenizer, tokenizer_folder)
    labels = _label_names(job.task, sources, fields)
    _store(itertools.chain(first, rows), job, fields, tokenizer, labels, data, fingerprint, notes)
    store = Store.open(data)
    return Prepared(store=store, tokenizer=tokenizer, labels=labels, notes=tuple(notes))


def open_prepared(data: Path, tokenizer_folder: Path) -> Prepared | None:
    """What is stored in a run's folder; None if nothing, or not whole."""
    try:
        store = Store.open(data)
        tokenizer = load_tokenizer(str(tokenizer_folder))
    except UnreadableFile:
        return None
    labels = store.facts["labels"]
    return Prepared(
        store=store,
        tokenizer=tokenizer,
        labels=None if labels is None else tuple(labels),
        notes=tuple(store.facts["notes"]),
        reused=True,
    )


def _fingerprint(
    request: DataRequest, sources: Sequence[str], job: Job, model_type: str, vocab_size: int
) -> dict[str, Any]:
    files = {name: Path(name).stat().st_size if Path(name).is_file() else None for name in sources}
    long = None if job.task in STREAM_TASKS else [job.sequence_length, job.target_length]
    return {
        "files": files,
        "task": job.task,
        "lengths": long,
        "fields": [request.text_field, request.target_field, request.label_field, request.prefix],
        "tokenizer": request.tokenizer or f"trained for {model_type}, at most {vocab_size} ids",
    }


def _training_texts(sources: Sequence[str], fields: Fields) -> Iterator[str]:
    for row in read_rows(sources, forgiving=len(sources) > 1):
        for name in (fields.text, fields.pair, fields.target):
            if name is not None:
                value = value_of(row, name)
                yield (
                    " ".join(value) if isinstance(value, list) and name == fields.text else text_of(row, name)
                )
        if fields.prefix:
            yield fields.prefix


def _label_names(task: str, sources: Sequence[str], fields: Fields) -> tuple[str, ...] | None:
    if task not in ("sequence-classification", "token-classification"):
        return None
    assert fields.label is not None
    seen: set[Any] = set()
    for row in read_rows(sources, forgiving=len(sources) > 1):
        value = value_of(row, fields.label)
        for label in value if isinstance(value, (list, tuple)) else [value]:
            if label is not None and not isinstance(label, (str, int, bool)):
                raise DataError(
                    f"--label-field {fields.label}: {label!r} is no class; give a text or whole number"
                )
            if label is not None:
                seen.add(label)
        if len(seen) > 10_000:
            raise DataError(
                f"--label-field {fields.label}: more than 10,000 different values; is it the label?"
            )
    if all(isinstance(label, int) and not isinstance(label, bool) for label in seen) and seen:
        if min(seen) < 0:
            raise DataError(f"--label-field {fields.label}: {min(seen)} is no class id; ids begin at 0")
        return tuple(str(number) for number in range(max(seen) + 1))
    if len(seen) < 2:
        raise DataError(
            f"--label-field {fields.label}: the data hold {len(seen)} classes; at least 2 are needed"
        )
    return tuple(sorted(str(label) for label in seen))


def _store(
    rows: Iterable[Row],
    job: Job,
    fields: Fields,
    tokenizer: Any,
    labels: tuple[str, ...] | None,
    folder: Path,
    fingerprint: Mapping[str, Any],
    notes: list[str],
) -> None:
    digest = hashlib.sha256()
    dropped = 0
    encode = _Encoder(job, fields, tokenizer, labels)
    source = iter(rows)
    with StoreWriter(folder, COLUMNS.get(job.task, ("input_ids",))) as writer:
        while batch := list(itertools.islice(source, TOKENIZER_BATCH)):
            for encoded in encode.method(batch):
                if encoded is None:
                    dropped += 1
                    continue
                digest.update(str(encoded["input_ids"]).encode())
                writer.add(encoded)
        if not writer.rows:
            raise DataError("the data are empty: no row holds text")
        if dropped:
            notes.append(f"{dropped} rows without text, target or label were left out")
        writer.finish(
            {
                "request": dict(fingerprint),
                "digest": digest.hexdigest(),
                "labels": labels,
                "notes": list(notes),
            }
        )


class _Encoder:
    """Rows of one task to token columns, a batch at a time; None for a row that has nothing to learn from."""

    def __init__(self, job: Job, fields: Fields, tokenizer: Any, labels: tuple[str, ...] | None) -> None:
        self.job, self.fields, self.tokenizer = job, fields, tokenizer
        self.ids = {name: number for number, name in enumerate(labels or ())}
        self.method = {
            "sequence-classification": self._classified,
            "token-classification": self._tagged,
            "question-answering": self._questions,
            "seq2seq-lm": self._translated,
        }.get(job.task, self._documents)

    def _documents(self, batch: Sequence[Row]) -> Iterator[dict[str, Any] | None]:
        assert self.fields.text is not None
        texts = [text for row in batch if (text := text_of(row, self.fields.text)).strip()]
        if not texts:
            return
        encoded = self.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        end = self.tokenizer.eos_token_id if self.job.task == "causal-lm" else None
        for ids in encoded:
            if ids:
                yield {"input_ids": ids if end is None else [*ids, end]}

    def _classified(self, batch: Sequence[Row]) -> Iterator[dict[str, Any] | None]:
        for row in batch:
            assert self.fields.text is not None
            assert self.fields.label is not None
            text, label = text_of(row, self.fields.text), value_of(row, self.fields.label)
            if not text.strip() or label is None:
                yield None
                continue
            pair = text_of(row, self.fields.pair) if self.fields.pair else None
            encoded = self.tokenizer(text, pair, truncation=True, max_length=self.job.sequence_length)
            kinds = encoded.get("token_type_ids", [0] * len(encoded["input_ids"]))
            yield {
                "input_ids": encoded["input_ids"],
                "token_type_ids": kinds,
                "labels": [self.ids[str(label)]],
            }

    def _tagged(self, batch: Sequence[Row]) -> Iterator[dict[str, Any] | None]:
        assert self.fields.text is not None
        assert self.fields.label is not None
        for row in batch:
            words, tags = value_of(row, self.fields.text), value_of(row, self.fields.label)
            if not isinstance(words, (list, tuple)) or not isinstance(tags, (list, tuple)):
                raise DataError(
                    f"token-classification needs lists of words and tags; a row has {words!r:.60}"
                )
            if len(words) != len(tags):
                raise DataError(f"a row has {len(words)} words but {len(tags)} tags")
            if not words:
                yield None
                continue
            encoded = self.tokenizer(
                list(words), is_split_into_words=True, truncation=True, max_length=self.job.sequence_length
            )
            labels, before = [], None
            for word in encoded.word_ids():
                # a word's first piece carries its tag; the rest and the marks carry none
                labels.append(IGNORED if word is None or word == before else self.ids[str(tags[word])])
                before = word
            yield {"input_ids": encoded["input_ids"], "labels": labels}

    def _translated(self, batch: Sequence[Row]) -> Iterator[dict[str, Any] | None]:
        assert self.fields.text is not None
        assert self.fields.target is not None
        for row in batch:
            source, target = text_of(row, self.fields.text), text_of(row, self.fields.target)
            if not source.strip() or not target.strip():
                yield None
                continue
            if self.fields.pair:  # T5's form of a question with its passage
                source = f"question: {source} context: {text_of(row, self.fields.pair)}"
            encoded = self.tokenizer(
                self.fields.prefix + source, truncation=True, max_length=self.job.sequence_length
            )
            wanted = self.tokenizer(text_target=target, truncation=True, max_length=self.job.target_length)
            yield {"input_ids": encoded["input_ids"], "labels": wanted["input_ids"]}

    def _questions(self, batch: Sequence[Row]) -> Iterator[dict[str, Any] | None]:
        for row in batch:
            assert self.fields.text is not None
            assert self.fields.pair is not None
            assert self.fields.target is not None
            question, context = text_of(row, self.fields.text).strip(), text_of(row, self.fields.pair)
            start, end = _answer_span(row, self.fields.target, context)
            length = self.job.sequence_length
            try:
                encoded = self.tokenizer(
                    question,
                    context,
                    truncation="only_second",
                    max_length=length,
                    stride=min(128, length // 4),
                    return_overflowing_tokens=True,
                    return_offsets_mapping=True,
                )
            except BaseException as error:
                if isinstance(error, (KeyboardInterrupt, SystemExit)):
                    raise
                raise UsageError(
                    f"a question is longer than sequence_length {length}: raise it ({error})"
                ) from error
            for number, ids in enumerate(encoded["input_ids"]):
                first, last = _answer_tokens(
                    encoded["offset_mapping"][number], encoded.sequence_ids(number), start, end
                )
                kinds = encoded["token_type_ids"][number] if "token_type_ids" in encoded else [0] * len(ids)
                yield {
                    "input_ids": ids,
                    "token_type_ids": kinds,
                    "start_positions": [first],
                    "end_positions": [last],
                }


def _answer_span(row: Row, field: str, context: str) -> tuple[int, int]:
    """Characters of the first answer in the context; (-1, -1) if there is none."""
    value = value_of(row, field)
    text, start = text_of(row, field), None
    if isinstance(value, Mapping) and value.get("answer_start") not in (None, []):
        starts = value["answer_start"]
        start = starts[0] if isinstance(starts, (list, tuple)) else starts
    elif isinstance(value_of(row, "answer_start"), int):
        start = value_of(row, "answer_start")
    elif text:
        start = context.find(text)
    if not text or start is None or start < 0:
        return -1, -1
    return start, start + len(text)


def _answer_tokens(
    offsets: Sequence[tuple[int, int]], parts: Sequence[int | None], start: int, end: int
) -> tuple[int, int]:
    """First and last token of the answer; (0, 0), the class mark, if this piece of the context lacks it."""
    inside = [
        token
        for token, part in enumerate(parts)
        if part == 1 and offsets[token][0] < end and offsets[token][1] > start
    ]
    context = [token for token, part in enumerate(parts) if part == 1]
    if start < 0 or not inside or offsets[context[0]][0] > start or offsets[context[-1]][1] < end:
        return 0, 0
    return inside[0], inside[-1]
