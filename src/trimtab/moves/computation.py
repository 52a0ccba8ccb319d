"""How the model computes: recomputation, attention, kernels, number format, and which weights train."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trimtab.architecture import BF16_FAMILIES, EAGER_ONLY
from trimtab.cluster import Cluster
from trimtab.config import BLOCK, Config
from trimtab.hf_config import lora_targets
from trimtab.job import ATTENTIONS, LIGER
from trimtab.model import Model
from trimtab.moves.move import ALREADY, Kind, Move, Value, choice, moved, single, spelled, switch

# _supports_flash_attn in transformers 5.17; Falcon has a class of its own for it, which is not counted
NO_FLASH = frozenset(("t5", "mt5", "bloom", "falcon"))
FLASH_CAPABILITY = 8.0  # FlashAttention-2's README: Ampere or newer
PRECISIONS = ("bf16", "fp16", "fp32")
# dynamic, with the engine's defaults written out (runtime/precision_config.py:100-163)
LOSS_SCALING: Mapping[str, Any] = {
    "loss_scale": 0,
    "initial_scale_power": 16,
    "loss_scale_window": 1000,
    "hysteresis": 2,
    "min_loss_scale": 1,
}


def _with_job(config: Config, key: str, value: Any) -> Config:
    """``config`` with one key of its block; None takes the key out."""
    if value is None and key not in (config.raw.get(BLOCK) or {}):
        return config
    return config.with_values({f"{BLOCK}.{key}": value})


def recomputation(layers: bool | int) -> Move:
    """Activations of all layers, of none or of the first ``layers`` computed again in the backward pass."""

    def refuses(config: Config, model: Model, cluster: Cluster) -> str | None:
        if layers > model.all_layers:
            return f"{model.name} has {model.all_layers} layers"
        return None

    def apply(config: Config, cluster: Cluster) -> Config:
        if spelled(config.job.recomputation) == spelled(layers):
            return config
        return _with_job(config, "checkpoint_activations", layers or None)

    if layers is True or layers is False:
        return moved(
            "recomputation",
            layers,
            title="Activations recomputed" if layers else "Activations kept",
            saves="activations: only what enters each layer is kept"
            if layers
            else "a second forward pass in each step",
            costs="a second forward pass, a third more compute"
            if layers
            else "memory for every layer's activations",
            source="Chen et al. 2016 (sublinear memory), section 3; transformers' "
            "gradient_checkpointing_enable",
            apply=apply,
        )
    return moved(
        "recomputation",
        layers,
        title=f"Activations of the first {'layer' if layers == 1 else f'{layers} layers'} recomputed",
        saves="the activations of those layers: of each only what enters it is kept",
        costs="a second forward pass of those layers; memory for the others' activations",
        needs="as many layers",
        source="recompute_method block of Megatron-Core's TransformerConfig; "
        "transformers/modeling_layers.py, GradientCheckpointingLayer",
        refuses=refuses,
        apply=apply,
    )


def _amount(text: str) -> bool | int:
    """The value of a move's name: ``on``, ``off`` or a number of layers."""
    if text in ("on", "off"):
        return text == "on"
    if int(text) < 1:
        raise ValueError(text)
    return int(text)


def _amounts(config: Config, model: Model, cluster: Cluster) -> tuple[Value, ...]:
    """None, half of the layers, all of them."""
    half = model.all_layers // 2
    return (False, half, True) if half else (False, True)


def attention(name: str) -> Move:
    """``sdpa`` (PyTorch's own kernels), ``eager`` or ``flash`` (the flash-attn package)."""

    def refuses(config: Config, model: Model, cluster: Cluster) -> str | None:
        if name != "eager" and model.model_type in EAGER_ONLY:
            return f"transformers has only eager attention for {model.model_type}"
        if name == "flash":
            if model.model_type in NO_FLASH:
                return f"no flash attention is known for {model.model_type}"
            if cluster.gpu.vendor != "nvidia" or float(cluster.gpu.compute_capability) < FLASH_CAPABILITY:
                return f"FlashAttention-2 needs Ampere or newer, not {cluster.gpu.name}"
            if config.precision == "fp32":
                return "flash kernels take bf16 and fp16 alone"
        return None

    return moved(
        "attention",
        name,
        title=f"{name} attention",
        saves={
            "sdpa": "the scores of every pair of tokens, which are never written",
            "flash": "the scores of every pair of tokens, which are never written",
            "eager": "nothing",
        }[name],
        costs={
            "sdpa": "nothing",
            "flash": "a package to build; sdpa runs the same kernel on most models",
            "eager": "memory that grows with the square of the sequence",
        }[name],
        needs="the flash-attn package, Ampere or newer" if name == "flash" else "a model type that has it",
        source="Dao 2023 (FlashAttention-2); torch.nn.functional.scaled_dot_product_attention",
        refuses=refuses,
        apply=lambda config, cluster: (
            config if config.job.attention == name else _with_job(config, "attention", name)
        ),
    )


def fused_kernels(on: bool) -> Move:
    """Liger's fused norm, rotary, SwiGLU and loss."""

    def refuses(config: Config, model: Model, cluster: Cluster) -> str | None:
        if on and model.model_type not in LIGER:
            return f"Liger has no kernels for {model.model_type}"
        if on and config.job.task != "causal-lm":
            return f"Liger's fused loss is for causal-lm, not {config.job.task}"
        return None

    kernels = "fused" if on else "plain"
    return moved(
        "fused-kernels",
        on,
        title="Liger's fused kernels" if on else "Hugging Face's own kernels",
        saves="the logits and several copies of activations" if on else "a package",
        costs="the liger-kernel package" if on else "memory for logits in fp32 and for the copies",
        needs="the liger-kernel package, a model type it knows" if on else "nothing",
        source="Hsu et al. 2024 (Liger Kernel), section 3",
        refuses=refuses,
        apply=lambda config, cluster: (
            config if config.job.kernels == kernels else _with_job(config, "kernels", kernels if on else None)
        ),
    )


def precision(name: str) -> Move:
    """``bf16``, ``fp16`` with dynamic loss scaling, or ``fp32``."""

    def refuses(config: Config, model: Model, cluster: Cluster) -> str | None:
        if name == config.precision:
            return ALREADY
        if name == "bf16" and not cluster.gpu.bf16:
            return f"{cluster.gpu.name} has no bf16 units; PyTorch emulates them slowly"
        if name == "fp16" and cluster.gpu.bf16 and model.model_type in BF16_FAMILIES:
            return f"{model.name} was trained in bf16 and overflows fp16, and {cluster.gpu.name} has bf16"
        if config.get("torch_autocast.enabled"):
            return "torch_autocast decides the format"
        for key in ("bf16.bf16_master_weights_and_grads", "fp16.fp16_master_weights_and_grads"):
            if config.get(key):
                return f"{key} is bound to the format"
        narrow = config.get("data_types.grad_accum_dtype")
        if narrow is not None and config.stage == 0 and narrow != name:
            return "stage 0 sums gradients in the model's type alone (runtime/engine.py:2323)"
        if config.get("data_types.param_dtype") not in (None, name):
            return "data_types.param_dtype states another format"
        return None

    return moved(
        "precision",
        name,
        title={"bf16": "bf16", "fp16": "fp16 with dynamic loss scaling", "fp32": "fp32"}[name],
        saves={
            "bf16": "half of the weights', gradients' and activations' bytes; fp32's range, no loss scale",
            "fp16": "half of the weights', gradients' and activations' bytes, on cards without bf16",
            "fp32": "rounding",
        }[name],
        costs={
            "bf16": "8 bits of significand",
            "fp16": "a range up to 65,504: models trained in bf16 may overflow",
            "fp32": "twice the memory, a fraction of the speed",
        }[name],
        needs={"bf16": "Ampere or newer", "fp16": "tensor cores", "fp32": "nothing"}[name],
        source="Micikevicius et al. 2018 (mixed precision), section 3; runtime/precision_config.py:41-163",
        effect="rounding",
        refuses=refuses,
        apply=lambda config, cluster: _with_precision(config, name),
    )


def _with_precision(config: Config, name: str) -> Config:
    if config.precision == name:
        return config
    changes: dict[str, Any] = {"bf16": None, "bfloat16": None, "fp16": None}
    if name == "bf16":
        changes["bf16"] = {"enabled": True}
    elif name == "fp16":
        stated = config.raw.get("fp16")
        kept = {key: value for key, value in stated.items() if value != "auto"} if stated else {}
        changes["fp16"] = {**LOSS_SCALING, **kept, "enabled": True}
        changes["fp16"] = {"enabled": True, **{k: v for k, v in changes["fp16"].items() if k != "enabled"}}
    return config.with_values(changes)


def lora(r: int) -> Move:
    """LoRA adapters of rank ``r`` on the modules that peft adapts by default."""

    def refuses(config: Config, model: Model, cluster: Cluster) -> str | None:
        if config.job.lora is None and lora_targets(model.model_type) is None:
            return f"peft names no modules to adapt for {model.model_type}: state lora.target_modules"
        return None

    def apply(config: Config, cluster: Cluster) -> Config:
        if config.job.lora is not None and config.job.lora.r == r:
            return config
        stated = (config.raw.get(BLOCK) or {}).get("lora") or {}
        return _with_job(config, "lora", {**stated, "r": r, "lora_alpha": 2 * r})

    return moved(
        "lora",
        r,
        title=f"LoRA adapters of rank {r}",
        saves="gradients and optimizer states of all but a thousandth of the weights",
        costs="another training: the weights themselves stay; a learning rate about ten times higher",
        needs="peft, pretrained weights",
        source="Hu et al. 2021 (LoRA), section 4; peft's LoraConfig",
        effect="training",
        refuses=refuses,
        apply=apply,
    )


def qlora() -> Move:
    """LoRA on weights kept in 4 bits."""
    return moved(
        "qlora",
        None,
        title="LoRA on 4-bit weights (QLoRA)",
        saves="three quarters of the frozen weights' bytes",
        costs="another training, and slower steps: weights are unpacked in every use",
        needs="bitsandbytes, a script of your own",
        source="Dettmers et al. 2023 (QLoRA), section 3",
        effect="training",
        counted=False,
        refuses=lambda *where: (
            "Trimtab builds no 4-bit weights, and no key of DeepSpeed does; ZeRO stage 3 or offload_param "
            "holds LoRA's frozen weights instead"
        ),
        apply=lambda config, cluster: config if config.job.lora else lora(8).apply(config, cluster),
    )


def _ranks(config: Config, model: Model, cluster: Cluster) -> tuple[Value, ...]:
    return (8, 16, 64)


KINDS = (
    Kind(
        name="recomputation",
        title="Activations computed again, of all layers or of some, or kept",
        make=recomputation,
        options=_amounts,
        read=_amount,
    ),
    choice("attention", "How attention is computed", attention, ATTENTIONS),
    switch("fused-kernels", "Liger's kernels or the model's own", fused_kernels),
    choice("precision", "The number format of weights and activations", precision, PRECISIONS),
    Kind(name="lora", title="Adapters in the place of all weights", make=lora, options=_ranks, read=int),
    single("qlora", "Adapters on 4-bit weights", qlora),
)
