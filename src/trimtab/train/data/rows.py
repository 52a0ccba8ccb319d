"""Rows of training data from files, folders, globs, and Hugging Face datasets."""

from __future__ import annotations

import csv
import glob
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from trimtab.errors import DataError, MissingExtra

Row = dict[str, Any]
TEXT_SUFFIXES = frozenset(
    [
        ".txt",
        ".text",
        ".md",
        ".rst",
        ".py",
        ".c",
        ".h",
        ".cpp",
        ".java",
        ".js",
        ".ts",
        ".go",
        ".rs",
        ".html",
        ".tex",
        ".log",
        ".sh",
        ".sql",
    ]
)
TABLE_SUFFIXES = frozenset([".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet"])
TEXT_PIECE_CHARACTERS = 1_000_000
"""A longer text file becomes several rows, cut at line ends."""
TEXT = "text"
"""The field that a plain text file's rows have."""


def find_sources(sources: Sequence[str]) -> tuple[str, ...]:
    """The files that ``sources`` name (files, folders, globs), sorted; a dataset's name stays as it is.

    Raises:
        DataError: nothing there, or nothing in it that can be read.
    """
    if not sources:
        raise DataError("no data: give --data with a file, a folder, a glob or a Hugging Face dataset's name")
    found: list[str] = []
    for source in sources:
        path = Path(source).expanduser()
        if path.is_dir() and not is_saved_dataset(path):
            found += _files_in(path)
        elif path.exists():
            found.append(str(path))
        elif any(sign in source for sign in "*?["):
            matches = sorted(match for match in glob.glob(str(path), recursive=True) if Path(match).is_file())
            if not matches:
                raise DataError(f"--data {source}: no file matches")
            found += matches
        elif looks_like_a_path(source):
            raise DataError(f"--data {source}: no such file or folder")
        else:
            found.append(source)
    return tuple(dict.fromkeys(found))


def looks_like_a_path(source: str) -> bool:
    """Whether ``source`` is meant as a file rather than as a dataset's name on the hub."""
    return source.startswith((".", "/", "~")) or source.count("/") > 1 or bool(Path(source).suffix)


def is_saved_dataset(path: Path) -> bool:
    """Whether ``path`` is a folder that ``Dataset.save_to_disk`` wrote."""
    return (path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file()


def _files_in(folder: Path) -> list[str]:
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    for suffixes in (TABLE_SUFFIXES, TEXT_SUFFIXES):
        chosen = [str(path) for path in files if path.suffix.lower() in suffixes]
        if chosen:
            return chosen
    raise DataError(
        f"--data {folder}: no file in it is text ({', '.join(sorted(TEXT_SUFFIXES))}) or a table "
        f"({', '.join(sorted(TABLE_SUFFIXES))})"
    )


def read_rows(sources: Sequence[str], *, forgiving: bool = False) -> Iterator[Row]:
    """The rows of all ``sources``, in order; ``forgiving`` skips text files that are not UTF-8.

    Raises:
        DataError: a file is broken or not text; names the file, the line or byte, and the cure.
    """
    for source in sources:
        path = Path(source).expanduser()
        if not path.exists():
            yield from _hub_rows(source)
        elif path.is_dir():
            yield from _saved_rows(path)
        else:
            try:
                yield from _file_rows(path)
            except UnicodeDecodeError as error:
                if forgiving:
                    continue
                raise DataError(
                    f"{path}: not text: byte {error.start} is no UTF-8. Give text, JSONL, CSV or Parquet "
                    "files"
                ) from error
            except OSError as error:
                raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error


def _file_rows(path: Path) -> Iterator[Row]:
    suffix = path.suffix.lower()
    if suffix in (".jsonl", ".ndjson"):
        return _jsonl_rows(path)
    if suffix == ".json":
        return _json_rows(path)
    if suffix in (".csv", ".tsv"):
        return _csv_rows(path, delimiter="\t" if suffix == ".tsv" else ",")
    if suffix == ".parquet":
        return _parquet_rows(path)
    return _text_rows(path)


def _text_rows(path: Path) -> Iterator[Row]:
    with open(path, encoding="utf-8") as file:
        while piece := file.read(TEXT_PIECE_CHARACTERS):
            if len(piece) == TEXT_PIECE_CHARACTERS:
                piece += file.readline(TEXT_PIECE_CHARACTERS)
            if "\0" in piece:
                raise DataError(
                    f"{path}: not text: it holds NUL bytes. Give text, JSONL, CSV or Parquet files"
                )
            if piece.strip():
                yield {TEXT: piece}


def _jsonl_rows(path: Path) -> Iterator[Row]:
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DataError(f"{path}, line {number}: not JSON: {error}") from error
            yield _as_row(row, f"{path}, line {number}")


def _json_rows(path: Path) -> Iterator[Row]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        raise
    except (ValueError, RecursionError):
        yield from _jsonl_rows(path)  # a common name for one object a line
        return
    if isinstance(value, dict) and isinstance(value.get("data"), list):
        value = value["data"]
    if not isinstance(value, list):
        raise DataError(f"{path}: a JSON file of data is a list of objects, not {type(value).__name__}")
    for number, row in enumerate(value):
        if isinstance(row, dict) and isinstance(row.get("paragraphs"), list):
            yield from _squad_rows(row)  # SQuAD's own nesting
        else:
            yield _as_row(row, f"{path}, item {number}")


def _squad_rows(article: Row) -> Iterator[Row]:
    for paragraph in article["paragraphs"]:
        for asked in paragraph["qas"]:
            answers = asked.get("answers", [])
            yield {
                "context": paragraph["context"],
                "question": asked["question"],
                "answers": {
                    "text": [answer["text"] for answer in answers],
                    "answer_start": [answer["answer_start"] for answer in answers],
                },
            }


def _as_row(value: Any, where: str) -> Row:
    if isinstance(value, dict):
        return value
    if isinstance(value, str):
        return {TEXT: value}
    raise DataError(f"{where}: a row of data is an object or a string, not {type(value).__name__}")


def _csv_rows(path: Path, *, delimiter: str) -> Iterator[Row]:
    csv.field_size_limit(2**30)
    with open(path, encoding="utf-8-sig", newline="") as file:
        try:
            for row in csv.DictReader(file, delimiter=delimiter):
                if None in row:
                    raise DataError(f"{path}: a row has more cells than the first line has names")
                yield row
        except csv.Error as error:
            raise DataError(f"{path}: not readable as CSV: {error}") from error


def _parquet_rows(path: Path) -> Iterator[Row]:
    try:
        import pyarrow  # type: ignore[import-untyped, unused-ignore]
        import pyarrow.parquet  # type: ignore[import-untyped, unused-ignore]
    except ImportError as error:
        raise MissingExtra("pyarrow", "train", "reading Parquet") from error
    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            for batch in table.iter_batches():
                yield from batch.to_pylist()
    except pyarrow.ArrowException as error:
        raise DataError(f"{path}: not readable as Parquet: {error}") from error


def _saved_rows(path: Path) -> Iterator[Row]:
    from datasets import DatasetDict, load_from_disk

    try:
        data = load_from_disk(str(path))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not readable as a saved dataset: {error}") from error
    yield from data["train"] if isinstance(data, DatasetDict) else data


def _hub_rows(name: str) -> Iterator[Row]:
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise MissingExtra("datasets", "train", f"the dataset '{name}'") from error
    dataset, _, subset = name.partition(":")
    try:
        yield from load_dataset(dataset, subset or None, split="train")
    except Exception as error:
        raise DataError(
            f"--data {name}: no such file, and the Hugging Face dataset cannot be loaded: "
            f"{str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__}"
        ) from error
