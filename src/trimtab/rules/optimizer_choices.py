"""OP: optimizers and switches of optimizers that cannot train, whatever else the file says."""

from __future__ import annotations

from collections.abc import Iterable

from trimtab.rules.base import Hit, remove, rule, shown
from trimtab.rules.subject import Subject

TYPE = ("optimizer", "type")
UNTRAINABLE = {
    "LBFGS": "asks for a closure in each step, which the engine does not pass",
    "SparseAdam": "takes sparse gradients alone, and the engine's are dense",
}
"""torch.optim's names that the engine builds and cannot step with."""
NEWTON_SCHULZ = ("gram", "standard")


@rule("OP014", "optimizer-that-cannot-step", "error", refused="running")
def optimizer_that_cannot_step(subject: Subject) -> Iterable[Hit]:
    """Finds torch's LBFGS and SparseAdam, which the engine cannot step with.

    Why is this bad?
        LBFGS evaluates the model several times a step through a closure, and `engine.step()` has none:
        `missing 1 required positional argument`. SparseAdam refuses dense gradients, and the engine has no
        sparse ones. Both fail in the first step, which a 16-bit mode at stage 0 takes as it is built.
    Example
        {"optimizer": {"type": "LBFGS", "params": {"lr": 1.0}}}
    Use instead
        {"optimizer": {"type": "AdamW", "params": {"lr": 0.0001}}}
    Source
        torch/optim/lbfgs.py; torch/optim/sparse_adam.py; deepspeed/runtime/engine.py:3513
    """
    why = UNTRAINABLE.get(subject.optimizer or "")
    if why:
        yield Hit(TYPE, f"{subject.optimizer} {why}.", at_value=True)


@rule("OP015", "switches-that-exclude-each-other", "error", refused="building")
def switches_that_exclude_each_other(subject: Subject) -> Iterable[Hit]:
    """Finds switches of torch's optimizers that exclude each other, and Nesterov's without momentum.

    Why is this bad?
        torch raises as the optimizer is built: `fused and foreach cannot be True together`, and `Nesterov
        momentum requires a momentum and zero dampening`.
    Example
        {"optimizer": {"type": "SGD", "params": {"lr": 0.1, "nesterov": true}}}
    Use instead
        {"optimizer": {"type": "SGD", "params": {"lr": 0.1, "nesterov": true, "momentum": 0.9}}}
    Fix safety
        The switch is removed: unsafe.
    Source
        torch/optim/sgd.py:63; torch/optim/adam.py:112
    """
    params = subject.block("optimizer.params")
    above = ("optimizer", "params")
    still = not params.get("momentum") or params.get("dampening")
    if subject.optimizer == "SGD" and params.get("nesterov") is True and still:
        place = (*above, "nesterov")
        message = "nesterov needs a momentum above 0 and no dampening."
        yield Hit(place, message, remove(place, safety="unsafe"))
    torch_adam = subject.optimizer in ("adam", "adamw") and params.get("torch_adam")
    if (torch_adam or subject.optimizer == "SGD") and params.get("fused") is True:
        for other in ("foreach", "differentiable"):
            if params.get(other) is True:
                place = (*above, other)
                yield Hit(place, f"fused and {other} exclude each other.", remove(place, safety="unsafe"))


@rule("OP016", "unknown-newton-schulz", "error", refused="building")
def unknown_newton_schulz(subject: Subject) -> Iterable[Hit]:
    """Finds a `ns_method` that Muon does not have.

    Why is this bad?
        Muon asserts that it is "gram" or "standard" as it is built.
    Example
        {"optimizer": {"type": "Muon", "params": {"lr": 0.02, "ns_method": "quintic"}},
         "zero_optimization": {"stage": 2}}
    Use instead
        {"optimizer": {"type": "Muon", "params": {"lr": 0.02, "ns_method": "standard"}},
         "zero_optimization": {"stage": 2}}
    Fix safety
        The key is removed, so that Muon's default holds: unsafe.
    Source
        deepspeed/runtime/zero/muon/original_muon.py:386, 464
    """
    params, place = subject.block("optimizer.params"), ("optimizer", "params", "ns_method")
    known = subject.schema.component("optimizer", "muon")
    if subject.optimizer != "muon" or known is None or "ns_method" not in known.params:
        return
    if "ns_method" in params and params["ns_method"] not in NEWTON_SCHULZ:
        yield Hit(
            place,
            f"ns_method is {shown(params['ns_method'])}; there are {' and '.join(NEWTON_SCHULZ)}.",
            remove(place, safety="unsafe"),
            at_value=True,
        )
