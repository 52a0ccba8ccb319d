"""DeepSpeed's wrappers: the buffers of each, exactly, on two weights."""

from __future__ import annotations

from typing import Any

import pytest

from trimtab.cost.coordinator import AGAIN, OWNER, USE, USED, FirstPass, Gathering, Kept, Order, left_over
from trimtab.cost.engine import Engine, HalfEngine, Host, PlainEngine, Settings
from trimtab.cost.machine import Weight
from trimtab.cost.meter import PART, Meter, Storage
from trimtab.cost.sharded_optimizer import ShardedOptimizer, WideOptimizer
from trimtab.cost.sharded_parameters import ShardedParameters
from trimtab.cost.wrappers import engine_for

LARGE, SMALL = 3 * 2**20, 2**20
P = LARGE + SMALL
N = 4
BUCKET = 2**19


def settings(**given: Any) -> Settings:
    defaults: dict[str, Any] = {
        "stage": 0,
        "ranks": N,
        "accumulation": 1,
        "precision": "bf16",
        "gradient_type": "bf16",
        "communication_type": given.get("precision", "bf16"),
        "moments": 2,
        "offload_optimizer": "none",
        "offload_param": "none",
        "overlap_comm": False,
        "contiguous_gradients": True,
        "reduce_scatter": True,
        "reduce_bucket": BUCKET,
        "sub_group": 10**9,
        "hpz": 1,
        "pin_memory": True,
        "pin_parameters": False,
    }
    gathering = Gathering(
        prefetch_bucket=0,
        persistence_threshold=0,
        model_persistence_threshold=0,
        max_live=10**9,
        max_reuse_distance=0,
    )
    asked = {name: given.pop(name) for name in Gathering._fields if name in given}
    return Settings(**{**defaults, **given, "gathering": gathering._replace(**asked)})


def weights(item: int = 2, *, frozen: bool = False) -> list[Weight]:
    return [
        Weight("large", LARGE, item, 0, 1024, not frozen),
        Weight("small", SMALL, item, 1, 1024),
    ]


def started(given: Settings, parameters: list[Weight] | None = None) -> Engine:
    engine = engine_for(Meter(), parameters or weights(given.item), given)
    engine.build(engine.weights)
    engine.initialize()
    return engine


def train(engine: Engine) -> None:
    """One micro step at a boundary, and the optimizer's step."""
    engine.begin_micro(boundary=True)
    for weight in reversed(engine.trainable):
        engine.before_use((weight.index,))
        engine.on_gradient(weight, engine.new(weight.bytes, "gradients"))
        engine.after_use((weight.index,))
    engine.end_backward()
    engine.step()


FP32 = {"gradient_type": "fp32", "precision": "fp32"}
CASES = [
    # settings, wrapper, after initialize, its peak, after a step
    ({**FP32}, PlainEngine, 4 * P, 4 * P, 12 * P),
    ({}, HalfEngine, 14 * P, 18 * P, 14 * P),
    ({"stage": 1}, ShardedOptimizer, 2 * P + 4 * P // N, 4 * P, 2 * P + 12 * P // N),
    ({"stage": 2}, ShardedOptimizer, 2 * P + 4 * P // N, 4 * P, 2 * P + 12 * P // N),
    (
        {"stage": 1, "gradient_type": "fp32"},
        WideOptimizer,
        6 * P + 4 * P // N,
        6 * P + 4 * P // N,
        6 * P + 12 * P // N,
    ),
    (
        {"stage": 3},
        ShardedParameters,
        8 * P // N + 2 * BUCKET,
        8 * P // N + 2 * BUCKET + 2 * LARGE,  # every parameter is gathered for a moment
        16 * P // N + 2 * BUCKET,
    ),
    (
        {"stage": 2, "offload_optimizer": "cpu"},
        ShardedOptimizer,
        2 * P + 2 * LARGE,
        4 * P,
        2 * P + 2 * LARGE,
    ),
    (
        {"stage": 3, "offload_optimizer": "cpu", "offload_param": "cpu"},
        ShardedParameters,
        2 * BUCKET,
        2 * BUCKET + 2 * LARGE,
        2 * BUCKET,
    ),
]


@pytest.mark.parametrize(("given", "wrapper", "initialized", "peak", "stepped"), CASES)
def test_bytes_of_each_wrapper(
    given: dict[str, Any], wrapper: type[Engine], initialized: int, peak: int, stepped: int
) -> None:
    engine = started(settings(**given))
    assert type(engine) is wrapper
    assert engine.meter.live == initialized
    assert engine.meter.peak == peak
    train(engine)
    assert engine.meter.live == stepped
    train(engine)
    assert engine.meter.live == stepped


def test_parts_of_stage_2() -> None:
    engine = started(settings(stage=2))
    train(engine)
    parts = engine.meter.parts
    assert parts[PART["parameters"]] == 2 * P
    assert parts[PART["master weights"]] == 4 * P // N
    assert parts[PART["optimizer states"]] == 8 * P // N
    assert parts[PART["buckets"]] == parts[PART["gradients"]] == 0


def test_overlap_doubles_the_bucket_of_stage_2() -> None:
    filled = {}
    for overlap in (False, True):
        engine = started(settings(stage=2, overlap_comm=overlap))
        engine.on_gradient(engine.weights[1], engine.new(2 * SMALL, "gradients"))
        filled[overlap] = engine.meter.parts[PART["buckets"]]
    assert filled == {False: 2 * BUCKET, True: 4 * BUCKET}


def test_frozen_weights_have_no_states() -> None:
    engine = started(settings(stage=2), weights(frozen=True))
    train(engine)
    assert engine.meter.live == 2 * P + 12 * SMALL // N


def test_moments_count_what_the_optimizer_keeps() -> None:
    for moments in (0, 1, 2):
        engine = started(settings(stage=1, moments=moments))
        train(engine)
        assert engine.meter.parts[PART["optimizer states"]] == 4 * moments * P // N


def test_small_parameters_stay_gathered_at_stage_3() -> None:
    given = settings(stage=3, persistence_threshold=SMALL, model_persistence_threshold=10**9)
    engine = started(given)
    train(engine)
    assert engine.meter.parts[PART["gathered parameters"]] == 2 * SMALL


def test_a_secondary_copy_lies_within_the_node() -> None:
    engine = started(settings(stage=3, ranks=8, hpz=4))
    assert engine.meter.parts[PART["parameters"]] == 2 * P // 8 + 2 * P // 4


def test_sub_groups_close_once_they_reach_their_size() -> None:
    engine = started(settings(stage=3, sub_group=LARGE // N))
    assert isinstance(engine, ShardedParameters)
    assert engine.sub_groups == [LARGE // N, SMALL // N]


def test_offloaded_states_are_on_the_host() -> None:
    engine = started(settings(stage=2, offload_optimizer="cpu"))
    parts = engine.host.parts
    assert parts["master weights"] == 4 * P // N
    assert parts["optimizer states"] == 8 * P // N
    nvme = started(settings(stage=3, offload_optimizer="nvme", offload_param="nvme"))
    assert nvme.nvme_bytes == 16 * P // N + 2 * P // N


def test_pinned_memory_comes_in_powers_of_two() -> None:
    host = Host()
    host.add("a", 2**20 + 1, pinned=True)
    host.add("a", 2**20 + 1, pinned=False)
    assert host.parts == {"a": 2**21 + 2**20 + 1}
    assert host.total == host.parts["a"]


def test_buckets_are_reduced_when_full_and_gradients_leave() -> None:
    engine = started(settings(stage=2, reduce_bucket=LARGE))
    assert isinstance(engine, ShardedOptimizer)
    gradient = Storage(engine.meter, 2 * SMALL, PART["gradients"])
    engine.on_gradient(engine.weights[1], gradient)
    del gradient
    assert engine.meter.parts[PART["gradients"]] == 0  # copied into the bucket
    engine.on_gradient(engine.weights[0], engine.new(2 * LARGE, "gradients"))
    engine.end_backward()
    assert engine.meter.parts[PART["buckets"]] == 0
    assert engine.meter.parts[PART["gradients"]] == 2 * LARGE  # rank 0's partition touches the first weight


def test_norms_are_of_what_lies_in_the_partition() -> None:
    """Rank 0 of two has the small parameter and a third of the large one, whose norm is the largest."""
    parameters = [Weight("small", SMALL, 2, 0, 1024), Weight("large", LARGE, 2, 1, 1024)]
    engine = started(settings(stage=2, ranks=2), parameters)
    train(engine)
    before, partition = engine.meter.live, (SMALL + LARGE) // 2
    engine.meter.reset_peak()
    engine.step()
    assert 8 * (partition - SMALL) < engine.meter.peak - before == (2 + 4) * partition < 8 * partition


def test_a_gathered_group_lives_until_all_of_it_was_asked_for() -> None:
    sizes = {"first": SMALL, "second": SMALL, "third": SMALL}
    parameters = [Weight(name, numel, 2, index) for index, (name, numel) in enumerate(sizes.items())]
    given = settings(stage=3, prefetch_bucket=10**9, max_reuse_distance=0)
    engine = started(given, parameters)
    gathered = {}
    for complete in (False, True):  # the first micro step records the order of uses
        engine.begin_micro(boundary=True)
        for weight in parameters:
            engine.before_use((weight.index,))
            gathered[complete, weight.name] = engine.meter.parts[PART["gathered parameters"]] // (2 * SMALL)
            engine.after_use((weight.index,))
    assert [gathered[False, name] for name in sizes] == [1, 1, 1]
    # itself and the others in flight; their copies too, while the third still waits; the third alone
    assert [gathered[True, name] for name in sizes] == [3, 4, 1]


def test_an_oversized_gradient_is_cloned_in_the_type_that_accumulates() -> None:
    given = settings(stage=1, gradient_type="fp32", offload_optimizer="cpu", reduce_scatter=False)
    engine = started(given)
    engine.begin_micro(boundary=True)
    for weight in reversed(engine.trainable):
        engine.on_gradient(weight, engine.new(weight.bytes, "gradients"))
    engine.meter.reset_peak()
    before = engine.meter.live
    engine.end_backward()
    assert engine.meter.peak - before >= 4 * LARGE


def test_the_first_ordered_pass_decides_for_good_what_stays() -> None:
    engine = started(settings(stage=3, max_reuse_distance=10**9))
    assert isinstance(engine, ShardedParameters)
    heard = tuple((kind, (index,)) for index in (0, 1, 1, 0) for kind in (USE, USED))
    engine.learn(Order(heard, (LARGE, SMALL)))
    engine.kept = Kept({(1, 0): False})
    for _ in range(2):
        engine.begin_micro(boundary=True)
        engine.before_use((0,))
        engine.after_use((0,))
        assert 0 not in engine.gathered
        engine.before_use((1,))
        engine.after_use((1,))
        assert 1 in engine.gathered
        engine.end_backward()


def test_what_is_frozen_stays_for_whoever_had_it_recomputed() -> None:
    engine = started(settings(stage=3), weights(frozen=True))
    assert isinstance(engine, ShardedParameters)
    engine.begin_micro(boundary=True)
    for index in (0, 1):
        engine.before_use((index,), again=True)
        engine.after_use((index,))
    assert set(engine.gathered) == {0}  # of two weights the one that does not train
    engine.after_owner()
    assert not engine.gathered
    engine.before_use((0,))
    engine.after_use((0,))
    assert not engine.gathered


def test_what_was_recomputed_for_a_layer_and_is_persistent_stays_after_a_pass_without_order() -> None:
    it, none, frozen = (0,), (), frozenset({0})
    last = {True: ((USED, it), (OWNER, none)), False: ((OWNER, none), (USED, it))}
    for owner_is_a_layer, ending in last.items():
        heard = ((AGAIN, it), (USED, it), (USE, it), *ending)
        first = FirstPass(frozen, untrained=frozen)
        for kind, indices in heard:
            first.hear(kind, indices)
        assert first.gathered == ({0} if owner_is_a_layer else set())
        assert left_over(Order(heard, (SMALL,)), frozen, frozen) == first.gathered


def test_a_view_outlives_what_the_engine_lets_go() -> None:
    engine = started(settings(stage=3))
    part = PART["gathered parameters"]
    engine.begin_micro(boundary=True)
    engine.before_use((0,))
    engine.on_view(0)
    engine.after_use((0,))
    assert engine.meter.parts[part] == 2 * LARGE
    engine.before_use((0,))
    assert engine.meter.parts[part] == 2 * 2 * LARGE
    engine.on_view_end(0)
    engine.after_use((0,))
    assert engine.meter.parts[part] == 0


@pytest.mark.parametrize("alone", [True, False])
def test_shares_from_the_host_are_on_the_device_for_a_moment(alone: bool) -> None:
    def highest(place: str) -> int:
        engine = started(settings(stage=3, offload_param=place))
        engine.begin_micro(boundary=True)
        engine.meter.reset_peak()
        before = engine.meter.live
        engine.before_use((0,) if alone else (0, 1))
        return engine.meter.peak - before

    count = 2 * (LARGE if alone else P)
    assert highest("none") == (count if alone else 2 * count)  # the copies of several come later
    assert highest("cpu") == (count + count // N if alone else 2 * count)


def test_copies_within_the_node_stay_until_the_step_is_over() -> None:
    def highest(hpz: int) -> int:
        engine = started(settings(stage=3, hpz=hpz))
        train(engine)
        engine.begin_micro(boundary=True)
        for index in (0, 1):
            engine.before_use((index,))
            engine.after_use((index,))
        engine.meter.reset_peak()
        engine.step()
        assert isinstance(engine, ShardedParameters)
        assert not engine.secondary
        return engine.meter.peak

    assert highest(2) - highest(1) == 2 * P // 2


def test_only_what_trains_is_flat_on_the_host() -> None:
    def parameters(*, frozen: bool, pinned: bool) -> int:
        given = settings(stage=3, offload_param="cpu", pin_parameters=pinned)
        parts = started(given, weights(frozen=frozen)).host.parts
        return parts["parameters"] + parts.get("parameters as built", 0)

    assert parameters(frozen=False, pinned=False) == 2 * P // N
    assert parameters(frozen=True, pinned=False) == 2 * P // N
    assert parameters(frozen=True, pinned=True) == 2 * (SMALL + SMALL + 4 * SMALL) // N  # powers of two
    assert parameters(frozen=False, pinned=True) == 2 * (4 * SMALL + SMALL + 4 * SMALL) // N


def test_adafactor_keeps_rows_and_columns_of_the_models_own_matrices() -> None:
    matrix, vector = Weight("matrix", LARGE, 4, 0, 1024), Weight("vector", 1024, 4, 1, 1024)
    engine = started(settings(precision="fp32", factored=True, moments=1), [matrix, vector])
    engine.step()
    assert engine.meter.parts[PART["optimizer states"]] == 4 * (LARGE // 1024 + 1024 + 1024)
    # the last matrix's update while the next parameter's squares and variance are there
    assert engine.meter.peak - engine.meter.live == 4 * (LARGE + 1024 + 1024)


def test_a_gradient_that_was_added_is_gone_before_the_sum_is_cloned() -> None:
    def highest(micros: int) -> int:
        engine = started(settings(stage=1, overlap_comm=True, offload_optimizer="cpu", accumulation=micros))
        for micro in range(micros):
            engine.begin_micro(boundary=micro == micros - 1)
            for weight in reversed(engine.trainable):
                engine.meter.reset_peak()
                engine.on_gradient(weight, engine.new(weight.bytes, "gradients"))
        return engine.meter.peak

    assert highest(1) == highest(2)
