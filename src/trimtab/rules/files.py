"""FI: what is wrong with the text itself, as its reader found it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from trimtab.findings import Fix
from trimtab.rules.base import Hit, put, rule
from trimtab.rules.subject import Subject
from trimtab.source.tree import Problem, ProblemKind


def _problems(subject: Subject, *kinds: ProblemKind) -> Iterator[tuple[Problem, Hit]]:
    for problem in subject.source.problems:
        if problem.kind in kinds:
            place = (problem.line, problem.column)
            yield problem, Hit(problem.key_path, _sentence(problem.message), place=place, where="file")


def _sentence(text: str) -> str:
    return text if text.endswith((".", "!", "?")) else f"{text}."


def _with_fix(hit: Hit, mend: Fix | None) -> Hit:
    return Hit(hit.path, hit.message, mend, place=hit.place, where="file")


@rule("FI001", "unreadable-text", "error", refused="reading", bare=True)
def unreadable_text(subject: Subject) -> Iterable[Hit]:
    """Finds texts that cannot be read to their end.

    Why is this bad?
        DeepSpeed stops with a HjsonDecodeError, Transformers with a JSONDecodeError. Nothing behind the place
        was checked.
    Example
        {"train_micro_batch_size_per_gpu": 1, "optimizer": {"type": "AdamW", "params": {...}}}
    Use instead
        {"train_micro_batch_size_per_gpu": 1, "optimizer": {"type": "AdamW", "params": {}}}
    Source
        deepspeed/runtime/config.py:444
    """
    kinds: tuple[ProblemKind, ...] = (
        "syntax", "tab-indent", "too-large", "too-deep", "too-many-nodes", "self-reference",
    )  # fmt: skip
    for _, hit in _problems(subject, *kinds):
        yield hit


@rule("FI002", "not-a-configuration", "error", refused="reading", bare=True)
def not_a_configuration(subject: Subject) -> Iterable[Hit]:
    """Finds texts that are no object, or nothing.

    Why is this bad?
        DeepSpeed looks for keys in it and fails.
    Example
        [1, 2]
    Use instead
        {"train_micro_batch_size_per_gpu": 1}
    Source
        deepspeed/runtime/config.py:134
    """
    for _, hit in _problems(subject, "empty", "not-an-object", "many-documents"):
        yield hit


@rule("FI003", "duplicate-key", "error", refused="reading", bare=True)
def duplicate_key(subject: Subject) -> Iterable[Hit]:
    """Finds keys that stand twice in one object.

    Why is this bad?
        DeepSpeed raises ValueError; Transformers and Accelerate silently take the last one.
    Example
        {"gradient_clipping": 1.0, "gradient_clipping": 0.5}
    Use instead
        {"gradient_clipping": 0.5}
    Fix safety
        The last one is kept, as strict JSON readers do: unsafe.
    Source
        deepspeed/runtime/config_utils.py:199-208
    """
    for problem, hit in _problems(subject, "duplicate-key"):
        mend = None
        if problem.key_path:
            value = subject.source.value
            for key in problem.key_path:
                value = value[key]
            if not isinstance(value, (dict, list)):
                mend = put(problem.key_path, value, title="Keep the last")
        yield _with_fix(hit, mend)


@rule("FI004", "comment-swallowed-by-a-text", "error", bare=True)
def comment_in_text(subject: Subject) -> Iterable[Hit]:
    """Finds comments and commas behind texts without quotes, which become part of them.

    Why is this bad?
        hjson reads a text without quotes to the end of its line, comment and comma included.
    Example
        {
          "optimizer": {
            "type": AdamW // the usual
          }
        }
    Use instead
        {
          "optimizer": {
            "type": "AdamW" // the usual
          }
        }
    Source
        https://hjson.github.io/syntax.html (quoteless strings)
    """
    for _, hit in _problems(subject, "comment-in-text", "comma-in-text"):
        yield hit


@rule("FI005", "value-read-as-something-else", "warning", bare=True)
def value_read_as_something_else(subject: Subject) -> Iterable[Hit]:
    """Finds values that look like one thing and are read as another.

    Why is this bad?
        YAML 1.1 reads 1e-4 as a text and yes as true; hjson reads a number with a stray character as a text.
    Example
        With `--loader trainer` as YAML:
        deepspeed:
          train_micro_batch_size_per_gpu: 1
          zero_optimization: {stage: 1}
          gradient_clipping: 1e0
    Use instead
        With `--loader trainer` as YAML:
        deepspeed:
          train_micro_batch_size_per_gpu: 1
          zero_optimization: {stage: 1}
          gradient_clipping: 1.0
    Source
        https://yaml.org/type/float.html
    """
    kinds: tuple[ProblemKind, ...] = (
        "text-not-number",
        "text-not-literal",
        "yaml-word",
        "yaml-number",
        "yaml-date",
    )
    for _, hit in _problems(subject, *kinds):
        yield hit


@rule("FI006", "value-that-json-cannot-hold", "error", bare=True)
def value_json_cannot_hold(subject: Subject) -> Iterable[Hit]:
    """Finds values that no JSON reader reads alike: NaN, infinities, integers beyond 64 bits, odd keys.

    Why is this bad?
        DeepSpeed's reader and Python's take them differently, and the numbers mean nothing to the engine.
    Example
        {"gradient_clipping": Infinity}
    Use instead
        {"gradient_clipping": 0.0}
    Source
        RFC 8259, section 6
    """
    kinds: tuple[ProblemKind, ...] = (
        "not-finite", "huge-number", "not-json", "lone-surrogate", "key-not-text", "yaml-tag",
    )  # fmt: skip
    for _, hit in _problems(subject, *kinds):
        yield hit


@rule("FI007", "text-that-is-not-utf-8", "error", refused="reading", bare=True)
def text_not_utf_8(subject: Subject) -> Iterable[Hit]:
    """Finds files in another encoding than UTF-8, with a byte-order mark, or with NUL bytes.

    Why is this bad?
        DeepSpeed opens the file as UTF-8. A byte-order mark is refused by Python's json module, so by
        Transformers and Accelerate.
    Example
        With `--loader transformers`:
        \ufeff{"train_micro_batch_size_per_gpu": "auto", "zero_optimization": {"stage": 2}}
    Use instead
        With `--loader transformers`:
        {"train_micro_batch_size_per_gpu": "auto", "zero_optimization": {"stage": 2}}
    Source
        RFC 8259, section 8.1
    """
    for problem, hit in _problems(subject, "encoding", "bom", "nul-byte"):
        bom = problem.kind == "bom"
        yield Hit(
            hit.path,
            hit.message,
            place=hit.place,
            where="file",
            severity="warning" if bom and not subject.fills_auto else "error",
            refused=None if bom else "reading",
        )
