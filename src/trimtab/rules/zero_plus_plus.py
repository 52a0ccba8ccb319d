"""ZR, continued: ZeRO++, which quantizes communication and keeps a second copy of weights inside a node."""

from __future__ import annotations

from collections.abc import Iterable

from trimtab.rules.base import Hit, put, remove, rule
from trimtab.rules.shares import shares_of
from trimtab.rules.subject import Subject
from trimtab.rules.zero import zero_path as _z


@rule("ZR009", "hpz-that-does-not-divide", "error", refused="building")
def hpz_that_does_not_divide(subject: Subject) -> Iterable[Hit]:
    """Finds a secondary partition (hpZ) that does not divide the GPUs.

    Why is this bad?
        The groups are formed by division and the engine asserts that nothing is left over. hpZ is meant to
        be the number of GPUs of one node: across nodes it saves nothing.
    Example
        With `--gpus-per-node 8 --nodes 2`:
        {"zero_optimization": {"stage": 3, "zero_hpz_partition_size": 3}}
    Use instead
        With `--gpus-per-node 8 --nodes 2`:
        {"zero_optimization": {"stage": 3, "zero_hpz_partition_size": 8}}
    Fix safety
        The GPUs of one node are set, as hpZ is meant: unsafe.
    Source
        deepspeed/utils/groups.py:944-945
    """
    size, place = subject.integer(_z("zero_hpz_partition_size")), subject.place(_z("zero_hpz_partition_size"))
    world, node = subject.world.size, subject.world.gpus_per_node
    if place is None or size is None or size <= 1 or subject.stage != 3 or world is None or node is None:
        return
    if size > world:
        yield Hit(
            place,
            f"zero_hpz_partition_size {size} is more than the {world} GPUs there are: it becomes {world}.",
            put(place, node),
            at_value=True,
            severity="warning",
            refused=None,
        )
    elif world % size:
        yield Hit(
            place,
            f"zero_hpz_partition_size {size} does not divide {world} GPUs.",
            put(place, node),
            at_value=True,
        )
    elif size > node:
        yield Hit(
            place,
            f"zero_hpz_partition_size {size} reaches over nodes of {node} GPUs: weights then cross "
            "the network, "
            "which it exists to avoid.",
            put(place, node),
            at_value=True,
            severity="warning",
            refused=None,
        )


@rule("ZR010", "quantized-gradients-without-effect", "warning")
def quantized_gradients_without_effect(subject: Subject) -> Iterable[Hit]:
    """Finds quantized gradients (qgZ) on one node.

    Why is this bad?
        They act only between nodes: on one node the key does nothing.
    Example
        With `--gpus-per-node 8 --nodes 1`:
        {"zero_optimization": {"stage": 3, "zero_quantized_gradients": true}}
    Use instead
        With `--gpus-per-node 8 --nodes 2`:
        {"zero_optimization": {"stage": 3, "zero_quantized_gradients": true}}
    Fix safety
        The key is removed, which changes nothing on one node.
    Source
        deepspeed/runtime/engine.py:2159; deepspeed/utils/groups.py:738-764
    """
    place = subject.place(_z("zero_quantized_gradients"))
    if place is None or not subject.on(_z("zero_quantized_gradients")) or subject.stage != 3:
        return
    if subject.world.nodes == 1:
        yield Hit(place, "zero_quantized_gradients does nothing on one node.", remove(place))


@rule("ZR011", "quantized-gradients-without-reduce-scatter", "error", refused="building")
def quantized_gradients_without_reduce_scatter(subject: Subject) -> Iterable[Hit]:
    """Finds quantized gradients (qgZ) with reduce_scatter switched off.

    Why is this bad?
        Stage 3 asserts that reduce_scatter is on.
    Example
        {"zero_optimization": {"stage": 3, "zero_quantized_gradients": true, "reduce_scatter": false},
         "optimizer": {"type": "AdamW"}}
    Use instead
        {"zero_optimization": {"stage": 3, "zero_quantized_gradients": true}, "optimizer": {"type": "AdamW"}}
    Fix safety
        reduce_scatter is removed, so that its default, on, holds: unsafe.
    Source
        deepspeed/runtime/zero/stage3.py:389-390
    """
    place = subject.place(_z("reduce_scatter"))
    if (
        subject.stage == 3
        and place
        and subject.off(_z("reduce_scatter"))
        and subject.on(_z("zero_quantized_gradients"))
    ):
        yield Hit(
            place,
            "zero_quantized_gradients needs reduce_scatter, which is off.",
            remove(place, safety="unsafe"),
        )


@rule("ZR012", "quantized-weights-with-autocast", "error", refused="building")
def quantized_weights_with_autocast(subject: Subject) -> Iterable[Hit]:
    """Finds quantized weights (qwZ) together with torch_autocast.

    Why is this bad?
        The engine asserts that they are not used together.
    Example
        {"zero_optimization": {"stage": 3, "zero_quantized_weights": true},
         "torch_autocast": {"enabled": true, "dtype": "bfloat16"}}
    Use instead
        {"zero_optimization": {"stage": 3, "zero_quantized_weights": true}, "bf16": {"enabled": true}}
    Source
        deepspeed/runtime/torch_autocast.py:32
    """
    place = subject.place(_z("zero_quantized_weights"))
    if place and subject.on(_z("zero_quantized_weights")) and subject.on("torch_autocast.enabled"):
        yield Hit(place, "zero_quantized_weights and torch_autocast are refused together.")


@rule("ZR017", "quantized-weights-that-do-not-divide", "error", refused="running")
def quantized_weights_that_do_not_divide(subject: Subject) -> Iterable[Hit]:
    """Finds quantized weights (qwZ) of a model whose shares on so many GPUs are no multiples of 8.

    Why is this bad?
        What one module gathers at once is quantized as one piece, and the kernel takes a multiple of 8: the
        first forward pass asserts `Qantized weight requires the number of weights be a multiple of 8`. Each
        GPU's share is a parameter's elements over the GPUs, rounded up. With a secondary partition (hpZ) the
        first pass gathers the larger shares of a node, and the second step is the first that may fail.
    Example
        With `--gpus-per-node 8 --nodes 8 --model gpt2`:
        {"zero_optimization": {"stage": 3, "zero_quantized_weights": true}, "optimizer": {"type": "AdamW"}}
    Use instead
        With `--gpus-per-node 8 --nodes 4 --model gpt2`:
        {"zero_optimization": {"stage": 3, "zero_quantized_weights": true}, "optimizer": {"type": "AdamW"}}
    Fix safety
        The key is removed, and weights are gathered as they are: unsafe.
    Source
        deepspeed/runtime/zero/partition_parameters.py:867-885, 1425, 1512;
        deepspeed/runtime/zero/partitioned_param_coordinator.py:580
    """
    from trimtab.parameters.shares import QUANTIZED_TOGETHER, odd_module

    place, world = subject.place(_z("zero_quantized_weights")), subject.world.size
    grouped = subject.block(_z("leaf_module")) or subject.integer(_z("stage3_module_granularity_threshold"))
    if place is None or world is None or world == 1 or subject.stage != 3 or grouped:
        return
    if not subject.on(_z("zero_quantized_weights")):
        return
    mine, away = shares_of(subject), remove(place, safety="unsafe")
    hpz = subject.integer(_z("zero_hpz_partition_size")) or 1
    ranks = min(hpz, world) if hpz > 1 else world
    odd = odd_module(mine, world // ranks)
    if odd is not None:
        name, elements = odd
        yield Hit(
            place,
            f"each of {ranks} GPUs holds {elements} elements of {name}, no multiple of "
            f"{QUANTIZED_TOGETHER}: the first step refuses to quantize them.",
            away,
        )
        return
    kept = subject.integer(_z("stage3_param_persistence_threshold")) or 0
    odd = odd_module([share for share in mine if share.of > kept], 1) if ranks < world else None
    if odd is not None:
        name, elements = odd
        yield Hit(
            place,
            f"each of {world} GPUs holds {elements} elements of {name}, no multiple of {QUANTIZED_TOGETHER}: "
            "the second step refuses to quantize them unless what is gathered with them makes up for it.",
            away,
            severity="warning",
        )
