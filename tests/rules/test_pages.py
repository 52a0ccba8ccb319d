"""Every rule against its own page: it finds the example, lets the other pass, and its fix helps."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from rule_samples import checked, options_of, source_of

from trimtab.fixing import fixed
from trimtab.report.findings_text import full
from trimtab.rules.base import CODE, NAME, Rule
from trimtab.rules.registry import FAMILIES, rules
from trimtab.source import Source

GOLDEN = Path(__file__).parent.parent / "golden" / "rules"
REWRITE = bool(os.environ.get("TRIMTAB_ACCEPT_GOLDEN"))
ALL = list(rules().values())


def named(rule: Rule) -> str:
    return rule.code


@pytest.mark.parametrize("rule", ALL, ids=named)
def test_the_rule_finds_its_example(rule: Rule) -> None:
    assert [finding.code for finding in checked(rule.page.example, rule).findings][:1] == [rule.code]


@pytest.mark.parametrize("rule", ALL, ids=named)
def test_the_rule_passes_what_to_use_instead(rule: Rule) -> None:
    assert checked(rule.page.instead, rule).findings == ()


@pytest.mark.parametrize("rule", ALL, ids=named)
def test_what_to_use_instead_has_no_errors(rule: Rule) -> None:
    """Of any rule, apart from the batch size that fragments leave out."""
    errors = checked(rule.page.instead).at_least("error")
    assert {finding.code for finding in errors} - {"BT001"} == set()


@pytest.mark.parametrize("rule", ALL, ids=named)
def test_the_rule_is_rendered_as_ever(rule: Rule) -> None:
    """The finding on the example and the diff of its fix, as a reader sees them."""
    sample = rule.page.example
    text = full(checked(sample, rule))
    result = fixed(source_of(sample), options_of(sample, rule), unsafe=True)
    if result.changed:
        text += "\n" + result.diff()
    text = re.sub(
        r"\d+\.\d (?=[MGT]iB)", "#.# ", text
    )  # figures of the memory arithmetic, which has its own tests
    file = GOLDEN / f"{rule.code}.txt"
    if REWRITE:
        file.write_text(text, encoding="utf-8")
    assert file.read_text(encoding="utf-8") == text


@pytest.mark.parametrize("rule", ALL, ids=named)
def test_fixing_leaves_fewer_findings_and_then_changes_nothing(rule: Rule) -> None:
    sample = rule.page.example
    before = checked(sample, rule)
    fixable = [finding for finding in before.findings if finding.fix and finding.fix.safety != "shown"]
    result = fixed(source_of(sample), options_of(sample, rule), unsafe=True)
    assert bool(fixable) is result.changed
    if not result.changed:
        return
    again = fixed(read_again(source_of(sample), result.text), options_of(sample, rule), unsafe=True)
    assert not again.changed
    assert again.text == result.text


def read_again(source: Source, text: str) -> Source:
    from trimtab.source import read_text

    return read_text(text, file=source.file)


@pytest.mark.parametrize("rule", ALL, ids=named)
def test_the_page_is_whole(rule: Rule) -> None:
    page = rule.page
    assert CODE.fullmatch(rule.code)
    assert NAME.fullmatch(rule.name)
    assert rule.family in FAMILIES
    assert page.what.startswith("Finds ")
    assert page.what.endswith(".")
    assert page.why
    assert page.source
    has_fix = "There is no fix" not in page.fix_safety and "no automatic fix" not in page.fix_safety
    gives_fix = any(finding.fix for finding in checked(page.example, rule).findings)
    assert has_fix or not gives_fix, "a fix that the page does not speak of"


def test_codes_and_names_are_used_once() -> None:
    assert len({rule.name for rule in ALL}) == len(ALL)
    assert list(rules()) == [rule.code for rule in ALL]


def test_no_golden_file_is_left_over() -> None:
    assert {file.stem for file in GOLDEN.glob("*.txt")} == set(rules())


def test_the_families_count_without_gaps() -> None:
    for family in FAMILIES:
        numbers = [int(re.sub(r"\D", "", code)) for code in rules() if code.startswith(family)]
        assert numbers == list(range(1, len(numbers) + 1))
