"""The model that is trained and one micro batch for it, made under fake tensors."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from trimtab.auto import for_engine
from trimtab.errors import Unsupported, UsageError
from trimtab.rehearse import attention, corners, fused
from trimtab.rehearse.request import PhantomRequest
from trimtab.train.model import add_lora, auto_class, recompute, transformer_layers

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def configuration(request: PhantomRequest) -> Any:
    """transformers' configuration of ``request.hf``, every default filled in.

    Raises:
        UsageError: ``hf`` has no ``model_type``, or one that transformers does not know.
    """
    from transformers import AutoConfig

    values = {key: value for key, value in request.hf.items() if key != "transformers_version"}
    model_type = values.pop("model_type", None)
    if model_type is None:
        raise UsageError('the Hugging Face configuration has no "model_type"')
    try:
        config = AutoConfig.for_model(model_type, **values)
    except ValueError as unknown:
        raise UsageError(
            f'transformers does not know the model type "{model_type}", and code of a model\'s own is not '
            "run. If it is built like a known one, give its sizes with that one's name, such as "
            '"model_type": "llama"'
        ) from unknown
    # flash-attn need not be installed: the model is built for sdpa and switched afterwards
    config._attn_implementation = "sdpa" if request.attention == "flash" else request.attention
    if hasattr(config, "use_cache"):
        config.use_cache = False
    _fill_tokens(config, request.task)
    return config


def _fill_tokens(config: Any, task: str) -> None:
    """The token ids without which a model cannot train, where its config has none (as trimtab.train)."""
    if getattr(config, "is_encoder_decoder", False):
        if config.pad_token_id is None:
            config.pad_token_id = 0
        if getattr(config, "decoder_start_token_id", None) is None:
            config.decoder_start_token_id = config.pad_token_id
    if task == "sequence-classification" and getattr(config, "pad_token_id", None) is None:
        config.pad_token_id = 0


def model(request: PhantomRequest, deepspeed: Any, dtype: torch.dtype, stage: int) -> Any:
    """The model on the device in ``dtype``, partitioned as it is built at stage 3, with its LoRA if any."""
    if request.deepspeed.get("torch_autocast", {}).get("enabled"):
        raise Unsupported(
            "a phantom rehearsal cannot follow torch_autocast: torch has no casting rules for a device made "
            "in Python; rehearse with bf16 or fp16 enabled, or on a GPU"
        )
    config = configuration(request)
    auto = auto_class(request.task, config)
    with _place(request, deepspeed, dtype, stage):
        try:
            built = auto.from_config(config, dtype=dtype)
        except ValueError as refused:
            if "scaled_dot_product_attention" not in str(refused):
                raise
            config._attn_implementation = "eager"  # as trimtab.train: the model has nothing else
            built = auto.from_config(config, dtype=dtype)
    if request.attention == "flash":
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        ALL_ATTENTION_FUNCTIONS["flash_attention_2"] = attention.flash_function
        for module in built.modules():
            if hasattr(module, "config"):
                module.config._attn_implementation_internal = "flash_attention_2"
    if request.kernels == "fused":
        fused.apply(built, request.compute_capability)
    if request.lora is not None:
        built = add_lora(built, request.lora, request.task)
    if request.checkpoint_activations:
        recompute(built, request.recomputed_layers, frozen=request.lora is not None)
    built.train()
    return built


def recomputed_share(model: Any) -> float:
    """The share of the model's transformer layers whose activations are recomputed."""
    layers = transformer_layers(model)
    return sum(layer.gradient_checkpointing for layer in layers) / max(1, len(layers))


@contextlib.contextmanager
def _place(request: PhantomRequest, deepspeed: Any, dtype: torch.dtype, stage: int) -> Iterator[None]:
    with corners.uninitialized():
        if stage == 3:
            with deepspeed.zero.Init(config_dict_or_path=copy.deepcopy(engine_config(request)), dtype=dtype):
                yield
            return
        with torch.device(corners.DEVICE):
            yield


def engine_config(request: PhantomRequest) -> dict[str, Any]:
    """What goes to ``deepspeed.initialize``: the request's configuration with its batch keys settled."""
    config = copy.deepcopy(for_engine(request.deepspeed))
    config.pop("trimtab", None)
    config.pop("train_batch_size", None)
    config["train_micro_batch_size_per_gpu"] = request.micro_batch
    config["gradient_accumulation_steps"] = request.accumulation
    return config


def batch(request: PhantomRequest, vocabulary: int) -> Mapping[str, Any]:
    """One micro batch of tokens on the device, as the task's model takes it."""
    size, length = request.micro_batch, request.sequence_length

    def tokens(*shape: int) -> Any:
        return torch.randint(0, vocabulary, shape, device=corners.DEVICE)

    parts = int(request.deepspeed.get("sequence_parallel_size", 1))
    if parts > 1:
        names = ("input_ids", "position_ids", "shift_labels")
        return {name: tokens(size, length // parts) for name in names}
    values = {"input_ids": tokens(size, length)}
    if request.padding:
        values["attention_mask"] = tokens(size, length)
    match request.task:
        case "causal-lm" | "masked-lm":
            values["labels"] = values["input_ids"].clone()
        case "sequence-classification":
            values["labels"] = tokens(size)
        case "token-classification":
            values["labels"] = tokens(size, length)
        case "question-answering":
            values["start_positions"], values["end_positions"] = tokens(size), tokens(size)
        case _:
            values["labels"] = tokens(size, request.target_length or length)
    return values
