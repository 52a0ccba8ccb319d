"""The estimate: its contract, its answers about measured jobs, and what it refuses."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

import trimtab
from trimtab import catalogue
from trimtab.cli.main import main
from trimtab.cluster import Cluster
from trimtab.config import Config
from trimtab.errors import RefusedConfig, UnknownArchitecture, UsageError
from trimtab.estimate import estimate, to_json
from trimtab.model import Model, find_model
from trimtab.report.estimate import estimate_text
from trimtab.units import GIB

SEVEN_B = {
    "train_micro_batch_size_per_gpu": 4,
    "gradient_accumulation_steps": 1,
    "bf16": {"enabled": True},
    "zero_optimization": {"stage": 2, "overlap_comm": True, "contiguous_gradients": True},
    "optimizer": {"type": "AdamW", "params": {"lr": 1e-4}},
    "trimtab": {"model": "llama-7b", "checkpoint_activations": True},
}


def seven_b(**changes: Any) -> Config:
    return Config.from_mapping(SEVEN_B).with_values(changes)


@pytest.mark.parametrize("name", catalogue.names())
def test_every_catalogue_configuration_fits_what_it_was_made_for(name: str) -> None:
    hardware = catalogue.card(name).hardware
    cluster = Cluster.of(
        hardware.gpu,
        hardware.gpus_per_node,
        hardware.nodes,
        inter_link=hardware.inter_node_link,
        host_memory_bytes=hardware.host_memory_bytes,
    )
    answer = estimate(catalogue.load_config(name), cluster)
    assert answer.fits
    assert answer.fits_probability > 0.95
    assert answer.host_bytes_per_node.high < hardware.host_memory_bytes


@pytest.mark.parametrize(
    ("world", "checkpointing", "measured_gib"),
    [(8, True, 28.321), (8, False, 70.744), (4, True, 44.031)],
)
def test_measured_peaks_of_llama_7b(world: int, checkpointing: bool, measured_gib: float) -> None:
    config = seven_b(**{"trimtab.checkpoint_activations": checkpointing})
    answer = estimate(config, Cluster.of("h200", world))
    assert answer.peak_allocated.expected / GIB == pytest.approx(measured_gib, rel=0.001)


def test_a_job_that_ran_out_of_memory_does_not_fit() -> None:
    config = seven_b(zero_optimization={"stage": 2})
    answer = estimate(config, Cluster.of("h200", 1))
    assert answer.peak_allocated.expected / GIB == pytest.approx(138.13, rel=0.001)
    assert not answer.fits


def test_jobs_that_ran_under_a_smaller_allocator_fit_a_card_of_that_size() -> None:
    answer = estimate(seven_b(), Cluster.of("h200", 8))
    assert answer.needed.low < 38 * GIB + 1.8 * GIB
    bigger = estimate(seven_b(**{"trimtab.checkpoint_activations": False}), Cluster.of("h200", 8))
    assert bigger.needed.low < 77.5 * GIB + 1.8 * GIB


def test_host_memory_of_the_offloaded_13b() -> None:
    config = seven_b(
        **{
            "zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu", "pin_memory": True}},
            "trimtab.model": "llama-13b",
            "train_micro_batch_size_per_gpu": 2,
        }
    )
    answer = estimate(config, Cluster.of("a100-80gb", 8))
    assert answer.host_bytes_per_node.expected / 8 / GIB == pytest.approx(31.892, rel=0.02)  # made-up world


def test_the_json_contract() -> None:
    answer = to_json(estimate(seven_b(), Cluster.of("a100-40gb", 8)))
    text = json.dumps(answer, allow_nan=False)
    read = json.loads(text)
    assert read["schema_version"] == 1
    assert read["fits"] is True
    assert read["method"] == "arithmetic"
    assert read["parameters"]["total"] == read["parameters"]["trainable"] == 6_738_415_616
    gpu = read["gpu"]
    for key in ("peak_allocated_bytes", "needed_bytes"):
        assert gpu[key]["low"] <= gpu[key]["expected"] <= gpu[key]["high"]
    assert sum(part["bytes"] for part in gpu["parts"]) == gpu["peak_allocated_bytes"]["expected"]
    assert [phase["name"] for phase in gpu["phases"]] == ["init", "forward", "backward", "step"]
    later = [phase["peak_allocated_bytes"] for phase in gpu["phases"][1:]]
    assert max(later) == gpu["peak_allocated_bytes"]["expected"]
    speed = read["speed"]
    parts = (speed[f"{name}_seconds"] for name in ("compute", "communication", "offload", "host"))
    assert math.isclose(sum(parts), speed["step_seconds"]["expected"])
    assert math.isclose(speed["tokens_per_second_per_gpu"], speed["samples_per_second_per_gpu"] * 2048)
    assert 0 < speed["mfu"] < 1
    cost = read["cost"]
    assert cost["price_source"]
    assert cost["price_date"]
    hours = 1e9 / (speed["tokens_per_second_per_gpu"] * 8) / 3600
    assert math.isclose(cost["usd_per_billion_tokens"], cost["usd_per_hour"] * hours)


def test_the_public_function_is_this_one() -> None:
    assert trimtab.estimate is estimate


def test_no_model_no_estimate() -> None:
    with pytest.raises(UsageError, match="--model"):
        estimate(Config.from_mapping({"train_micro_batch_size_per_gpu": 1}), Cluster.of("t4"))


def test_a_refused_batch_gives_no_number() -> None:
    with pytest.raises(RefusedConfig, match="train_batch_size is 100"):
        estimate(seven_b(train_batch_size=100), Cluster.of("h200", 8))


def test_what_cannot_be_counted_is_said() -> None:
    config = seven_b(**{"trimtab.task": "sequence-classification"})
    with pytest.raises(UnknownArchitecture, match="not known before a run"):
        estimate(config, Cluster.of("h200", 8), model=find_model("t5-small"))


def test_an_answer_has_a_start_and_an_end() -> None:
    config = seven_b(**{"trimtab.task": "question-answering"})
    model = Model.from_hf({"model_type": "bert", "num_labels": 3}, "bert")
    with pytest.raises(UsageError, match="num_labels to 2"):
        estimate(config, Cluster.of("h200", 8), model=model)


def test_a_head_that_the_model_does_not_have() -> None:
    with pytest.raises(UsageError, match="has no head for masked-lm"):
        estimate(seven_b(**{"trimtab.task": "masked-lm"}), Cluster.of("h200", 8))


def run(*arguments: str) -> int:
    return main(["estimate", *arguments])


def test_the_command_overrides_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "ds.json"
    file.write_text(json.dumps({key: value for key, value in SEVEN_B.items() if key != "trimtab"}))
    model = tmp_path / "config.json"
    model.write_text(json.dumps({"model_type": "llama", "num_hidden_layers": 4}))
    common = [str(file), "--model", str(model), "--gpu", "h200", "--gpus-per-node", "8", "--json"]
    assert run(*common) == 0
    plain = json.loads(capsys.readouterr().out)
    assert run(*common, "--checkpoint-activations", "--sequence-length", "512", "--micro-batch", "1") == 0
    small = json.loads(capsys.readouterr().out)
    peak = "peak_allocated_bytes"
    assert small["gpu"][peak]["expected"] < plain["gpu"][peak]["expected"]
    assert small["parameters"] == plain["parameters"]
    assert run(*common, "--lora-r", "8", "--lora-targets", "q_proj,v_proj") == 0
    lora = json.loads(capsys.readouterr().out)
    assert lora["parameters"]["trainable"] == 4 * 2 * 8 * (4096 + 4096)


def test_an_encoder_without_a_stated_task_is_pre_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "ds.json"
    file.write_text(json.dumps({"train_micro_batch_size_per_gpu": 8}))
    assert run(str(file), "--model", "bert-base-uncased", "--gpu", "a100-40gb", "--json") == 0
    assert any("masked-lm" in note for note in json.loads(capsys.readouterr().out)["notes"])


def test_too_small_a_card_is_exit_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("llama_7b_single_node", "--gpu", "t4") == 1
    assert "does not fit" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["llama_7b_single_nod"], "llama_7b_single_node"),
        (["llama_7b_single_node", "--gpu", "h2000"], "h200"),
        (["llama_7b_single_node", "--model", "lama-7b"], "llama-7b"),
        (["llama_7b_single_node", "--gpus-per-node", "3"], "train_batch_size is 128"),
        (["llama_7b_single_node", "--task", "causal"], "causal-lm"),
    ],
)
def test_user_errors_are_one_line_and_exit_2(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error


def test_more_ranks_never_need_more_memory_at_stage_3() -> None:
    config = seven_b(zero_optimization={"stage": 3})
    peaks = [estimate(config, Cluster.of("h200", 8, nodes)).peak_allocated.expected for nodes in (1, 2, 4)]
    assert peaks == sorted(peaks, reverse=True)
    assert find_model("llama-7b").layers == 32


def test_samples_longer_than_the_table_of_positions_are_said() -> None:
    said = estimate(seven_b(), Cluster.of("h200", 8), model=find_model("gpt2")).warnings
    assert any("1024 positions, fewer than 2048" in text for text in said)


def test_what_is_left_out_is_said() -> None:
    model = Model.from_hf({"model_type": "llama", "quantization_config": {"bits": 4}}, "llama")
    config = seven_b(**{"optimizer.type": "Sophia"})
    said = estimate(config, Cluster.of("h200", 8), model=model).warnings
    assert any("quantization_config is left out" in text for text in said)
    assert any(text.startswith("Sophia is not known") for text in said)


def test_what_keeps_a_run_from_going_stands_in_the_json_and_under_the_verdict() -> None:
    config = seven_b(**{"trimtab.model": "gpt2"})
    answer = estimate(config, Cluster.of("v100-32gb", 8))
    assert [text.partition(" ")[0] for text in answer.warnings] == ["gpt2", "v100-32gb"]
    assert to_json(answer)["warnings"] == list(answer.warnings)
    shown = estimate_text(answer).splitlines()
    assert shown[2].startswith("warning: gpt2 has 1024 positions, fewer than 2048")
    assert "warning: v100-32gb has no bf16 arithmetic: the run needs fp16 instead" in shown


def test_a_narrow_terminal_gets_whole_figures() -> None:
    shown = estimate_text(estimate(seven_b(), Cluster.of("a100-40gb", 8)), columns=40).splitlines()
    words = [line for line in shown if "GiB  " not in line and "MiB  " not in line]
    assert max(map(len, words)) <= 40
    assert not any(line.split() and line.split()[0] in ("GiB", "s", "ms") for line in shown)
