"""Where lines, indentation and trailing comments of a text are: what editing without disturbing it needs."""

from __future__ import annotations

import re

_BLANK = re.compile(r"[ \t]*")
_LINE_END = re.compile(r"[\r\n]|\Z")
_LINE_COMMENT = re.compile(r"(?:#|//)[^\r\n]*")
_YAML_COMMENT = re.compile(r"#[^\r\n]*")
_BLOCK_COMMENT = re.compile(r"/\*[^\r\n]*?\*/")
_LINE_BREAK = re.compile(r"\r\n|\r|\n")


class Layout:
    """The lines of one text; offsets count characters."""

    def __init__(self, text: str, *, yaml: bool = False) -> None:
        self.text, self.yaml = text, yaml
        found = _LINE_BREAK.search(text)
        self.newline = found[0] if found else "\n"

    def whole_lines(self) -> str:
        """The text, with a line break after its last line."""
        open_line = self.text and not self.text.endswith(("\n", "\r", "\ufeff"))
        return self.text + self.newline if open_line else self.text

    def line_start(self, at: int) -> int:
        """Where the line of ``at`` begins, after a byte-order mark."""
        start = max(self.text.rfind("\n", 0, at), self.text.rfind("\r", 0, at)) + 1
        return start + 1 if self.text.startswith("\ufeff", start) and start < at else start

    def line_end(self, at: int) -> int:
        """Where the line of ``at`` ends, before its line break."""
        found = _LINE_END.search(self.text, at)
        return found.start() if found else len(self.text)

    def next_line(self, at: int) -> int:
        """Where the line after that of ``at`` begins."""
        end = self.line_end(at)
        found = _LINE_BREAK.match(self.text, end)
        return found.end() if found else end

    def indent(self, at: int) -> str:
        """The blanks that the line of ``at`` begins with."""
        found = _BLANK.match(self.text, self.line_start(at))
        return found[0] if found else ""

    def before(self, at: int) -> str:
        """What stands before ``at`` in its line."""
        return self.text[self.line_start(at) : at]

    def end_if_only_comment(self, at: int) -> int | None:
        """The end of the line of ``at`` if nothing but a comment follows in it, else None."""
        while True:
            found = _BLANK.match(self.text, at)
            at = found.end() if found else at
            if at == self.line_end(at):
                return at
            if self.yaml:
                comment = _YAML_COMMENT.match(self.text, at)
            else:
                comment = _LINE_COMMENT.match(self.text, at) or _BLOCK_COMMENT.match(self.text, at)
            if comment is None:
                return None
            at = comment.end()

    def comma(self, at: int, stop: int) -> int | None:
        """The first comma in ``at:stop`` with only blanks and comments before it, and not in one."""
        while at < stop:
            if self.text[at] == ",":
                return at
            if self.text[at].isspace():
                at += 1
                continue
            if not self.yaml and self.text.startswith("/*", at):
                at = self.text.find("*/", at + 2) + 2
                continue
            comment = (_YAML_COMMENT if self.yaml else _LINE_COMMENT).match(self.text, at)
            if comment is None:
                return None
            at = comment.end()
        return None

    def spliced(self, *cuts: tuple[int, int, str]) -> str:
        """The text with each ``start:end`` replaced; the pieces must not overlap."""
        text = self.text
        for start, end, new in sorted(cuts, reverse=True):
            text = text[:start] + new + text[end:]
        return text
