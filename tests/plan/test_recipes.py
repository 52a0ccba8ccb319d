"""Starting points: every objective and kind of model has one, with a source, and sections DeepSpeed takes."""

from __future__ import annotations

import pytest

from trimtab.check import check
from trimtab.model import find_model
from trimtab.plan.recipes import recipe_for, recipe_kind
from trimtab.plan.wishes import OBJECTIVES
from trimtab.settings import Settings

KINDS = ("gated", "causal", "encoder", "encoder-decoder")
SIZES = (10**7, 10**8, 10**9, 7 * 10**9, 2 * 10**10, 7 * 10**10, 10**12)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_and_size_has_a_recipe_that_deepspeed_takes(objective: str, kind: str) -> None:
    for parameters in SIZES:
        recipe = recipe_for(objective, kind, parameters)
        assert recipe.source
        assert 1e-5 <= recipe.learning_rate <= 1e-3
        assert (recipe.batch_tokens is None) != (recipe.batch_samples is None)
        for steps in (None, 1, 50, 100_000):
            sections = recipe.sections(steps, 131_072)
            assert sections["scheduler"]["params"]["warmup_num_steps"] >= 1
            file = {"train_micro_batch_size_per_gpu": 1, "bf16": {"enabled": True}, **sections}
            found = check(file, deepspeed="0.19.8", settings=Settings()).at_least("warning")
            assert [finding.message for finding in found] == []


def test_larger_models_of_a_kind_learn_no_faster() -> None:
    for kind in ("gated", "causal"):
        rates = [recipe_for("pretrain", kind, size).learning_rate for size in SIZES]
        assert rates == sorted(rates, reverse=True)


@pytest.mark.parametrize("world", [1, 2, 3, 6, 8, 48, 1024])
def test_the_batch_divides_by_the_ranks(world: int) -> None:
    recipe = recipe_for("pretrain", "gated", 7 * 10**9)
    batch = recipe.global_batch(2048, world)
    assert batch % world == 0
    assert 0.5 <= batch * 2048 / 4_000_000 <= 2


def test_published_figures() -> None:
    llama = recipe_for("pretrain", recipe_kind(find_model("llama-7b")), 6_738_415_616)
    assert (llama.learning_rate, llama.batch_tokens, llama.warmup_steps) == (3e-4, 4_000_000, 2000)
    gpt = recipe_for("pretrain", recipe_kind(find_model("gpt2")), 124_439_808)
    assert (gpt.learning_rate, gpt.batch_tokens) == (6e-4, 500_000)
    assert gpt.warmup(None, 500_000) == 750


def test_a_short_run_warms_up_for_a_tenth_of_it() -> None:
    recipe = recipe_for("pretrain", "gated", 7 * 10**9)
    assert recipe.warmup(1000, 4_000_000) == 100
    assert recipe.warmup(250_000, 4_000_000) == 2000
