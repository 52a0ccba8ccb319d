"""The pages of moves: on a terminal, and the document that holds them all."""

from __future__ import annotations

import json

import pytest

from sources import ROOT
from trimtab.cli.main import main
from trimtab.moves import MOVES
from trimtab.report.move_pages import markdown, named


def test_the_document_is_fresh_and_whole() -> None:
    text = (ROOT / "docs" / "moves.md").read_text(encoding="utf-8")
    assert text == markdown(), "docs/moves.md is stale: python scripts/make_reference.py"
    for kind in MOVES:
        assert f"\n## {kind}\n" in text


@pytest.mark.parametrize("kind", MOVES)
def test_every_kind_is_explained_by_its_name(kind: str) -> None:
    if kind != "allgather-bucket":  # it has no usual value
        assert all(move.kind == kind for move in named(kind))
        assert named(kind)


def test_explain_knows_moves(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "offload-param-cpu"]) == 0
    assert "saves   GPU memory: 2 bytes a parameter" in capsys.readouterr().out
    assert main(["explain", "micro-batch-4", "--json"]) == 0
    (move,) = json.loads(capsys.readouterr().out)["moves"]
    assert (move["name"], move["effect"], move["counted"]) == ("micro-batch-4", "same", True)
    assert main(["explain", "offload-parm-cpu"]) == 2
    assert "offload-param" in capsys.readouterr().err
