"""The card of a ready configuration: figures beside claims, and what is not known said as such."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from trimtab.cards import Alternative, Card, Claim, Figure
from trimtab.catalogue import card, load_config
from trimtab.report.card import card_text
from trimtab.report.console import plain

NAME = "llama_7b_single_node"


def shown(facts: Card, *, width: int = 80) -> list[str]:
    """The lines of the card as text."""
    counts = {"total": 6_738_415_616, "trainable": 6_738_415_616}
    return plain(card_text(facts, load_config(NAME), parameters=counts), width=width).splitlines()


def figure(quantity: str, value: float, how: str, **more: object) -> Figure:
    return Figure(quantity=quantity, value=value, how=how, where="one H100", **more)


def section(lines: list[str], heading: str) -> list[str]:
    """The lines under a heading of a quantity."""
    start = lines.index(f"  {heading}") + 1
    return list(itertools.takewhile(lambda line: line.startswith("    "), lines[start:]))


def test_a_figure_stands_under_the_claim_of_its_quantity() -> None:
    figures = (
        figure("gpu_memory_bytes", 30e9, "measured"),
        figure("gpu_memory_bytes", 29e9, "predicted"),
        figure("mfu", 0.412, "measured"),
        figure("tokens_per_second_per_gpu", 2504.4, "rehearsed"),
    )
    lines = shown(replace(card(NAME), figures=figures))
    claim, predicted, measured = section(lines, "memory per GPU, the most that PyTorch had allocated")
    assert claim.split()[:4] == ["28-32", "GB", "the", "guide"]
    assert predicted.split() == ["29.0", "GB", "(27.0", "GiB)", "predicted", "one", "H100"]
    assert measured.split() == ["30.0", "GB", "(27.9", "GiB)", "measured", "one", "H100"]
    assert section(lines, "MFU")[0].split() == ["41.2%", "measured", "one", "H100"]
    assert section(lines, "tokens a second per GPU")[1].split() == ["2,504", "rehearsed", "one", "H100"]
    assert not any("no figure yet" in line for line in lines)


def test_a_claim_without_a_figure_says_so() -> None:
    lines = shown(replace(card(NAME), figures=()))
    said, nothing = section(lines, "memory per GPU, the most that PyTorch had allocated")
    assert "28-32 GB" in said
    assert nothing.strip() == "no figure yet"


@pytest.mark.parametrize(
    ("value", "verdict"),
    [
        (30e9, "within 10 % of what was rehearsed"),
        (3e9, "9.3 times what was rehearsed"),
        (56e9, "0.57 times what was rehearsed"),
    ],
)
def test_the_memory_that_the_guide_claims_is_judged_by_the_same_number_of_gpus(
    value: float, verdict: str
) -> None:
    heading = "memory per GPU, the most that PyTorch had allocated"
    same = figure("gpu_memory_bytes", value, "rehearsed", world_size=8)
    other = figure("gpu_memory_bytes", 2 * value, "measured", world_size=4)
    lines = shown(replace(card(NAME), figures=(same, other)))
    assert verdict in section(lines, heading)[0]
    assert "Fewer GPUs hold larger shares" in "\n".join(lines)
    alone = section(shown(replace(card(NAME), figures=(other,))), heading)[0]
    assert alone.endswith("the guide")


@pytest.mark.parametrize(
    ("value", "gpu", "conditions", "judged"),
    [
        (2400.0, "h200", None, True),
        (2400.0, "h200", "without communication", True),
        (2400.0, "h200", "accumulation 2 of 8", False),
        (2600.0, "h200", None, False),
        (2400.0, "t4", None, False),
    ],
)
def test_a_speed_is_judged_only_where_a_faster_gpu_stays_below_it(
    value: float, gpu: str, conditions: str | None, judged: bool
) -> None:
    speed = figure("tokens_per_second_per_gpu", value, "measured", gpu=gpu, conditions=conditions)
    claim = section(shown(replace(card(NAME), figures=(speed,))), "tokens a second per GPU")[0]
    assert ("more than the faster h200 reached" in claim) == judged


def test_speeds_of_another_gpu_are_said_to_be_of_another_gpu() -> None:
    speed = figure("tokens_per_second_per_gpu", 9000.0, "measured", gpu="h200")
    step = figure("step_seconds", 1.5, "measured", gpu="h200")
    lines = shown(replace(card(NAME), figures=(speed, step)))
    assert "9,000 (1.5 s a step)" in section(lines, "tokens a second per GPU")[1]
    assert "The speeds are of h200, not of a100-40gb" in " ".join(" ".join(lines).split())
    own = replace(speed, gpu="a100-40gb")
    assert "The speeds are of" not in " ".join(shown(replace(card(NAME), figures=(own,))))


def test_a_rank_is_shown_as_a_node() -> None:
    rank = figure("host_memory_bytes_per_rank", 32e9, "rehearsed", world_size=32)
    (line,) = section(shown(replace(card(NAME), figures=(rank,))), "host memory per node")
    assert line.split("rehearsed") == ["    256 GB" + " " * 19, "  one H100; 8 ranks of 32.0 GB"]


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
