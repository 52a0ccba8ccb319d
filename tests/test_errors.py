"""The exception tree and the nearest names."""

from __future__ import annotations

import pytest

from trimtab import errors
from trimtab.errors import MissingExtra, NotFound, RunFailed, TrimtabError, nearest

TREE = {
    value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, TrimtabError)
}


def test_the_drawing_names_every_error() -> None:
    assert errors.__doc__ is not None
    for error in TREE:
        assert error.__name__ in errors.__doc__


def test_only_a_run_that_failed_answers_no() -> None:
    assert {error for error in TREE if error.exit_code != 2} == {RunFailed}
    assert RunFailed.exit_code == 1


@pytest.mark.parametrize(
    ("typed", "options", "first"),
    [
        ("a100-80", ["a100-40gb", "a100-80gb", "h200"], "a100-80gb"),
        ("A100_80GB", ["a100-40gb", "a100-80gb"], "a100-80gb"),
        ("llama7b", ["llama_70b_multi_node", "llama_7b_single_node"], "llama_7b_single_node"),
        ("zero_optimisation", ["zero_optimization", "optimizer"], "zero_optimization"),
        ("neox", ["gpt2_baseline", "gpt_neox_20b_zero3"], "gpt_neox_20b_zero3"),
    ],
)
def test_the_nearest_name_comes_first(typed: str, options: list[str], first: str) -> None:
    assert nearest(typed, options)[0] == first


def test_nothing_near_gives_nothing() -> None:
    assert list(nearest("xyzzy", ["a100-80gb", "h200"])) == []
    assert list(nearest("", ["a100-80gb"])) == []
    assert list(nearest("a100", [])) == []


def test_no_more_than_asked_for() -> None:
    assert len(nearest("llama", [f"llama_{size}b" for size in range(9)], count=2)) == 2


def test_not_found_says_what_was_meant_and_what_to_do() -> None:
    error = NotFound("GPU", "h20", ["h200", "t4"], cure="`trimtab gpus` shows all.")
    assert str(error) == "unknown GPU 'h20'. Did you mean h200? `trimtab gpus` shows all."
    assert error.nearest == ("h200",)
    assert str(NotFound("GPU", "xyzzy", ["h200"])) == "unknown GPU 'xyzzy'."


def test_a_missing_package_names_its_extra() -> None:
    assert "pip install 'trimtab[train]'" in str(MissingExtra("torch", "train", "training"))
