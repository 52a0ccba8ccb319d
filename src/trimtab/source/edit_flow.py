"""Changes in JSON, hjson and the ``{}`` and ``[]`` of YAML, where commas and brackets make the structure."""

from __future__ import annotations

import itertools
import re
from typing import Any

from trimtab.source.layout import Layout
from trimtab.source.tree import Entry, Node
from trimtab.source.write import render_inline_json, render_json, render_text
from trimtab.source.yaml_write import flow_text

_PLAIN_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
# what an unquoted text swallowed that was meant as a comma or a comment
_SWALLOWED = re.compile(r"(?:,\s*)?(?:\s(?:#|//).*|\s/\*.*\*/\s*)$|,$")


class FlowEditor:
    """Makes new texts out of one text, each with one change; ``strict`` where it is strict JSON so far."""

    def __init__(self, text: str, *, yaml: bool, strict: bool) -> None:
        self.text, self.yaml, self.strict = text, yaml, strict
        self.layout = Layout(text, yaml=yaml)

    def replaced(self, entry: Entry, value: Any) -> str:
        """With another value for ``entry``."""
        node = entry.node
        new = self.rendered(value, self.layout.indent(entry.key_start), inline=self.is_one_line(node))
        if node.style == "unquoted" and not self.yaml:
            found = _SWALLOWED.search(self.text[node.start : node.end])
            new += found[0] if found else ""
        if node.start == node.end and self.text[node.start - 1 : node.start] in (":", "-", ","):
            new = f" {new}"
        return self.layout.spliced((node.start, node.end, new))

    def renamed(self, entry: Entry, name: str) -> str:
        """With another key for ``entry``."""
        plain = not self.is_quoted(entry)
        return self.layout.spliced((entry.key_start, entry.key_end, self.rendered_key(name, plain=plain)))

    def begun(self, key: str, value: Any) -> str:
        """With an object of one member in a text that has nothing but comments."""
        newline = self.layout.newline
        start = (
            self.text if self.text.endswith(("\n", "\r", "\ufeff")) or not self.text else self.text + newline
        )
        return start + render_json({key: value}, newline=newline) + newline

    def inserted(self, node: Node, key: str, value: Any) -> str:
        """With a new last member in the object ``node``."""
        entries = [entry for entry in node.entries or () if not entry.merged]
        return self.first(node, key, value) if not entries else self.after(node, entries, key, value)

    def removed(self, node: Node, index: int) -> str:
        """Without the member or item at ``index`` of ``node``."""
        assert node.entries is not None
        entry, count = node.entries[index], len(node.entries)
        start = entry.key_start
        stop = node.entries[index + 1].key_start if index + 1 < count else self.inner_end(node)
        own_comma = self.layout.comma(entry.node.end, stop)
        end = entry.node.end if own_comma is None else own_comma + 1
        cuts = []
        if own_comma is None and index == count - 1 and index > 0:
            before = self.layout.comma(node.entries[index - 1].node.end, start)
            if before is not None and not self.text[before + 1 : start].strip(" \t"):
                start = before  # `"a": 1, "b": 2` loses ` , "b": 2` in one piece
            elif before is not None:
                cuts.append((before, before + 1, ""))
        line_end = self.layout.end_if_only_comment(end)
        if line_end is not None and not self.layout.before(start).strip() and start == entry.key_start:
            cuts.append((self.layout.line_start(start), self.layout.next_line(end), ""))
        else:
            if start == entry.key_start:
                end += len(self.text[end:stop]) - len(self.text[end:stop].lstrip(" \t"))
            cuts.append((start, end, ""))
        text = self.layout.spliced(*cuts)
        return self.collapsed(text, node) if count == 1 else text

    # -- insertion ------------------------------------------------------------------------------------------

    def first(self, node: Node, key: str, value: Any) -> str:
        """The first member of an object that has brackets but nothing in them, except comments."""
        opening = self.text.index("{", node.start)
        inner = self.text[opening + 1 : node.end - 1]
        indent, newline = self.layout.indent(node.start), self.layout.newline
        deeper = indent + self.unit()
        member = self.member(key, value, deeper, plain=False, inline=False)
        if not inner.strip():
            one_line = self.yaml or newline not in self.text.strip()
            inline = self.member(key, value, deeper, plain=False, inline=True)
            new = inline if one_line else f"{newline}{deeper}{member}{newline}{indent}"
            return self.layout.spliced((opening + 1, node.end - 1, new))
        kept = inner.rstrip(" \t")
        if not kept.endswith(("\n", "\r")):
            kept += newline
        new = f"{kept}{deeper}{member}{newline}{indent}"
        return self.layout.spliced((opening + 1, node.end - 1, new))

    def after(self, node: Node, entries: list[Entry], key: str, value: Any) -> str:
        """A member after the last one, in the way that the others are written."""
        last = entries[-1]
        braces, stop = self.has_braces(node), self.inner_end(node)
        many_lines = not braces or bool(re.search(r"[\r\n]", self.text[node.start : entries[0].key_start]))
        to_line_end = not self.yaml and last.node.style == "unquoted"  # whatever follows would be part of it
        comma = self.layout.comma(last.node.end, stop)
        separators = (
            self.layout.comma(left.node.end, right.key_start) for left, right in itertools.pairwise(entries)
        )
        one_a_line = many_lines and not self.strict and (len(entries) > 1 or not braces)
        without_commas = one_a_line and comma is None and all(place is None for place in separators)
        added_comma = "," if comma is None and not to_line_end and not without_commas else ""
        point = last.node.end if comma is None else comma + 1
        if many_lines or to_line_end:
            line_end = self.layout.end_if_only_comment(point)
            point = point if line_end is None or line_end > stop else line_end
            indent = self.layout.indent(entries[-1].key_start)
            gap = self.layout.newline + indent
        else:
            indent = self.layout.indent(node.start)
            gap = " "
        plain = not self.yaml and not any(self.is_quoted(entry) for entry in entries)
        member = self.member(key, value, indent, plain=plain, inline=not (many_lines or to_line_end))
        tail = "," if comma is not None and (many_lines or to_line_end) else ""
        end, text = last.node.end, self.text
        return f"{text[:end]}{added_comma}{text[end:point]}{gap}{member}{tail}{text[point:]}"

    def collapsed(self, text: str, node: Node) -> str:
        """``text``, from which the only member of ``node`` went, with its brackets closed up."""
        opening = re.search(r"[{\[]", text[node.start :])
        if opening is None or not self.has_braces(node):
            return text
        start = node.start + opening.end()
        inner = re.compile(r"[ \t\r\n]*(?=[}\]])").match(text, start)
        return text[:start] + text[inner.end() :] if inner else text

    # -- pieces ---------------------------------------------------------------------------------------------

    def member(self, key: str, value: Any, indent: str, *, plain: bool, inline: bool) -> str:
        return f"{self.rendered_key(key, plain=plain)}: {self.rendered(value, indent, inline=inline)}"

    def rendered(self, value: Any, indent: str, *, inline: bool) -> str:
        if self.yaml:
            return flow_text(value)
        if inline:
            return render_inline_json(value)
        return render_json(value, indent=indent, unit=self.unit(), newline=self.layout.newline)

    def rendered_key(self, name: str, *, plain: bool) -> str:
        if self.yaml:
            return flow_text(name)
        return name if plain and _PLAIN_KEY.fullmatch(name) else render_text(name)

    def has_braces(self, node: Node) -> bool:
        return self.yaml or self.text.startswith(("{", "["), node.start)

    def inner_end(self, node: Node) -> int:
        """Where the inside of ``node`` ends: before its closing bracket, or at the end of the text."""
        return node.end - 1 if self.has_braces(node) else len(self.text)

    def is_quoted(self, entry: Entry) -> bool:
        return self.text.startswith(('"', "'"), entry.key_start)

    def is_one_line(self, node: Node) -> bool:
        """Whether a container replaced in place was, or would be, on one line."""
        if self.yaml or not re.search(r"[\r\n]", self.text.strip()):
            return True
        return bool(node.entries) and not re.search(r"[\r\n]", self.text[node.start : node.end])

    def unit(self) -> str:
        """One step of indentation, as the first indented line of the text has it."""
        found = re.search(r"(?:\r\n|\r|\n)([ \t]+)[^ \t\r\n]", self.text)
        return found[1] if found and len(found[1]) <= 8 else "  "
