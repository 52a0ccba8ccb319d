"""Encoder-decoders: t5 and mt5, with their task heads (transformers 5.17's modeling_t5.py)."""

from __future__ import annotations

from trimtab.model import Model
from trimtab.parameters.modules import Module, Skeleton, embedding, linear, rms_norm, under

MODEL_TYPES = frozenset({"t5", "mt5"})


def skeleton(model: Model, task: str) -> Skeleton:
    """The class that ``task`` builds; its embeddings and ``lm_head`` are one tensor, ``shared``."""
    hidden, labels = model.hidden_size, model.labels
    shared = embedding("shared", model.vocab_size, hidden)
    encoder = under("encoder", _stack(model, model.layers, decoder=False))
    ties = [(f"{stack}.embed_tokens.weight", "shared.weight") for stack in ("encoder", "decoder")]
    inner = [(f"transformer.{tied}", f"transformer.{first}") for tied, first in ties]
    if task == "token-classification":
        body = under("transformer", [shared, *encoder])
        return Skeleton([*body, linear("classifier", hidden, labels, True)], inner[:1])
    both = [shared, *encoder, *under("decoder", _stack(model, model.decoder_layers, decoder=True))]
    if task == "sequence-classification":
        head = [
            linear("classification_head.dense", hidden, hidden, True),
            linear("classification_head.out_proj", hidden, labels, True),
        ]
        return Skeleton(under("transformer", both) + head, inner)
    if task == "question-answering":
        return Skeleton([*both, linear("qa_outputs", hidden, labels, True)], ties)
    lm_head = linear("lm_head", hidden, model.vocab_size)
    return Skeleton([*both, lm_head], [*ties, ("lm_head.weight", "shared.weight")], "lm_head")


def _stack(model: Model, layers: int, *, decoder: bool) -> list[Module]:
    modules = [embedding("embed_tokens", model.vocab_size, model.hidden_size)]
    for index in range(layers):
        parts = [_attention(model, "SelfAttention", biased=index == 0)]
        if decoder:
            parts.append(_attention(model, "EncDecAttention", biased=False))
        parts.append(_feed_forward(model))
        for place, part in enumerate(parts):
            modules += under(f"block.{index}.layer.{place}", part)
    return [*modules, rms_norm("final_layer_norm", model.hidden_size)]


def _attention(model: Model, name: str, *, biased: bool) -> list[Module]:
    hidden, inner = model.hidden_size, model.heads * model.head_dim
    modules = [linear(f"{name}.{part}", hidden, inner) for part in ("q", "k", "v")]
    modules.append(linear(f"{name}.o", inner, hidden))
    if biased:  # only a stack's first layer learns the relative positions
        buckets = int(model.hf["relative_attention_num_buckets"])
        modules.append(embedding(f"{name}.relative_attention_bias", buckets, model.heads))
    return [*modules, rms_norm("layer_norm", hidden)]


def _feed_forward(model: Model) -> list[Module]:
    hidden, inner = model.hidden_size, model.intermediate_size
    names = ("wi_0", "wi_1") if model.gated_mlp else ("wi",)
    return [
        *(linear(f"DenseReluDense.{name}", hidden, inner) for name in names),
        linear("DenseReluDense.wo", inner, hidden),
        rms_norm("layer_norm", hidden),
    ]
