"""The check as a function: what it takes, selects and silences, and that no configuration breaks it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import trimtab
from trimtab.check import check
from trimtab.errors import NotFound, UnreadableFile, UsageError
from trimtab.rules.registry import FAMILIES, rules, selected
from trimtab.schema import load
from trimtab.settings import Settings, find_settings, read_settings

NEWEST = "0.19.8"
WRONG = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 4}, "gradient_clipping": 1.0}


def codes(*given_: Any, **options: Any) -> list[str]:
    options.setdefault("settings", Settings())
    options.setdefault("deepspeed", NEWEST)
    return [finding.code for finding in check(*given_, **options).findings if finding.severity != "info"]


# -- what it takes -----------------------------------------------------------------------------------------


def test_a_dict_a_text_a_path_and_a_name(tmp_path: Path) -> None:
    file = tmp_path / "ds.json"
    file.write_text(json.dumps(WRONG), encoding="utf-8")
    assert codes(WRONG) == codes(json.dumps(WRONG)) == codes(file) == codes(str(file)) == ["TY003"]
    assert codes("llama_7b_single_node") == []
    assert codes([WRONG, file]) == ["TY003", "TY003"]


def test_the_package_offers_it() -> None:
    assert trimtab.check is check
    assert not trimtab.check(WRONG, settings=Settings()).ok


def test_a_folder_gives_the_configurations_in_it(tmp_path: Path) -> None:
    inner = tmp_path / "configs"
    inner.mkdir()
    (inner / "ds.json").write_text(json.dumps(WRONG), encoding="utf-8")
    (inner / "package.json").write_text('{"name": "x"}', encoding="utf-8")
    (inner / "model.json").write_text("[1, 2", encoding="utf-8")
    report = check(tmp_path, deepspeed=NEWEST, settings=Settings())
    assert report.files == (str(inner / "ds.json"),)


def test_places_are_those_of_the_text() -> None:
    report = check(
        '{\n  "zero_optimization": {\n    "stage": 4\n  }\n}', deepspeed=NEWEST, settings=Settings()
    )
    finding = next(finding for finding in report.findings if finding.code == "TY003")
    assert (finding.line, finding.column, finding.end_column) == (3, 14, 15)
    assert finding.key_path == ("zero_optimization", "stage")
    assert finding.dotted == "zero_optimization.stage"


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(NotFound):
        check("no_such_file.json", settings=Settings())


@pytest.mark.parametrize(
    "options",
    [
        {"loader": "lightning"},
        {"select": ["XX"]},
        {"ignore": ["ZR999"]},
        {"model": "llama-8t"},
        {"gpu": "b52"},
    ],
)
def test_unknown_names(options: dict[str, Any]) -> None:
    with pytest.raises(NotFound):
        check(WRONG, settings=Settings(), **options)


@pytest.mark.parametrize("options", [{"nodes": 0}, {"gpus_per_node": -1}, {"deepspeed": "newest"}])
def test_options_that_make_no_sense(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        check(WRONG, settings=Settings(), **options)


def test_nobody_said_who_fills_auto() -> None:
    raw = {"train_batch_size": "auto", "zero_optimization": {"stage": 3, "reduce_bucket_size": "auto"}}
    open_, told = (
        [one for one in check(raw, settings=Settings(), loader=who).findings if one.code == "LD001"]
        for who in (None, "deepspeed")
    )
    assert ["--loader transformers" in one.message for one in open_] == [True, False]
    assert not any("--loader" in one.message for one in told)
    assert [one.fix.safety for found in (open_, told) for one in found if one.fix] == ["unsafe", "safe"]


def test_a_model_that_is_not_counted_leaves_the_rest_to_check(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text('{"model_type": "mixtral"}', encoding="utf-8")
    found = check(WRONG, settings=Settings(), model=str(config)).findings
    assert "TY003" in [one.code for one in found]


# -- selection and silence ---------------------------------------------------------------------------------


def test_selectors() -> None:
    assert {rule.code for rule in selected(["ZR"], [])} == {code for code in rules() if code[:2] == "ZR"}
    assert [rule.code for rule in selected(["ZR", "OF"], ["ZR", "OF0", "OF001"])] == []
    assert [rule.code for rule in selected(["OF001"], ["OF"])] == ["OF001"]
    assert [rule.code for rule in selected(["fp16-and-bf16"], [])] == ["PR001"]
    assert len(selected([], [])) == len(rules())
    assert {rule.family for rule in selected(["ALL"], list(FAMILIES)[1:])} == {next(iter(FAMILIES))}


def test_comments_silence_their_line() -> None:
    silent = '{"gradient_cliping": 1, // trimtab: ignore[KY002]\n "train_micro_batch_size_per_gpu": 1}'
    above = '{// trimtab: ignore[ignored-key]\n"gradient_cliping": 1,\n"train_micro_batch_size_per_gpu": 1}'
    every = '{"gradient_cliping": 1, # trimtab: ignore\n "train_micro_batch_size_per_gpu": 1}'
    other = '{"gradient_cliping": 1, // trimtab: ignore[ZR]\n "train_micro_batch_size_per_gpu": 1}'
    assert codes(silent) == codes(every) == []
    assert codes(other) == ["KY002"]
    assert codes(above) == ["KY002"]  # a comment behind a brace speaks of its own line
    assert codes(above.replace("{//", "{\n//")) == []
    assert check(silent, deepspeed=NEWEST, settings=Settings()).suppressed == 1


def test_settings_are_found_and_hold(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(
        '[tool.trimtab]\nignore = ["TY"]\nper-file-ignores = {"old/*.json" = ["KY"]}\nnodes = 2\n'
        'gpus_per_node = 8\nexclude = ["skip.json"]\n',
        encoding="utf-8",
    )
    (tmp_path / "old").mkdir()
    text = json.dumps({**WRONG, "gradient_cliping": 1})
    for name in ("a.json", "old/b.json", "skip.json"):
        (tmp_path / name).write_text(text, encoding="utf-8")
    found = find_settings(tmp_path / "old")
    assert (found.ignore, found.nodes, found.gpus_per_node) == (("TY",), 2, 8)
    assert codes(tmp_path / "a.json", settings=None) == ["KY002"]
    assert codes(tmp_path / "old" / "b.json", settings=None) == []
    report = check(tmp_path, deepspeed=NEWEST)
    assert [Path(file).name for file in report.files] == ["a.json", "b.json"]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("selekt = []", UsageError),
        ("select = 3", UsageError),
        ("nodes = 0", UsageError),
        ("model = 1", UsageError),
        ("per-file-ignores = []", UsageError),
        ("= broken", UnreadableFile),
    ],
)
def test_settings_that_are_wrong(tmp_path: Path, text: str, error: type[Exception]) -> None:
    file = tmp_path / "trimtab.toml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(error):
        read_settings(file)


# -- nothing breaks it -------------------------------------------------------------------------------------

KNOWN = sorted({part for path in load(NEWEST).paths() for part in path.split(".")})
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["auto", "cpu", "x", ""])
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KNOWN), inner, max_size=4),
    max_leaves=12,
)
often = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@often
@given(st.dictionaries(st.sampled_from(KNOWN) | st.text(max_size=5), values, max_size=6))
def test_no_configuration_raises(config: dict[str, Any]) -> None:
    for loader in ("deepspeed", "transformers"):
        check(config, deepspeed=NEWEST, loader=loader, gpus_per_node=8, nodes=2, settings=Settings())


@often
@given(st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "replace")))
def test_no_bytes_raise(data: bytes) -> None:
    from trimtab.check import check_sources
    from trimtab.judging import make_options
    from trimtab.source import read_bytes

    options = make_options(settings=Settings(), deepspeed=NEWEST)
    for name in ("x.json", "x.yaml"):
        report = check_sources([read_bytes(data, file=name)], options)
        json.dumps(report.to_dict(), allow_nan=False)


def test_a_key_with_a_dot_is_no_path() -> None:
    config = {"train_micro_batch_size_per_gpu": 1, "zero_optimization.stage": 3}
    assert codes(config) == ["KY002"]
