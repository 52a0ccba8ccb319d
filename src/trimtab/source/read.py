"""Text in, values with positions out: what every command does first with a configuration.

`read_source` takes what a user gives (a path, ``-``, the text itself, base64, a dict); `read_text` and
`read_bytes` take what is already in hand.  What a text says is never executed, and whatever is wrong with
it is a `Problem` in the `Source`; only a file that cannot be opened raises.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from trimtab.errors import NotFound, UnreadableFile
from trimtab.source.hjson_text import first_character, parse_hjson
from trimtab.source.plain import plain_value
from trimtab.source.tree import (
    MAX_BYTES,
    MAX_LINES,
    MAX_YAML_BYTES,
    STOPPING,
    Format,
    KeyPath,
    Lines,
    Node,
    Notes,
    Problem,
    ProblemKind,
    Source,
    Spans,
    Stop,
    path_at,
    settle,
)

Written = Literal["json", "yaml"]
"""How a text is to be parsed: ``json`` stands for hjson too."""

_BY_SUFFIX: Mapping[str, Written] = {
    ".json": "json", ".jsonc": "json", ".hjson": "json", ".yaml": "yaml", ".yml": "yaml",
}  # fmt: skip
_BASE64 = re.compile(r"[A-Za-z0-9_+/-]{8,}={0,2}")
_HALF_PAIR = re.compile("[\ud800-\udfff]")
_LOOKS_LIKE_TEXT = re.compile(r"[\n\r{}]|: ")
_ENCODINGS = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}


def read_source(
    given: str | os.PathLike[str] | Mapping[str, Any], *, written: Written | None = None
) -> Source:
    """What a user gives as a configuration, read: a path, ``-`` for standard input, text, base64 or a dict.

    A text that names an existing file is that file, as for DeepSpeed; base64 is what DeepSpeed takes when
    no file has that name (runtime/config.py:443-448 of 0.19.8).  ``written`` overrides the guess from the
    file name and the first character.

    Raises:
        NotFound: nothing has that name; names the nearest files of that folder.
        UnreadableFile: a folder, or a file that the system does not let us read.
    """
    if isinstance(given, Mapping):
        return read_dict(given)
    name = os.fspath(given)
    if name == "-":
        return read_bytes(sys.stdin.buffer.read(MAX_BYTES + 1), file="<stdin>", written=written)
    if isinstance(given, str) and _LOOKS_LIKE_TEXT.search(name) and not _exists(name):
        return read_text(name, written=written)
    if not _exists(name):
        decoded = _from_base64(name) if isinstance(given, str) else None
        if decoded is not None:
            return decoded
        raise _no_such_file(name)
    try:
        with open(name, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except IsADirectoryError:
        raise UnreadableFile(f"{name} is a folder: name a configuration file in it") from None
    except OSError as error:
        raise UnreadableFile(f"{name} cannot be read: {error.strerror or error}") from error
    return read_bytes(data, file=name, written=written)


def read_bytes(data: bytes, *, file: str = "<bytes>", written: Written | None = None) -> Source:
    """A configuration as the bytes of a file."""
    notes = Notes()
    if len(data) > MAX_BYTES:
        return _too_large(f"{MAX_BYTES:,} bytes", file, written, notes)
    encoding = _ENCODINGS.get(data[:2], "utf-8")
    if encoding != "utf-8":
        notes.add("encoding", "this file is UTF-16: save it as UTF-8, which DeepSpeed reads", 0)
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        text = data.decode(encoding, errors="replace")
        if encoding == "utf-8":
            message = f"the byte 0x{data[error.start]:02x} is not UTF-8: save the file as UTF-8"
            notes.add("encoding", message, len(data[: error.start].decode("utf-8")))
    return _read(text, file, written, notes)


def read_text(text: str, *, file: str = "<text>", written: Written | None = None) -> Source:
    """A configuration as text."""
    notes = Notes()
    if not text.isascii() and _HALF_PAIR.search(text):
        offset = next(_HALF_PAIR.finditer(text)).start()
        notes.add("encoding", "half of a surrogate pair: this text is not valid Unicode", offset)
        text = _HALF_PAIR.sub("\ufffd", text)
    return _read(text, file, written, notes)


def read_dict(given: Mapping[str, Any], *, file: str = "<dict>") -> Source:
    """A configuration as a dict, copied; what JSON cannot hold is reported and replaced by its name."""
    value, problems = plain_value(given)
    return Source(
        file=file,
        text="",
        format="dict",
        value=value,
        spans=Spans(None, Lines("")),
        problems=problems,
        complete=not any(problem.kind.startswith("too-") for problem in problems),
    )


def _read(text: str, file: str, written: Written | None, notes: Notes) -> Source:
    size = len(text) if text.isascii() else len(text.encode("utf-8"))
    if size > MAX_BYTES:
        return _too_large(f"{MAX_BYTES:,} bytes", file, written, notes)
    if text.count("\n") + text.count("\r") - text.count("\r\n") >= MAX_LINES:
        return _too_large(f"{MAX_LINES:,} lines", file, written, notes)
    how = written or _BY_SUFFIX.get(Path(file).suffix.lower()) or _sniff(text)
    if how == "yaml" and size > MAX_YAML_BYTES:
        return _too_large(f"{MAX_YAML_BYTES:,} bytes of YAML", file, written, notes)
    if text.startswith("\ufeff"):
        notes.add("bom", "a byte-order mark begins the file: strict JSON readers refuse it", 0)
        notes.non_strict("bom", "a byte-order mark", 0)
    if "\0" in text:
        notes.add("nul-byte", "a NUL byte: not a text file, or a damaged one", text.index("\0"))
    root: Node | None = None
    if how == "json":
        root = parse_hjson(text, notes)
    else:
        from trimtab.source.yaml_text import parse_yaml  # YAML costs 15 ms, and few files are

        root = parse_yaml(text, notes)
    return _source(file, text, how, root, notes)


def _too_large(limit: str, file: str, written: Written | None, notes: Notes) -> Source:
    notes.stop(Stop("too-large", f"larger than {limit}: not a configuration", 0))
    return _source(file, "", written or "json", None, notes)


def _source(file: str, text: str, how: Written, root: Node | None, notes: Notes) -> Source:
    lines = Lines(text)
    if root is not None and root.style == "missing":  # reading stopped at the very first value
        root = None
    value = settle(root, notes) if root is not None else {}
    if notes.complete and (root is None or (value is None and root.start == root.end)):
        notes.add("empty", "nothing stands here: DeepSpeed would start from an empty configuration", 0)
        value, root = {}, None
        notes.non_strict("no-braces", "an empty text", 0)
    elif notes.complete and not isinstance(value, dict):
        kind = "a list" if isinstance(value, list) else "a single value"
        notes.add(
            "not-an-object",
            f"the top is {kind}: a configuration is an object {{ }}",
            root.start if root else 0,
        )
    format_: Format = "yaml"
    if how == "json":
        strict = notes.complete and notes.first_non_strict is None
        format_ = "json" if strict else "hjson"
    first = notes.first_non_strict if how == "json" else None
    return Source(
        file=file,
        text=text,
        format=format_,
        value=value,
        spans=Spans(root, lines),
        problems=tuple(
            _problem(lines, root, kind, message, offset, related)
            for offset, kind, message, related in sorted(notes.found, key=lambda note: note[0])
        ),
        complete=notes.complete,
        first_non_strict=_problem(lines, root, first[1], first[2], first[0]) if first else None,
        root=root,
    )


def _problem(
    lines: Lines, root: Node | None, kind: ProblemKind, message: str, offset: int, related: int | None = None
) -> Problem:
    line, column = lines.place(offset)
    path: KeyPath = path_at(root, max(offset - 1, 0) if kind in STOPPING else offset)
    other = lines.place(related) if related is not None else None
    if kind == "duplicate-key" and other:
        message = f"{message}: here and at line {other[0]}; DeepSpeed refuses the file, others take this one"
    return Problem(kind=kind, message=message, line=line, column=column, key_path=path, related=other)


def _sniff(text: str) -> Written:
    """JSON if it begins with a bracket, a quote or a comment of JSON; any other text is YAML."""
    json_comment = text.lstrip("\ufeff \t\r\n").startswith(("//", "/*"))
    return "json" if json_comment or first_character(text) in ("{", "[", '"', "'", "") else "yaml"


def _exists(name: str) -> bool:
    try:
        return os.path.exists(name)
    except ValueError:  # a NUL byte
        return False


def _from_base64(name: str) -> Source | None:
    """The configuration that ``name`` is in base64; None if it is none."""
    if not _BASE64.fullmatch(name):
        return None
    try:
        data = base64.urlsafe_b64decode(name.replace("+", "-").replace("/", "_"))
        data.decode("utf-8")
    except (binascii.Error, UnicodeDecodeError):
        return None
    source = read_bytes(data, file="<base64>", written="json")
    return source if source.complete and source.mapping else None


def _no_such_file(name: str) -> NotFound:
    folder = os.path.dirname(name)
    try:
        files = sorted(os.listdir(folder or "."))[:1000]
    except (OSError, ValueError):
        shown = folder[:200] or "."
        return NotFound("configuration file", name[:200], (), cure=f"There is no folder {shown}.")
    return NotFound("configuration file", name[:200], (os.path.join(folder, file) for file in files))
