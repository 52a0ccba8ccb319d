"""Values as YAML that reads back the same under YAML 1.1 and 1.2."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

_PLAIN = re.compile(r"[A-Za-z_/][A-Za-z0-9_./@+-]*")
_ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}


def flow_text(value: Any) -> str:
    """``value`` on one line, with braces and brackets.

    Raises:
        ValueError: a NaN, an infinity, or something else that JSON has no form for.
    """
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_key(key)}: {flow_text(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(flow_text, value)) + "]"
    return _scalar(value)


def block_lines(key: str, value: Any, indent: str, unit: str) -> list[str]:
    """``key`` with its value as lines: objects as blocks, lists on one line.

    Raises:
        ValueError: as `flow_text`.
    """
    if not isinstance(value, Mapping) or not value:
        return [f"{indent}{_key(key)}: {flow_text(value)}"]
    lines = [f"{indent}{_key(key)}:"]
    for name, item in value.items():
        lines += block_lines(name, item, indent + unit, unit)
    return lines


def _key(key: Any) -> str:
    if not isinstance(key, str):
        raise ValueError(f"a key must be a text, not a {type(key).__name__}")
    return _scalar(key)


def _scalar(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{value} is no finite number")
        mantissa, mark, exponent = repr(value).partition("e")  # 1e-08: YAML 1.1 wants 1.0e-08
        return f"{mantissa}.0{mark}{exponent}" if mark and "." not in mantissa else repr(value)
    if not isinstance(value, str):
        raise ValueError(f"a {type(value).__name__} is no JSON value")
    if _PLAIN.fullmatch(value) and _stays_text(value):
        return value
    return '"' + "".join(map(_escaped, value)) + '"'


def _stays_text(word: str) -> bool:
    """Whether YAML 1.1 leaves the unquoted ``word`` a text, unlike ``no``, ``null`` or ``.5``."""
    import yaml  # 15 ms, and few files are YAML
    from yaml.resolver import Resolver

    resolver: Any = Resolver()
    return str(resolver.resolve(yaml.ScalarNode, word, (True, False))).endswith(":str")


def _escaped(character: str) -> str:
    if character in _ESCAPES:
        return _ESCAPES[character]
    code = ord(character)
    if character.isprintable() and code != 0xFEFF:
        return character
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
