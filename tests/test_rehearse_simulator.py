"""The simulator on steps written by hand: who waits for whom, and what that costs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from trimtab.cluster import Cluster
from trimtab.config import Config
from trimtab.cost.rates import HOST as PROBED_HOST
from trimtab.cost.rates import Rates, rates_of, usual_pace
from trimtab.cost.speed import HOOKS
from trimtab.errors import UnreadableFile
from trimtab.rehearse.durations import device_seconds, flops_of, has_kernel, moved_bytes
from trimtab.rehearse.request import PHASES, Collective, Copy, Operator, Rehearsal
from trimtab.rehearse.simulator import Simulated, simulate, speed_of, trace, write_timeline
from trimtab.rehearse.timeline import STREAMS, Timeline

HOST = PROBED_HOST.times(usual_pace(4))
BIG = (("bfloat16", (8192, 8192)), ("bfloat16", (8192, 8192)))
FORWARD, BACKWARD, STEP = (PHASES.index(name) for name in ("forward", "backward", "step"))


def operator(name: str, inputs: Any, outputs: Any = (), **more: Any) -> Operator:
    return Operator(
        name=name,
        phase="forward",
        module_class="Linear",
        inputs=inputs,
        outputs=outputs,
        count=1,
        **{"view": False, **more},
    )


PRODUCT = operator("aten.mm.default", BIG, BIG[:1])
ADD = operator("aten.add.Tensor", BIG, BIG[:1])
VIEW = operator("aten.view.default", BIG[:1], BIG[:1], view=True)
ON_HOST = operator("deepspeed.adam_update", (("float32", (10**8,)),) * 4, host=True)
GATHER = Collective(
    name="allgather_base", phase="forward", bytes=2**30, group_size=4, stream="compute", count=1
)


def rates() -> Rates:
    return rates_of(Cluster.of("h200", 4))


def record(order: list[tuple[str, int]], **tables: Any) -> Rehearsal:
    empty: Any = {
        "parameters": 0, "trainable_parameters": 0, "moments": (), "phases": (), "workspace_bytes": 0,
        "init_peak_bytes": 0, "step_peak_bytes": 0, "host_peak_bytes": 0, "host_pinned_peak_bytes": 0,
        "nvme_bytes": 0, "modules": (), "optimizer": "", "engine_optimizer": "", "assumptions": (),
        "versions": {}, "seconds": 0.0, "operators": (), "collectives": (), "copies": (),
    }  # fmt: skip
    return Rehearsal(**{**empty, "order": tuple(order), "streams": ("compute", "side"), **tables})


def run(order: list[tuple[str, int]], *, accumulation: int = 1, stage: int = 2, **tables: Any) -> Simulated:
    return simulate(record(order, **tables), rates(), accumulation=accumulation, stage=stage)


def test_kernels_of_one_stream_follow_one_another_and_the_parts_sum() -> None:
    found = run([("phase", FORWARD), *[("operator", 0)] * 5], operators=(PRODUCT,))
    product = device_seconds(PRODUCT, rates())
    assert found.compute_seconds == pytest.approx(5 * product)
    assert found.step_seconds == pytest.approx(HOST.forward + 5 * product)
    parts = found.compute_seconds + found.communication_seconds + found.offload_seconds + found.host_seconds
    assert parts == pytest.approx(found.step_seconds)
    assert found.kernels == 5


def test_small_kernels_wait_for_the_host() -> None:
    tiny = operator("aten.add.Tensor", (("bfloat16", (8,)),) * 2, (("bfloat16", (8,)),))
    found = run([("phase", FORWARD), *[("operator", 0), ("operator", 1)] * 100], operators=(tiny, VIEW))
    assert found.step_seconds == pytest.approx(100 * HOST.forward, rel=0.02)
    assert found.host_seconds > found.compute_seconds


def test_a_collective_that_is_awaited_at_once_is_not_hidden() -> None:
    order = [("phase", FORWARD), ("operator", 0), ("collective", 0), ("await", 0), ("operator", 0)]
    found = run(order, operators=(PRODUCT,), collectives=(GATHER,))
    seconds = rates().collective("all_gather", 2**30, 4)
    assert found.communication_seconds == pytest.approx(seconds, rel=0.02)
    assert found.step_seconds > 2 * device_seconds(PRODUCT, rates()) + seconds


def test_what_runs_beside_a_collective_inside_a_node_loses_its_time() -> None:
    order = [("phase", FORWARD), ("collective", 0), *[("operator", 0)] * 10, ("await", 0)]
    found = run(order, operators=(PRODUCT,), collectives=(GATHER,))
    lost = rates().beside("all_gather", 2**30, 4)
    assert found.step_seconds == pytest.approx(10 * device_seconds(PRODUCT, rates()) + lost, rel=0.02)


def test_a_networks_transfer_is_hidden_behind_kernels() -> None:
    far = rates_of(Cluster.of("h100", 2, 2, inter_link="ethernet-100g", inter_ports=1))
    seconds = far.collective("all_gather", 2**28, 4, 2)
    one = replace(GATHER, bytes=2**28)
    enough = int(2 * seconds / device_seconds(PRODUCT, far))
    order = [("phase", FORWARD), ("collective", 0), *[("operator", 0)] * enough, ("await", 0)]
    step = record(order, operators=(PRODUCT,), collectives=(one,))
    found = simulate(step, far, accumulation=1, stage=2, nodes=2)
    assert found.communication_seconds == pytest.approx(far.beside("all_gather", 2**28, 4, 2), rel=0.05)
    assert found.communication_seconds < seconds / 4


def test_streams_run_side_by_side_until_one_waits_for_the_other() -> None:
    side = [("stream", 1), *[("operator", 0)] * 4, ("stream", 0)]
    alone = run([("phase", FORWARD), *side, *[("operator", 0)] * 4], operators=(PRODUCT,))
    joined = run(
        [("phase", FORWARD), *side, ("join", 0 * STREAMS + 1), *[("operator", 0)] * 4], operators=(PRODUCT,)
    )
    assert joined.step_seconds == pytest.approx(2 * alone.step_seconds, rel=0.05)
    events = [*side[:-1], ("record", 7), ("stream", 0), ("wait_event", 7), *[("operator", 0)] * 4]
    assert run([("phase", FORWARD), *events], operators=(PRODUCT,)).step_seconds == pytest.approx(
        joined.step_seconds, rel=0.01
    )


def test_the_host_that_waits_issues_nothing_meanwhile() -> None:
    tiny = operator("aten.add.Tensor", (("bfloat16", (8,)),) * 2, (("bfloat16", (8,)),))
    work = [*[("operator", 0)] * 10]
    small = [("operator", 1)] * 100
    ahead = run([("phase", FORWARD), *work, *small], operators=(PRODUCT, tiny))
    waits = run([("phase", FORWARD), *work, ("host", 0), *small], operators=(PRODUCT, tiny))
    assert waits.step_seconds == pytest.approx(ahead.step_seconds + 100 * HOST.forward, rel=0.05)


def test_adam_on_the_host_and_pinned_copies_count_as_offload() -> None:
    copy = Copy(direction="to_device", phase="step", bytes=2**30, pinned=True, stream="compute", count=1)
    found = run(
        [("phase", FORWARD), ("operator", 1), ("phase", STEP), ("operator", 0), ("copy", 0)],
        operators=(ON_HOST, ADD),
        copies=(copy,),
    )
    adam = rates().host_moving(moved_bytes(ON_HOST))
    assert moved_bytes(ON_HOST) == 28 * 10**8
    assert found.offload_seconds == pytest.approx(adam + rates().copy("to device", 2**30), rel=0.02)


def test_micro_steps_that_were_not_recorded_take_as_long_as_the_last_but_one() -> None:
    def micro(products: int) -> list[tuple[str, int]]:
        return [("phase", FORWARD), ("phase", BACKWARD), *[("operator", 0)] * products, ("phase", STEP)]

    order = [*micro(1), *micro(3), *micro(2)]
    three, ten = (run(order, accumulation=n, operators=(PRODUCT,)) for n in (3, 10))
    product = device_seconds(PRODUCT, rates())
    assert ten.step_seconds - three.step_seconds == pytest.approx(7 * 3 * product, rel=0.01)


def test_further_micro_steps_take_as_long_as_the_first_of_two() -> None:
    micro = [("phase", FORWARD), ("operator", 0), ("phase", BACKWARD), ("operator", 0), ("operator", 0)]
    order = [*micro, ("phase", STEP), *micro, ("phase", STEP), ("operator", 1)]
    two, eight = (run(order, accumulation=n, operators=(PRODUCT, ADD)) for n in (2, 8))
    product = device_seconds(PRODUCT, rates())
    assert eight.step_seconds - two.step_seconds == pytest.approx(18 * product, rel=0.01)
    assert sum(eight.phases.values()) == pytest.approx(eight.step_seconds)


def test_a_chain_that_cuda_has_one_kernel_for_is_one_kernel() -> None:
    wide = (("bfloat16", (8192, 8192)),)
    names = (
        "sigmoid.default",
        "empty_like.default",
        "fill_.Scalar",
        "sub_.Tensor",
        "mul.Tensor",
        "add.Scalar",
    )
    chain = tuple(operator(f"aten.{name}", wide, wide) for name in (*names, "mul.Tensor", "mul.Tensor"))
    found = run([("phase", BACKWARD), *[("operator", index) for index in range(8)]], operators=chain)
    assert found.kernels == 1
    assert found.compute_seconds == pytest.approx(rates().moving(3 * 8192 * 8192 * 2, "silu_backward"))


def test_fetches_of_zero_3_cost_the_host() -> None:
    order = [("phase", FORWARD), *[("join", 1)] * 10, ("operator", 0)]
    sharded, plain = (run(order, stage=stage, operators=(ADD,)) for stage in (3, 2))
    assert sharded.step_seconds - plain.step_seconds == pytest.approx(10 * HOST.fetch)


def test_zero_3s_own_linear_function_runs_in_python() -> None:
    order = [("phase", FORWARD), *[("operator", 0)] * 100]
    small = (("bfloat16", (8, 8)), ("bfloat16", (8, 8)))
    operators = (operator("aten.mm.default", small, small[:1]),)
    own, plain = (run(order, stage=stage, operators=operators) for stage in (3, 2))
    assert own.step_seconds - plain.step_seconds == pytest.approx(100 * HOST.function)


def test_a_module_costs_the_host_in_the_forward_pass_alone() -> None:
    def with_modules(phase: int, count: int) -> float:
        order = [("phase", phase), *[("module", 0)] * count, ("operator", 0)]
        return run(order, operators=(ADD,)).step_seconds

    assert with_modules(FORWARD, 10) - with_modules(FORWARD, 0) == pytest.approx(10 * HOST.module)
    assert with_modules(BACKWARD, 10) == with_modules(BACKWARD, 0)


def test_a_checkpointed_layer_costs_the_host_in_both_passes() -> None:
    def with_layers(phase: int, count: int) -> float:
        return run(
            [("phase", phase), *[("checkpoint", 0)] * count, ("operator", 0)], operators=(ADD,)
        ).step_seconds

    assert with_layers(FORWARD, 9) - with_layers(FORWARD, 0) == pytest.approx(9 * HOST.checkpoint)
    assert with_layers(BACKWARD, 9) - with_layers(BACKWARD, 0) == pytest.approx(9 * HOST.recompute)


@pytest.mark.parametrize(("stage", "times"), [(0, 0), (1, 1), (2, 2), (3, 0)])
def test_a_gradient_costs_the_host_whenever_its_stage_reduces_it(stage: int, times: int) -> None:
    def with_gradients(count: int) -> float:
        micro = [("phase", FORWARD), ("phase", BACKWARD), *[("gradient", 0)] * count, ("operator", 0)]
        return run([*micro, *micro], accumulation=2, stage=stage, operators=(VIEW,)).step_seconds

    assert with_gradients(7) - with_gradients(0) == pytest.approx(7 * times * HOST.gradient)


REDUCE = replace(GATHER, name="allreduce", phase="backward", bytes=2**20, group_size=2)
GRADIENT = Copy(
    direction="to_host", phase="backward", bytes=4 * 10**8, pinned=True, stream="compute", count=1
)


def reductions(*handovers: tuple[tuple[int, ...], ...]) -> Simulated:
    """A backward pass of so many buckets; this rank hands over one gradient after the last."""
    order = [("phase", FORWARD), ("phase", BACKWARD)]
    for index in range(len(handovers)):
        order += [("operator", 0), ("collective", 0), ("await", index)]
        if index == len(handovers) - 1:
            order += [("copy", 0), ("host", 0)]
        order += [("handover", index)]
    order += [("phase", STEP), ("collective", 0), ("await", len(handovers))]
    tables: Any = {"operators": (PRODUCT,), "collectives": (REDUCE,), "copies": (GRADIENT,)}
    return run(order, handovers=handovers, **tables)


def test_a_bucket_waits_for_the_rank_that_hands_over_the_gradients_of_the_one_before() -> None:
    alone = reductions(((),), ((10**8,),))
    waits = reductions(((), (10**8,)), ((10**8,),))
    moved = rates().copy("to host", 4 * 10**8) + rates().moving(28 * 10**8, "to fp32")
    late = waits.step_seconds - alone.step_seconds
    assert moved - 10 * HOST.forward < late < moved + 3 * HOST.engine
    assert waits.communication_seconds - alone.communication_seconds == pytest.approx(late, rel=0.01)


def test_ranks_that_hand_over_at_once_wait_once() -> None:
    one = reductions(((), (10**8,)), ((10**8,),))
    both = reductions(((), (10**8,), (10**8,)), ((10**8,),))
    assert both.step_seconds == one.step_seconds
    alone, beside = reductions(((),), ((10**8,),)), reductions(((),), ((10**8,), (10**8,)))
    checks = rates().moving(28 * 10**8, "to fp32")  # which this record leaves out
    assert 0 < beside.step_seconds - alone.step_seconds < checks + 10 * HOST.forward


def test_many_small_gradients_take_the_host_that_hands_them_over() -> None:
    few, many = (reductions(((), (8,) * count), ((10**8,),)) for count in (10, 510))
    each = (HOOKS[2, True].handed + HOOKS[2, True].kept) * HOST.engine
    assert many.step_seconds - few.step_seconds == pytest.approx(500 * each, rel=0.01)


def test_a_host_is_as_slow_as_it_was_measured() -> None:
    order = [("phase", FORWARD), *[("operator", 0)] * 100]
    small = (("bfloat16", (8, 8)),)
    step = record(order, operators=(operator("aten.add.Tensor", small, small),))

    def at(pace: float) -> float:
        return simulate(step, replace(rates(), pace=pace), accumulation=1, stage=2).step_seconds

    assert at(2.0) - at(1.0) == pytest.approx(100 * PROBED_HOST.forward, rel=0.01)


def test_speed_has_the_closed_forms_terms_and_leaves_recomputation_out() -> None:
    micro = [("phase", FORWARD), ("operator", 0), ("phase", BACKWARD), ("operator", 1)]
    backward = replace(PRODUCT, phase="backward", count=3)
    config = Config.from_mapping(
        {
            "train_micro_batch_size_per_gpu": 2,
            "gradient_accumulation_steps": 4,
            "bf16": {"enabled": True},
            "trimtab": {"sequence_length": 128, "checkpoint_activations": True},
        },
        name="case",
    )
    step = record(
        micro * 2, operators=(replace(PRODUCT, count=2), replace(backward, count=6)), recomputed=1.0
    )
    speed = speed_of(simulate(step, rates(), accumulation=4, stage=2), step, config, rates())
    assert speed.tokens_per_step == 2 * 4 * 128
    # a forward product, its two gradients, and the recomputed one not
    assert speed.model_flops == pytest.approx(4 * 3 * flops_of(PRODUCT))
    assert sum(seconds for _, seconds in speed.parts) == pytest.approx(speed.step_seconds)


def test_the_timeline_is_what_perfetto_reads(tmp_path: Path) -> None:
    order = [("phase", FORWARD), ("operator", 0), ("collective", 0), ("await", 0)]
    found = run(order, operators=(PRODUCT,), collectives=(GATHER,))
    write_timeline(found, tmp_path / "step.json")
    document = json.loads((tmp_path / "step.json").read_text(encoding="utf-8"))
    assert document == trace(found)
    spans = [event for event in document["traceEvents"] if event["ph"] == "X"]
    names = {event["tid"]: event["args"]["name"] for event in document["traceEvents"] if event["ph"] == "M"}
    assert [(span["name"], names[span["tid"]]) for span in spans] == [
        ("mm", "compute"),
        ("allgather_base", "collectives of 4"),
    ]
    assert all(span["dur"] > 0 for span in spans)
    with pytest.raises(UnreadableFile, match="cannot be written"):
        write_timeline(found, tmp_path / "none" / "step.json")


def test_a_product_that_is_told_where_to_write_is_the_same_product() -> None:
    left, right = ("bfloat16", (128, 896)), ("bfloat16", (896, 4096))
    out = ("bfloat16", (128, 4096))
    plain = operator("aten.mm.default", (left, right), (out,))
    for told in (
        operator("aten.mm.out", (left, right, out)),
        operator("aten.addmm.out", (out, left, right, out)),
    ):
        assert device_seconds(told, rates()) == device_seconds(plain, rates())
        assert flops_of(told) == flops_of(plain) == 2 * 128 * 896 * 4096


def test_a_triton_kernel_moves_its_tensors_and_those_in_place_once_more() -> None:
    gradient, gate, up = (("bfloat16", (256, 512)),) * 3
    size = 2 * 256 * 512
    assert moved_bytes(operator("triton._swiglu_forward_kernel", (gate, up, gradient))) == 3 * size
    assert moved_bytes(operator("triton._swiglu_backward_kernel", (gradient, gate, up))) == 5 * size


def test_views_and_empty_tensors_start_no_kernel() -> None:
    assert not has_kernel(VIEW)
    assert not has_kernel(operator("aten._unsafe_view.default", BIG[:1], BIG[:1]))
    assert not has_kernel(ON_HOST)
    assert has_kernel(PRODUCT)


def test_a_timeline_notes_streams_only_when_they_change() -> None:
    line = Timeline("compute")
    line.count("operator", "a", "compute")
    line.count("operator", "b", "side 1")
    line.count("operator", "a", "side 1")
    line.stream_waits("compute", "side 1")
    line.count("collective", "c", "compute")
    line.awaited(0, "side 1")
    line.host_waits(None)
    assert line.streams == ["compute", "side 1"]
    assert line.entries == [
        ("operator", 0),
        ("stream", 1),
        ("operator", 1),
        ("operator", 0),
        ("join", 0 * STREAMS + 1),
        ("stream", 0),
        ("collective", 0),
        ("stream", 1),
        ("await", 0),
        ("host", -1),
    ]
    assert line.collectives == 1
