"""What a text holds and where: the tree both parsers build, and the values that readers of it get.

A `Source` is a text with its plain Python value, the place of every key and value in it, and the problems
met while reading.  Problems are values: nothing in a text, however broken, raises.
"""

from __future__ import annotations

import bisect
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

KeyPath: TypeAlias = tuple[str | int, ...]
"""Keys and list positions from the top, such as ``("optimizer", "params", "betas", 0)``."""

Format: TypeAlias = Literal["json", "hjson", "yaml", "dict"]

ProblemKind: TypeAlias = Literal[
    # the text is not read to its end (`Source.complete` is false)
    "syntax", "tab-indent", "too-large", "too-deep", "too-many-nodes", "self-reference",
    # read to the end, but not a configuration
    "empty", "not-an-object", "many-documents",
    # one value or key that a reader refuses, or takes for something else
    "duplicate-key", "key-not-text", "not-finite", "huge-number", "not-json", "lone-surrogate", "yaml-tag",
    "text-not-number", "text-not-literal", "comment-in-text", "comma-in-text",
    "yaml-word", "yaml-number", "yaml-date",
    # the file as bytes
    "encoding", "bom", "nul-byte",
    # only in `Source.first_non_strict`: DeepSpeed takes it, a strict JSON reader does not
    "comment", "trailing-comma", "missing-comma", "unquoted-key", "unquoted-text", "single-quotes",
    "multiline-text", "no-braces", "escape", "number-form",
]  # fmt: skip

STOPPING: frozenset[ProblemKind] = frozenset(
    ("syntax", "too-large", "too-deep", "too-many-nodes", "self-reference", "tab-indent")
)
"""Kinds after which nothing more is read: what they name stands behind what was read."""

MAX_BYTES = 10_000_000
"""Largest file read; the thirteen configurations are about 1 kB each."""
MAX_YAML_BYTES = 64_000
"""Largest YAML read: PyYAML takes about a second for that in its worst measured case, a long flow list."""
MAX_LINES = 100_000
"""Most lines read."""
MAX_DEPTH = 64
"""Deepest nesting read; DeepSpeed's own schema is five deep."""
MAX_NODES = 100_000
"""Most keys, values, comments and expanded aliases read."""
MAX_ALIKE = 25
"""Most problems of one kind that are reported for one text."""
INT64 = 2**63
"""Integers from here on, and below minus this, are kept as text and reported."""

_LINE_BREAK = re.compile(r"\r\n|\r|\n")
_BOM = "\ufeff"


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Something wrong with a text, found while reading it.

    ``line`` and ``column`` count from 1, in characters; ``related`` is a second place (line, column), such as
    the first of two equal keys.
    """

    kind: ProblemKind
    message: str
    line: int
    column: int
    key_path: KeyPath = ()
    related: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """A piece of a text: character offsets ``start:end``, and the same as lines and columns from 1."""

    start: int
    end: int
    line: int
    column: int
    end_line: int
    end_column: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Where a value stands, and its key; list items and the whole text have no key."""

    key: Extent | None
    value: Extent

    @property
    def line(self) -> int:
        """Line of the key, or of the value where there is no key."""
        return (self.key or self.value).line

    @property
    def column(self) -> int:
        """Column of the key, or of the value where there is no key."""
        return (self.key or self.value).column


@dataclass(slots=True)
class Entry:
    """A key (or list position) with its value; ``merged`` entries came through a YAML ``<<``."""

    key: str | int
    key_start: int
    key_end: int
    node: Node
    merged: bool = False


@dataclass(slots=True)
class Node:
    """One value of a text while and after parsing; ``missing`` until its text is read.

    ``style`` says how it is written: ``object``, ``array``, ``quoted``, ``unquoted``, ``multiline``,
    ``number``, ``literal``, and for YAML also ``block-map``, ``block-list``, ``block-text``, ``alias``.
    """

    start: int
    style: str = "missing"
    end: int = -1
    value: Any = None
    entries: list[Entry] | None = None
    size: int = 1
    """Nodes in it with every alias expanded."""
    by_key: dict[str | int, Entry] = field(default_factory=dict)

    @property
    def is_map(self) -> bool:
        """Whether this is an object or mapping."""
        return isinstance(self.value, dict)


class Lines:
    """Offsets of a text as lines and columns."""

    __slots__ = ("_bom", "_starts")

    def __init__(self, text: str) -> None:
        self._starts = [0, *(match.end() for match in _LINE_BREAK.finditer(text))]
        self._bom = text.startswith(_BOM)

    def place(self, offset: int) -> tuple[int, int]:
        """Line and column, from 1, of a character offset; a byte-order mark takes no column."""
        line = bisect.bisect_right(self._starts, offset)
        column = offset - self._starts[line - 1] + 1
        return line, column - 1 if self._bom and line == 1 and column > 1 else column

    def extent(self, start: int, end: int) -> Extent:
        """The extent of the characters ``start:end``."""
        (line, column), (end_line, end_column) = self.place(start), self.place(end)
        return Extent(
            start=start, end=end, line=line, column=column, end_line=end_line, end_column=end_column
        )


class Spans(Mapping[KeyPath, Span]):
    """The span of every key path of a text, made when asked for."""

    __slots__ = ("_lines", "_root")

    def __init__(self, root: Node | None, lines: Lines) -> None:
        self._root, self._lines = root, lines

    def __getitem__(self, path: KeyPath) -> Span:
        node, entry = self._root, None
        if node is None:
            raise KeyError(path)
        for key in path:
            entry = node.by_key.get(key)
            if entry is None:
                raise KeyError(path)
            node = entry.node
        named = entry is not None and isinstance(entry.key, str)
        key_extent = self._lines.extent(entry.key_start, entry.key_end) if entry and named else None
        return Span(key=key_extent, value=self._lines.extent(node.start, node.end))

    def nearest(self, path: KeyPath) -> Span | None:
        """The span of ``path``, or of its deepest parent that the text has; None for a text without any."""
        for length in range(len(path), -1, -1):
            try:
                return self[path[:length]]
            except KeyError:
                continue
        return None

    def __iter__(self) -> Iterator[KeyPath]:
        if self._root is not None:
            yield from _paths(self._root, ())

    def __len__(self) -> int:
        return sum(1 for _ in self)


def _paths(node: Node, path: KeyPath) -> Iterator[KeyPath]:
    yield path
    for key, entry in node.by_key.items():
        yield from _paths(entry.node, (*path, key))


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A text read: its value, the place of everything in it, and what is wrong with it.

    ``value`` is what DeepSpeed's reader (hjson) makes of JSON text, and ``yaml.safe_load`` of YAML, in plain
    dicts, lists, texts, numbers, booleans and None, with these exceptions, each with a problem beside it:
    NaN and infinities, integers beyond 64 bits and dates stay text, half surrogate pairs become U+FFFD.
    ``complete`` is false where reading stopped early; ``value`` then holds what came before.
    ``first_non_strict`` is the first thing that Python's strict ``json`` module would not take.
    """

    file: str
    text: str
    format: Format
    value: Any
    spans: Spans = field(compare=False)
    problems: tuple[Problem, ...] = ()
    complete: bool = True
    first_non_strict: Problem | None = None
    root: Node | None = field(default=None, repr=False, compare=False)

    @property
    def strict_json(self) -> bool:
        """Whether a strict JSON reader (Transformers, Accelerate) takes this text."""
        return self.format == "json"

    @property
    def mapping(self) -> dict[str, Any]:
        """The value if it is an object, else an empty one."""
        return self.value if isinstance(self.value, dict) else {}

    def raw(self, path: KeyPath) -> str:
        """The value at ``path`` as it is written.

        Raises:
            KeyError: the text has no such path.
        """
        extent = self.spans[path].value
        return self.text[extent.start : extent.end]

    def written_as_float(self, path: KeyPath) -> bool:
        """Whether the number at ``path`` is written as ``5e8`` or ``1.0``: strict JSON makes a float of it.

        DeepSpeed's own reader makes an integer of one that is whole and below 1e10 (decoder.py:256 of
        hjson 3.1.0).
        """
        node = self.root
        for key in path:
            entry = node.by_key.get(key) if node else None
            node = entry.node if entry else None
        return node is not None and node.style == "number" and bool(re.search("[.eE]", self.raw(path)))


class Stop(Exception):
    """A parser's way out, never seen outside: ``kind``, ``message`` and the offset of the place."""

    def __init__(self, kind: ProblemKind, message: str, offset: int, related: int | None = None) -> None:
        super().__init__(message)
        self.kind, self.message, self.offset, self.related = kind, message, offset, related


class Notes:
    """Problems as a parser meets them, by offset; key paths and lines are added at the end."""

    __slots__ = ("complete", "first_non_strict", "found", "node_count", "seen", "stopped_at")

    def __init__(self) -> None:
        self.found: list[tuple[int, ProblemKind, str, int | None]] = []
        self.seen: Counter[ProblemKind] = Counter()
        self.first_non_strict: tuple[int, ProblemKind, str] | None = None
        self.node_count = 0
        self.stopped_at = -1
        self.complete = True

    def add(self, kind: ProblemKind, message: str, offset: int, related: int | None = None) -> None:
        """Notes a problem; parsing goes on.  Of one kind the first ``MAX_ALIKE`` are kept."""
        self.seen[kind] += 1
        if self.seen[kind] <= MAX_ALIKE:
            self.found.append((offset, kind, message, related))

    def non_strict(self, kind: ProblemKind, message: str, offset: int) -> None:
        """Notes what strict JSON does not take; the first in the text is kept."""
        if self.first_non_strict is None or offset < self.first_non_strict[0]:
            self.first_non_strict = (offset, kind, message)

    def mark(self) -> tuple[Any, ...]:
        """The present state, to come back to when a trial fails."""
        return self.node_count, list(self.found), self.seen.copy(), self.first_non_strict

    def back_to(self, mark: tuple[Any, ...]) -> None:
        """Forgets what came after ``mark``."""
        self.node_count, self.found, self.seen, self.first_non_strict = mark

    def stop(self, reason: Stop) -> None:
        """Notes the problem that ended reading."""
        self.complete = False
        self.stopped_at = reason.offset
        self.add(reason.kind, reason.message, reason.offset, reason.related)

    def count(self, offset: int, nodes: int = 1) -> None:
        """Counts keys, values and comments against the limit."""
        self.node_count += nodes
        if self.node_count > MAX_NODES:
            raise Stop(
                "too-many-nodes", f"more than {MAX_NODES:,} keys and values: not a configuration", offset
            )


def settle(node: Node, notes: Notes | None) -> Any:
    """Gives ``node`` and all below it their values and key tables; equal keys of one object are noted.

    What an alias repeats becomes a value of its own, so that nobody changes two places by changing one.
    """
    if node.style == "alias":
        notes = None
    if node.entries is None:
        return node.value
    node.entries = [entry for entry in node.entries if entry.node.style != "missing"]
    if isinstance(node.value, list):
        node.value = [settle(entry.node, notes) for entry in node.entries]
        node.by_key = {entry.key: entry for entry in node.entries}
        _close(node, notes)
        return node.value
    value: dict[str, Any] = {}
    node.by_key = {}
    for entry in node.entries:
        assert isinstance(entry.key, str)
        earlier = node.by_key.get(entry.key)
        if earlier is not None and entry.merged:
            continue
        if earlier is not None and not earlier.merged and notes is not None:
            notes.add(
                "duplicate-key", f"the key '{entry.key}' stands twice", entry.key_start, earlier.key_start
            )
        node.by_key[entry.key] = entry
        value[entry.key] = settle(entry.node, None if entry.merged else notes)
    node.value = value
    _close(node, notes)
    return value


def _close(node: Node, notes: Notes | None) -> None:
    """Ends a container in which reading stopped where that was."""
    if node.end < 0:
        node.end = max(node.start + 1, notes.stopped_at if notes else 0)


def path_at(root: Node | None, offset: int) -> KeyPath:
    """The path of the innermost key or value that covers ``offset``."""
    path: KeyPath = ()
    node = root
    while node is not None and node.entries:
        for entry in node.entries:
            start = entry.key_start if isinstance(entry.key, str) else entry.node.start
            if start <= offset < max(entry.node.end, entry.key_end, start + 1) and not entry.merged:
                path, node = (*path, entry.key), entry.node
                break
        else:
            return path
    return path
