"""Moves: the one list of named changes to a configuration, each with what it saves and what it costs.

`plan` searches over them, `adapt` applies them for other hardware, the out-of-memory ladder is an ordered
list of them.  A move is made by a function of its module (``zero_stage(3)``), found by name
(``find("zero-stage-3")``), or taken from `MOVES`, which lists every kind.
"""

from __future__ import annotations

from trimtab.moves.batch import micro_batch
from trimtab.moves.communication import (
    allgather_bucket,
    one_bit_optimizer,
    overlap_comm,
    persistence_threshold,
    prefetch_bucket,
    quantized_gradients,
    quantized_weights,
    reduce_bucket,
    secondary_partition,
)
from trimtab.moves.computation import attention, fused_kernels, lora, precision, qlora, recomputation
from trimtab.moves.edits import differences, edits
from trimtab.moves.move import ALREADY, Effect, Kind, Move, Value
from trimtab.moves.offload import offload_optimizer, offload_param, super_offload, zenflow
from trimtab.moves.optimizers import optimizer, torch_adam
from trimtab.moves.parallel import deepcompile, pipeline, sequence_parallel, tensor_parallel
from trimtab.moves.registry import MOVES, all_moves, find, options
from trimtab.moves.sharding import sub_group, zero_stage

__all__ = [
    "ALREADY",
    "MOVES",
    "Effect",
    "Kind",
    "Move",
    "Value",
    "all_moves",
    "allgather_bucket",
    "attention",
    "deepcompile",
    "differences",
    "edits",
    "find",
    "fused_kernels",
    "lora",
    "micro_batch",
    "offload_optimizer",
    "offload_param",
    "one_bit_optimizer",
    "optimizer",
    "options",
    "overlap_comm",
    "persistence_threshold",
    "pipeline",
    "precision",
    "prefetch_bucket",
    "qlora",
    "quantized_gradients",
    "quantized_weights",
    "recomputation",
    "reduce_bucket",
    "secondary_partition",
    "sequence_parallel",
    "sub_group",
    "super_offload",
    "tensor_parallel",
    "torch_adam",
    "zenflow",
    "zero_stage",
]
