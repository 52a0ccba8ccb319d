"""Editing configuration texts: the value changes as asked, and nothing else does."""

from __future__ import annotations

import copy
import json
import os
import random
import stat
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from config_texts import configs, hjson_text, keys, values
from trimtab.errors import UsageError
from trimtab.source import (
    RemoveKey,
    RenameKey,
    SetValue,
    Source,
    apply_edits,
    dump_json,
    insert_key,
    read_bytes,
    read_dict,
    read_text,
    remove_key,
    rename_key,
    set_value,
    write_atomic,
)

thorough = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])

STRICT = """{
  "train_batch_size": 128,
  "zero_optimization": {
    "stage": 2,
    "offload_optimizer": {"device": "cpu", "pin_memory": true}
  },
  "betas": [0.9, 0.999],
  "empty": {}
}
"""
LOOSE = """// top
{
    # batch
    "train_batch_size": 128, // the whole
    "zero_optimization": {
        "stage": 2,
        "offload_optimizer": {"device": "cpu"} /* host */
    }, // zero
    optimizer: {
        type: AdamW
        params: {lr: 1e-4}
    }
    device: cpu # oops
    lr: auto,
    "last": [1, 2]  // end
}
"""
BLOCK = """# accelerate
compute_environment: LOCAL_MACHINE
deepspeed_config:   # ds
  # stage
  zero_stage: 2  # two
  offload_optimizer_device: none

mixed_precision: bf16
machines:
- a: 1   # one
  b: 2
- c: 3
empty:
# tail
"""


def lines_changed(before: str, after: str) -> tuple[list[str], list[str]]:
    """Lines only in ``before`` and only in ``after``, blanks at their ends stripped."""
    old, new = before.splitlines(), after.splitlines()
    return [line.strip() for line in old if line not in new], [
        line.strip() for line in new if line not in old
    ]


def set_(*path: str | int, to: Any) -> SetValue:
    return SetValue(key_path=path, value=to)


def remove(*path: str | int) -> RemoveKey:
    return RemoveKey(key_path=path)


GOLDEN = [
    (STRICT, set_("train_batch_size", to=64), ['"train_batch_size": 128,'], ['"train_batch_size": 64,']),
    (
        STRICT,
        set_("zero_optimization", "offload_param", "device", to="nvme"),
        ['"offload_optimizer": {"device": "cpu", "pin_memory": true}'],
        [
            '"offload_optimizer": {"device": "cpu", "pin_memory": true},',
            '"offload_param": {',
            '"device": "nvme"',
            "}",
        ],
    ),
    (STRICT, remove("betas"), ['"betas": [0.9, 0.999],'], []),
    (STRICT, remove("empty"), ['"betas": [0.9, 0.999],', '"empty": {}'], ['"betas": [0.9, 0.999]']),
    (STRICT, remove("betas", 0), ['"betas": [0.9, 0.999],'], ['"betas": [0.999],']),
    (STRICT, set_("betas", 1, to=0.95), ['"betas": [0.9, 0.999],'], ['"betas": [0.9, 0.95],']),
    (
        STRICT,
        set_("empty", "x", to=True),
        ['"empty": {}'],
        ['"empty": {', '"x": true', "}"],
    ),
    (
        STRICT,
        remove("zero_optimization", "offload_optimizer", "pin_memory"),
        ['"offload_optimizer": {"device": "cpu", "pin_memory": true}'],
        ['"offload_optimizer": {"device": "cpu"}'],
    ),
    (
        LOOSE,
        set_("train_batch_size", to=64),
        ['"train_batch_size": 128, // the whole'],
        ['"train_batch_size": 64, // the whole'],
    ),
    (LOOSE, set_("device", to="cuda"), ["device: cpu # oops"], ['device: "cuda" # oops']),
    (LOOSE, set_("lr", to=0.1), ["lr: auto,"], ["lr: 0.1,"]),
    (LOOSE, remove("last"), ['"last": [1, 2]  // end'], []),
    (LOOSE, remove("optimizer", "params", "lr"), ["params: {lr: 1e-4}"], ["params: {}"]),
    (
        LOOSE,
        set_("optimizer", "params", "eps", to=1e-8),
        ["params: {lr: 1e-4}"],
        ["params: {lr: 1e-4, eps: 1e-08}"],
    ),
    (LOOSE, set_("optimizer", "x", to=1), [], ["x: 1"]),
    (LOOSE, RenameKey(key_path=("optimizer", "type"), name="kind"), ["type: AdamW"], ["kind: AdamW"]),
    (LOOSE, RenameKey(key_path=("last",), name="b c"), ['"last": [1, 2]  // end'], ['"b c": [1, 2]  // end']),
    (
        LOOSE,
        remove("zero_optimization", "offload_optimizer"),
        ['"stage": 2,', '"offload_optimizer": {"device": "cpu"} /* host */'],
        ['"stage": 2'],
    ),
    (BLOCK, set_("deepspeed_config", "zero_stage", to=3), ["zero_stage: 2  # two"], ["zero_stage: 3  # two"]),
    (BLOCK, set_("deepspeed_config", "clip", to=1.0), [], ["clip: 1.0"]),
    (BLOCK, set_("deepspeed_config", "lr", to=1e-5), [], ["lr: 1.0e-05"]),
    (BLOCK, remove("deepspeed_config", "offload_optimizer_device"), ["offload_optimizer_device: none"], []),
    (BLOCK, remove("machines", 0, "a"), ["- a: 1   # one", "b: 2"], ["- b: 2"]),
    (BLOCK, remove("machines", 1), ["- c: 3"], []),
    (BLOCK, remove("machines", 1, "c"), ["- c: 3"], ["- {}"]),
    (BLOCK, set_("empty", to="no"), ["empty:"], ['empty: "no"']),
    (BLOCK, set_("empty", "a", "b", to=[1, "x"]), ["empty:"], ["empty: {a: {b: [1, x]}}"]),
    (BLOCK, set_("new", "sub", to={"k": None, "l": {}}), [], ["new:", "sub:", "k: null", "l: {}"]),
    (
        BLOCK,
        RenameKey(key_path=("mixed_precision",), name="precision"),
        ["mixed_precision: bf16"],
        ["precision: bf16"],
    ),
    (
        BLOCK,
        set_("machines", to=[]),
        ["machines:", "- a: 1   # one", "b: 2", "- c: 3"],
        ["machines: []"],
    ),
]


@pytest.mark.parametrize(("text", "edit", "gone", "come"), GOLDEN)
def test_only_the_lines_meant_change(
    text: str, edit: SetValue | RemoveKey | RenameKey, gone: list[str], come: list[str]
) -> None:
    after = apply_edits(read_text(text), [edit])
    assert lines_changed(text, after) == (gone, come)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", '{\n  "a": {\n    "b": 1\n  }\n}\n'),
        ("// why", '// why\n{\n  "a": {\n    "b": 1\n  }\n}\n'),
        ("{}", '{"a": {"b": 1}}'),
        ("{\n}\n", '{\n  "a": {\n    "b": 1\n  }\n}\n'),
        ("{\n\t// why\n}\n", '{\n\t// why\n\t"a": {\n\t\t"b": 1\n\t}\n}\n'),
        ("{ /* why */ }", '{ /* why */\n  "a": {\n    "b": 1\n  }\n}'),
        ('{"x": 1}', '{"x": 1, "a": {"b": 1}}'),
        ('{"a": null}', '{"a": {"b": 1}}'),
        ('{"a": {}, "a": {"c": 2}}', '{"a": {}, "a": {"c": 2, "b": 1}}'),
        ('{\r\n  "x": 1\r\n}\r\n', '{\r\n  "x": 1,\r\n  "a": {\r\n    "b": 1\r\n  }\r\n}\r\n'),
        ('\ufeff{"x": 1}', '\ufeff{"x": 1, "a": {"b": 1}}'),
        ("x: 1\n", 'x: 1\na: {\n  "b": 1\n}\n'),
        ("x: cpu", 'x: cpu\na: {\n  "b": 1\n}'),
        ('{\n"x": 1, // why\n}', '{\n"x": 1, // why\n"a": {\n  "b": 1\n},\n}'),
        ('{"x": 1,\n "y": 2}', '{"x": 1,\n "y": 2, "a": {"b": 1}}'),
    ],
)
def test_an_insertion_follows_the_style_around_it(before: str, after: str) -> None:
    edited = insert_key(read_text(before, written="json"), ("a",), "b", 1)
    assert read_text(edited, written="json").mapping["a"]["b"] == 1
    assert edited == after


def test_several_edits_at_once() -> None:
    edits = [
        set_("zero_optimization", "stage", to=3),
        RemoveKey(key_path=("betas",)),
        RenameKey(key_path=("train_batch_size",), name="train_micro_batch_size_per_gpu"),
        set_("bf16", to={"enabled": True}),
    ]
    after = read_text(apply_edits(read_text(STRICT), edits))
    assert after.strict_json
    assert after.value["zero_optimization"]["stage"] == 3
    assert list(after.value) == ["train_micro_batch_size_per_gpu", "zero_optimization", "empty", "bf16"]


def test_setting_a_key_that_stands_twice_leaves_one() -> None:
    source = read_text('{\n "a": 1,\n "b": 0,\n "a": 2\n}')
    assert set_value(source, ("a",), 2) == '{\n "b": 0,\n "a": 2\n}'
    assert remove_key(source, ("a",)) == '{\n "b": 0\n}'
    assert rename_key(source, ("a",), "c") == '{\n "b": 0,\n "c": 2\n}'
    assert set_value(read_text("a: 1\nb: 0\na: 2\n", written="yaml"), ("a",), 3) == "b: 0\na: 3\n"


def test_a_dict_source_comes_back_as_json() -> None:
    assert set_value(read_dict({"x": 1}), ("y",), 2) == '{\n  "x": 1,\n  "y": 2\n}\n'


@pytest.mark.parametrize(
    ("source", "edit", "message"),
    [
        (read_text("{}"), remove("a"), "has no a: 'a' is not there"),
        (read_text('{"a": 1}'), set_("a", "b", to=1), "has no a.b"),
        (read_text('{"a": [1]}'), set_("a", 5, to=1), "has no a.5"),
        (read_text('{"a": 1}'), set_(to=1), "needs a key path"),
        (read_text('{"a": 1, "b": 2}'), RenameKey(key_path=("a",), name="b"), "that key is there already"),
        (read_text('{"a": [1]}'), RenameKey(key_path=("a", 0), name="b"), "only keys can be renamed"),
        (read_text('{"a": 1}'), set_("a", to=float("nan")), "a cannot hold this value"),
        (read_text('{"a": 1}'), set_("a", to={1}), "a cannot hold this value"),
        (read_text('{"a": 1}'), set_("a", to=2**70), "a cannot be changed in <text>"),
        (read_text("a: 1\n"), set_("a", to=float("inf")), "a cannot hold this value"),
        (read_text("a: 1\n"), set_("a", to={1}), "a cannot hold this value"),
        (read_text("a: 1\n"), set_("a", to={1: 2}), "a cannot hold this value"),
        (read_text("a: &x {b: 1}\nc: *x\n"), set_("a", "b", to=2), "a.b cannot be changed in <text>"),
        (read_text("a: &x {b: 1}\nc: *x\n"), set_("c", "b", to=2), "c.b cannot be changed in <text>"),
        (read_text('{"a": '), set_("a", to=1), "cannot be read to its end"),
        (read_bytes(b'{"a": "\xff"}'), set_("a", to=1), "is not UTF-8"),
    ],
)
def test_what_cannot_be_done_is_said(
    source: Source, edit: SetValue | RemoveKey | RenameKey, message: str
) -> None:
    with pytest.raises(UsageError, match=message.replace(".", r"\.")):
        apply_edits(source, [edit])


def test_an_alias_is_replaced_and_a_merged_key_overridden() -> None:
    source = read_text("a: &x {b: 1}\nc: *x\nd:\n  <<: *x\n  e: 1\n")
    assert set_value(source, ("c",), 5) == "a: &x {b: 1}\nc: 5\nd:\n  <<: *x\n  e: 1\n"
    assert set_value(source, ("d", "b"), 2) == "a: &x {b: 1}\nc: *x\nd:\n  <<: *x\n  e: 1\n  b: 2\n"


# -- properties ----------------------------------------------------------------------------------------------


def written(value: dict[str, Any], how: str, rng: random.Random) -> str:
    if how == "json":
        return json.dumps(value, indent=rng.choice([None, 2, 4, "\t"]))
    if how == "hjson":
        return hjson_text(value, rng)
    return str(yaml.safe_dump(value, sort_keys=False, allow_unicode=True, default_flow_style=how == "flow"))


@thorough
@given(
    configs,
    st.randoms(use_true_random=False),
    values,
    keys,
    st.sampled_from(["set", "insert", "remove", "rename"]),
    st.sampled_from(["json", "hjson", "block", "flow"]),
)
def test_an_edited_text_reads_as_the_edited_value(
    value: dict[str, Any], rng: random.Random, new_value: Any, new_key: str, act: str, how: str
) -> None:
    text = written(value, how, rng)
    assume("? " not in text or how in ("json", "hjson"))  # explicit YAML keys may be refused
    source = read_text(text, written="yaml" if how in ("block", "flow") else "json")
    assert source.complete
    wanted = copy.deepcopy(source.value)
    paths = [path for path in source.spans if path]

    def at(path: tuple[str | int, ...]) -> Any:
        place = wanted
        for key in path:
            place = place[key]
        return place

    if act == "insert" or not paths:
        path = rng.choice([(), *(path for path in paths if isinstance(at(path), dict))])
        at(path)[new_key] = new_value
        edited = insert_key(source, path, new_key, new_value)
    else:
        path = rng.choice(paths)
        parent, last = at(path[:-1]), path[-1]
        if act == "set":
            parent[last] = new_value
            edited = set_value(source, path, new_value)
        elif act == "remove":
            del parent[last]
            edited = remove_key(source, path)
        else:
            assume(isinstance(last, str) and new_key not in parent)
            parent[new_key] = parent.pop(last)
            edited = rename_key(source, path, new_key)
    again = read_text(edited, written="yaml" if how in ("block", "flow") else "json")
    assert again.value == wanted
    if how == "json":
        assert json.loads(edited) == wanted
    elif how != "hjson":
        assume(not {"yaml-date", "key-not-text"} & {problem.kind for problem in source.problems})
        assert yaml.safe_load(edited) == wanted


@thorough
@given(configs, st.randoms(use_true_random=False), st.integers(0, 10**6))
def test_what_is_not_edited_stays_byte_for_byte(value: dict[str, Any], rng: random.Random, new: int) -> None:
    text = hjson_text(value, rng)
    source = read_text(text, written="json")
    paths = [path for path in source.spans if path]
    assume(paths)
    path = rng.choice(paths)
    span = source.spans[path].value
    edited = set_value(source, path, new)
    assert edited.startswith(text[: span.start])
    assert edited.endswith(text[span.end :])


@thorough
@given(configs)
def test_setting_what_is_there_changes_only_how_it_is_written(value: dict[str, Any]) -> None:
    text = json.dumps(value)
    source = read_text(text)
    for key in value:
        assert json.loads(set_value(source, (key,), value[key])) == value


# -- JSON out and files --------------------------------------------------------------------------------------


def test_dump_json_has_deepspeeds_order_and_whole_counts() -> None:
    text = dump_json(
        {
            "trimtab": {"model": "x", "sequence_length": 2048.0},
            "mine": 1,
            "gradient_clipping": 1.0,
            "optimizer": {"params": {"lr": 1.0, "betas": [0.9, 1.0]}},
            "zero_optimization": {"reduce_bucket_size": 5e8, "stage": 2.0, "sub": [{"a": []}]},
            "train_batch_size": 128.0,
        }
    )
    assert text == (
        '{\n  "train_batch_size": 128,\n  "zero_optimization": {\n    "reduce_bucket_size": 500000000,\n'
        '    "stage": 2,\n    "sub": [\n      {\n        "a": []\n      }\n    ]\n  },\n  "optimizer": {\n'
        '    "params": {\n      "lr": 1.0,\n      "betas": [0.9, 1.0]\n    }\n  },\n'
        '  "gradient_clipping": 1.0,\n  "mine": 1,\n  "trimtab": {\n'
        '    "model": "x",\n    "sequence_length": 2048\n  }\n}\n'
    )
    assert dump_json({}) == "{}\n"
    with pytest.raises(ValueError, match="not JSON compliant"):
        dump_json({"lr": float("nan")})


@thorough
@given(configs)
def test_dump_json_keeps_the_value(value: dict[str, Any]) -> None:
    assert json.loads(dump_json(value)) == value


def test_write_atomic_replaces_whole_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "c.json"
    write_atomic(target, "é\r\n")
    assert target.read_bytes() == "é\r\n".encode()
    target.chmod(0o640)
    link = tmp_path / "link.json"
    link.symlink_to(target)
    write_atomic(link, "{}")
    assert link.is_symlink()
    assert target.read_text(encoding="utf-8") == "{}"
    assert stat.S_IMODE(target.stat().st_mode) == 0o640

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="No space"):
        write_atomic(target, "other")
    assert target.read_text(encoding="utf-8") == "{}"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.json", "link.json"]


def test_write_atomic_syncs_around_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    fsync, replace = os.fsync, os.replace

    def noting_fsync(descriptor: int) -> None:
        calls.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        fsync(descriptor)

    def noting_replace(old: str, new: Path) -> None:
        calls.append("rename")
        replace(old, new)

    monkeypatch.setattr(os, "fsync", noting_fsync)
    monkeypatch.setattr(os, "replace", noting_replace)
    write_atomic(tmp_path / "c.json", "{}")
    assert calls == ["file", "rename", "folder"]
