"""Configurations in the many ways that people write them: texts for the tests of reading and editing."""

from __future__ import annotations

import json
import random
from typing import Any

from hypothesis import strategies as st

KEYS = (
    "stage",
    "train_batch_size",
    "lr",
    "device",
    "zero_optimization",
    "params",
    "a-b",
    "x.y",
    "k 1",
    "é",
    "no",
)
TEXTS = (
    "cpu",
    "auto",
    "AdamW",
    "/local nvme",
    "a, b",
    "# no comment",
    "true",
    "12",
    "",
    "it's",
    'say "x"',
    "1e9",
    "é\n",
)

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.sampled_from([0, 1, 8, 500_000_000])
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from([1e-8, 0.9, 1.0, 3e-4])
    | st.sampled_from(TEXTS)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
)
keys = st.sampled_from(KEYS) | st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=8,
)
configs = st.dictionaries(keys, values, max_size=5)


def hjson_text(value: dict[str, Any], rng: random.Random) -> str:
    """``value`` as hjson in some free style: comments, quotes or none, commas or none, one line or many."""
    newline = rng.choice(["\n", "\n", "\r\n"])
    body = _object(value, rng, newline, "  ", 0)
    if value and rng.random() < 0.2:
        inner = body.strip()[1:-1]
        if newline in inner:
            return inner.strip(" ") + rng.choice(["", newline])
    return _comment(rng, newline) + body + rng.choice(["", newline]) + _comment(rng, newline)


def _object(value: Any, rng: random.Random, newline: str, unit: str, depth: int) -> str:
    is_map = isinstance(value, dict)
    opening, closing = "{}" if is_map else "[]"
    if not value:
        return opening + closing
    many_lines = rng.random() < 0.7
    style = rng.choice(["commas", "trailing", "lines"]) if many_lines else rng.choice(["commas", "trailing"])
    indent = newline + unit * (depth + 1) if many_lines else rng.choice(["", " "])
    pieces = []
    members = list(value.items()) if is_map else [(None, item) for item in value]
    for index, (key, item) in enumerate(members):
        last = index == len(members) - 1
        text = "" if key is None else _key(key, rng) + rng.choice([":", ": ", " : "])
        bare = (
            isinstance(item, str) and many_lines and style == "lines" and rng.random() < 0.5 and _bare(item)
        )
        text += item if bare else _value(item, rng, newline, unit, depth + 1)
        if style == "trailing" or (style == "commas" and not last):
            text += ","
        if many_lines and not bare and rng.random() < 0.2:
            text += rng.choice([" # why", " // why, {really}", " /* why */"])
        if many_lines and rng.random() < 0.1:
            text = "// above" + indent + text
        pieces.append(indent + text)
    return opening + "".join(pieces) + (newline + unit * depth if many_lines else "") + closing


def _value(item: Any, rng: random.Random, newline: str, unit: str, depth: int) -> str:
    if isinstance(item, (dict, list)):
        return _object(item, rng, newline, unit, depth)
    if (
        isinstance(item, str)
        and "'" not in item
        and '"' not in item
        and item.isprintable()
        and rng.random() < 0.2
    ):
        return f"'{json.dumps(item)[1:-1]}'"
    return json.dumps(item, ensure_ascii=rng.random() < 0.5)


def _key(key: str, rng: random.Random) -> str:
    plain = key.isascii() and key.replace("_", "").replace("-", "").isalnum() and rng.random() < 0.5
    return key if plain else json.dumps(key, ensure_ascii=rng.random() < 0.5)


def _bare(text: str) -> bool:
    return (
        text.isascii()
        and text.replace("/", "").replace(" ", "x").isalpha()
        and text.strip() == text
        and (
            text not in ("true", "false", "null")
            and not text.startswith("//")
            and "//" not in text
            and text != "NaN"
        )
    )


def _comment(rng: random.Random, newline: str) -> str:
    return rng.choice(["", "", "", f"# top{newline}", f"/* top {newline} of it */{newline}"])
