"""Reading configuration texts: values, places, traps, limits, and agreement with the readers that count."""

from __future__ import annotations

import base64
import importlib.util
import io
import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from config_texts import configs, hjson_text
from trimtab.errors import NotFound, UnreadableFile
from trimtab.source import Problem, Source, find_pointer, read_bytes, read_dict, read_source, read_text

REPOSITORY = Path(__file__).parent.parent
CONFIGS = sorted((REPOSITORY / "src/trimtab/data/configs").rglob("*.json"))
thorough = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def kinds(source: Source) -> set[str]:
    return {problem.kind for problem in source.problems}


def only(source: Source) -> Problem:
    (problem,) = source.problems
    return problem


# -- values and places ---------------------------------------------------------------------------------------


def test_json_values_and_places() -> None:
    source = read_text('{\n  "a": [1, 2.5, {"b": "é"}],\n  "c": null\n}\n')
    assert source.value == {"a": [1, 2.5, {"b": "é"}], "c": None}
    assert (source.format, source.strict_json, source.problems, source.complete) == ("json", True, (), True)
    assert list(source.spans) == [(), ("a",), ("a", 0), ("a", 1), ("a", 2), ("a", 2, "b"), ("c",)]
    span = source.spans["a", 2, "b"]
    assert span.key is not None
    assert source.text[span.key.start : span.key.end] == '"b"'
    assert source.text[span.value.start : span.value.end] == source.raw(("a", 2, "b")) == '"é"'
    assert (span.line, span.column) == (2, 18)
    assert (span.value.line, span.value.column, span.value.end_line, span.value.end_column) == (2, 23, 2, 26)
    assert source.spans[()].value.end_line == 4
    assert source.spans["a", 0].key is None
    assert source.spans.get(("a", 9)) is None
    missing = source.spans.nearest(("a", 2, "x", "y"))
    assert missing == source.spans["a", 2]
    with pytest.raises(KeyError):
        source.raw(("x",))


def test_hjson_values_and_places() -> None:
    text = "{\n  // b\n  stage: 2,\n  'name': cpu\n  list: [1, 2]\n  long: '''\n    one\n      two\n  '''\n}"
    source = read_text(text)
    assert source.value == {"stage": 2, "name": "cpu", "list": [1, 2], "long": "one\ntwo"}  # as hjson has it
    assert source.format == "hjson"
    assert source.raw(("name",)) == "cpu"
    first = source.first_non_strict
    assert first is not None
    assert (first.kind, first.line, first.column) == ("comment", 2, 3)


def test_yaml_values_and_places() -> None:
    text = "# c\na:\n  b: &x [1, two]\n  c: *x\nd:\n- e: |\n    text\n- f\n"
    source = read_text(text, written="yaml")
    assert source.value == {"a": {"b": [1, "two"], "c": [1, "two"]}, "d": [{"e": "text\n"}, "f"]}
    assert source.value["a"]["b"] is not source.value["a"]["c"]
    assert source.raw(("a",)) == "b: &x [1, two]\n  c: *x"
    assert source.raw(("a", "c")) == "*x"
    assert source.raw(("d", 0, "e")) == "|\n    text"
    assert source.raw(("d", 1)) == "f"
    assert (source.spans["d", 1].line, source.spans["d", 1].column) == (8, 3)


def test_line_ends_of_all_kinds_count() -> None:
    source = read_text('{\r\n"a": 1,\r"b": 2,\n"c": 3}')
    assert [source.spans[key,].line for key in "abc"] == [2, 3, 4]


def test_numbers_keep_how_they_were_written() -> None:
    source = read_text('{"a": 5e8, "b": 1.0, "c": 7, "d": 1e10, "e": "5e8"}')
    assert [source.written_as_float((key,)) for key in "abcde"] == [True, True, False, True, False]
    assert repr(source.value) == "{'a': 500000000, 'b': 1, 'c': 7, 'd': 10000000000.0, 'e': '5e8'}"
    assert not source.written_as_float(("x",))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_thirteen_are_strict_and_clean(path: Path) -> None:
    source = read_source(path)
    assert source.strict_json
    assert source.problems == ()
    assert source.value == json.loads(path.read_text(encoding="utf-8"))
    assert find_pointer(source) is None


# -- traps: text, kind, line, column, key path ---------------------------------------------------------------

JSON_TRAPS = [
    ('{"a": 1, "a": 2}', "duplicate-key", 1, 10, ("a",)),
    ('{"x": {"a": 1,\n "a": 2}}', "duplicate-key", 2, 2, ("x", "a")),
    ('{"a": NaN}', "not-finite", 1, 7, ("a",)),
    ('{"a": [-Infinity, 1]}', "not-finite", 1, 8, ("a", 0)),
    ("a: NaN\n", "not-finite", 1, 4, ("a",)),
    ('{"a": 1e400}', "not-finite", 1, 7, ("a",)),
    ('{"a": ' + "9" * 5000 + "}", "huge-number", 1, 7, ("a",)),
    ('{"a": 9223372036854775808}', "huge-number", 1, 7, ("a",)),
    ("{\n  a: cpu # why\n}", "comment-in-text", 2, 9, ("a",)),
    ("{\n  a: cpu // why\n}", "comment-in-text", 2, 9, ("a",)),
    ("{\n  a: auto,\n}", "comma-in-text", 2, 10, ("a",)),
    ("{\n  a: True,\n}", "text-not-literal", 2, 6, ("a",)),
    ("{\n  a: None\n}", "text-not-literal", 2, 6, ("a",)),
    ("{\n  a: 1_000\n}", "text-not-number", 2, 6, ("a",)),
    ("{\n  a: .5,\n}", "text-not-number", 2, 6, ("a",)),
    ("{\n  a: 1e\n}", "text-not-number", 2, 6, ("a",)),
    ('{"a": "\\ud800"}', "lone-surrogate", 1, 7, ("a",)),
    ('\ufeff{"a": 1}', "bom", 1, 1, ()),
    ('{"a": "x\0"}', "nul-byte", 1, 9, ()),
    ("", "empty", 1, 1, ()),
    ("# nothing\n", "empty", 1, 1, ()),
    ("[1]", "not-an-object", 1, 1, ()),
    ('"x"', "not-an-object", 1, 1, ()),
    ("[" * 65 + "]" * 65, "too-deep", 1, 65, (0,) * 63),
    # what is wrong, where, and what was expected
    ('{"a": 1', "syntax", 1, 1, ()),
    ('{"a": [1, 2', "syntax", 1, 7, ("a",)),
    ('{"a" 1}', "syntax", 1, 6, ()),
    ('{"a": }', "syntax", 1, 7, ()),
    ('{"a": "x\n"}', "syntax", 1, 7, ()),
    ('{"a": "\\x"}', "syntax", 1, 8, ()),
    ('{"a": "\\u12"}', "syntax", 1, 8, ()),
    ('{"a": "\t"}', "syntax", 1, 8, ()),
    ('{"a": 1}}', "syntax", 1, 9, ()),
    ('{"a": 1,, "b": 2}', "syntax", 1, 9, ()),
    ("{a b: 1}", "syntax", 1, 2, ()),
    ("{: 1}", "syntax", 1, 2, ()),
    ("{a: 1 /* x", "syntax", 1, 7, ()),
    ("{a: '''x", "syntax", 1, 5, ()),
    ("{a: '''x\n", "syntax", 1, 5, ()),
]
YAML_TRAPS = [
    ("lr: 1e-5\n", "text-not-number", 1, 5, ("lr",)),
    ("a: no\n", "yaml-word", 1, 4, ("a",)),
    ("a: 017\n", "yaml-number", 1, 4, ("a",)),
    ("a: 12:30:45\n", "yaml-number", 1, 4, ("a",)),
    ("a: 2024-01-01\n", "yaml-date", 1, 4, ("a",)),
    ("a: .nan\n", "not-finite", 1, 4, ("a",)),
    ("a: " + "9" * 5000 + "\n", "huge-number", 1, 4, ("a",)),
    ("a: 0x" + "f" * 2000 + "\n", "huge-number", 1, 4, ("a",)),
    ("on: 1\n", "key-not-text", 1, 1, ("on",)),
    ("{[1]: 2}\n", "key-not-text", 1, 2, ()),
    ("a: 1\na: 2\n", "duplicate-key", 2, 1, ("a",)),
    ("a: !!python/object/apply:os.system [ls]\n", "yaml-tag", 1, 4, ("a",)),
    ("a: !!int x\n", "yaml-tag", 1, 4, ("a",)),
    ("a: 1\n---\nb: 2\n", "many-documents", 2, 1, ()),
    ("a:\n\tb: 1\n", "tab-indent", 2, 1, ()),
    ("a: &x [*x]\n", "self-reference", 1, 8, ("a",)),
    ("a: *x\n", "syntax", 1, 4, ()),
    ("a: &x 1\nb: &x 2\n", "syntax", 2, 4, ()),
    ("a: [1\n", "syntax", 2, 1, ()),
    ("a: {<<: 1}\n", "syntax", 1, 9, ("a",)),
    ('a: "\\UFFFFFFFF"\n', "syntax", 1, 1, ()),
    ("a: \x01\n", "syntax", 1, 4, ()),
    ("# nothing\n", "empty", 1, 1, ()),
    ("- 1\n", "not-an-object", 1, 1, ()),
]


@pytest.mark.parametrize(("text", "kind", "line", "column", "path"), JSON_TRAPS)
def test_json_trap(text: str, kind: str, line: int, column: int, path: tuple[str, ...]) -> None:
    problem = next(problem for problem in read_text(text, written="json").problems if problem.kind == kind)
    assert (problem.line, problem.column, problem.key_path) == (line, column, path)


@pytest.mark.parametrize(("text", "kind", "line", "column", "path"), YAML_TRAPS)
def test_yaml_trap(text: str, kind: str, line: int, column: int, path: tuple[str, ...]) -> None:
    problem = only(read_text(text, written="yaml"))
    assert (problem.kind, problem.line, problem.column, problem.key_path) == (kind, line, column, path)


def test_messages_say_what_and_where_and_what_was_expected() -> None:
    def message(text: str, written: str = "json") -> str:
        return only(read_text(text, written=written)).message  # type: ignore[arg-type]

    assert message('{"a" 1}') == "':' is expected after the key 'a', found '1'"
    assert message('{"a": ]}') == "a value is expected here, found ']'"
    assert message('{"a": 1') == "this '{' is never closed: '}' is missing"
    assert "line 1; DeepSpeed refuses" in message('{"a": 1,\n"a": 2}')
    assert "1.0e+9" in message("a: 1e9\n", "yaml")
    assert message("a: 1.5E3\n", "yaml").endswith("as in 1.5e+3")


def test_a_duplicate_names_both_places_and_the_last_counts() -> None:
    source = read_text('{"a": 1,\n "b": 0,\n "a": 2}')
    assert source.value == {"a": 2, "b": 0}
    assert only(source).related == (1, 2)
    assert source.raw(("a",)) == "2"


def test_what_came_before_an_error_is_kept() -> None:
    source = read_text('{"a": {"b": [1, {"c": 2, "d": }]}}')
    assert not source.complete
    assert source.value == {"a": {"b": [1, {"c": 2}]}}
    assert source.raw(("a", "b", 1, "c")) == "2"
    assert source.spans["a"].value.end <= len(source.text)


def test_many_alike_problems_are_cut() -> None:
    source = read_text("{" + ",".join(['"a": NaN'] * 1000) + "}")
    assert len([problem for problem in source.problems if problem.kind == "not-finite"]) == 25


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ('{"a": 1} // end', "comment"),
        ('{"a": 1,}', "trailing-comma"),
        ('{"a": [1,]}', "trailing-comma"),
        ('{"a": 1\n"b": 2}', "missing-comma"),
        ("{a: 1}", "unquoted-key"),
        ('{"a":\n x\n}', "unquoted-text"),
        ("{'a': 1}", "single-quotes"),
        ('{"a": "it\\\'s"}', "escape"),
        ("{\n\"a\": '''x'''}", "multiline-text"),
        ('"a": 1', "no-braces"),
        ('\ufeff{"a": 1}', "bom"),
        ('{"a": 1\u0662}', "number-form"),
    ],
)
def test_what_only_deepspeed_takes(text: str, kind: str) -> None:
    source = read_text(text, written="json")
    assert source.complete
    assert not source.strict_json
    assert source.first_non_strict is not None
    assert source.first_non_strict.kind == kind


# -- bytes, files, and other ways in -------------------------------------------------------------------------


def test_bytes_that_are_not_utf8() -> None:
    broken = read_bytes(b'{"a": "\xff", "b": 1}')
    assert broken.value == {"a": "\ufffd", "b": 1}
    assert (only(broken).kind, only(broken).column) == ("encoding", 8)
    wide = read_bytes('{"a": 1}'.encode("utf-16"))
    assert wide.value == {"a": 1}
    assert "encoding" in kinds(wide)
    assert kinds(read_text('{"a": "\udc80"}')) == {"encoding"}


def test_too_large_is_refused_before_it_is_parsed() -> None:
    for source in (
        read_bytes(b" " * 10_000_001),
        read_text("é" * 5_000_001),
        read_text("\n" * 100_000),
        read_text("a: 1\n" * 20_000, written="yaml"),
    ):
        assert only(source).kind == "too-large"
        assert (source.complete, source.value) == (False, {})
    assert only(read_text("[" + "1," * 100_001 + "1]")).kind == "too-many-nodes"


def test_an_alias_bomb_is_counted_before_it_is_expanded() -> None:
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    assert only(read_text("\n".join(lines), written="yaml")).kind == "too-many-nodes"


def test_merge_keys_follow_safe_load() -> None:
    text = "x: &x {a: 1, b: 1}\ny: &y {b: 2, c: 2}\nz: {<<: [*x, *y], c: 3}\nw: {d: 4, <<: *y}\n"
    source = read_text(text, written="yaml")
    assert source.value == yaml.safe_load(text)
    assert source.problems == ()


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("c.json", "a: 1\n", "hjson"),
        ("c.yaml", '{"a": 1}\n', "yaml"),
        ("c", '{"a": 1}\n', "json"),
        ("c", "# c\n{a: 1}\n", "hjson"),
        ("c", "a: 1\n", "yaml"),
        ("c", "// c\na: 1\n", "hjson"),
    ],
)
def test_the_format_comes_from_the_name_or_the_first_character(
    tmp_path: Path, name: str, text: str, expected: str
) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    source = read_source(tmp_path / name)
    assert (source.format, source.value, source.file) == (expected, {"a": 1}, str(tmp_path / name))


def test_a_missing_file_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "llama_7b.json").write_text("{}", encoding="utf-8")
    with pytest.raises(NotFound, match=r"Did you mean .*llama_7b\.json") as caught:
        read_source(tmp_path / "lama_7b.json")
    assert caught.value.nearest == (str(tmp_path / "llama_7b.json"),)
    with pytest.raises(NotFound, match="There is no folder"):
        read_source(tmp_path / "nowhere" / "x.json")
    for name in ("x\0y", "x" * 5000):
        with pytest.raises(NotFound):
            read_source(name)


def test_folders_and_unreadable_files_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnreadableFile, match="is a folder"):
        read_source(tmp_path)

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    (tmp_path / "x.json").write_text("{}", encoding="utf-8")
    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(UnreadableFile, match=r"x\.json cannot be read: Permission denied"):
        read_source(tmp_path / "x.json")


def test_text_standard_input_and_base64_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    text = '{"train_batch_size": 8}'
    assert read_source(text).value == {"train_batch_size": 8}
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    assert (read_source("-").file, read_source(base64.urlsafe_b64encode(text.encode()).decode()).file) == (
        "<stdin>",
        "<base64>",
    )
    assert read_source(base64.urlsafe_b64encode(text.encode()).decode()).value == {"train_batch_size": 8}
    for name in ("configuration", "QUJDREVGR0g=", "_____w=="):
        with pytest.raises(NotFound):
            read_source(name)


def test_a_dict_is_copied_and_made_plain() -> None:
    given_ = {
        "a": (1, 2.0),
        "b": {"c": float("inf")},
        3: None,
        "d": {1, 2},
        "e": 2**70,
        "f": True,
        "g": "\ud800",
    }
    source = read_dict(given_)  # type: ignore[arg-type]
    assert source.format == "dict"
    assert source.value == {
        "a": [1, 2.0],
        "b": {"c": "inf"},
        "<int>": None,
        "d": "<set>",
        "e": hex(2**70),
        "f": True,
        "g": "?",
    }
    assert kinds(source) == {"not-finite", "key-not-text", "not-json", "huge-number"}
    loop: dict[str, object] = {}
    loop["self"] = loop
    assert kinds(read_source(loop)) == {"too-deep"}
    assert not read_source(loop).complete
    assert kinds(read_dict({"a": [0] * 100_001})) == {"too-many-nodes"}


def test_reading_json_does_not_import_yaml() -> None:
    code = (
        "import sys; from trimtab.source import read_text; read_text('{}'); sys.exit('yaml' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# -- files that point at a configuration ---------------------------------------------------------------------


def test_an_accelerate_file_points_and_owns(tmp_path: Path) -> None:
    (tmp_path / "ds.json").write_text("{}", encoding="utf-8")
    text = (
        "distributed_type: DEEPSPEED\nmixed_precision: bf16\nnum_processes: 8\ndeepspeed_config:\n"
        "  deepspeed_config_file: ds.json\n  zero_stage: 2\n  gradient_clipping: 1.0\n"
    )
    (tmp_path / "a.yaml").write_text(text, encoding="utf-8")
    pointer = find_pointer(read_source(tmp_path / "a.yaml"))
    assert pointer is not None
    assert (pointer.kind, pointer.path, pointer.inline) == ("accelerate", tmp_path / "ds.json", None)
    assert pointer.span is not None
    assert pointer.span.line == 5
    owned = {value.key_path[-1]: value for value in pointer.owned}
    assert set(owned) == {"zero_stage", "gradient_clipping", "mixed_precision", "num_processes"}
    assert (owned["zero_stage"].value, owned["zero_stage"].owns) == (2, (("zero_optimization", "stage"),))
    assert owned["mixed_precision"].owns == (("bf16", "enabled"), ("fp16", "enabled"))
    assert owned["num_processes"].owns == ()
    assert owned["gradient_clipping"].span is not None
    assert owned["gradient_clipping"].span.line == 7


def test_an_accelerate_file_without_a_file_builds_its_own() -> None:
    pointer = find_pointer(read_text("distributed_type: DEEPSPEED\ndeepspeed_config:\n  zero_stage: 3\n"))
    assert pointer is not None
    assert (pointer.path, pointer.inline, pointer.span) == (None, None, None)
    assert [value.value for value in pointer.owned] == [3]


def test_a_trainer_file_points_and_owns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "deepspeed: conf/ds.json\nper_device_train_batch_size: 4\nlearning_rate: 1.0e-5\nbf16: true\n"
    pointer = find_pointer(read_text(text, file=str(tmp_path / "train.yaml")))
    assert pointer is not None
    assert (pointer.kind, pointer.path) == ("trainer", tmp_path / "conf/ds.json")
    assert {value.key_path: value.owns for value in pointer.owned} == {
        ("per_device_train_batch_size",): (("train_micro_batch_size_per_gpu",),),
        ("learning_rate",): (("optimizer", "params", "lr"), ("scheduler", "params", "warmup_max_lr")),
        ("bf16",): (("bf16", "enabled"),),
    }
    elsewhere = tmp_path / "work"
    (elsewhere / "conf").mkdir(parents=True)
    (elsewhere / "conf/ds.json").write_text("{}", encoding="utf-8")
    monkeypatch.chdir(elsewhere)
    found = find_pointer(read_text(text, file=str(tmp_path / "train.yaml")))
    assert found is not None
    assert found.path == Path("conf/ds.json")


def test_a_trainer_file_may_hold_the_configuration() -> None:
    pointer = find_pointer(
        read_text('{"deepspeed": {"zero_optimization": {"stage": 2}}, "adam_beta2": 0.95}')
    )
    assert pointer is not None
    assert (pointer.path, pointer.inline) == (None, ("deepspeed",))
    assert pointer.owned[0].owns == (("optimizer", "params", "betas", 1),)
    assert find_pointer(read_text('{"deepspeed": null}')) is None
    assert find_pointer(read_text("[1]")) is None


# -- properties ----------------------------------------------------------------------------------------------

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
