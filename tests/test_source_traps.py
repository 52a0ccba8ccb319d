"""Texts that look right and are not: what is wrong with each, and where."""

from __future__ import annotations

import pytest

from trimtab.source import Problem, Source, read_text


def only(source: Source) -> Problem:
    (problem,) = source.problems
    return problem


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
