"""The edges of what fits: one step inside fits, one step outside does not."""

from __future__ import annotations

import json

import pytest

from trimtab import catalogue
from trimtab.cli.main import main
from trimtab.cluster import Cluster
from trimtab.fit import SURE, Edge, fewest_gpus, largest_micro_batch, largest_model, longest_sequence
from trimtab.model import find_model

GPT2 = catalogue.load_config("gpt2_baseline")
ONE_T4 = Cluster.of("t4", 1)


def inside_and_outside(edge: Edge) -> None:
    assert edge.answer is not None
    assert edge.beyond is not None
    assert edge.answer.fits_probability >= SURE > edge.beyond.fits_probability


def test_the_largest_micro_batch_is_an_edge() -> None:
    edge = largest_micro_batch(GPT2, ONE_T4)
    inside_and_outside(edge)
    assert edge.answer is not None
    assert edge.beyond is not None
    assert (
        edge.beyond.config.batch(1).micro == edge.answer.config.batch(1).micro + 1 == int(str(edge.value)) + 1
    )


def test_the_longest_sequence_is_an_edge_in_steps_of_128() -> None:
    small = {
        "trimtab.model": "tinyllama-1.1b",
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization.stage": 2,
    }
    edge = longest_sequence(GPT2.with_values(small), Cluster.of("a100-40gb", 2))
    inside_and_outside(edge)
    assert int(str(edge.value)) % 128 == 0


def test_no_sequence_is_longer_than_the_table_of_positions() -> None:
    edge = longest_sequence(GPT2.with_values({"train_micro_batch_size_per_gpu": 1}), Cluster.of("h200", 1))
    assert (edge.value, edge.beyond) == (1024, None)


def test_more_memory_never_takes_a_smaller_batch() -> None:
    sizes = [largest_micro_batch(GPT2, Cluster.of(gpu, 1)).value for gpu in ("t4", "a100-40gb", "h200")]
    assert sizes == sorted(sizes, key=lambda size: int(str(size)))


def test_the_fewest_gpus_of_a_sharded_job() -> None:
    config = catalogue.load_config("llama_70b_multi_node")
    edge = fewest_gpus(config, Cluster.of("a100-80gb", 8, 4))
    assert edge.value == 32


def test_the_largest_model_of_those_given() -> None:
    models = [find_model(name) for name in ("gpt2", "gpt2-medium", "gpt2-xl")]
    small = GPT2.with_values({"train_micro_batch_size_per_gpu": 4})
    edge = largest_model(small, ONE_T4, models)
    inside_and_outside(edge)
    assert edge.value in ("gpt2", "gpt2-medium")


def test_nothing_fits_is_exit_1(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["fit", "llama_7b_single_node", "--gpu", "t4", "--json"]
    assert main(arguments) == 1
    assert json.loads(capsys.readouterr().out)["value"] is None


def test_an_unknown_question_names_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "gpt2_baseline", "--find", "sequence"]) == 2
    assert "sequence-length" in capsys.readouterr().err


def test_what_is_looked_for_cannot_be_stated(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "gpt2_baseline", "--micro-batch", "4"]) == 2
    assert "--find micro-batch looks for what --micro-batch states" in capsys.readouterr().err
    assert main(["fit", "gpt2_baseline", "--find", "batch"]) == 2
    assert "it is one of micro-batch, sequence-length, gpus, model" in capsys.readouterr().err
