"""Buffers that a model registers beside its parameters: rotary tables, masks, position ids."""

from __future__ import annotations

import math
from typing import NamedTuple

from trimtab.model import Model
from trimtab.parameters import llama_like
from trimtab.parameters.bert_like import ROBERTAS
from trimtab.parameters.modules import Shape

_ELEMENT_BYTES = {"float32": 4, "int64": 8, "bool": 1}


class Buffer(NamedTuple):
    """One registered buffer; ``dtype`` is the one it is made with, before the model is cast."""

    name: str
    shape: Shape
    dtype: str

    @property
    def bytes(self) -> int:
        """Size as made."""
        return math.prod(self.shape) * _ELEMENT_BYTES[self.dtype]


def buffers(model: Model, task: str = "causal-lm") -> tuple[Buffer, ...]:
    """Every registered buffer of the class that ``task`` builds (transformers 5.17), in no promised order."""
    kind, positions = model.model_type, model.max_positions
    if kind == "gptj":
        return tuple(
            Buffer(f"transformer.h.{layer}.attn.embed_positions", (positions, model.rotary_dim), "float32")
            for layer in range(model.layers)
        )
    if kind == "gpt_neo":
        return tuple(
            Buffer(f"transformer.h.{layer}.attn.attention.bias", (1, 1, positions, positions), "bool")
            for layer in range(model.layers)
        )
    if model.kind == "encoder":
        prefix = "roberta" if kind in ROBERTAS else kind
        names = ["position_ids"] if kind == "distilbert" else ["position_ids", "token_type_ids"]
        return tuple(Buffer(f"{prefix}.embeddings.{name}", (1, positions), "int64") for name in names)
    if model.positions != "rotary" and kind != "falcon":  # Falcon makes its table even for ALiBi
        return ()
    prefix = {"gpt_neox": "gpt_neox", "falcon": "transformer"}.get(kind) or llama_like.prefix(model, task)
    shape = (((model.rotary_dim or model.head_dim) + 1) // 2,)
    found = [
        Buffer(f"{prefix}.rotary_emb.{name}", shape, "float32")
        for layer_kind in _layer_kinds(model)
        for name in (f"{layer_kind}inv_freq", f"{layer_kind}original_inv_freq")
    ]
    if kind.startswith("gemma"):
        found.append(Buffer(f"{prefix}.embed_tokens.embed_scale", (), "float32"))
    return tuple(found)


def _layer_kinds(model: Model) -> list[str]:
    """Gemma 3 and OLMo 3 keep a table for each kind of attention in use; the others one for all."""
    if model.model_type not in ("gemma3_text", "olmo3"):
        return [""]
    kinds = [
        ("sliding_attention_", len(model.sliding_layers)),
        ("full_attention_", model.layers - len(model.sliding_layers)),
    ]
    return [name for name, layers in kinds if layers]
