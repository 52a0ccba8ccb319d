"""Findings in every format that another program reads."""

from __future__ import annotations

import json
import re
from xml.etree import ElementTree

import pytest

from trimtab.check import Report, check
from trimtab.report.document import to_json
from trimtab.report.findings_ci import github, gitlab, junit
from trimtab.report.findings_json import lines
from trimtab.report.findings_sarif import sarif
from trimtab.report.findings_text import concise, full
from trimtab.settings import Settings

TEXT = """{
  "train_micro_batch_size_per_gpu": 1,
  "gradient_cliping": 1.0, // 50%, "half"
  "zero_optimization": {"stage": 3, "overlap_comm": true, "stag": 1}
}"""
KEYS = {"code", "name", "severity", "message", "file", "line", "column", "key_path", "fix"}


@pytest.fixture(scope="module")
def report() -> Report:
    return check(TEXT, deepspeed="0.19.8", settings=Settings(), ignore=["CM", "PR"])


def test_the_json_has_the_fixed_keys(report: Report) -> None:
    answer = json.loads(to_json(report.to_dict()))
    assert answer["schema_version"] == 1
    assert answer["ok"] is False
    assert answer["counts"] == {"error": 1, "warning": 2, "info": 1}
    for finding in answer["findings"]:
        assert set(finding) >= KEYS
        assert finding["severity"] in ("error", "warning", "info")
    renamed = next(finding for finding in answer["findings"] if finding["code"] == "KY002")
    assert renamed["fix"]["edits"] == [
        {"action": "rename", "key_path": ["gradient_cliping"], "name": "gradient_clipping"}
    ]
    assert (renamed["line"], renamed["column"], renamed["key_path"]) == (3, 3, "gradient_cliping")


def test_json_lines_are_the_same_findings(report: Report) -> None:
    rows = [json.loads(line) for line in lines(report).splitlines()]
    assert rows == report.to_dict()["findings"]


def test_sarif_names_rules_and_places(report: Report) -> None:
    log = json.loads(sarif(report))
    run = log["runs"][0]
    assert log["version"] == "2.1.0"
    assert log["$schema"].endswith("sarif-2.1.0.json")
    ids = [rule["id"] for rule in run["tool"]["driver"]["rules"]]
    assert len(ids) == len(set(ids))
    assert len(run["results"]) == len(report.findings)
    for result, finding in zip(run["results"], report.findings, strict=True):
        assert ids[result["ruleIndex"]] == result["ruleId"] == finding.code
        assert result["level"] in ("error", "warning", "note")
        region = result["locations"][0]["physicalLocation"]["region"]
        assert (region["startLine"], region["startColumn"]) == (finding.line, finding.column)


def test_github_escapes_what_would_end_a_command(report: Report) -> None:
    rows = github(report).splitlines()
    assert len(rows) == len(report.findings)
    assert all(
        re.match(r"::(error|warning|notice) title=trimtab [A-Z]{2}\d{3} \([a-z0-9-]+\),file=", row)
        for row in rows
    )
    odd = check({"a%b\nc": 1, "train_micro_batch_size_per_gpu": 1}, settings=Settings())
    assert "%25" in github(odd)
    assert "%0A" in github(odd)


def test_gitlab_gives_each_finding_its_fingerprint(report: Report) -> None:
    rows = json.loads(gitlab(report))
    assert len({row["fingerprint"] for row in rows}) == len(report.findings)
    moved = check("\n\n" + TEXT, deepspeed="0.19.8", settings=Settings(), ignore=["CM", "PR"])
    assert [row["fingerprint"] for row in json.loads(gitlab(moved))] == [row["fingerprint"] for row in rows]


def test_junit_counts_failures(report: Report) -> None:
    suite = ElementTree.fromstring(junit(report)).find("testsuite")
    assert suite is not None
    assert suite.get("failures") == str(len(suite.findall("testcase/failure"))) == "3"
    odd = check({"a\x00<b>": 1, "train_micro_batch_size_per_gpu": 1}, settings=Settings())
    assert ElementTree.fromstring(junit(odd)) is not None


def test_concise_is_one_line_each(report: Report) -> None:
    rows = concise(report).splitlines()
    assert len(rows) == len(report.findings) + 1
    assert rows[0].startswith("<text>:3:3: warning KY002 DeepSpeed has no key 'gradient_cliping'")


def test_the_caret_stands_under_the_place(report: Report) -> None:
    block = next(block for block in full(report).split("\n\n") if "[KY002]" in block)
    source, caret = block.splitlines()[3:5]
    assert source[caret.index("^") :].startswith('"gradient_cliping"')
    assert "\x1b" not in full(report)
    assert "\x1b[33m" in full(report, colour=True)


def test_nothing_found_says_so() -> None:
    report = check("llama_7b_single_node", deepspeed="0.19.8", settings=Settings())
    assert full(report) == "Nothing found in 1 file (DeepSpeed 0.19.8).\n"
