"""Which optimizer steps, and by whose code."""

from __future__ import annotations

from trimtab import schema
from trimtab.cluster import Cluster
from trimtab.config import Config
from trimtab.model import Model
from trimtab.moves.move import Move, choice, moved, switch
from trimtab.moves.writing import optimizer_runs_on_host, with_zero

NAMES = ("AdamW", "Lion", "Lamb", "Adagrad", "Muon", "SGD")
_STATES = {"AdamW": 8, "Lion": 4, "Lamb": 8, "Adagrad": 4, "Muon": 8, "SGD": 4}
"""Bytes of fp32 state a parameter: torch.optim and deepspeed/ops; Muon's are counted like Adam's."""
_COSTS = {
    "AdamW": "8 bytes of states a parameter",
    "Lion": "a learning rate 3 to 10 times smaller and a weight decay as much larger (Lion, section 5)",
    "Lamb": "a learning rate of its own; for global batches of many thousands",
    "Adagrad": "a learning rate of its own, and steps that only grow smaller",
    "Muon": "a learning rate of its own, and matrix products in each step",
    "SGD": "a learning rate of its own; transformers train worse with it",
}
_SOURCES = {
    "AdamW": "Loshchilov & Hutter 2019; ops/adam/fused_adam.py",
    "Lion": "Chen et al. 2023 (Lion); ops/lion/fused_lion.py",
    "Lamb": "You et al. 2020 (LAMB); ops/lamb/fused_lamb.py:41",
    "Adagrad": "Duchi et al. 2011; runtime/engine.py:2498",
    "Muon": "Jordan et al. 2024 (Muon); runtime/zero/muon/muon_optimizer.py",
    "SGD": "torch.optim.SGD; runtime/engine.py:2547",
}
_SGD_PARAMS = frozenset(("lr", "weight_decay", "momentum", "nesterov", "dampening"))
_ADAM_ALONE = frozenset(("betas", "eps", "bias_correction", "adam_w_mode", "torch_adam", "amsgrad"))


def _not_shared(name: str) -> frozenset[str]:
    """Parameters that mean something else to another optimizer than Adam, though the name is the same."""
    return frozenset() if name == "AdamW" else _ADAM_ALONE


def optimizer(name: str) -> Move:
    """AdamW, Lion, Lamb, Adagrad, Muon or SGD with momentum; parameters that the new one knows stay."""
    own = name.lower() if name != "SGD" else name

    def refuses(config: Config, model: Model, cluster: Cluster) -> str | None:
        if config.optimizer_type is None:
            return "the file names no optimizer: the script makes it"
        after = apply(config, cluster)
        if config.offload_optimizer != "none" and (reason := optimizer_runs_on_host(after)):
            return f"{reason}, and the optimizer is offloaded"
        if name == "Lamb":
            if config.stage:
                return "ZeRO cuts layers into flat slices, and Lamb's scale per layer is lost"
            if config.get("fp16.loss_scale"):
                return "Lamb needs a dynamic loss scale (runtime/engine.py:2021)"
        if name == "Muon" and config.stage == 3 and config.zero("zero_quantized_gradients"):
            return "Muon does not go with quantized gradients (runtime/zero/stage3.py:360)"
        halves = ("bf16.bf16_master_weights_and_grads", "fp16.fp16_master_weights_and_grads")
        if name != "AdamW" and any(config.get(key) for key in halves):
            return "half-precision master weights need Adam (runtime/base_optimizer.py:510)"
        if name != "AdamW" and config.get("zero_optimization.zenflow"):
            return "ZenFlow has a CPU version of Adam alone (runtime/engine.py:2386)"
        return None

    def apply(config: Config, cluster: Cluster) -> Config:
        if config.optimizer_type in (own, "adam" if name == "AdamW" else own):
            return config
        component = schema.load().component("optimizer", name)
        known = (frozenset(component.params) if component else _SGD_PARAMS) - _not_shared(name)
        params = {key: value for key, value in config.optimizer_params.items() if key in known}
        if name == "SGD":
            params.setdefault("momentum", 0.9)
        after = config.with_values({"optimizer": {"type": name, "params": params}})
        if name == "SGD" and config.stage:
            after = after.with_values({"zero_allow_untested_optimizer": True})
        if name == "Muon" and config.stage == 3:
            after = with_zero(after, {"reduce_scatter": False})
        return after

    return moved(
        "optimizer",
        name,
        title=f"{name} with momentum" if name == "SGD" else name,
        saves=f"{16 - 8 + _STATES[name]} bytes a parameter in all instead of Adam's 16"
        if _STATES[name] < 8
        else "no memory against Adam",
        costs=_COSTS[name],
        needs="CUDA" if name == "Lamb" else "nothing",
        source=_SOURCES[name],
        effect="training",
        refuses=refuses,
        apply=apply,
    )


def torch_adam(on: bool) -> Move:
    """PyTorch's Adam in the place of DeepSpeed's fused kernel, which has to be compiled."""

    def refuses(config: Config, model: Model, cluster: Cluster) -> str | None:
        if config.optimizer_type not in ("adam", "adamw"):
            return "the optimizer is not Adam"
        if on and config.offload_optimizer != "none":
            return "it would keep DeepSpeed's CPU Adam out (runtime/engine.py:2381)"
        if on and config.get("zero_optimization.zenflow"):
            return "ZenFlow has a CPU version of DeepSpeed's Adam alone"
        return None

    return moved(
        "torch-adam",
        on,
        title="PyTorch's Adam" if on else "DeepSpeed's fused Adam",
        saves="compiling an extension on every machine"
        if on
        else "kernel launches and temporaries of the step",
        costs="temporaries of torch's foreach step" if on else "a CUDA toolkit that matches torch's",
        needs="nothing" if on else "nvcc of torch's CUDA version",
        source="runtime/engine.py:2384-2400; ops/adam/fused_adam.py",
        counted=False,
        refuses=refuses,
        apply=lambda config, cluster: (
            config
            if bool(config.optimizer_params.get("torch_adam")) == on
            else config.with_values({"optimizer.params.torch_adam": on or None})
        ),
    )


KINDS = (
    choice("optimizer", "The optimizer", optimizer, NAMES),
    switch("torch-adam", "Whose Adam it is", torch_adam),
)
