"""The figures of the catalogue are what their proofs say, by scripts/add_figures.py."""

from __future__ import annotations

import json
import sys

import pytest

from sources import PACKAGE, ROOT

sys.path.insert(0, str(ROOT / "scripts"))
import add_figures


def proof(**changes: object) -> dict:
    row = {
        "id": "gpt2_baseline", "ok": True, "gpu": "NVIDIA H100", "world": 4, "group": "fake",
        "gib": {"end": {"peak_alloc": 2.0}}, "step_seconds": 0.5, "host_rss_gib": 1.0, "seq": 1024, "mbs": 16,
        "gas": 2, "changed": ["accumulation 4 measured as 2"], "torch": "1", "deepspeed": "2",
        "transformers": "3", "date": "2026-11-22",
    }  # fmt: skip
    return row | changes


def by_quantity(row: dict) -> dict[str, dict]:
    return {figure["quantity"]: figure for figure in add_figures.of_proof(row)}


def test_the_figures_are_those_of_the_committed_proofs() -> None:
    proofs = [json.loads(line) for line in add_figures.PROOFS.read_text("utf-8").splitlines()]
    committed = (PACKAGE / "data" / "measured.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line) for line in committed] == add_figures.figures(proofs)


def test_the_table_of_the_page_is_that_of_the_committed_proofs() -> None:
    proofs = [json.loads(line) for line in add_figures.PROOFS.read_text("utf-8").splitlines()]
    found = add_figures.TABLE.search(add_figures.PAGE.read_text("utf-8"))
    assert found is not None
    assert found[2] == add_figures.table(add_figures.figures(proofs))


def test_one_gpu_for_many_is_a_rehearsal_without_communication() -> None:
    found = by_quantity(proof())
    assert found["gpu_memory_bytes"]["value"] == 2 * 2**30
    assert found["host_memory_bytes_per_rank"]["value"] == 2**30
    assert found["tokens_per_second_per_gpu"]["value"] == 16 * 2 * 1024 / 0.5
    assert {figure["how"] for figure in found.values()} == {"rehearsed"}
    assert found["gpu_memory_bytes"]["where"] == "H100, rank 0 of 4"
    assert found["gpu_memory_bytes"]["conditions"] == "accumulation 2 of 4"
    assert found["step_seconds"]["conditions"] == "accumulation 2 of 4; without communication"


@pytest.mark.parametrize(("group", "world"), [("nccl", 4), ("single", 1)])
def test_the_whole_world_is_a_measurement(group: str, world: int) -> None:
    found = by_quantity(proof(group=group, world=world, changed=["accumulation 2 measured as 2"]))
    assert {figure["how"] for figure in found.values()} == {"measured"}
    assert found["step_seconds"]["where"] == f"{world} × H100"
    assert "conditions" not in found["step_seconds"]


def test_what_is_no_causal_model_is_counted_in_samples() -> None:
    found = by_quantity(proof(id="bert_base_finetuning"))
    assert found["samples_per_second_per_gpu"]["value"] == 64
    assert "tokens_per_second_per_gpu" not in found


def test_what_two_runs_agree_on_stands_once() -> None:
    rows = add_figures.figures([proof(), proof(step_seconds=0.6)])
    assert [row["quantity"] for row in rows].count("gpu_memory_bytes") == 1
    assert [row["quantity"] for row in rows].count("step_seconds") == 2
