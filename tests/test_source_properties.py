"""Whatever the bytes: nothing raises, and readers that count agree."""

from __future__ import annotations

import importlib.util
import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from config_texts import configs, hjson_text
from trimtab.source import Source, read_bytes, read_text

REPOSITORY = Path(__file__).parent.parent
thorough = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def kinds(source: Source) -> set[str]:
    return {problem.kind for problem in source.problems}


FRAGMENTS = [
    *(
        "{",
        "}",
        "[",
        "]",
        ":",
        ",",
        '"a"',
        "'b'",
        "a",
        "b",
        "\n",
        "\n  ",
        " ",
        "\t",
        "\r\n",
        "#c",
        "//c\n",
        "/*c*/",
    ),
    *(
        "1",
        "-2.5",
        "5e8",
        "null",
        "true",
        "false",
        "NaN",
        "'''",
        '"x',
        "\\",
        "/",
        '"\\u00e9"',
        '"\\ud83d\\ude00"',
    ),
    *("é", "\xa0", "٢", '{"a":1}', "a: b\n", '"a": 1,\n', "auto,", ".5", "-", "\ufeff", "\x00", '"k": [1,2]'),
    *("{\n", "}\n", "null,", "true # x", '"\\\'"', "\u2028", '"q" "r"', "'''\n  x\n   y'''", "\x0b", "1e400"),
]
fragments = st.lists(st.sampled_from(FRAGMENTS), max_size=14).map("".join)


@thorough
@given(st.binary(max_size=60), st.sampled_from(["json", "yaml", None]))
@example(b"\xed\xa0\x80", None)
@example(b"\xff\xfe\x00", None)
def test_no_bytes_raise(data: bytes, written: str | None) -> None:
    source = read_bytes(data, written=written)  # type: ignore[arg-type]
    assert source.complete or source.problems
    json.dumps(source.value, allow_nan=False)
    assert all(0 <= source.spans[path].value.start <= source.spans[path].value.end for path in source.spans)


@thorough
@given(configs, st.sampled_from([None, 2, "\t"]), st.booleans())
def test_valid_json_reads_as_json_does(value: dict[str, object], indent: int | None, ascii_: bool) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_)
    source = read_text(text)
    assert source.value == value
    assert source.strict_json
    assert kinds(source) <= {"nul-byte"}


@thorough
@given(fragments)
def test_strict_means_that_python_reads_it(text: str) -> None:
    source = read_text(text, written="json")
    assume("not-an-object" not in kinds(source))
    try:
        json.loads(text)
        taken = True
    except ValueError:
        taken = False
    assert source.strict_json == taken


def refuse_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """What DeepSpeed hands to hjson (runtime/config_utils.py:205 of 0.19.8)."""
    if len(dict(pairs)) != len(pairs):
        raise ValueError("duplicate keys")
    return dict(pairs)


@settings(thorough, max_examples=1000)
@given(fragments, st.sampled_from(["", "{", "a: "]))
def test_hjson_and_we_agree(text: str, start: str) -> None:
    hjson = pytest.importorskip("hjson", reason="comes with DeepSpeed")
    text = start + text + ("}" if start == "{" else "")
    source = read_text(text, written="json")
    assume(not kinds(source) & {"not-finite", "huge-number", "lone-surrogate", "encoding"})
    try:
        value = hjson.loads(text, object_pairs_hook=refuse_duplicates)
    except (ValueError, IndexError, OverflowError):  # it crashes on some broken texts
        assert not source.complete or kinds(source) & {"duplicate-key", "empty"}
        return
    if isinstance(value, dict):
        assert source.complete
        assert source.value == value


@thorough
@given(configs, st.randoms(use_true_random=False))
def test_free_style_hjson_reads_as_it_was_meant(value: dict[str, object], rng: random.Random) -> None:
    hjson = pytest.importorskip("hjson", reason="comes with DeepSpeed")
    text = hjson_text(value, rng)
    source = read_text(text, written="json")
    assert source.complete
    assert source.value == hjson.loads(text)


YAML_FRAGMENTS = [
    *(
        "a: ",
        "b: ",
        "- ",
        "1",
        "1e9",
        "1.0e+9",
        "no",
        "017",
        "12:30",
        "0x1f",
        "\n",
        "\n  ",
        "\n    ",
        "{",
        "}",
        "[",
    ),
    *(
        "]",
        ",",
        '"x"',
        "'y'",
        "&x ",
        "*x",
        "<<: ",
        "!!str ",
        "# c\n",
        "|\n",
        ">\n",
        "~",
        "? ",
        ": ",
        "k: v\n",
        "é",
    ),
    *("m:\n", "  n: 1\n", "- 1\n", "true", "...\n", "\t", '"\\u00e9"', "1_000", "-5", "\r\n", "=", "\ufeff"),
]


@settings(thorough, max_examples=600)
@given(st.lists(st.sampled_from(YAML_FRAGMENTS), max_size=14).map("".join))
def test_safe_load_and_we_agree(text: str) -> None:
    source = read_text(text, written="yaml")
    assume(
        not kinds(source)
        & {"key-not-text", "yaml-tag", "empty", "many-documents", "huge-number", "not-finite"}
    )
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        assert not source.complete
        return
    assert source.complete
    assert source.value == value


@pytest.fixture(scope="module")
def fuzzer() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fuzz_reading", REPOSITORY / "bench/fuzz_reading.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["fuzz_reading"] = module
    spec.loader.exec_module(module)
    return module


def test_mutated_configurations_never_raise(fuzzer: ModuleType) -> None:
    outcome = fuzzer.fuzz(fuzzer.mutated(2000, seed=1))
    assert outcome.count == 2000
    assert outcome.raised == []


def test_the_fuzzer_sees_a_traceback(fuzzer: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> None:
        raise ZeroDivisionError

    use: Callable[[object], None] = fail
    monkeypatch.setattr(fuzzer, "use", use)
    outcome = fuzzer.fuzz(iter([("json", b"{}")]))
    assert "ZeroDivisionError" in outcome.raised[0]
