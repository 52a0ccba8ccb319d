"""Rows from every kind of file, the fields found in them, and what each task stores."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("numpy")
pytest.importorskip("tokenizers")

from trimtab.errors import DataError, UsageError
from trimtab.job import Job
from trimtab.train.data.fields import find_fields
from trimtab.train.data.prepare import IGNORED, DataRequest, Prepared, prepare
from trimtab.train.data.rows import find_sources, read_rows

ROWS = [
    {"text": f"sentence number {number} is here", "label": "odd" if number % 2 else "even"}
    for number in range(40)
]


def write_jsonl(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def prepared(
    folder: Path, rows: list[dict], task: str, model_type: str, vocab_size: int = 420, **more: object
) -> Prepared:
    path = write_jsonl(folder / "rows.jsonl", rows)
    return prepare(
        DataRequest(sources=(str(path),), **more),  # type: ignore[arg-type]
        Job.from_block({"task": task, "sequence_length": 32}), model_type=model_type, vocab_size=vocab_size,
        data=folder / "data", tokenizer_folder=folder / "tokenizer",
    )  # fmt: skip


def test_the_same_rows_from_every_kind_of_file(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")

    write_jsonl(tmp_path / "a.jsonl", ROWS)
    (tmp_path / "b.json").write_text(json.dumps(ROWS), encoding="utf-8")
    (tmp_path / "c.csv").write_text(
        "text,label\n" + "".join(f"{row['text']},{row['label']}\n" for row in ROWS), encoding="utf-8"
    )
    (tmp_path / "d.tsv").write_text(
        "text\tlabel\n" + "".join(f"{row['text']}\t{row['label']}\n" for row in ROWS), encoding="utf-8"
    )
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "e.parquet")
    for name in ("a.jsonl", "b.json", "c.csv", "d.tsv", "e.parquet"):
        assert list(read_rows([str(tmp_path / name)])) == ROWS, name
    assert len(find_sources([str(tmp_path)])) == 5
    assert len(find_sources([str(tmp_path / "*.?sv")])) == 2


def test_a_saved_dataset_is_read(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "saved"))
    assert list(read_rows([str(tmp_path / "saved")])) == ROWS


def test_a_folder_of_text_is_read_whole(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "a.txt").write_text("first", encoding="utf-8")
    (tmp_path / "deep" / "b.md").write_text("second", encoding="utf-8")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    rows = list(read_rows(find_sources([str(tmp_path)])))
    assert [row["text"] for row in rows] == ["first", "second"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"\xff\xfe\x00", "a.txt: not text: byte 0"),
        ("a.txt", b"abc\0def", "NUL bytes"),
        ("a.jsonl", b'{"text": "x"}\n{broken', "a.jsonl, line 2: not JSON"),
        ("a.jsonl", b"3\n", "a row of data is an object or a string, not int"),
        ("a.parquet", b"nothing", "not readable as Parquet"),
        ("a.csv", b"text\nx,y\n", "more cells than the first line"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        list(read_rows([str(tmp_path / name)]))


@pytest.mark.parametrize("source", ["missing.txt", "/nowhere/at/all", "*.nothing"])
def test_a_missing_source_is_named(source: str) -> None:
    with pytest.raises(DataError, match="no "):
        find_sources([source])


@pytest.mark.parametrize(
    ("task", "row", "expected"),
    [
        ("causal-lm", {"id": "x", "content": "words"}, ("content", None, None, None)),
        ("causal-lm", {"id": "x", "prose": "many more words"}, ("prose", None, None, None)),
        (
            "sequence-classification",
            {"premise": "a", "hypothesis": "b", "label": 1},
            ("premise", "hypothesis", None, "label"),
        ),
        (
            "sequence-classification",
            {"review": "good", "sentiment": "yes"},
            ("review", None, None, "sentiment"),
        ),
        ("token-classification", {"tokens": ["a"], "ner_tags": [0]}, ("tokens", None, None, "ner_tags")),
        ("seq2seq-lm", {"source": "a", "target": "b"}, ("source", None, "target", None)),
        (
            "question-answering",
            {"question": "q", "context": "c", "answers": {}},
            ("question", "context", "answers", None),
        ),
    ],
)
def test_fields_are_found(task: str, row: dict, expected: tuple) -> None:
    found = find_fields(task, [row])
    assert (found.text, found.pair, found.target, found.label) == expected


def test_t5s_task_prefixes_are_put_before_the_source() -> None:
    assert find_fields("seq2seq-lm", [{"article": "a", "highlights": "b"}]).prefix == "summarize: "
    translated = find_fields("seq2seq-lm", [{"translation": {"en": "a", "de": "b"}}])
    assert translated.prefix == "translate English to German: "
    assert translated.target == "translation.de"
    assert find_fields("seq2seq-lm", [{"document": "a", "summary": "b"}], prefix="").prefix == ""


def test_a_field_that_is_not_there_is_named_with_the_nearest() -> None:
    with pytest.raises(DataError, match=r"--text-field txet: .* Did you mean text\?"):
        find_fields("causal-lm", ROWS, text="txet")
    with pytest.raises(DataError, match="seq2seq-lm needs a source and a target"):
        find_fields("seq2seq-lm", ROWS)


def test_classes_are_numbered_by_name(tmp_path: Path) -> None:
    found = prepared(tmp_path, ROWS, "sequence-classification", "bert")
    assert found.labels == ("even", "odd")
    assert [int(found.store.row(number)["labels"][0]) for number in range(4)] == [0, 1, 0, 1]
    assert found.tokenizer.decode(found.store.row(0)["input_ids"]) == "[CLS] sentence number 0 is here [SEP]"


def test_tags_stand_at_the_first_piece_of_a_word(tmp_path: Path) -> None:
    rows = [{"tokens": ["Strasbourg", "lies", "there"], "ner_tags": ["PLACE", "O", "O"]}] * 30
    found = prepared(tmp_path, rows, "token-classification", "bert", vocab_size=320)
    row = found.store.row(0)
    assert found.labels == ("O", "PLACE")
    assert [int(label) for label in row["labels"] if label != IGNORED] == [1, 0, 0]
    assert row["labels"][0] == IGNORED == row["labels"][-1]


def test_an_answer_is_found_again_in_its_tokens(tmp_path: Path) -> None:
    context = "The rudder is steered by a small flap called the trim tab, which turns first. " * 3
    answer = "a small flap"
    answers = {"text": [answer], "answer_start": [context.index(answer)]}
    rows = [{"question": "What steers?", "context": context, "answers": answers}] * 20
    found = prepared(tmp_path, rows, "question-answering", "bert")
    spans = []
    for number in range(len(found.store)):
        row = found.store.row(number)
        start, end = int(row["start_positions"][0]), int(row["end_positions"][0])
        assert len(row["input_ids"]) <= 32
        if end:
            spans.append(found.tokenizer.decode(row["input_ids"][start : end + 1]))
    assert len(spans) >= 20
    assert set(spans) == {answer}


def test_sources_and_targets_end_with_their_mark(tmp_path: Path) -> None:
    rows = [{"document": f"text {n}", "summary": f"item {n}"} for n in range(40)]
    found = prepared(tmp_path, rows, "seq2seq-lm", "t5")
    row = found.store.row(7)
    assert found.tokenizer.decode(row["input_ids"]) == "summarize: text 7</s>"
    assert found.tokenizer.decode(row["labels"]) == "item 7</s>"


def test_empty_data_are_refused(tmp_path: Path) -> None:
    for rows in ([], [{"text": "   ", "label": "x"}, {"text": "", "label": "y"}]):
        with pytest.raises(DataError, match="empty"):
            prepared(tmp_path, rows, "sequence-classification", "bert")


def test_prepared_data_are_used_again_and_never_swapped(tmp_path: Path) -> None:
    first = prepared(tmp_path, ROWS, "causal-lm", "gpt2")
    assert not first.reused
    assert prepared(tmp_path, ROWS, "causal-lm", "gpt2").reused
    write_jsonl(tmp_path / "rows.jsonl", ROWS[:20])
    with pytest.raises(UsageError, match="began with other data"):
        prepare(
            DataRequest(sources=(str(tmp_path / "rows.jsonl"),)),
            Job.from_block({"sequence_length": 32}),
            model_type="gpt2",
            vocab_size=420,
            data=tmp_path / "data",
            tokenizer_folder=tmp_path / "tokenizer",
            keep=True,
        )


def test_a_tokenizer_that_does_not_fit_the_model_is_refused(tmp_path: Path) -> None:
    prepared(tmp_path, ROWS, "causal-lm", "gpt2")
    with pytest.raises(UsageError, match="ids but the model's vocabulary has 301"):
        prepared(tmp_path, ROWS, "causal-lm", "gpt2", vocab_size=301, tokenizer=str(tmp_path / "tokenizer"))
    with pytest.raises(UsageError, match="mask token"):
        prepared(tmp_path, ROWS, "masked-lm", "bert", tokenizer=str(tmp_path / "tokenizer"))
