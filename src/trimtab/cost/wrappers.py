"""Which of its wrappers DeepSpeed puts around a model."""

from __future__ import annotations

from collections.abc import Sequence

from trimtab.cost.engine import Engine, HalfEngine, PlainEngine, Settings
from trimtab.cost.machine import Weight
from trimtab.cost.meter import Meter
from trimtab.cost.sharded_optimizer import ShardedOptimizer, WideOptimizer
from trimtab.cost.sharded_parameters import ShardedParameters
from trimtab.frozen import replace


def engine_for(meter: Meter, weights: Sequence[Weight], settings: Settings) -> Engine:
    """The wrapper that DeepSpeed chooses (engine.py:2294-2366)."""
    if settings.stage == 3:
        return ShardedParameters(meter, weights, settings)
    if settings.stage == 0:
        return (PlainEngine if settings.precision == "fp32" else HalfEngine)(meter, weights, settings)
    wide = settings.precision == "bf16" and settings.gradient_type == "fp32"
    if settings.stage == 1 and wide and settings.offload_optimizer != "cpu":
        # whatever type the master weights shall have, BF16_Optimizer's are fp32 (bf16_optimizer.py:170)
        return WideOptimizer(meter, weights, replace(settings, master_type="fp32", state_type="fp32"))
    return ShardedOptimizer(meter, weights, settings)
