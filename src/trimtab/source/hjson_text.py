"""JSON, and the looser hjson that DeepSpeed reads its files with, into a tree with positions.

DeepSpeed takes comments, trailing and missing commas, unquoted keys and texts, ``'''`` texts and a top
without braces (runtime/config.py:444 of DeepSpeed 0.19.8 calls hjson); Transformers and Accelerate do not.
The grammar here is that of hjson-py 3.1.0 with its corners, since what it makes of a file is what DeepSpeed
runs; a differential test holds the two together.  It has no positions, no limits and crashes on some texts.
"""

from __future__ import annotations

import math
import re
from json import JSONDecodeError
from json.decoder import scanstring  # type: ignore[attr-defined]  # in typeshed only as a class attribute

from trimtab.source.tree import INT64, MAX_DEPTH, Entry, Node, Notes, Stop

_BLANK = re.compile(r"[ \t\n\r]*")
_LINE_END = re.compile(r"[\r\n]")
_UNQUOTED_KEY = re.compile(r"[^:{}\[\],]*")
_KEY_WITH_SPACE = re.compile(r"[^ \t\n\r]*[ \t\n\r]+[^ \t\n\r]")
# a slash only where a comment begins; written so that searching stays a scan for one set of characters
_WORD_END = re.compile(r"[\r\n,}\]#/](?:(?<!/)|(?=[/*]))")
_NUMBER = re.compile(r"(-?(?:0|[1-9]\d*))(\.\d+)?([eE][-+]?\d+)?[\t ]*")
_PLAIN_TEXT = re.compile(r"[^'\"\\\x00-\x1f]*")
_HALF_PAIR = re.compile("[\ud800-\udfff]")
_LITERALS = {"null": None, "true": True, "false": False}
_NOT_FINITE = ("NaN", "Infinity", "-Infinity")
_STARTS_NOT_FINITE = re.compile(r"(?:NaN|-?Infinity)\b")
_NOT_FINITE_MESSAGE = "{} is no JSON number: DeepSpeed reads a text here, Transformers a number that is none"
_ESCAPES = {'"': '"', "'": "'", "\\": "\\", "/": "/", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}

# unquoted texts that were hardly meant as such
_PYTHON_WORD = re.compile(r"(True|False|None|TRUE|FALSE|NULL|Null)\b\s*,?$")
_NEAR_NUMBER = re.compile(r"[-+]?(?:0[xob])?\.?\d[\d_.]*(?:[eE][-+]?\d*)?\s*,?$")
_COMMENT_IN_TEXT = re.compile(r"(?:^|\s)(?:#|//|/\*)")

_HEX4 = re.compile(r"[0-9a-fA-F]{4}")
_LOW_HALF = re.compile(r"\\u([dD][c-fC-F][0-9a-fA-F]{2})")
_INLINE_BLANK = re.compile(r"[ \t\r]*")
_MOST_INDENT = 100_000
_INT64_CHARACTERS = 20  # of -2**63
_SHOWN_CHARACTERS = 40
_SHOWN = re.compile(r"[\w.+-]{1,40}|[^ \t\r\n]")


def parse_hjson(text: str, notes: Notes) -> Node | None:
    """The tree of ``text``, cut short where reading had to stop; None for one of blanks and comments only."""
    parser = _Parser(text, notes)
    try:
        parser.document()
    except Stop as reason:
        notes.stop(reason)
    return parser.root


def first_character(text: str) -> str:
    """The first character that is neither blank nor in a comment; empty if there is none."""
    parser = _Parser(text, Notes())
    parser.at = 1 if text.startswith("\ufeff") else 0
    try:
        parser.skip()
    except Stop:
        return ""
    return text[parser.at : parser.at + 1]


class _Parser:
    def __init__(self, text: str, notes: Notes) -> None:
        self.text, self.notes = text, notes
        self.at = 0
        self.root: Node | None = None
        self.in_braces = False

    def document(self) -> None:
        if self.text.startswith("\ufeff"):
            self.at = 1
        self.skip()
        if self.at == len(self.text):
            return
        self.root = Node(self.at)
        if self.text[self.at] in "{[":
            self.in_braces = True
            self.fill(self.root, 1)
            self.end_of_text()
        else:
            self.without_braces(self.root)

    def without_braces(self, node: Node) -> None:
        """The top as an object without braces, else as a single value: hjson tries them in this order."""
        before = self.notes.mark()
        try:
            self.notes.non_strict("no-braces", "the top has no braces { }", node.start)
            node.style, node.value, node.entries = "object", {}, []
            self.members(node, 1, braces=False)
        except Stop as reason:
            after = self.notes.mark()
            self.notes.back_to(before)
            self.at, single = node.start, Node(node.start)
            try:
                self.fill(single, 1)
                self.end_of_text()
                meant = not (
                    isinstance(single.value, str) and ":" in single.value
                )  # not as a key and a value
            except Stop:
                meant = False
            if not meant:
                self.notes.back_to(after)
                raise reason from None
            self.root = single

    def end_of_text(self) -> None:
        self.skip()
        if self.at < len(self.text):
            message = (
                f"{self.seen()} stands after the end of the configuration: a bracket too many before it?"
            )
            raise Stop("syntax", message, self.at)

    def skip(self) -> None:
        """Past blanks and comments."""
        text = self.text
        while True:
            at = self.at = _end(_BLANK, text, self.at)
            if text.startswith(("#", "//"), at):
                end = _found(_LINE_END, text, at)
            elif text.startswith("/*", at):
                end = text.find("*/", at + 2) + 2
                if end == 1:
                    raise Stop("syntax", "this comment is never closed: '*/' is missing", at)
            else:
                return
            self.notes.count(at)
            self.notes.non_strict("comment", "a comment", at)
            self.at = end

    def seen(self) -> str:
        """What stands here, for a message."""
        match = _SHOWN.match(self.text, self.at)
        return f"'{match[0]}'" if match else "the end of the text"

    # -- objects and arrays ---------------------------------------------------------------------------------

    def fill(self, node: Node, depth: int) -> None:
        """Reads the value that begins here into ``node``."""
        text, start = self.text, self.at
        node.start = start
        self.notes.count(start)
        head = text[start : start + 1]
        if not head or head in "}],:":
            raise Stop("syntax", f"a value is expected here, found {self.seen()}", start)
        if head in "{[":
            if depth > MAX_DEPTH:
                raise Stop("too-deep", f"nested more than {MAX_DEPTH} deep: not a configuration", start)
            self.at += 1
            node.entries = []
            if head == "{":
                node.style, node.value = "object", {}
                self.members(node, depth, braces=True)
            else:
                node.style, node.value = "array", []
                self.items(node, depth)
        elif text.startswith("'''", start):
            self.multiline(node)
        elif head in "\"'":
            node.style, node.value = "quoted", self.quoted()
            node.end = self.at
        else:
            self.bare(node)

    def members(self, node: Node, depth: int, *, braces: bool) -> None:
        text, entries = self.text, node.entries
        assert entries is not None
        self.skip()
        if braces and text.startswith("}", self.at):
            self.at = node.end = self.at + 1
            return
        while True:
            if braces and self.at == len(text):
                raise Stop("syntax", "this '{' is never closed: '}' is missing", node.start, self.at)
            start = self.at
            key, end = self.key()
            self.skip()
            if not text.startswith(":", self.at):
                message = f"':' is expected after the key '{key[:_SHOWN_CHARACTERS]}', found {self.seen()}"
                raise Stop("syntax", message, self.at)
            self.at += 1
            self.skip()
            entry = Entry(key, start, end, Node(self.at))
            entries.append(entry)
            self.fill(entry.node, depth + 1)
            comma = self.separator()
            if not braces and self.at == len(text):
                node.end = entry.node.end
                return
            if braces and text.startswith("}", self.at):
                self.close(node, comma)
                return
            if comma is None and self.at < len(text):
                self.notes.non_strict("missing-comma", "no comma between two members", self.at)

    def items(self, node: Node, depth: int) -> None:
        text, entries = self.text, node.entries
        assert entries is not None
        self.skip()
        if text.startswith("]", self.at):
            self.at = node.end = self.at + 1
            return
        while True:
            if self.at == len(text):
                raise Stop("syntax", "this '[' is never closed: ']' is missing", node.start, self.at)
            entry = Entry(len(entries), self.at, self.at, Node(self.at))
            entries.append(entry)
            self.fill(entry.node, depth + 1)
            comma = self.separator()
            if text.startswith("]", self.at):
                self.close(node, comma)
                return
            if comma is None and self.at < len(text):
                self.notes.non_strict("missing-comma", "no comma between two items", self.at)

    def separator(self) -> int | None:
        """Past an optional comma; its offset."""
        self.skip()
        if not self.text.startswith(",", self.at):
            return None
        comma = self.at
        self.at += 1
        self.skip()
        return comma

    def close(self, node: Node, comma: int | None) -> None:
        """The closing bracket stands here, after ``comma`` if that is an offset."""
        if comma is not None:
            self.notes.non_strict("trailing-comma", "a comma before the closing bracket", comma)
        self.at = node.end = self.at + 1

    def key(self) -> tuple[str, int]:
        """A key and the offset of its end; reading goes on after it."""
        text, start = self.text, self.at
        if text.startswith(('"', "'"), start):
            return self.quoted(), self.at
        end = self.at = _end(_UNQUOTED_KEY, text, start)
        if end == start and text.startswith(",", start):
            raise Stop("syntax", "a key is expected here, found ',': a comma too many?", start)
        if end == start or not text.startswith(":", end):
            raise Stop("syntax", f"a key is expected here, found {self.seen_from(start)}", start)
        if _KEY_WITH_SPACE.match(text, start, end):
            raise Stop("syntax", "this key has a blank in it: a key with blanks needs quotes", start)
        key = text[start:end]
        if key[-1] in " \t\n\r":
            key = key.rstrip()
        self.notes.non_strict("unquoted-key", f"the key {key[:_SHOWN_CHARACTERS]} has no quotes", start)
        return key, start + len(key)

    def seen_from(self, start: int) -> str:
        self.at = start
        return self.seen()

    # -- texts ----------------------------------------------------------------------------------------------

    def quoted(self) -> str:
        """A text in double or single quotes; reading goes on after it."""
        text, start = self.text, self.at
        if text[start] == "'":
            self.notes.non_strict("single-quotes", "a text in single quotes", start)
            value = self.quoted_slowly()
        else:
            try:
                value, self.at = scanstring(text, start + 1, True)
            except JSONDecodeError:
                value = self.quoted_slowly()
        if not value.isascii() and _HALF_PAIR.search(value):
            self.notes.add(
                "lone-surrogate", "half of a surrogate pair: this text is not valid Unicode", start
            )
            value = _HALF_PAIR.sub("\ufffd", value)
        return value

    def quoted_slowly(self) -> str:
        r"""What strict JSON refuses, piece by piece: ``'`` around a text, ``\'`` in it, or what is broken."""
        text, start = self.text, self.at
        quote, at, pieces = text[start], start + 1, []
        while True:
            end = _end(_PLAIN_TEXT, text, at)
            pieces.append(text[at:end])
            self.notes.count(end)
            stop = text[end : end + 1]
            if stop == quote:
                self.at = end + 1
                return "".join(pieces)
            if stop == "\\":
                piece, at = self.escape(end)
                pieces.append(piece)
            elif stop in ('"', "'") and stop:
                pieces.append(stop)
                at = end + 1
            elif stop in ("\r", "\n", ""):
                raise Stop(
                    "syntax", f"this text is not closed: {quote} is missing before the line ends", start
                )
            else:
                raise Stop("syntax", f"the control character {stop!r} must be written as an escape", end)

    def escape(self, at: int) -> tuple[str, int]:
        r"""The character that the escape at ``at`` stands for, and the offset after it."""
        text, letter = self.text, self.text[at + 1 : at + 2]
        if letter == "u":
            match = _HEX4.match(text, at + 2)
            if match is None:
                raise Stop("syntax", "\\u needs four hexadecimal digits", at)
            first, end = int(match[0], 16), match.end()
            low = _LOW_HALF.match(text, end)
            if low and 0xD800 <= first < 0xDC00:
                return chr(0x10000 + ((first - 0xD800) << 10) + int(low[1], 16) - 0xDC00), low.end()
            return chr(first), end
        if letter not in _ESCAPES or not letter:
            raise Stop("syntax", f"\\{letter} is no escape; a backslash itself is written \\\\", at)
        if letter == "'":
            self.notes.non_strict("escape", "\\' is no JSON escape", at)
        return _ESCAPES[letter], at + 2

    def multiline(self, node: Node) -> None:
        """A text in triple single quotes, whose lines lose the indentation of the opening quotes."""
        text, start = self.text, self.at
        line = text.rfind("\n", 0, start)
        if line < 0:  # hjson counts back past the start, and on from the end
            line = text.rfind("\n") - len(text)
            if line == -1 - len(text):
                raise Stop("syntax", "a ''' text cannot stand in a file of one line", start)
        indent = re.compile(rf"[ \t\r]{{0,{min(start - line - 1, _MOST_INDENT)}}}")
        begin = _end(_INLINE_BLANK, text, start + 3)
        if text.startswith("\n", begin):
            begin = _end(indent, text, begin + 1)
        end = text.find("'''", begin)
        if end < 0:
            raise Stop("syntax", "this text is never closed: ''' is missing", start)
        first, *rest = text[begin:end].split("\n")
        lines = [first, *(line[_end(indent, line, 0) :] for line in rest)]
        node.value = "\n".join(lines).replace("\r", "").removesuffix("\n")
        node.style, node.end = "multiline", end + 3
        self.at = node.end
        self.notes.non_strict("multiline-text", "a text in '''", start)

    # -- numbers, literals and texts without quotes ---------------------------------------------------------

    def bare(self, node: Node) -> None:
        text, start = self.text, self.at
        end = _found(_WORD_END, text, start)
        word = text[start:end].strip()
        number = _NUMBER.match(text, start)
        if word in _LITERALS and text.startswith(word, start):
            node.style, node.value, node.end = "literal", _LITERALS[word], start + len(word)
            if text[node.end : end].strip(" \t"):
                self.notes.non_strict("number-form", "a blank that is none in JSON", node.end)
            self.at = end
        elif number and number.end() == end:
            node.style, node.end = "number", start + len(word)
            node.value = self.number(word, *number.groups())
            self.at = end
        elif word in _NOT_FINITE and self.in_braces:
            # Python's strict json takes it; for hjson a text begins here that takes the rest of the line
            self.notes.add("not-finite", _NOT_FINITE_MESSAGE.format(word), start)
            node.style, node.value, node.end = "literal", word, start + len(word)
            self.at = end
        else:
            self.unquoted(node)

    def number(
        self, word: str, integer: str, fraction: str | None, exponent: str | None
    ) -> int | float | str:
        """The number as hjson makes it: whole floats below 1e10 become integers."""
        if not word.isascii():
            self.notes.non_strict("number-form", "digits that are not ASCII", self.at)
        if fraction or exponent:
            value = float(word)
            if math.isinf(value):
                self.notes.add("not-finite", f"{_short(word)} is too large for a number", self.at)
                return word
            return int(value) if value == int(value) and abs(value) < 1e10 else value
        return whole_number(word, self.notes, self.at)

    def unquoted(self, node: Node) -> None:
        """A text without quotes: it runs to the end of the line, commas and comments included."""
        text, start = self.text, self.at
        end = _found(_LINE_END, text, start)
        line = text[start:end]
        value = line.strip()
        node.start = start + len(line) - len(line.lstrip())
        node.end, node.style, node.value = node.start + len(value), "unquoted", value
        self.at = end
        self.notes.non_strict("unquoted-text", f"the text {_short(value)} has no quotes", start)
        if comment := _COMMENT_IN_TEXT.search(value):
            message = (
                "a comment after a text without quotes becomes part of the text: put quotes around the text"
            )
            self.notes.add("comment-in-text", message, node.start + comment.start())
        if match := _PYTHON_WORD.match(value):
            meant = "null" if match[1].lower() in ("none", "null") else match[1].lower()
            message = f"{match[1]} is read as a text: JSON writes {meant}"
            self.notes.add("text-not-literal", message, start)
        elif _NEAR_NUMBER.match(value):
            message = (
                f"{_short(value)} is read as a text, not as a number: JSON numbers look like 12, -0.5 or 1e-8"
            )
            self.notes.add("text-not-number", message, start)
        elif match := _STARTS_NOT_FINITE.match(value):
            self.notes.add("not-finite", _NOT_FINITE_MESSAGE.format(match[0]), start)
        elif value.endswith((",", "}", "]")):
            message = f"'{value[-1]}' is read as part of a text without quotes: put quotes around the text"
            self.notes.add("comma-in-text", message, node.end - 1)


def whole_number(word: str, notes: Notes, offset: int) -> int | str:
    """The integer that ``word`` writes; beyond 64 bits the word itself, with a problem noted."""
    value = int(word) if len(word) <= _INT64_CHARACTERS else INT64
    if -INT64 <= value < INT64:
        return value
    notes.add("huge-number", f"{_short(word)} does not fit in 64 bits", offset)
    return word


def _short(text: str) -> str:
    """``text`` cut for a message."""
    shown = text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 1] + "…"
    return f"'{shown}'"


def _end(pattern: re.Pattern[str], text: str, at: int) -> int:
    """Where a match of ``pattern``, which may be empty, ends."""
    match = pattern.match(text, at)
    return at if match is None else match.end()


def _found(pattern: re.Pattern[str], text: str, at: int) -> int:
    """Where ``pattern`` is next found; the end of the text if it is not."""
    match = pattern.search(text, at)
    return len(text) if match is None else match.start()
