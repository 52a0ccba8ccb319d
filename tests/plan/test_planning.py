"""Whole plans: limits, contradictions, proofs, and what the nearest is."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

import trimtab
from trimtab.check import check
from trimtab.cluster import Cluster, find_gpu
from trimtab.config import Config
from trimtab.errors import NotFound, UsageError
from trimtab.model import catalogue
from trimtab.plan import Plan, Proof, plan
from trimtab.plan.contender import TIE
from trimtab.plan.document import file_of, to_json
from trimtab.plan.planning import plan_for
from trimtab.plan.wishes import make_wishes
from trimtab.report.document import to_json as as_text
from trimtab.units import GIB

SMALL = {"model": "gpt2", "global_batch": 32, "alternatives": False}


def chosen_of(answer: Plan) -> tuple[str, str, float]:
    assert answer.chosen is not None, answer.broken
    bill = answer.chosen.bill
    return answer.chosen.summary, bill.cluster.gpu.name, bill.seconds_per_token


@pytest.mark.parametrize(
    ("model", "objective", "gpu", "per_node", "nodes"),
    [
        ("gpt2", "pretrain", "h100", 4, 1),
        ("llama-7b", "finetune", "a100-40gb", 8, 1),
        ("llama-7b", "lora", "rtx4090", 1, 1),
        ("bert-large", "pretrain", "v100-32gb", 8, 4),
        ("t5-base", "finetune", "t4", 2, 1),
        ("llama-70b", "pretrain", "h100", 8, 8),
    ],
)
def test_a_plan_fits_and_its_file_has_no_findings(
    model: str, objective: str, gpu: str, per_node: int, nodes: int
) -> None:
    answer = plan(
        model,
        objective=objective,
        gpu=gpu,
        gpus_per_node=per_node,
        nodes=nodes,
        tokens=10**9,
        alternatives=False,
    )
    assert answer.chosen is not None
    assert answer.chosen.estimate.fits_probability >= 0.9
    file = file_of(answer.chosen)
    found = check(file, deepspeed="0.19.8", gpu=gpu, gpus_per_node=per_node, nodes=nodes)
    assert [finding.code for finding in found.at_least("info")] == []
    assert Config.from_mapping(file) == dataclasses.replace(
        answer.chosen.config, raw=file, name="configuration"
    )
    assert model.split("-")[0] in answer.chosen.launch or objective == "pretrain"
    assert answer.why
    assert answer.considered[0].why_not is None
    assert all(row.why_not for row in answer.considered[1:])


def test_some_layers_recomputed_are_chosen_with_both_ends_named() -> None:
    small = dataclasses.replace(find_gpu("h100"), usable_bytes=7 * GIB)
    wishes = make_wishes("gpt2", global_batch=16, sequence_length=1024)
    answer = plan_for(wishes, [Cluster.of(small, 1)])
    assert answer.chosen is not None
    layers = answer.chosen.config.job.recomputed_layers
    assert layers is not None
    assert 0 < layers < 12
    assert file_of(answer.chosen)["trimtab"]["checkpoint_activations"] == layers
    assert f"{layers} layers recomputed" in answer.considered[0].summary
    said = next(text for text in answer.why if text.startswith(f"activations of {layers} layers recomputed:"))
    assert "keeping all" in said
    assert "recomputing all" in said


def test_a_larger_budget_is_never_worse() -> None:
    before = float("inf")
    for budget in (1.0, 2.0, 4.0, 8.0, 16.0, 64.0, 1000.0):
        answer = plan(**SMALL, gpu=["t4", "l4", "a100-40gb"], max_gpus=4, tokens=10**9, budget_usd=budget)
        pace = float("inf") if answer.chosen is None else chosen_of(answer)[2]
        assert pace <= before * (1 + TIE)
        before = pace
    assert before < float("inf")


def test_more_gpus_allowed_are_never_slower() -> None:
    before = float("inf")
    for most in (1, 2, 4, 8, 16):
        pace = chosen_of(plan(**SMALL, gpu="l4", max_gpus=most))[2]
        assert pace <= before * (1 + TIE)
        before = pace


def test_the_order_of_gpus_does_not_matter() -> None:
    names = ["t4", "a100-40gb", "l4"]
    one = plan(**SMALL, gpu=names, max_gpus=2)
    other = plan(**SMALL, gpu=list(reversed(names)), max_gpus=2)
    assert to_json(one) == to_json(other)


def test_the_order_of_keys_does_not_matter(tmp_path: Path) -> None:
    hf = dict(catalogue()["gpt2"]["hf"])
    answers = []
    for name, keys in (("a", list(hf)), ("b", sorted(hf, reverse=True))):
        folder = tmp_path / name / "model"
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps({key: hf[key] for key in keys}))
        answers.append(chosen_of(plan(str(folder), gpu="l4", gpus_per_node=2, global_batch=32)))
    assert answers[0] == answers[1]


def test_an_open_batch_stays_near_the_published_one() -> None:
    """LoRA's published 16 samples are not stretched over 64 GPUs."""
    answer = plan("gpt2", objective="lora", gpu="a100-40gb", max_gpus=64, alternatives=False)
    assert answer.chosen is not None
    assert answer.chosen.config.get("train_batch_size") <= 32
    assert answer.chosen.cluster.world_size <= 32


def test_objectives_of_the_search() -> None:
    machines = {"gpu": ["t4", "a100-40gb"], "max_gpus": 4}
    fastest = plan(**SMALL, **machines, optimize="fastest")
    cheapest = plan(**SMALL, **machines, optimize="cheapest")
    fewest = plan(**SMALL, **machines, optimize="fewest-gpus")
    assert chosen_of(fastest)[2] <= chosen_of(cheapest)[2]
    assert fastest.chosen
    assert cheapest.chosen
    assert fewest.chosen
    assert (cheapest.chosen.bill.usd_per_token or 0) <= (fastest.chosen.bill.usd_per_token or 0)
    assert fewest.chosen.cluster.world_size == 1


def test_most_tokens_spend_the_budget() -> None:
    answer = plan(**SMALL, gpu=["t4", "a100-40gb"], max_gpus=2, optimize="most-tokens", budget_usd=10.0)
    assert answer.chosen is not None
    assert answer.chosen.bill.usd == pytest.approx(10.0, rel=1e-3)
    twice = plan(**SMALL, gpu=["t4", "a100-40gb"], max_gpus=2, optimize="most-tokens", budget_usd=20.0)
    assert twice.chosen is not None
    assert (twice.chosen.bill.tokens or 0) >= 2 * (answer.chosen.bill.tokens or 0) - 2


def test_a_budget_that_no_plan_meets_names_the_nearest() -> None:
    answer = plan(**SMALL, gpu="a100-40gb", gpus_per_node=2, tokens=10**11, budget_usd=1.0)
    assert answer.chosen is None
    assert answer.broken[0].startswith("budget: 100B tokens cost $")
    assert answer.nearest is not None
    assert answer.nearest.change == "more money"
    assert answer.nearest.choice.estimate.fits


def test_a_deadline_too_near_names_the_nearest() -> None:
    answer = plan(**SMALL, gpu="a100-40gb", gpus_per_node=2, tokens=10**11, deadline_seconds=60.0)
    assert answer.chosen is None
    assert answer.broken[0].startswith("deadline: ")
    assert answer.nearest is not None
    assert answer.nearest.change == "more time"


def test_a_batch_that_the_world_cannot_divide_names_the_nearest() -> None:
    answer = plan("gpt2", gpu="a100-40gb", gpus_per_node=4, global_batch=30)
    assert answer.chosen is None
    assert answer.broken == ("batch: 30 samples do not divide by 4 GPUs",)
    assert answer.nearest is not None
    assert answer.nearest.choice.config.get("train_batch_size") == 28


def test_adapters_for_a_model_that_has_none_name_the_nearest() -> None:
    answer = plan("distilbert-base", gpu="t4", gpus_per_node=1, objective="lora")
    assert answer.chosen is None
    assert answer.broken[0].startswith("lora: distilbert-base")
    assert answer.nearest is not None
    assert answer.nearest.choice.config.job.lora is None


def test_what_does_not_fit_says_what_is_missing_and_what_would_do() -> None:
    answer = plan("gpt-neox-20b", gpu="rtx3090", gpus_per_node=1, objective="finetune", global_batch=8)
    assert answer.chosen is None
    assert answer.nearest is not None
    assert answer.broken[0].startswith("memory: ")
    assert "GiB" in answer.nearest.missing
    assert answer.nearest.choice.estimate.fits_probability >= 0.9
    assert all(not row.fits and row.why_not for row in answer.considered)


def test_unknown_gpus_and_counts() -> None:
    with pytest.raises(NotFound) as caught:
        plan("gpt2", gpu="a100-8gb")
    assert "a100-80gb" in caught.value.nearest
    with pytest.raises(UsageError, match="at most 4"):
        plan("gpt2", gpu="h100", gpus_per_node=8, max_gpus=4)


def refusing(*worlds: int) -> object:
    """A prover that refuses its first answers."""
    calls: list[Config] = []

    def prove(config: Config, cluster: Cluster) -> Proof:
        calls.append(config)
        fits = len(calls) not in worlds
        return Proof(how="phantom", fits=fits, fits_probability=float(fits), needed_bytes=10**9)

    return prove


def test_a_proof_that_refuses_brings_the_next_candidate() -> None:
    plain = plan(**SMALL, gpu="a100-40gb", gpus_per_node=2)
    proven = plan(**SMALL, gpu="a100-40gb", gpus_per_node=2, prove=2, prover=refusing(1))  # type: ignore[arg-type]
    assert plain.chosen
    assert proven.chosen
    assert proven.chosen.config != plain.chosen.config
    assert [one.proof.fits for one in proven.proven] == [False, True]
    assert proven.proven[1].contender.config == proven.chosen.config


def test_out_of_memory_does_not_end_the_search() -> None:
    def out_of_memory(config: Config, cluster: Cluster) -> Proof:
        return Proof(
            how="rehearsal", fits=False, fits_probability=0.0, needed_bytes=None, said="CUDA out of memory"
        )

    answer = plan(**SMALL, gpu="a100-40gb", gpus_per_node=2, prove=3, prover=out_of_memory)
    assert answer.chosen is not None
    assert len(answer.proven) == 3
    refused = [one.contender.config for one in answer.proven]
    assert answer.chosen.config not in refused


def test_measured_times_settle_the_ranking() -> None:
    """The candidate whose measured step is shortest wins, whatever was predicted."""

    def measured(config: Config, cluster: Cluster) -> Proof:
        seconds = 1e-3 if config.stage == 1 else 10.0
        return Proof(
            how="rehearsal", fits=True, fits_probability=1.0, needed_bytes=10**9, step_seconds=seconds
        )

    answer = plan(**SMALL, gpu="a100-40gb", gpus_per_node=2, prove=3, prover=measured)
    assert answer.chosen is not None
    assert answer.chosen.config.stage == 1


def test_counterfactuals_name_what_they_change() -> None:
    answer = plan("gpt2", gpu="a100-40gb", gpus_per_node=2, global_batch=32)
    changes = [one.change for one in answer.counterfactuals]
    assert changes[:3] == ["with a100-80gb", "with 4 GPUs", "with 1 GPU"]
    assert all(one.sentence for one in answer.counterfactuals)


def test_the_function_is_at_the_top() -> None:
    answer = trimtab.plan("gpt2", gpu="l4", gpus_per_node=1, global_batch=16, alternatives=False)
    assert isinstance(answer, trimtab.Plan)
    document = json.loads(as_text(to_json(answer)))
    assert document["schema_version"] == 1
    assert set(document["chosen"]) >= {"config", "estimate", "launch"}
    assert set(document["considered"][0]) >= {"summary", "fits", "step_seconds", "why_not"}


def test_layers_are_split_where_a_gpu_has_one_sample_and_nowhere_else() -> None:
    few = plan("llama-13b", gpu="b200", gpus_per_node=8, global_batch=8, alternatives=False)
    assert any("layers over" in row.summary for row in few.considered)
    assert any("share" in said for said in few.why)
    many = plan("llama-7b", gpu="h100", gpus_per_node=8, global_batch=256, alternatives=False)
    assert not any("layers over" in row.summary for row in many.considered)
    refused = plan("gpt2-xl", gpu="h100", gpus_per_node=8, global_batch=8, alternatives=False)
    assert not any("layers over" in row.summary for row in refused.considered)


def test_samples_are_spread_where_no_gpu_holds_one() -> None:
    long = plan(
        "llama-7b", gpu="h100", gpus_per_node=8, global_batch=8, sequence_length=200_000, alternatives=False
    )
    assert long.chosen is not None
    assert int(long.chosen.config.get("sequence_parallel_size", 1)) > 1
    assert any("Ulysses" in said for said in long.why)


def test_of_machines_that_are_as_fast_the_cheapest_is_taken() -> None:
    cards = ("b200", "h200")  # a step that waits for its host takes no longer on the slower card
    answer = plan("gpt2", gpu=",".join(cards), gpus_per_node=1, global_batch=8, sequence_length=128)
    alone = [plan("gpt2", gpu=card, gpus_per_node=1, global_batch=8, sequence_length=128) for card in cards]
    bills = [one.chosen.bill for one in alone if one.chosen is not None]
    faster, cheaper = (
        min(bills, key=lambda one: one.seconds_per_token),
        min(bills, key=lambda one: one.usd_per_token),
    )
    assert cheaper.seconds_per_token <= faster.seconds_per_token * (1 + TIE)
    assert answer.chosen is not None
    assert answer.chosen.bill.cluster.gpu.name == cheaper.cluster.gpu.name == "h200"
