"""Changes in block YAML, where lines and indentation make the structure."""

from __future__ import annotations

from typing import Any

from trimtab.source.layout import Layout
from trimtab.source.tree import Entry, Node
from trimtab.source.yaml_write import block_lines, flow_text

_UNIT = "  "


class BlockEditor:
    """Makes new texts out of one YAML text, each with one change in a block mapping or list."""

    def __init__(self, text: str) -> None:
        self.text, self.layout = text, Layout(text, yaml=True)

    def replaced(self, entry: Entry, value: Any) -> str:
        """With another value for ``entry``, written on one line."""
        node = entry.node
        start = node.start
        if node.style.startswith("block-") and isinstance(entry.key, str):  # it may begin on a later line
            start = self.text.index(":", entry.key_end) + 1
        gap = " " if self.text[start - 1 : start] in (":", "-", "") else ""
        tail = " " if self.text[node.end : node.end + 1] == "#" else ""
        return self.layout.spliced((start, node.end, gap + flow_text(value) + tail))

    def renamed(self, entry: Entry, name: str) -> str:
        """With another key for ``entry``."""
        return self.layout.spliced((entry.key_start, entry.key_end, flow_text(name)))

    def begun(self, key: str, value: Any) -> str:
        """With a first key in a text that has nothing but comments."""
        newline = self.layout.newline
        start = (
            self.text if self.text.endswith(("\n", "\r", "\ufeff")) or not self.text else self.text + newline
        )
        return start + newline.join(block_lines(key, value, "", _UNIT)) + newline

    def inserted(self, node: Node, key: str, value: Any) -> str:
        """With a new last key in the mapping ``node``."""
        entries = [entry for entry in node.entries or () if not entry.merged]
        if not entries:  # only << stands here
            raise ValueError("it has no keys of its own")
        newline = self.layout.newline
        column = len(self.layout.before(self.begin(entries[0])))
        lines = block_lines(key, value, " " * column, _UNIT)
        point = self.layout.line_end(node.end)
        return self.layout.spliced((point, point, newline + newline.join(lines)))

    def removed(self, node: Node, index: int) -> str:
        """Without the key or item at ``index`` of ``node``."""
        assert node.entries is not None
        entry = node.entries[index]
        if len(node.entries) == 1:
            return self.emptied(node)
        start = self.begin(entry)
        if not self.layout.before(start).strip():
            end = self.layout.next_line(entry.node.end)
            return self.layout.spliced((self.layout.line_start(start), end, ""))
        if index + 1 == len(node.entries):
            raise ValueError("something stands before it in its line")
        following = self.begin(node.entries[index + 1])  # a first key behind "- ": the next takes its place
        return self.layout.spliced((start, following, ""))

    def emptied(self, node: Node) -> str:
        """With nothing left in ``node``: block YAML has no form for that, so brackets."""
        brackets = "{}" if isinstance(node.value, dict) else "[]"
        start, before = node.start, self.text[: node.start].rstrip()
        if before.endswith(":"):
            start, brackets = len(before), f" {brackets}"
        return self.layout.spliced((start, node.end, brackets))

    def begin(self, entry: Entry) -> int:
        """Where ``entry`` begins: its key or the ``?`` before it, or the dash of an item."""
        if not isinstance(entry.key, str):
            return self.text.rindex("-", 0, max(entry.node.start, 1))
        before = self.layout.before(entry.key_start)
        marked = before.rstrip().endswith("?")  # an explicit key, as PyYAML writes the empty one
        return entry.key_start - len(before) + before.rindex("?") if marked else entry.key_start
