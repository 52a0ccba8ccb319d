"""The questions of the guide: each row of its selection tables asked of the plan."""

from __future__ import annotations

import pytest

from trimtab import catalogue
from trimtab.model import find_model
from trimtab.parameters import parameters
from trimtab.plan import Plan, plan
from trimtab.plan.contender import TIE


def asked(model: str, objective: str, gpu: str, per_node: int, nodes: int = 1, **wishes: object) -> Plan:
    answer = plan(
        model,
        objective=objective,
        gpu=gpu,
        gpus_per_node=per_node,
        nodes=nodes,
        alternatives=False,
        **wishes,
    )
    if answer.chosen is not None:
        assert answer.chosen.estimate.fits_probability >= 0.9
    return answer


@pytest.mark.parametrize("name", catalogue.names())
def test_the_hardware_of_every_ready_configuration_has_a_plan(name: str) -> None:
    """The quick reference: a plan for the same job is at least as fast as the ready file, as predicted."""
    from trimtab.cluster import Cluster
    from trimtab.estimate import estimate

    config, hardware = catalogue.load_config(name), catalogue.card(name).hardware
    assert config.job.model is not None
    objective = "lora" if config.job.lora else "finetune"
    answer = plan(
        config.job.model,
        gpu=hardware.gpu,
        gpus_per_node=hardware.gpus_per_node,
        nodes=hardware.nodes,
        link=hardware.inter_node_link if hardware.nodes > 1 else None,
        host_memory_bytes=hardware.host_memory_bytes,
        objective=objective,
        task=config.job.task,
        sequence_length=config.job.sequence_length,
        target_length=config.job.target_length,
        attention=config.job.attention,
        kernels=config.job.kernels,
        lora=config.job.lora,
        global_batch=config.batch(hardware.world_size).train,
        alternatives=False,
    )
    assert answer.chosen is not None, answer.broken
    assert answer.chosen.estimate.fits_probability >= 0.9
    cluster = Cluster.of(
        hardware.gpu,
        hardware.gpus_per_node,
        hardware.nodes,
        inter_link=hardware.inter_node_link,
        host_memory_bytes=hardware.host_memory_bytes,
    )
    ready = estimate(config, cluster)
    if ready.fits_probability >= 0.9 and ready.config.precision == answer.chosen.config.precision:
        assert answer.chosen.estimate.speed.step_seconds <= ready.speed.step_seconds * (1 + TIE)


@pytest.mark.parametrize(
    ("low", "high", "models", "gpu", "per_node", "nodes"),
    [
        (0, 5e8, ("gpt2", "bert-large", "t5-small"), "a100-40gb", 4, 1),
        (5e8, 3e9, ("gpt2-xl", "t5-large", "pythia-1.4b"), "a100-40gb", 8, 1),
        (3e9, 1.35e10, ("gpt-j-6b", "llama-13b"), "a100-40gb", 8, 1),
        (1.3e10, 3e10, ("gpt-neox-20b",), "a100-80gb", 8, 2),
        (3e10, 1e11, ("llama-70b",), "a100-80gb", 8, 8),
    ],
)
def test_by_model_size(
    low: float, high: float, models: tuple[str, ...], gpu: str, per_node: int, nodes: int
) -> None:
    """The guide's hardware is enough for each size; small models need neither stage 2 nor offload."""
    for model in models:
        answer = asked(model, "finetune", gpu, per_node, nodes, global_batch=128)
        size = sum(one.numel for one in parameters(find_model(model), answer.wishes.job.task))
        assert low <= size <= high
        assert answer.chosen is not None
        assert answer.chosen.config.offload_param == "none"
        if size < 5e8:
            assert answer.chosen.config.stage <= 1
            assert answer.chosen.config.offload_optimizer == "none"


@pytest.mark.parametrize(
    ("model", "gpu", "per_node", "nodes"),
    [
        ("bert-base", "v100-32gb", 1, 1),
        ("gpt2", "a100-40gb", 1, 1),
        ("t5-small", "v100-16gb", 1, 1),
        ("llama-7b", "a100-40gb", 8, 1),
        ("gpt-j-6b", "a100-40gb", 8, 1),
        ("t5-base", "a100-40gb", 8, 1),
        ("llama-13b", "a100-80gb", 8, 1),
        ("gpt-neox-20b", "a100-80gb", 8, 1),
        ("t5-large", "a100-80gb", 8, 1),
        ("t5-3b", "a100-80gb", 8, 4),
    ],
)
def test_by_hardware(model: str, gpu: str, per_node: int, nodes: int) -> None:
    assert asked(model, "finetune", gpu, per_node, nodes, global_batch=64).chosen is not None


def test_by_training_objective() -> None:
    """Adapting takes lower rates and smaller batches than pre-training, adapters higher ones."""
    for model in ("llama-7b", "bert-base"):
        pretraining = asked(model, "pretrain", "a100-80gb", 8)
        adapting = asked(model, "finetune", "a100-80gb", 8)
        adapters = asked(model, "lora", "a100-80gb", 8)
        assert all(one.chosen for one in (pretraining, adapting, adapters))
        rates = [
            one.chosen.config.optimizer_params["lr"]
            for one in (adapting, pretraining, adapters)
            if one.chosen is not None
        ]
        assert rates[0] < rates[1]
        assert rates[0] < rates[2]
        batches = [one.chosen.config.batch(8).train for one in (adapting, pretraining) if one.chosen]
        assert batches[0] < batches[1]
        assert adapters.chosen.estimate.needed.expected < adapting.chosen.estimate.needed.expected


@pytest.mark.parametrize(
    ("budget", "wishes"),
    [
        (100.0, {"objective": "lora", "tokens": 50_000_000, "spot": True}),
        (1000.0, {"objective": "finetune", "tokens": 300_000_000}),
        (20_000.0, {"objective": "finetune", "tokens": 10_000_000_000}),
    ],
)
def test_by_budget(budget: float, wishes: dict[str, object]) -> None:
    """LLaMA-7B under $100, to $1,000 and over, counts left open."""
    answer = plan(
        "llama-7b",
        gpu=["a100-40gb", "a100-80gb"],
        max_gpus=16,
        budget_usd=budget,
        alternatives=False,
        **wishes,
    )
    assert answer.chosen is not None, answer.broken
    assert answer.chosen.bill.usd is not None
    assert answer.chosen.bill.usd <= budget


def test_nvme_only_where_memory_leaves_no_other_way() -> None:
    """The guide's fourth level: 20B on one small node with little host memory."""
    answer = asked("gpt-neox-20b", "finetune", "a100-40gb", 4, global_batch=16)
    assert answer.chosen is not None
    assert "nvme" not in (answer.chosen.config.offload_optimizer, answer.chosen.config.offload_param)
    short = plan(
        "gpt-neox-20b",
        gpu="a100-40gb",
        gpus_per_node=4,
        host_memory_bytes=250 * 2**30,
        global_batch=16,
        alternatives=False,
    )
    assert short.chosen is not None, short.broken
    assert short.chosen.config.offload_optimizer == "nvme"
