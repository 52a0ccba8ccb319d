"""The counting machine: what is live when, counted by hand on graphs of two or three operators."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from trimtab.cost import operators as ops
from trimtab.cost.allocator import UNIT
from trimtab.cost.backward import PASS, Summed
from trimtab.cost.machine import Machine, Node, Tensor, Weight
from trimtab.cost.meter import PART, PARTS, Meter, Storage
from trimtab.cost.reduction import reduction_bytes

K = 1024
ITEM = 2


class Recorder:
    """A listener that writes down what it hears and keeps gradients."""

    def __init__(self) -> None:
        self.uses: list[tuple[str, ...]] = []
        self.gradients: dict[str, int] = {}
        self.viewed: list[str] = []

    def before_use(self, weights: tuple[Weight, ...], *, again: bool = False) -> None:
        self.uses.append(tuple(weight.name for weight in weights))

    def after_use(self, weights: tuple[Weight, ...]) -> None:
        pass

    def after_owner(self) -> None:
        pass

    def on_view(self, weight: Weight) -> None:
        self.viewed.append(weight.name)

    def on_view_end(self, weight: Weight) -> None:
        self.viewed.remove(weight.name)

    def on_gradient(self, weight: Weight, gradient: Storage) -> None:
        self.gradients[weight.name] = gradient.bytes


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


def meter_of(m: Machine) -> Meter:
    assert isinstance(m.meter, Meter)
    return m.meter


@pytest.fixture
def machine(recorder: Recorder) -> Machine:
    return Machine(meter=Meter(), listener=recorder, item=ITEM)


def square(name: str, *, trainable: bool = True) -> Weight:
    """A weight of 32 by 32 elements: 2 KiB."""
    return Weight(name, K, ITEM, 0, 32, trainable)


def loss_of(m: Machine, x: Tensor) -> Tensor:
    """One number of ``x``, with a gradient as large as ``x``."""
    return m.op(1, (x,), (x.bytes,), item=4)


def test_storages_are_rounded_to_blocks_and_end_with_their_last_name() -> None:
    meter = Meter()
    one, two = Storage(meter, 1, 0), Storage(meter, UNIT + 1, 1)
    assert meter.live == meter.peak == 3 * UNIT
    again = two
    del two
    assert meter.live == 3 * UNIT
    del again
    assert (meter.live, meter.peak) == (UNIT, 3 * UNIT)
    meter.reset_peak()
    assert meter.peak == UNIT
    one.move(2)
    assert meter.parts[:3] == [0, 0, UNIT]


def test_the_peak_remembers_what_it_was_made_of() -> None:
    meter = Meter()
    Storage(meter, 4 * K, PART["temporaries"])
    Storage(meter, K, PART["buckets"])
    assert dict(zip(PARTS, meter.peak_parts, strict=True))["temporaries"] == meter.peak == 4 * K


def test_two_operators_counted_by_hand(machine: Machine, recorder: Recorder) -> None:
    m = machine
    x = m.tensor(K)  # 2 KiB
    hidden = ops.linear(m, x, square("w"))  # 2 KiB, keeps x
    out = ops.keeps_input(m, hidden, "gelu")  # 2 KiB, keeps hidden
    del x, hidden
    loss = loss_of(m, out)  # 512 bytes
    assert meter_of(m).live == 3 * 2 * K + UNIT
    del out
    assert meter_of(m).live == 2 * 2 * K + UNIT
    meter_of(m).reset_peak()
    m.backward(loss)
    # at the activation: x, hidden, gradients of out and hidden, beside the loss (whose gradient is spent)
    assert meter_of(m).peak == 4 * 2 * K + UNIT
    assert recorder.gradients == {"w": 2 * K}
    del loss
    assert meter_of(m).live == 0


def test_what_is_not_trained_keeps_nothing_and_makes_no_gradient(
    machine: Machine, recorder: Recorder
) -> None:
    m = machine
    x = m.tensor(K)
    out = ops.keeps_input(m, ops.linear(m, x, square("w", trainable=False)), "gelu")
    del x
    assert meter_of(m).live == 2 * K
    assert out.edge is None
    m.backward(loss_of(m, out))
    assert recorder.gradients == {}


def test_stage_3_keeps_the_input_of_a_frozen_linear_layer() -> None:
    m = Machine(meter=Meter(), listener=Recorder(), item=ITEM, sharded=True)
    x = m.leaf(m.tensor(K))
    out = ops.linear(m, x, square("w", trainable=False))
    del x
    assert out.edge is not None
    assert meter_of(m).live == 2 * 2 * K


@pytest.mark.parametrize("upright", [True, False])
def test_stage_3_leaves_a_product_that_is_written_out_to_autograd(upright: bool) -> None:
    """Which keeps the weight, or its transpose: a view with the gathered storage."""
    heard = Recorder()
    m = Machine(meter=Meter(), listener=heard, item=ITEM, sharded=True)
    x = m.leaf(m.tensor(K))
    out = ops.linear(m, x, Weight("w", K, ITEM, 0, 32, False, written_out=True, upright=upright))
    node = out.edge
    assert isinstance(node, Node)
    assert [one.bytes for one in node.saved] == ([] if upright else [0])
    assert heard.viewed == ([] if upright else ["w"])
    assert not node.sums
    m.backward(loss_of(m, out))
    del out, node
    assert heard.viewed == []


@pytest.mark.parametrize("trains", [True, False])
def test_recomputation_keeps_a_view_of_a_weight_that_trains(trains: bool) -> None:
    heard = Recorder()
    m = Machine(meter=Meter(), listener=heard, item=ITEM, sharded=True)
    weights = [Weight(name, K, ITEM, 0, 32, trains) for name in ("v", "w")]
    most: list[int] = []

    def run(x: Tensor) -> Tensor:
        for weight in weights:
            x = ops.linear(m, x, weight)
            most.append(len(heard.viewed))
        return ops.dropout(m, x, 0.1)

    m.backward(loss_of(m, m.checkpoint(run, m.leaf(m.tensor(K)))))
    assert most == ([0, 0, 1, 2] if trains else [0, 0, 0, 0])
    assert heard.viewed == []


def test_new_gelu_lets_go_of_each_step() -> None:
    """The input and its half, and of all that follows only what is read and what is written."""
    m = Machine(meter=Meter(), listener=Recorder(), item=ITEM)
    x = m.tensor(K)
    out = ops.new_gelu(m, x)
    assert meter_of(m).peak == 4 * x.bytes
    assert meter_of(m).live == x.bytes + out.bytes


def test_what_was_recomputed_is_gone_when_autograd_sums_but_not_when_the_operator_does() -> None:
    def peak(sums: bool) -> int:
        m = Machine(meter=Meter(), listener=Recorder(), item=ITEM)
        bias = Weight("bias", 32, ITEM)

        def run(x: Tensor) -> Tensor:
            kept = (ops.scale(m, x).storage,)
            return m.op(K, (x, bias), (PASS, Summed(PASS, bias.bytes, 64 * K)), keep=kept, sums=sums)

        m.backward(loss_of(m, m.checkpoint(run, m.leaf(m.tensor(K)))))
        return meter_of(m).peak

    assert peak(True) - peak(False) == ITEM * K


def test_a_weight_used_twice_gets_one_gradient_after_its_last_use(
    machine: Machine, recorder: Recorder
) -> None:
    m, shared = machine, square("w")
    x = ops.linear(m, m.tensor(K), shared)
    out = ops.linear(m, x, shared)
    assert shared.uses == 2
    m.backward(loss_of(m, out))
    assert recorder.gradients == {"w": 2 * K}
    assert (shared.uses, shared.pending) == (0, None)


def test_a_view_allocates_nothing(machine: Machine) -> None:
    m = machine
    x = m.leaf(m.tensor(K))
    before = meter_of(m).live
    m.op(K // 2, (x,), (PASS,), view_of=x)
    assert meter_of(m).live == before


def chain(m: Machine, weights: list[Weight]) -> Callable[[Tensor], Tensor]:
    def run(x: Tensor) -> Tensor:
        for weight in weights:
            x = ops.keeps_input(m, ops.linear(m, x, weight), "gelu")
        return x

    return run


def peak_of(run: Callable[[Machine, list[Weight]], Tensor], recorder: Recorder) -> int:
    m = Machine(meter=Meter(), listener=recorder, item=ITEM)
    weights = [square(f"w{index}") for index in range(6)]
    loss = run(m, weights)
    m.backward(loss)
    return meter_of(m).peak


def test_recomputation_keeps_only_the_inputs_of_its_regions(recorder: Recorder) -> None:
    def plain(m: Machine, weights: list[Weight]) -> Tensor:
        return loss_of(m, chain(m, weights)(m.leaf(m.tensor(K))))

    def recomputed(m: Machine, weights: list[Weight]) -> Tensor:
        x = m.leaf(m.tensor(K))
        for weight in weights:
            x = m.checkpoint(chain(m, [weight]), x)
        assert meter_of(m).live == (len(weights) + 1) * 2 * K  # the input of each, and the last output
        return loss_of(m, x)

    assert peak_of(recomputed, recorder) < peak_of(plain, recorder)
    assert recorder.gradients == {f"w{index}": 2 * K for index in range(6)}


def test_recomputation_stops_early(machine: Machine, recorder: Recorder) -> None:
    """It ends at the last tensor that is kept: the second layer's input, not the layer itself."""
    m = machine
    first, second = square("first"), square("second")

    def two_layers(x: Tensor) -> Tensor:
        return ops.scale(m, ops.linear(m, ops.linear(m, x, first), second))

    out = m.checkpoint(two_layers, m.leaf(m.tensor(K)))
    recorder.uses.clear()
    m.backward(loss_of(m, out))
    # backward of the second layer, recomputation of the first, backward of the first
    assert recorder.uses == [
        ("second",),
        ("first",),
        ("second",),
        ("first",),
    ]
    replayed = sum(count for (phase, *_), count in m.meter.work.items() if phase == "recompute")
    assert replayed == 1


def test_work_counts_products_forward_and_backward(machine: Machine) -> None:
    m = machine
    out = ops.linear(m, m.leaf(m.tensor(K)), square("w"))
    m.backward(loss_of(m, out))
    flops = 2 * 32 * K
    spent = {
        phase: sum(one.flops * count for one, count in m.meter.work.items() if one.phase == phase)
        for phase in ("forward", "backward")
    }
    assert spent == {"forward": flops, "backward": 2 * flops}


@pytest.mark.parametrize(
    ("rows", "columns", "expected"),
    [
        (64, 1024, 0),  # too short to split
        (8192, 1024, 4 * 1024 * 128 * 32 * 4),  # fp32 x columns x blocks x threads x vector
    ],
)
def test_long_sums_are_split_over_thread_blocks(rows: int, columns: int, expected: int) -> None:
    assert reduction_bytes(rows, columns, ITEM) == expected


def test_the_gradient_of_a_bias_comes_first_but_for_stage_3s_own_linear(recorder: Recorder) -> None:
    for sharded, order in ((False, ["bias", "weight"]), (True, ["weight", "bias"])):
        recorder.gradients.clear()
        m = Machine(meter=Meter(), listener=recorder, item=ITEM, sharded=sharded)
        bias = Weight("bias", 32, ITEM, 1, 32)
        m.backward(loss_of(m, ops.linear(m, m.tensor(K), square("weight"), bias)))
        assert list(recorder.gradients) == order
