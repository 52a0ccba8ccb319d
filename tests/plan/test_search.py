"""The search against brute force, and the laws that any plan must obey."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import pytest

from trimtab import moves
from trimtab.cluster import Cluster, Gpu, find_gpu
from trimtab.estimate import estimate
from trimtab.plan.candidates import Family, families, on_disk, plain, smaller_bucket, with_micro_batch
from trimtab.plan.contender import TIE, Contender
from trimtab.plan.counting import Arithmetic
from trimtab.plan.search import Field, search
from trimtab.plan.wishes import Wishes, make_wishes
from trimtab.units import GIB


def card(gib: float) -> Gpu:
    """An H100 with another amount of memory."""
    return dataclasses.replace(find_gpu("h100"), usable_bytes=int(gib * GIB))


def field(wishes: Wishes, cluster: Cluster) -> Field:
    return search(wishes, cluster, Arithmetic(wishes.model, wishes.sure))


def simplicity(family: Family, gpus: int) -> tuple[int, ...]:
    """Over several GPUs stage 1 is as simple as stage 0."""
    *apart, stage, more = family.complexity
    return *apart, max(stage, int(gpus > 1)), more


@pytest.mark.parametrize(
    ("model", "gib", "gpus"), [("pythia-70m", 4, 2), ("pythia-70m", 2.6, 1), ("gpt2", 6, 4)]
)
def test_the_best_is_the_best_of_all(model: str, gib: float, gpus: int) -> None:
    wishes = make_wishes(model, global_batch=4 * gpus, sequence_length=512)
    cluster = Cluster.of(card(gib), gpus)
    best = field(wishes, cluster).best()
    assert best is not None
    fitting = []
    plain_ones = (*families(wishes, cluster), *on_disk(wishes, cluster))
    lean = [smaller_bucket(family, wishes, cluster) for family in plain_ones]
    for family in (*plain_ones, *(one for one in lean if one is not None)):
        for size in moves.MOVES["micro-batch"].options(family.config, wishes.model, cluster):
            config = with_micro_batch(family, size, cluster)  # type: ignore[arg-type]
            answer = estimate(config, cluster, model=wishes.model)
            if answer.fits_probability >= wishes.sure:
                fitting.append((answer.speed.step_seconds, simplicity(family, gpus)))
    fastest = min(seconds for seconds, _ in fitting)
    assert best.step_seconds <= fastest * (1 + TIE)
    simplest = min(complexity for seconds, complexity in fitting if seconds <= fastest * (1 + TIE))
    assert simplicity(best.family, gpus) <= simplest


def test_the_search_and_the_estimate_tell_the_same_time() -> None:
    wishes = make_wishes("gpt2", global_batch=32)
    cluster = Cluster.of("a100-40gb", 4)
    for one in field(wishes, cluster).every()[::7]:
        answer = estimate(one.config, cluster, model=wishes.model)
        assert answer.speed.step_seconds == pytest.approx(one.step_seconds, rel=1e-9)


def test_more_memory_is_never_slower() -> None:
    wishes = make_wishes("gpt2", global_batch=32)
    arithmetic = Arithmetic(wishes.model, wishes.sure)
    before = float("inf")
    for gib in (3, 4, 5, 6, 8, 10, 14, 20, 30, 60, 140):
        best = search(wishes, Cluster.of(card(gib), 2), arithmetic).best()
        seconds = float("inf") if best is None else best.step_seconds
        assert seconds <= before * (1 + TIE)
        before = seconds
    assert before < float("inf")


def test_what_only_the_certainty_asked_for_rules_out_is_close_and_what_does_not_fit_is_not() -> None:
    """LLaMA 7B at stage 1 ran on one H200 with 0.3 GiB to spare (bench/data/grid_x1.jsonl)."""
    wishes = make_wishes("llama-7b", global_batch=8, sequence_length=2048)
    cluster = Cluster.of("h200", 1)
    family = next(one for one in families(wishes, cluster) if one.config.stage == 1 and one.recomputes)
    config = with_micro_batch(family, 1, cluster)
    arithmetic = Arithmetic(wishes.model, wishes.sure)
    short = arithmetic.shortfall(config, cluster)
    assert short is not None
    assert short.close
    assert estimate(config, cluster, model=wishes.model).needed.expected < short.there < short.needed
    smaller = Cluster.of(dataclasses.replace(find_gpu("h200"), usable_bytes=int(138 * GIB)), 1)
    clearly = arithmetic.shortfall(config, smaller)
    assert clearly is not None
    assert not clearly.close


def in_between(gib: float) -> tuple[Wishes, Cluster, Contender]:
    """GPT-2 on one card where keeping all activations asks for a smaller micro batch, and what is best."""
    wishes = make_wishes("gpt2", global_batch=16, sequence_length=1024)
    cluster = Cluster.of(card(gib), 1)
    best = field(wishes, cluster).best()
    assert best is not None
    return wishes, cluster, best


def test_no_more_layers_are_recomputed_than_memory_demands() -> None:
    wishes, cluster, best = in_between(6.75)
    layers = best.config.job.recomputed_layers
    assert layers is not None
    assert best.family.name == (f"recomputation-{layers}",)
    arithmetic = Arithmetic(wishes.model, wishes.sure)
    found = {}
    for count in (layers - 1, layers, layers + 1, True):
        config = with_micro_batch(best.family.recomputing(count, cluster), best.micro, cluster)
        found[count] = estimate(config, cluster, model=wishes.model)
    assert found[layers].fits_probability >= wishes.sure > found[layers - 1].fits_probability
    seconds = [one.speed.step_seconds for one in found.values()]
    assert seconds == sorted(seconds)
    assert arithmetic.quick_shortfall(best.config, cluster) is None


def test_more_memory_recomputes_fewer_layers_and_is_never_slower() -> None:
    found = [in_between(gib)[2] for gib in (6.5, 6.75, 7, 7.25, 7.5, 7.75, 8)]
    for before, after in pairwise(found):
        assert after.step_seconds <= before.step_seconds * (1 + TIE)
    some = [one.config.job.recomputed_layers for one in found if one.family.is_partial and one.micro == 4]
    assert len(some) > 2
    assert some == sorted(some, reverse=True)  # type: ignore[type-var]


def test_a_proof_that_refuses_some_layers_brings_more() -> None:
    wishes, cluster, _ = in_between(7)
    one = field(wishes, cluster)
    best = one.best()
    assert best is not None
    one.retime(best, best.step_seconds * 1.01)
    again = one.best()
    assert again is not None
    assert again.family.name == best.family.name
    one.refute(again)
    other = one.best()
    assert other is not None
    assert other.family.name != best.family.name
    assert other.step_seconds > best.step_seconds


def test_every_candidate_keeps_the_global_batch() -> None:
    wishes = make_wishes("gpt2", global_batch=48)
    cluster = Cluster.of("a100-40gb", 4)
    found = field(wishes, cluster).every()
    assert {one.config.batch(4).train for one in found} == {48}
    assert {one.micro for one in found} == {1, 2, 3, 4, 6, 12}


def test_a_batch_that_does_not_divide_has_no_candidates() -> None:
    wishes = make_wishes("gpt2", global_batch=9)
    one = field(wishes, Cluster.of("a100-40gb", 4))
    assert not one.divides
    assert one.best() is None


def test_refuted_candidates_give_way_to_smaller_ones() -> None:
    wishes = make_wishes("gpt2", global_batch=16)
    one = field(wishes, Cluster.of("a100-40gb", 2))
    first = one.best()
    assert first is not None
    seen = []
    while (best := one.best()) is not None:
        seen.append((best.family.name, best.micro, tuple(move.name for move in best.family.moves)))
        one.refute(best)
    assert len(set(seen)) == len(seen)
    assert len(seen) > 10


def test_a_measured_time_changes_the_order() -> None:
    wishes = make_wishes("gpt2", global_batch=16)
    one = field(wishes, Cluster.of("a100-40gb", 2))
    first = one.best()
    assert first is not None
    one.retime(first, first.step_seconds * 3)
    second = one.best()
    assert second is not None
    assert (second.family.name, second.micro) != (first.family.name, first.micro)


@pytest.mark.parametrize(
    ("gpu", "model", "form"),
    [("h100", "llama-7b", "bf16"), ("v100-32gb", "gpt2", "fp16"), ("t4", "t5-small", "fp32")],
)
def test_the_number_format_follows_the_card_and_the_model(gpu: str, model: str, form: str) -> None:
    assert plain(make_wishes(model), Cluster.of(gpu)).precision == form


def test_gptj_gets_the_attention_that_it_has() -> None:
    assert plain(make_wishes("gpt-j-6b"), Cluster.of("h100")).job.attention == "eager"
