"""The card of a ready configuration: figures beside claims, and what is not known said as such."""

from __future__ import annotations

from dataclasses import replace

import pytest

from trimtab.catalogue import Alternative, Card, Claim, Figure, card, load_config
from trimtab.report.card import card_text
from trimtab.report.console import plain

NAME = "llama_7b_single_node"


def shown(facts: Card, *, width: int = 80) -> list[str]:
    """The lines of the card as text."""
    counts = {"total": 6_738_415_616, "trainable": 6_738_415_616}
    return plain(card_text(facts, load_config(NAME), parameters=counts), width=width).splitlines()


def figure(quantity: str, value: float, how: str) -> Figure:
    return Figure(quantity=quantity, value=value, how=how, where="one H100")


def test_a_figure_stands_beside_the_claim_of_its_quantity() -> None:
    figures = (
        figure("gpu_memory_bytes", 30e9, "measured"),
        figure("gpu_memory_bytes", 29e9, "predicted"),
        figure("mfu", 0.412, "measured"),
        figure("tokens_per_second_per_gpu", 2504.4, "rehearsed"),
    )
    lines = shown(replace(card(NAME), figures=figures), width=120)
    (first,) = (line for line in lines if line.startswith("memory per GPU"))
    assert "28-32 GB per GPU" in first
    assert "30.0 GB (27.9 GiB)" in first
    assert "measured: one H100" in first
    second = lines[lines.index(first) + 1]
    assert second.strip().startswith("29.0 GB (27.0 GiB)")
    assert "predicted: one H100" in second
    assert any(line.startswith("MFU") and "41.2%" in line for line in lines)
    assert any("2,504" in line and "rehearsed: one H100" in line for line in lines)
    assert not any("no figure yet" in line for line in lines)


def test_a_claim_without_a_figure_says_so() -> None:
    lines = shown(replace(card(NAME), figures=()))
    assert any("28-32 GB per GPU" in line and "no figure yet" in line for line in lines)


@pytest.mark.parametrize(("holds", "verdict"), [(True, "true"), (False, "not so"), (None, "unproven")])
def test_a_statement_carries_its_verdict(holds: bool | None, verdict: str) -> None:
    claim = Claim(quantity="statement", claim="It flies", truth="It sails.", holds=holds, source="a log")
    text = "\n".join(shown(replace(card(NAME), claims=(claim,), figures=())))
    assert f"“It flies”: {verdict}\n    It sails.\n    a log" in text
    assert "Memory and speed" not in text


def test_what_an_alternative_sets_and_removes_is_readable() -> None:
    changes = {"bf16": None, "fp16.enabled": True}
    others = (Alternative(when="8x V100", changes=changes), Alternative(when="4 GPUs", changes={}))
    text = "\n".join(shown(replace(card(NAME), alternatives=others)))
    assert "  8x V100\n    without bf16, fp16.enabled = True\n  4 GPUs\n    as it is" in text


def test_text_in_brackets_is_text() -> None:
    claim = Claim(quantity="statement", claim="[bold]loud[/bold] :smile:", truth="[red]no", holds=False)
    text = "\n".join(shown(replace(card(NAME), claims=(claim,))))
    assert "“[bold]loud[/bold] :smile:”" in text
    assert "[red]no" in text


def test_a_narrow_terminal_loses_no_word() -> None:
    wide = " ".join(shown(card(NAME), width=200))
    narrow = shown(card(NAME), width=60)
    assert max(map(len, narrow)) <= 60
    assert sorted(" ".join(narrow).split()) == sorted(wide.split())
