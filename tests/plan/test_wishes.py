"""What is left open is filled in from the model and the objective; what cannot be is refused in a line."""

from __future__ import annotations

import pytest

from trimtab.errors import NotFound, UsageError
from trimtab.job import Lora
from trimtab.plan.wishes import NothingToAdapt, make_wishes


@pytest.mark.parametrize(
    ("model", "objective", "task", "length", "target"),
    [
        ("llama-7b", "pretrain", "causal-lm", 2048, None),
        ("gpt2", "finetune", "causal-lm", 1024, None),
        ("bert-base", "pretrain", "masked-lm", 128, None),
        ("bert-base", "finetune", "sequence-classification", 128, None),
        ("t5-base", "pretrain", "span-corruption", 512, 114),
        ("t5-small", "finetune", "seq2seq-lm", 512, 128),
    ],
)
def test_defaults(model: str, objective: str, task: str, length: int, target: int | None) -> None:
    job = make_wishes(model, objective=objective).job
    assert (job.task, job.sequence_length, job.target_length) == (task, length, target)


def test_lora_names_its_modules() -> None:
    wishes = make_wishes("llama-7b", objective="lora")
    assert wishes.job.lora == Lora(r=8, lora_alpha=16, target_modules=("q_proj", "v_proj"))


@pytest.mark.parametrize(
    ("wrong", "nearest"),
    [
        ({"model": "lama-7b"}, "llama-7b"),
        ({"objective": "pretrian"}, "pretrain"),
        ({"optimize": "cheap"}, "cheapest"),
    ],
)
def test_unknown_names_bring_the_nearest(wrong: dict[str, str], nearest: str) -> None:
    with pytest.raises(NotFound) as caught:
        make_wishes(**{"model": "gpt2", **wrong})  # type: ignore[arg-type]
    assert nearest in caught.value.nearest


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"task": "masked-lm"}, "has no head for masked-lm"),
        ({"sequence_length": 2000}, "1024 positions"),
        ({"global_batch": 0}, "global batch must be above 0"),
        ({"sure": 1.0}, "between 0 and 1"),
        ({"lora": Lora()}, "--objective lora"),
        ({"optimize": "most-tokens"}, "--budget-usd or --deadline-days"),
        ({"optimize": "most-tokens", "budget_usd": 5.0, "tokens": 9}, "leave one of them out"),
        ({"kernels": "fused"}, "no kernels for gpt2"),
    ],
)
def test_what_no_training_can_have_is_refused(wrong: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        make_wishes("gpt2", **wrong)  # type: ignore[arg-type]


def test_adapters_need_modules() -> None:
    with pytest.raises(NothingToAdapt, match="distilbert"):
        make_wishes("distilbert-base", objective="lora")
    named = make_wishes("distilbert-base", objective="lora", lora=Lora(target_modules=("q_lin",)))
    assert named.job.lora is not None
