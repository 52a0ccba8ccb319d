"""YAML into a tree with positions, with the values that ``yaml.safe_load`` gives.

PyYAML's events are taken one by one, so that depth, node count and expanded aliases are limited before
anything is built.  Accelerate and Transformers read their files with ``yaml.safe_load``, which is YAML 1.1:
``1e9`` is a text there, ``no`` is false and ``12:30`` is 750; each such trap is noted as a problem.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import yaml
from yaml.constructor import SafeConstructor
from yaml.resolver import Resolver

from trimtab.source.hjson_text import whole_number
from trimtab.source.tree import MAX_DEPTH, Entry, Node, Notes, Stop

_TAG = "tag:yaml.org,2002:"
_WORD_LIKE_NUMBER = re.compile(r"[-+]?(?:\.\d+|\d[\d_]*(?:\.\d*)?)[eE][-+]?\d+$")
_NUMBER = re.compile(r"[-+]?(?:\d|\.\d)")
_JSON_WORDS = ("true", "false", "True", "False", "TRUE", "FALSE")
_DECIMAL = re.compile(r"[-+]?(?:0|[1-9][0-9]*)$")
_MOST_DIGITS = 1_000
_TAB = "character '\\t'"


def parse_yaml(text: str, notes: Notes) -> Node | None:
    """The tree of the first document of ``text``, cut short where reading had to stop; None without one."""
    builder = _Builder(text, notes)
    try:
        builder.document()
    except Stop as reason:
        notes.stop(reason)
    except yaml.MarkedYAMLError as error:
        notes.stop(_explained(error, len(text)))
    except yaml.reader.ReaderError as error:
        character = chr(error.character) if isinstance(error.character, int) else "�"
        message = f"the character {character!r} is not allowed in YAML"
        notes.stop(Stop("syntax", message, int(error.position)))
    except (ValueError, OverflowError) as error:  # PyYAML on escapes and directives with absurd numbers
        notes.stop(Stop("syntax", f"a number in an escape or a directive is out of range ({error})", 0))
    return builder.root


def _explained(error: yaml.MarkedYAMLError, length: int) -> Stop:
    mark = error.problem_mark or error.context_mark
    offset = min(mark.index, length) if mark else 0
    told = (error.problem or "not YAML").replace("<", "").replace(">", "")
    if _TAB in told:
        return Stop("tab-indent", "a tab indents this line: YAML indents with blanks only", offset)
    context = f" {error.context}" if error.context else ""
    related = error.context_mark.index if error.context_mark else None
    return Stop("syntax", f"{told}{context}", offset, related if related != offset else None)


class _Builder:
    def __init__(self, text: str, notes: Notes) -> None:
        self.notes, self.text = notes, text
        self.events: Iterator[Any] = yaml.parse(text, Loader=yaml.SafeLoader)
        self.resolver: Any = Resolver()
        self.constructor: Any = SafeConstructor()
        self.anchors: dict[str, Node | None] = {}
        self.root: Node | None = None

    def document(self) -> None:
        for event in self.events:
            if isinstance(event, yaml.DocumentStartEvent):
                if self.root is not None:
                    message = (
                        "a second document begins here: only the first is read, and other readers refuse"
                    )
                    self.notes.add("many-documents", message, self.offset(event.start_mark))
                    return
                first = next(self.events)
                self.root = Node(self.offset(first.start_mark))
                self.fill(self.root, first, 1)

    def offset(self, mark: Any) -> int:
        return int(mark.index)

    def fill(self, node: Node, event: Any, depth: int) -> None:
        """Reads the value that begins with ``event`` into ``node``."""
        node.start = self.offset(event.start_mark)
        self.notes.count(node.start)
        if isinstance(event, yaml.AliasEvent):
            self.alias(node, event)
            return
        if event.anchor is not None:
            if event.anchor in self.anchors:
                raise Stop("syntax", f"the anchor &{event.anchor} stands twice", node.start)
            self.anchors[event.anchor] = None
        if isinstance(event, yaml.ScalarEvent):
            self.scalar(node, event)
        else:
            if depth > MAX_DEPTH:
                raise Stop("too-deep", f"nested more than {MAX_DEPTH} deep: not a configuration", node.start)
            node.entries = []
            if isinstance(event, yaml.MappingStartEvent):
                node.style, node.value = ("object" if event.flow_style else "block-map"), {}
                self.expect_tag(event.tag, "map", node.start)
                last = self.members(node, depth)
            else:
                node.style, node.value = ("array" if event.flow_style else "block-list"), []
                self.expect_tag(event.tag, "seq", node.start)
                last = self.items(node, depth)
            node.size = 1 + sum(entry.node.size for entry in node.entries)
            # for PyYAML a block ends where the next thing begins; for us it ended with its last value
            if event.flow_style:
                node.end = self.offset(last.end_mark)
        if event.anchor is not None:
            self.anchors[event.anchor] = node

    def alias(self, node: Node, event: Any) -> None:
        if event.anchor not in self.anchors:
            raise Stop("syntax", f"the alias *{event.anchor} has no anchor before it", node.start)
        target = self.anchors[event.anchor]
        if target is None:
            raise Stop("self-reference", f"*{event.anchor} stands inside the value it repeats", node.start)
        self.notes.count(node.start, target.size)
        node.style, node.value, node.entries, node.size = "alias", target.value, target.entries, target.size
        node.end = self.offset(event.end_mark)

    def items(self, node: Node, depth: int) -> Any:
        assert node.entries is not None
        for event in self.events:
            if isinstance(event, yaml.SequenceEndEvent):
                return event
            start = self.offset(event.start_mark)
            entry = Entry(len(node.entries), start, start, Node(start))
            node.entries.append(entry)
            self.fill(entry.node, event, depth + 1)
            node.end = entry.node.end
        raise AssertionError("PyYAML ends every sequence")

    def members(self, node: Node, depth: int) -> Any:
        assert node.entries is not None
        for event in self.events:
            if isinstance(event, yaml.MappingEndEvent):
                return event
            key, merges = self.key(event, depth)
            value = next(self.events)
            entry = Entry(key.value, key.start, key.end, Node(self.offset(value.start_mark)))
            if not merges:
                node.entries.append(entry)
            self.fill(entry.node, value, depth + 1)
            node.end = entry.node.end
            if merges:
                node.entries.extend(self.merged(entry))
        raise AssertionError("PyYAML ends every mapping")

    def key(self, event: Any, depth: int) -> tuple[Node, bool]:
        """A key as text, and whether it is ``<<``."""
        key = Node(self.offset(event.start_mark))
        merges = isinstance(event, yaml.ScalarEvent) and event.value == "<<" and event.implicit[0]
        if merges:
            key.value, key.end = "<<", self.offset(event.end_mark)
            return key, True
        before = self.notes.mark()
        self.fill(key, event, depth + 1)
        if key.entries is not None:
            raise Stop("key-not-text", "a list or a mapping cannot be a key here", key.start)
        if not isinstance(key.value, str):
            self.notes.back_to(before)  # that it is no text says it all
            written = self.text[key.start : key.end]
            kind = "nothing" if key.value is None else type(key.value).__name__
            message = f"the key {written or '(empty)'} is not read as a text ({kind}): put quotes around it"
            self.notes.add("key-not-text", message, key.start)
            key.value = written
        return key, False

    def merged(self, entry: Entry) -> list[Entry]:
        """What ``<<`` brings in: the members of one mapping, or of each in a list, the first one winning."""
        node = entry.node
        sources = [node] if isinstance(node.value, dict) else [item.node for item in node.entries or ()]
        if not sources or not all(isinstance(source.value, dict) for source in sources):
            raise Stop("syntax", "<< takes a mapping, or a list of mappings", node.start)
        return [
            Entry(member.key, member.key_start, member.key_end, member.node, merged=True)
            for source in sources
            for member in _once(source)
        ]

    # -- scalars --------------------------------------------------------------------------------------------

    def scalar(self, node: Node, event: Any) -> None:
        node.end = self.offset(event.end_mark)
        node.style = "quoted" if event.style in ("'", '"') else "block-text" if event.style else "unquoted"
        if node.style == "block-text":
            node.end -= len(written := self.text[: node.end]) - len(written.rstrip("\r\n "))
        tag = event.tag
        if tag is None or tag == "!":
            tag = self.resolver.resolve(
                yaml.ScalarNode, event.value, (event.implicit[0], not event.implicit[0])
            )
        tag = str(tag).removeprefix(_TAG)
        node.value = event.value
        if tag in ("null", "bool", "int", "float"):
            self.typed(node, tag, event.value)
        elif tag == "timestamp":
            message = f"'{event.value[:40]}' is read as a date: put quotes around it for a text"
            self.notes.add("yaml-date", message, node.start)
        elif tag != "str":
            self.refuse_tag(tag, node.start)
        elif node.style == "unquoted" and _WORD_LIKE_NUMBER.match(event.value):
            message = (
                f"{event.value[:40]} is read as a text, not as a number: YAML 1.1 wants a point and a signed"
                f" exponent, as in {_with_point(event.value[:40])}"
            )
            self.notes.add("text-not-number", message, node.start)

    def typed(self, node: Node, tag: str, text: str) -> None:
        """The value of a scalar that resolves to null, a boolean or a number."""
        if tag == "int" and _DECIMAL.match(text):
            node.style, node.value = "number", whole_number(text, self.notes, node.start)
            return
        if len(text) > _MOST_DIGITS:
            self.notes.add("huge-number", f"a number of {len(text):,} characters", node.start)
            return
        try:
            value = getattr(self.constructor, f"construct_yaml_{tag}")(yaml.ScalarNode(_TAG + tag, text))
        except (ValueError, KeyError, IndexError, OverflowError):
            self.notes.add("yaml-tag", f"'{text[:40]}' is no {tag}", node.start)
            return
        if tag == "null":
            value = None
        elif tag == "bool":
            if text not in _JSON_WORDS:
                message = f"{text} is read as {str(value).lower()}: put quotes around it for a text"
                self.notes.add("yaml-word", message, node.start)
        elif tag == "int":
            value = whole_number(str(value), self.notes, node.start)
            message = f"{text[:40]} is read as the number {value}"
            self.notes.add("yaml-number", message, node.start)
        elif tag == "float" and (value != value or value in (float("inf"), float("-inf"))):
            self.notes.add("not-finite", f"{text[:40]} is no finite number", node.start)
            value = text
        elif tag == "float" and ":" in text:
            self.notes.add("yaml-number", f"{text[:40]} is read as the number {value}", node.start)
        node.style = "number" if tag in ("int", "float") else "literal"
        node.value = value

    def expect_tag(self, tag: str | None, wanted: str, offset: int) -> None:
        if tag not in (None, "!", _TAG + wanted):
            self.refuse_tag(str(tag), offset)

    def refuse_tag(self, tag: str, offset: int) -> None:
        message = f"the tag {tag.removeprefix(_TAG)[:60]} is not read here: plain values only"
        self.notes.add("yaml-tag", message, offset)


def _once(node: Node) -> list[Entry]:
    """The members of a mapping that count: of equal keys the last, own keys before merged ones."""
    kept: dict[str | int, Entry] = {}
    for entry in node.entries or ():
        if entry.key not in kept or not entry.merged:
            kept[entry.key] = entry
    return list(kept.values())


def _with_point(number: str) -> str:
    mantissa, exponent = re.split("[eE]", number, maxsplit=1)
    point = "" if "." in mantissa else ".0"
    sign = "" if exponent[:1] in ("+", "-") else "+"
    return f"{mantissa}{point}e{sign}{exponent}"
