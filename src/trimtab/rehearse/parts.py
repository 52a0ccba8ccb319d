"""What live bytes are for: every allocation gets one part, from what the engine holds and who made it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Protocol

import torch

from trimtab.rehearse.request import Module, Part

if TYPE_CHECKING:  # a run on a GPU labels too, and needs none of what fake tensors stand on
    from trimtab.rehearse.ledger import Allocation, Ledger

_MASTER = (  # runtime/zero/stage_1_and_2.py:560, stage3.py:1170, bf16_optimizer.py:182, fp16/*.py
    "single_partition_of_fp32_groups",
    "fp32_partitioned_groups_flat",
    "fp32_groups_flat_partition",
    "fp32_groups_flat",
    "fp32_groups",
)
_GRADIENTS = (
    "grad_partitions_flat_buffer",
    "averaged_gradients",
    "all_grad_tensors",
    "fp32_groups_gradients_flat",
    "fp32_groups_gradients",
    "accumulated_grads_in_cpu",
    "_DeepSpeedZeroOptimizer_Stage3__param_id_to_grad_partition",
    "grads_in_partition",
)
_PARAMETERS = (
    "bit16_groups_flat",
    "parallel_partitioned_bit16_groups",
    "fp16_groups_flat",
    "bf16_groups_flat",
    "fp16_partitioned_groups_flat",
    "lp_param_buffer",
)


class Labelled(Protocol):
    """What takes labels: the ledger of a phantom, or a count of real tensors."""

    def label(self, tensor: Any, part: str) -> None:
        """Say what ``tensor``'s storage is for; the first label stays."""


def label_model(ledger: Labelled, model: torch.nn.Module) -> None:
    """Label the parameters, whole or partitioned, their gradients, and the buffers of ``model``."""
    for parameter in model.parameters():
        ledger.label(getattr(parameter, "ds_tensor", None), "parameters")
        persists = getattr(parameter, "ds_persist", False)
        if persists or not hasattr(parameter, "ds_tensor"):
            ledger.label(parameter.data, "gathered_parameters" if persists else "parameters")
        label_gradient(ledger, parameter)
    for buffer in model.buffers():
        ledger.label(buffer, "model_buffers")


def label_gradient(ledger: Labelled, parameter: Any) -> None:
    """Label what holds ``parameter``'s gradient."""
    for name in ("grad", "grad_accum", "_hp_grad"):
        ledger.label(getattr(parameter, name, None), "gradients")


def label_engine(ledger: Labelled, engine: Any) -> None:
    """Label what the engine and its optimizer hold."""
    wrapper = engine.optimizer
    inner = getattr(wrapper, "optimizer", wrapper)
    for state in getattr(inner, "state", {}).values():
        for value in state.values() if isinstance(state, dict) else ():
            ledger.label(value, "optimizer_states")
    if wrapper is None or wrapper is inner:
        return
    held = vars(wrapper)
    for names, part in ((_GRADIENTS, "gradients"), (_MASTER, "master_weights"), (_PARAMETERS, "parameters")):
        for name in names:
            for tensor in _tensors(held.get(name)):
                if part == "master_weights":
                    ledger.label(getattr(tensor, "grad", None), "gradients")
                ledger.label(tensor, part)
    for value in held.values():
        for tensor in _tensors(value, depth=4):
            ledger.label(tensor, "communication_buffers")


def _tensors(value: Any, depth: int = 6) -> Iterable[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif depth and isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item, depth - 1)
    elif depth and isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item, depth - 1)
    elif (
        depth
        and type(value).__module__.startswith("deepspeed.runtime.zero")
        and not isinstance(value, torch.nn.Module)
    ):
        for item in getattr(value, "__dict__", {}).values():
            yield from _tensors(item, max(0, depth - 2))


class Sorter:
    """Gives each allocation its part, once the run is over."""

    def __init__(self, head_modules: Iterable[str]) -> None:
        self.head = frozenset(head_modules)
        self.kept_until: dict[int, bool] = {}

    def part(self, allocation: Allocation) -> str:
        """The part of one allocation."""
        if allocation.label is not None:
            return allocation.label
        if allocation.phase in ("build", "initialize"):
            return "initialization"
        if allocation.phase == "step":
            return "step_temporaries"
        if allocation.module in self.head:
            return "logits_and_loss"
        if allocation.phase == "forward":
            return "activations"
        return "recomputed_activations" if allocation.recomputed else "backward_temporaries"

    def parts(self, allocations: Iterable[Allocation]) -> tuple[Part, ...]:
        """Bytes by part, largest first."""
        bytes_of: Counter[str] = Counter()
        for allocation in allocations:
            bytes_of[self.part(allocation)] += allocation.size
        return tuple(Part(name=name, bytes=size) for name, size in bytes_of.most_common() if size)


def kept_by_module(ledger: Ledger, at: int) -> tuple[Module, ...]:
    """What each module's forward keeps alive at tick ``at``, largest first."""
    kept: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    for allocation in ledger.alive(at):
        if allocation.phase == "forward" and allocation.label is None:
            kept[allocation.module] += allocation.size
            calls[allocation.module] += 1
    return tuple(
        Module(
            name=name,
            class_name=ledger.module_classes.get(name, ""),
            kept_bytes=size,
            calls=calls[name],
        )
        for name, size in kept.most_common()
        if size
    )
