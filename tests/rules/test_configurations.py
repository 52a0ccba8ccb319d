"""Sound configurations: the catalogue's, and of the kinds that training tools ship."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trimtab import catalogue
from trimtab.check import check
from trimtab.schema import known_versions
from trimtab.settings import Settings

LOADERS = Path(__file__).parent.parent / "data" / "loaders"
FILES = sorted(LOADERS.iterdir())


@pytest.mark.parametrize("name", catalogue.names())
def test_the_catalogue_has_neither_errors_nor_warnings(name: str) -> None:
    report = check(name, deepspeed="0.19.8", settings=Settings())
    assert report.at_least("warning") == ()
    assert report.files == (str(catalogue.path(name)),)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.name))
def test_what_training_tools_ship_has_no_errors(file: Path) -> None:
    loader = "transformers" if file.suffix == ".json" else None
    report = check(file, deepspeed="0.19.8", loader=loader, settings=Settings())
    assert report.at_least("error") == ()


@pytest.mark.parametrize(
    "file", [file for file in FILES if file.suffix == ".json"], ids=lambda file: str(file.name)
)
def test_the_same_files_are_wrong_for_deepspeed_alone(file: Path) -> None:
    """Nobody fills their "auto" there."""
    report = check(file, deepspeed="0.19.8", loader="deepspeed", settings=Settings())
    assert {"LD001"} <= {finding.code for finding in report.at_least("error")}


@pytest.mark.parametrize("version", known_versions())
def test_every_release_can_be_judged_by(version: str) -> None:
    config = json.loads((LOADERS / "stage2_offload.json").read_text("utf-8"))
    report = check(config, deepspeed=version, loader="transformers", settings=Settings())
    assert report.version.name == version
    assert report.at_least("error") == ()


def test_one_bit_optimizers_were_refused_with_zero_before_they_were_gone() -> None:
    def codes(version: str, stage: int) -> set[str]:
        config = {
            "train_micro_batch_size_per_gpu": 1,
            "fp16": {"enabled": True},
            "optimizer": {"type": "OneBitAdam", "params": {"lr": 1e-4, "freeze_step": 10}},
            "zero_optimization": {"stage": stage},
        }
        report = check(config, deepspeed=version, settings=Settings())
        return {finding.code for finding in report.at_least("error")}

    assert codes("0.19.7", 0) == {"OP002"}
    assert codes("0.19.6", 2) == {"OP002"}
    assert codes("0.19.6", 0) == set()


def test_a_pointer_leads_to_its_file_and_brings_its_world(tmp_path: Path) -> None:
    config = {"train_batch_size": 7, "train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 2}}
    (tmp_path / "ds.json").write_text(json.dumps(config), encoding="utf-8")
    text = (
        "distributed_type: DEEPSPEED\nnum_processes: 8\ndeepspeed_config: {deepspeed_config_file: ds.json}\n"
    )
    (tmp_path / "accelerate.yaml").write_text(text, encoding="utf-8")
    report = check(tmp_path / "accelerate.yaml", deepspeed="0.19.8", settings=Settings())
    assert [(f.code, Path(f.file).name) for f in report.at_least("error")] == [("BT003", "ds.json")]
