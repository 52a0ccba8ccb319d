"""Which field of a row is what: found from names and values, or said by the user."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trimtab.errors import DataError, nearest

TEXT_NAMES = ("text", "content", "body", "document", "sentence", "article", "review", "code", "passage")
PAIR_NAMES = (
    ("premise", "hypothesis"), ("sentence1", "sentence2"), ("question1", "question2"),
    ("question", "sentence"), ("question", "passage"), ("text1", "text2"),
)  # fmt: skip
LABEL_NAMES = ("label", "labels", "class", "category", "target", "sentiment", "stars", "intent")
WORD_NAMES = ("tokens", "words")
TAG_NAMES = ("ner_tags", "tags", "labels", "pos_tags", "chunk_tags")
# source and target of a seq2seq row, with T5's own task prefix where the names say the task
SOURCE_NAMES = (
    ("source", "target", ""),
    ("input", "output", ""),
    ("input_text", "target_text", ""),
    ("inputs", "targets", ""),
    ("prompt", "completion", ""),
    ("prompt", "response", ""),
    ("instruction", "output", ""),
    ("article", "highlights", "summarize: "),
    ("article", "abstract", "summarize: "),
    ("document", "summary", "summarize: "),
    ("dialogue", "summary", "summarize: "),
    ("text", "summary", "summarize: "),
)
LANGUAGES = {
    "en": "English", "de": "German", "fr": "French", "es": "Spanish", "it": "Italian", "nl": "Dutch",
    "pt": "Portuguese", "ro": "Romanian", "ru": "Russian", "zh": "Chinese", "ja": "Japanese", "pl": "Polish",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Fields:
    """The fields of a task's rows; those that the task has no use for are None."""

    text: str | None = None
    pair: str | None = None
    """The second text of a pair, or QA's context."""
    target: str | None = None
    label: str | None = None
    prefix: str = ""

    def describe(self) -> str:
        """What is read from where, for the user."""
        parts = [f"{role} '{name}'" for role, name in (
            ("text", self.text), ("second text", self.pair), ("target", self.target), ("label", self.label),
        ) if name]  # fmt: skip
        return (
            "fields: "
            + ", ".join(parts)
            + (f"; each source begins with '{self.prefix}'" if self.prefix else "")
        )


def find_fields(
    task: str,
    rows: Sequence[Mapping[str, Any]],
    *,
    text: str | None = None,
    target: str | None = None,
    label: str | None = None,
    prefix: str | None = None,
) -> Fields:
    """The fields that ``task`` reads from rows like ``rows``; what the user named wins.

    Raises:
        DataError: a field that the task needs is not there; names those that are.
    """
    names = tuple(dict.fromkeys(name for row in rows for name in row))
    for flag, name in (("--text-field", text), ("--target-field", target), ("--label-field", label)):
        if name is not None and name not in names:
            hint = nearest(name, names, count=1)
            raise DataError(
                f"{flag} {name}: the data have no such field; they have {', '.join(names)}."
                + (f" Did you mean {hint[0]}?" if hint else "")
            )
    if task == "question-answering":
        return _question_fields(names)
    if task == "seq2seq-lm":
        return _seq2seq_fields(names, rows, text, target, prefix)
    if task == "token-classification":
        return Fields(
            text=text or _first(names, WORD_NAMES, "a field with each row's words (--text-field)", names),
            label=label or _first(names, TAG_NAMES, "a field with one tag a word (--label-field)", names),
        )
    if task == "sequence-classification":
        label = label or _first(names, LABEL_NAMES, "a label (--label-field)", names)
        if text is None:
            for first, second in PAIR_NAMES:
                if first in names and second in names:
                    return Fields(text=first, pair=second, label=label)
        return Fields(text=text or _text_field(names, rows, without=label), label=label)
    return Fields(text=text or _text_field(names, rows))


def _question_fields(names: Sequence[str]) -> Fields:
    question = _first(names, ("question",), "a question", names)
    context = _first(names, ("context", "passage"), "a context", names)
    answers = _first(names, ("answers", "answer"), "answers with text and answer_start", names)
    return Fields(text=question, pair=context, target=answers)


def _seq2seq_fields(
    names: Sequence[str],
    rows: Sequence[Mapping[str, Any]],
    text: str | None,
    target: str | None,
    prefix: str | None,
) -> Fields:
    if text and target:
        return Fields(text=text, target=target, prefix=prefix or "")
    translation = rows[0].get("translation")
    if isinstance(translation, Mapping) and len(translation) == 2:
        source, goal = translation
        task = f"translate {LANGUAGES.get(source, source)} to {LANGUAGES.get(goal, goal)}: "
        return Fields(
            text=f"translation.{source}",
            target=f"translation.{goal}",
            prefix=task if prefix is None else prefix,
        )
    if {"question", "context"} <= set(names) and ("answers" in names or "answer" in names):
        return Fields(
            text="question",
            pair="context",
            target="answers" if "answers" in names else "answer",
            prefix=prefix or "",
        )
    for source, goal, task in SOURCE_NAMES:
        if source in names and goal in names:
            return Fields(text=source, target=goal, prefix=task if prefix is None else prefix)
    raise DataError(
        f"seq2seq-lm needs a source and a target in each row; the fields are {', '.join(names)}. "
        "Name them with --text-field and --target-field"
    )


def _first(names: Sequence[str], wanted: Sequence[str], what: str, present: Sequence[str]) -> str:
    for name in wanted:
        if name in names:
            return name
    raise DataError(f"the task needs {what}; the data's fields are {', '.join(present)}")


def _text_field(names: Sequence[str], rows: Sequence[Mapping[str, Any]], without: str | None = None) -> str:
    for name in TEXT_NAMES:
        if name in names and isinstance(rows[0].get(name), str):
            return name
    lengths = {
        name: sum(len(row[name]) for row in rows if isinstance(row.get(name), str))
        for name in names
        if name != without
    }
    longest = max(lengths, key=lambda name: lengths[name], default=None)
    if longest is None or not lengths[longest]:
        raise DataError(f"no field holds text; the fields are {', '.join(names)}. Name one with --text-field")
    return longest


def value_of(row: Mapping[str, Any], path: str) -> Any:
    """The value at ``path``, whose dots lead into nested objects; None if absent."""
    if path in row:
        return row[path]
    value: Any = row
    for key in path.split("."):
        if not isinstance(value, Mapping):
            return None
        value = value.get(key)
    return value


def text_of(row: Mapping[str, Any], path: str) -> str:
    """The text at ``path``, a joined list of texts, or the first answer of a QA row; empty if absent."""
    value = value_of(row, path)
    if isinstance(value, Mapping):
        value = value.get("text")
    if isinstance(value, (list, tuple)):
        value = value[0] if value else ""
    return "" if value is None else str(value)
