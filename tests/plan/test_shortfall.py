"""What is lacking is found out no further than somebody asks."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.cluster import Cluster
from trimtab.cost.need import Need
from trimtab.plan.candidates import families, split_layers, split_samples, with_micro_batch
from trimtab.plan.counting import Arithmetic
from trimtab.plan.search import search
from trimtab.plan.shortfall import AtLeast, Needed, Shortfall, lacking, share
from trimtab.plan.wishes import make_wishes

THERE = 100


class Halved(Need):
    """A number between 0 and 1024 that is known by halves, and how often it was halved."""

    def __init__(self, truth: int) -> None:
        self.truth, self.span, self.steps = truth, (0, 1024), 0

    @property
    def expected(self) -> float:
        while self.span[0] < self.span[1]:
            self.narrow()
        return self.span[0]

    @property
    def within(self) -> tuple[float, float]:
        return self.span

    def narrow(self) -> None:
        low, high = self.span
        middle = (low + high) // 2
        self.span = (low, middle) if self.truth <= middle else (middle + 1, high)
        self.steps += 1


def short(need: Need) -> Shortfall:
    return Shortfall(
        where="GPU memory",
        there=THERE,
        need=need,
        needing=int,
        lacking=lambda size: int(size) - THERE,
    )


@given(st.lists(st.integers(0, 1024), min_size=2, max_size=8))
def test_the_order_is_that_of_what_is_needed(truths: list[int]) -> None:
    ordered = sorted((short(Halved(truth)) for truth in truths), key=share)
    assert [one.needed for one in ordered] == sorted(truths)


def test_two_are_told_apart_without_knowing_either() -> None:
    one, other = Halved(100), Halved(900)
    assert share(short(one)) < share(short(other))
    assert one.steps + other.steps <= 2


def test_equal_ones_are_equal_and_the_same_one_is_not_looked_at() -> None:
    one = short(Halved(500))
    assert Needed(one) == Needed(one)
    assert isinstance(one.need, Halved)
    assert one.need.steps == 0
    assert Needed(one) == Needed(short(Halved(500)))


@given(st.integers(0, 1024), st.integers(1, 300))
def test_a_decision_by_what_is_lacking_is_that_of_the_whole(truth: int, step: int) -> None:
    assert short(Halved(truth)).by_lack(lambda lack: lack // step) == (truth - THERE) // step


def test_nothing_is_counted_before_somebody_asks() -> None:
    counted = []

    def count() -> float:
        counted.append(1)
        return 300.0

    one = short(AtLeast(200, count))
    assert one.least_lack == 100
    assert share(lacking("GPU memory", 150, THERE)) < share(one)
    assert not counted
    assert one.by_lack(lambda lack: lack > 150)
    assert (one.needed, one.lack, one.least_lack) == (300, 200, 200)
    assert len(counted) == 1


JOBS = [
    ("llama-7b", "finetune", 1),
    ("llama-7b", "lora", 2),
    ("gpt2-large", "pretrain", 4),
    ("t5-base", "finetune", 4),
    ("bert-large", "finetune", 2),
    ("gemma-2-2b", "finetune", 4),
]


@pytest.mark.parametrize(("model", "objective", "gpus"), JOBS)
@pytest.mark.parametrize("card", ["h200", "t4"])
def test_what_is_known_early_is_no_more_than_what_is_counted(
    model: str, objective: str, gpus: int, card: str
) -> None:
    """Weights, states and what is kept, in every family: so a candidate that they rule out does not fit."""
    wishes = make_wishes(model, objective=objective, global_batch=8 * gpus, sequence_length=256)
    cluster = Cluster.of(card, gpus)
    arithmetic = Arithmetic(wishes.model, wishes.sure)
    shared = (*split_layers(wishes, cluster), *split_samples(wishes, cluster)) if gpus > 1 else ()
    for family in (*families(wishes, cluster), *shared):
        config = with_micro_batch(family, 1 if family.config.data_parallel_divisor > 1 else 8, cluster)
        least = arithmetic.states_bytes(config, gpus) + arithmetic.kept_bytes(config, cluster)
        assert least <= arithmetic.profile(config, cluster).peak


@pytest.mark.parametrize("changes", [{"optimizer.type": "SGD"}, {"bf16.bf16_optimizer_states": True}])
def test_of_other_states_than_adams_nothing_is_known_early(changes: dict[str, object]) -> None:
    wishes = make_wishes("llama-7b", global_batch=8, sequence_length=256)
    cluster = Cluster.of("h100", 1)
    config = with_micro_batch(families(wishes, cluster)[0], 8, cluster)
    arithmetic = Arithmetic(wishes.model, wishes.sure)
    assert arithmetic.early_shortfall(config, cluster) is not None
    assert arithmetic.early_shortfall(config.with_values(changes), cluster) is None


def test_what_is_ruled_out_early_lacks_as_much_as_is_counted() -> None:
    wishes = make_wishes("llama-7b", global_batch=32, sequence_length=2048)
    cluster = Cluster.of("rtx4090", 1)
    arithmetic = Arithmetic(wishes.model, wishes.sure)
    for one in search(wishes, cluster, arithmetic).every():
        early = arithmetic.early_shortfall(one.config, cluster)
        if early is not None and early.where == "GPU memory":
            peak = arithmetic.profile(one.config, cluster).peak
            counted = arithmetic.certain_shortfall(one.config, peak, cluster)
            assert counted is not None
            assert not counted.close
            assert (early.needed, early.lack) == (counted.needed, counted.lack)
            assert math.isfinite(early.need.within[1])
