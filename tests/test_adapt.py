"""Ready configurations on other machines: the guide's own variants, and what holds of every answer."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from itertools import permutations

import pytest

from trimtab import catalogue
from trimtab.adapt import Adaptation, adapt
from trimtab.adapt.search import MOST_MOVES
from trimtab.check import check
from trimtab.cluster import Cluster
from trimtab.config import Config
from trimtab.errors import RefusedConfig, UsageError
from trimtab.estimate import estimate
from trimtab.model import find_model
from trimtab.moves import find, micro_batch
from trimtab.moves.writing import global_batch
from trimtab.source import read_source, read_text

GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Row:
    """One variant: a configuration, machines, and the moves that lead there (batch steps left out)."""

    config: str
    gpu: str
    gpus_per_node: int
    nodes: int = 1
    link: str | None = None
    host_memory: int | None = None
    moves: tuple[str, ...] = ()
    alternatives: bool = False

    @property
    def cluster(self) -> Cluster:
        return Cluster.of(
            self.gpu,
            self.gpus_per_node,
            self.nodes,
            inter_link=self.link,
            host_memory_bytes=self.host_memory,
        )


ROWS = {
    "LLaMA 7B: 4x A100 80GB": Row(config="llama_7b_single_node", gpu="a100-80gb", gpus_per_node=4),
    "LLaMA 7B: 8x V100 32GB": Row(
        config="llama_7b_single_node",
        gpu="v100-32gb",
        gpus_per_node=8,
        moves=("precision-fp16", "zero-stage-3"),
    ),
    "LLaMA 13B: 4x A100 80GB": Row(config="llama_13b_zero3_offload", gpu="a100-80gb", gpus_per_node=4),
    "LLaMA 13B: 128 GB of host memory": Row(
        config="llama_13b_zero3_offload",
        gpu="a100-40gb",
        gpus_per_node=8,
        host_memory=128 * GIB,
        moves=("offload-optimizer-none",),
    ),
    "LLaMA 70B: 8 nodes": Row(
        config="llama_70b_multi_node", gpu="a100-80gb", gpus_per_node=8, nodes=8, link="infiniband-hdr"
    ),
    "LLaMA 70B: Ethernet": Row(
        config="llama_70b_multi_node",
        gpu="a100-80gb",
        gpus_per_node=8,
        nodes=4,
        link="ethernet-100g",
        alternatives=True,
    ),
    "LoRA: 4x A6000": Row(config="llama_lora_finetune", gpu="a6000", gpus_per_node=4),
    "GPT-2: one GPU": Row(config="gpt2_baseline", gpu="a100-40gb", gpus_per_node=1),
    "GPT-NeoX: 8x A100 80GB": Row(
        config="gpt_neox_20b_zero3", gpu="a100-80gb", gpus_per_node=8, alternatives=True
    ),
    "GPT-NeoX: less than 256 GB of host memory": Row(
        config="gpt_neox_20b_zero3",
        gpu="a100-40gb",
        gpus_per_node=8,
        host_memory=200 * GIB,
        moves=("offload-optimizer-nvme", "offload-param-none", "sub-group-100000000"),
    ),
    "BERT Base: V100": Row(config="bert_base_finetuning", gpu="v100-16gb", gpus_per_node=1),
    "BERT Base: A100": Row(config="bert_base_finetuning", gpu="a100-40gb", gpus_per_node=1),
    "BERT Large: 64 GPUs": Row(
        config="bert_large_pretraining", gpu="a100-40gb", gpus_per_node=8, nodes=8, link="infiniband-hdr"
    ),
    "T5 Small: 4 GPUs": Row(config="t5_small_finetuning", gpu="a100-40gb", gpus_per_node=4),
    "T5 Large: 8x A100 80GB": Row(config="t5_large_zero3", gpu="a100-80gb", gpus_per_node=8),
    "T5 XL: 2 nodes": Row(
        config="t5_xl_multi_node", gpu="a100-80gb", gpus_per_node=8, nodes=2, link="infiniband-hdr"
    ),
}


def home(name: str) -> Cluster:
    hardware = catalogue.card(name).hardware
    return Cluster.of(
        hardware.gpu,
        hardware.gpus_per_node,
        hardware.nodes,
        inter_link=hardware.inter_node_link,
        host_memory_bytes=hardware.host_memory_bytes,
    )


@cache
def adapted(row: Row) -> Adaptation:
    config = catalogue.load_config(row.config)
    return adapt(config, row.cluster, home=home(row.config), alternatives=row.alternatives)


@pytest.mark.parametrize("name", ROWS)
def test_the_guides_variants(name: str) -> None:
    """It fits, keeps the batch and the training, passes the check, and takes the moves one expects."""
    row = ROWS[name]
    answer, config = adapted(row), catalogue.load_config(row.config)
    after, found = answer.after, answer.answer
    assert after is not None
    assert found is not None
    assert found.fits_probability >= 0.9
    assert after.batch(row.cluster.world_size).train == global_batch(config, home(row.config))
    assert tuple(step.move.name for step in answer.steps if step.move.kind != "micro-batch") == row.moves
    assert all(step.move.effect == "same" or step.move.kind == "precision" for step in answer.steps)
    for key in ("optimizer", "scheduler", "gradient_clipping"):
        assert after.raw.get(key) == config.raw.get(key)
    findings = check(
        dict(after.raw),
        gpu=row.gpu,
        gpus_per_node=row.gpus_per_node,
        nodes=row.nodes,
        deepspeed="0.19.8",
        ignore=["AD003"],  # it weighs the host of the GPU's reference system, not this row's
    )
    assert [finding.code for finding in findings.at_least("warning")] == []
    again = adapt(after, row.cluster, alternatives=False)
    assert again.after is not None
    assert again.steps == ()
    assert again.after.raw == after.raw


@pytest.mark.parametrize("name", catalogue.names())
def test_the_same_machines_change_nothing(name: str) -> None:
    config = catalogue.load_config(name)
    answer = adapt(config, home(name), home=home(name), alternatives=False)
    assert answer.fits
    assert answer.steps == ()
    assert answer.after is not None
    assert answer.after.raw == config.raw


def test_a_larger_card_may_take_larger_micro_batches() -> None:
    """The guide's "double the batch" on four GPUs of 80 GB; on 40 GB for T5 Large down to 1."""
    row = ROWS["LLaMA 7B: 4x A100 80GB"]
    after = adapted(row).after
    assert after is not None
    doubled = micro_batch(8).apply(after, row.cluster)
    assert doubled.batch(4).accumulation == 4
    assert estimate(doubled, row.cluster).fits_probability >= 0.9


def test_what_would_be_faster_is_named_and_fits() -> None:
    answer = adapted(ROWS["GPT-NeoX: 8x A100 80GB"])
    names = [step.move.name for step in answer.faster]
    assert "micro-batch-16" in names
    # with parameters still on the host the engine casts its masters there in every step
    assert "offload-optimizer-none" not in names
    for step in answer.faster:
        assert step.after is not None
        assert step.before is not None
        assert step.after.fits_probability >= 0.9
        assert step.after.speed.step_seconds < step.before.speed.step_seconds


def test_the_fastest_is_faster_than_any_single_change() -> None:
    row = ROWS["GPT-NeoX: 8x A100 80GB"]
    single = adapted(row).faster
    answer = adapt(catalogue.load_config(row.config), row.cluster, home=home(row.config), fastest=True)
    assert answer.after is not None
    assert answer.answer is not None
    assert answer.after.offload_param == "none"
    assert answer.after.batch(8).train == 128
    assert answer.answer.fits_probability >= 0.9
    assert single[0].after is not None
    assert answer.answer.speed.step_seconds < single[0].after.speed.step_seconds
    assert all(step.move.effect == "same" for step in answer.steps)
    assert answer.faster == ()


def test_a_slow_network_is_answered_with_fewer_gathers() -> None:
    answer = adapted(ROWS["LLaMA 70B: Ethernet"])
    assert answer.steps == ()
    kinds = {step.move.kind: step.move.effect for step in answer.faster}
    assert kinds["micro-batch"] == "same"
    assert kinds["quantized-weights"] == "rounding"


def test_a_batch_that_does_not_split_says_what_would() -> None:
    answer = adapt(catalogue.load_config("t5_small_finetuning"), Cluster.of("a100-40gb", 3))
    assert not answer.fits
    assert answer.missing == "a global batch of 64 does not split over 3 ranks; 63 or 66 would, or 2 ranks"


def test_where_nothing_fits_the_nearest_machines_are_named() -> None:
    answer = adapt(catalogue.load_config("llama_70b_multi_node"), Cluster.of("rtx4090", 2))
    assert not answer.fits
    assert answer.missing is not None
    assert "of a node's memory, which has 64.0 GiB" in answer.missing
    assert answer.nearest
    for near in answer.nearest:
        assert near.answer.fits_probability >= 0.9


def test_gpus_share_a_sample_only_where_it_fits_none_of_them() -> None:
    block = {"model": "llama-3.1-8b", "sequence_length": 131_072, "attention": "flash"}
    raw = {
        "train_batch_size": 8,
        "train_micro_batch_size_per_gpu": 1,
        "bf16": {"enabled": True},
        "zero_optimization": {"stage": 2},
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-5}},
        "trimtab": block,
    }
    cluster = Cluster.of("h100-80gb", 8)
    answer = adapt(Config.from_mapping(raw), cluster)
    assert [step.move.name for step in answer.steps] == ["recomputation-on", "sequence-parallel-8"]
    assert answer.fits
    assert answer.after is not None
    assert answer.after.batch(8).train == 8
    assert any("cuts each sample" in note for note in answer.notes)

    eager = adapt(Config.from_mapping(raw | {"trimtab": block | {"attention": "eager"}}), cluster)
    assert {step.move.kind for step in eager.steps} >= {"attention", "sequence-parallel"}
    shorter = adapt(Config.from_mapping(raw | {"trimtab": block | {"sequence_length": 16_384}}), cluster)
    assert shorter.fits
    assert not any(step.move.kind == "sequence-parallel" for step in shorter.steps)


def test_no_fewer_moves_would_do() -> None:
    """No saving move alone, and no two of them, make the row fit that takes three."""
    row = ROWS["GPT-NeoX: less than 256 GB of host memory"]
    config = catalogue.load_config(row.config)
    model = find_model("gpt-neox-20b")
    names = ("offload-optimizer-nvme", "offload-optimizer-none", "offload-param-none", "offload-param-nvme",
             "sub-group-100000000", "reduce-bucket-50000000", "micro-batch-1", "micro-batch-2")  # fmt: skip
    for pair in [*((name,) for name in names), *permutations(names, 2)]:
        moved = config
        for move in map(find, pair):
            if move.applies(moved, model, row.cluster) is None:
                moved = move.apply(moved, row.cluster)
        assert estimate(moved, row.cluster).fits_probability < 0.9, pair
    assert len(row.moves) == 3 <= MOST_MOVES


def test_no_more_layers_are_recomputed_than_it_takes() -> None:
    config = Config.from_mapping(
        {
            "train_batch_size": 64,
            "train_micro_batch_size_per_gpu": 4,
            "bf16": {"enabled": True},
            "optimizer": {"type": "AdamW"},
            "zero_optimization": {"stage": 3},
            "trimtab": {"model": "llama-7b", "sequence_length": 2048},
        }
    )
    cluster = Cluster.of("a100-40gb", 8)
    (step,) = adapt(config, cluster).steps
    layers = step.move.value
    assert step.move.name == f"recomputation-{layers}"
    assert isinstance(layers, int)
    fewer = find(f"recomputation-{layers - 1}").apply(config, cluster)
    assert step.after is not None
    assert step.after.fits_probability >= 0.9 > estimate(fewer, cluster).fits_probability


def test_a_file_of_ones_own_keeps_its_comments() -> None:
    text = """{
  // our batch, do not touch
  "train_batch_size": 128,
  "train_micro_batch_size_per_gpu": 4, // fits the 40 GB cards
  "bf16": {"enabled": true},
  "zero_optimization": {"stage": 2}, # no offload
  "optimizer": {"type": "AdamW", "params": {"lr": 2e-5}},
  "trimtab": {"model": "llama-7b", "checkpoint_activations": true}
}
"""
    source = read_text(text)
    config = Config.from_mapping(source.mapping, name="mine.json")
    answer = adapt(config, Cluster.of("v100-32gb", 8))
    after = answer.written(source)
    assert answer.after is not None
    assert read_text(after).value == json.loads(json.dumps(answer.after.raw))
    for kept in ("// our batch, do not touch", "// fits the 40 GB cards", "# no offload"):
        assert kept in after
    assert after.index('"fp16"') < after.index('"zero_optimization"')


def test_a_plain_yaml_file_gets_a_block_that_says_all() -> None:
    text = """train_batch_size: 64
train_micro_batch_size_per_gpu: 8  # ours
bf16:
  enabled: true
zero_optimization:
  stage: 2
optimizer: {type: AdamW, params: {lr: 1.0e-4}}
"""
    source = read_text(text, written="yaml")
    config = Config.from_mapping({**source.mapping, "trimtab": {"model": "llama-7b"}})
    answer = adapt(config, Cluster.of("v100-32gb", 8), alternatives=False)
    assert answer.after is not None
    after = answer.written(source)
    assert "train_micro_batch_size_per_gpu: 8  # ours\nfp16:\n  enabled: true\n  loss_scale: 0\n" in after
    again = read_text(after, written="yaml").mapping
    assert again["trimtab"] == {"model": "llama-7b", "checkpoint_activations": True}
    assert again == answer.after.raw
    assert any("gradient_checkpointing_enable" in note for note in answer.notes)


def test_a_ready_configuration_is_written_as_it_was_but_for_the_moves() -> None:
    answer = adapted(ROWS["LLaMA 7B: 4x A100 80GB"])
    source = read_source(catalogue.path("llama_7b_single_node"))
    before, after = source.text.splitlines(), answer.written(source).splitlines()
    assert [pair for pair in zip(before, after, strict=True) if pair[0] != pair[1]] == [
        ('  "gradient_accumulation_steps": 4,', '  "gradient_accumulation_steps": 8,')
    ]


def test_a_model_that_overflows_fp16_goes_to_fp32() -> None:
    config, cluster = catalogue.load_config("t5_base_pretraining"), Cluster.of("v100-32gb", 8)
    answer = adapt(config, cluster, home=home("t5_base_pretraining"), alternatives=False)
    assert [step.move.name for step in answer.steps][:1] == ["precision-fp32"]
    assert answer.after is not None
    assert answer.after.precision == "fp32"


def test_a_file_without_a_model_or_a_batch_says_so() -> None:
    cluster = Cluster.of("a100-80gb", 1)
    with pytest.raises(UsageError, match="no model is named"):
        adapt(Config.from_mapping({"train_batch_size": 8}), cluster)
    with pytest.raises(RefusedConfig, match="train_micro_batch_size_per_gpu"):
        adapt(Config.from_mapping({"trimtab": {"model": "gpt2"}}), cluster)


def test_a_file_that_states_no_global_batch_gets_a_note() -> None:
    config = Config.from_mapping(
        {
            "train_micro_batch_size_per_gpu": 4,
            "bf16": {"enabled": True},
            "optimizer": {"type": "AdamW"},
            "trimtab": {"model": "gpt2", "sequence_length": 512},
        }
    )
    answer = adapt(config, Cluster.of("a100-80gb", 2))
    assert answer.fits
    assert "states no train_batch_size: 8 is what" in answer.notes[0]
