"""The optimizers and schedulers of torch that DeepSpeed builds by their exact name, with their parameters.

From the signatures of torch 2.13 (torch/optim); a test holds them against the torch that is installed.
"""

from __future__ import annotations

from collections.abc import Mapping

_LOOPS = frozenset(("foreach", "maximize", "differentiable", "capturable"))
_ADAM = frozenset(("lr", "betas", "eps", "weight_decay", *_LOOPS))

OPTIMIZERS: Mapping[str, frozenset[str]] = {
    "ASGD": frozenset(("lr", "lambd", "alpha", "t0", "weight_decay", *_LOOPS)),
    "Adadelta": frozenset(("lr", "rho", "eps", "weight_decay", *_LOOPS)),
    "Adafactor": frozenset(("lr", "beta2_decay", "eps", "d", "weight_decay", "foreach", "maximize")),
    "Adamax": _ADAM,
    "LBFGS": frozenset((
        "lr", "max_iter", "max_eval", "tolerance_grad", "tolerance_change", "history_size", "line_search_fn",
    )),
    "NAdam": _ADAM | {"momentum_decay", "decoupled_weight_decay"},
    "RAdam": _ADAM | {"decoupled_weight_decay"},
    "RMSprop": frozenset(("lr", "alpha", "eps", "weight_decay", "momentum", "centered", *_LOOPS)),
    "Rprop": frozenset(("lr", "etas", "step_sizes", *_LOOPS)),
    "SGD": frozenset((
        "lr", "momentum", "dampening", "weight_decay", "nesterov", "maximize", "foreach", "differentiable",
        "fused",
    )),
    "SparseAdam": frozenset(("lr", "betas", "eps", "maximize")),
}  # fmt: skip

REQUIRED: Mapping[str, frozenset[str]] = {
    "ChainedScheduler": frozenset(),
    "ConstantLR": frozenset(),
    "CosineAnnealingLR": frozenset(("T_max",)),
    "CosineAnnealingWarmRestarts": frozenset(("T_0",)),
    "CyclicLR": frozenset(("base_lr", "max_lr")),
    "ExponentialLR": frozenset(("gamma",)),
    "LambdaLR": frozenset(("lr_lambda",)),
    "LinearLR": frozenset(),
    "MultiStepLR": frozenset(("milestones",)),
    "MultiplicativeLR": frozenset(("lr_lambda",)),
    "OneCycleLR": frozenset(("max_lr",)),
    "PolynomialLR": frozenset(),
    "ReduceLROnPlateau": frozenset(),
    "SequentialLR": frozenset(("schedulers", "milestones")),
    "StepLR": frozenset(("step_size",)),
}
"""Each scheduler's parameters that have no default."""

NEED_OBJECTS = frozenset(("ChainedScheduler", "LambdaLR", "MultiplicativeLR", "SequentialLR"))
"""Schedulers whose parameters are functions or schedulers, which no file can hold."""
