"""Reading configuration texts: values and their places, bytes, files and other ways in."""

from __future__ import annotations

import base64
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from trimtab.errors import NotFound, UnreadableFile
from trimtab.source import Problem, Source, find_pointer, read_bytes, read_dict, read_source, read_text

REPOSITORY = Path(__file__).parent.parent
CONFIGS = sorted((REPOSITORY / "src/trimtab/data/configs").rglob("*.json"))


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
