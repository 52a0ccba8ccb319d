"""Decoders laid out as ``model.embed_tokens``, ``model.layers``, ``model.norm``, ``lm_head``.

Registration orders and biases as in transformers 5.17's modeling files of each model type.
"""

from __future__ import annotations

from trimtab.model import Model
from trimtab.parameters.modules import Module, embedding, layer_norm, linear, rms_norm, stack

MODEL_TYPES = frozenset({"llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi",
                         "phi3", "stablelm", "starcoder2", "olmo", "olmo2", "olmo3", "granite",
                         "smollm3"})  # fmt: skip


def backbone(model: Model) -> list[Module]:
    """Embedding, layers and last norm, without the leading ``model.``."""
    return [
        embedding("embed_tokens", model.vocab_size, model.hidden_size),
        *stack("layers", model.layers, _attention(model) + _feed_forward(model) + _layer_norms(model)),
        *_last_norm(model),
    ]


def prefix(model: Model, task: str) -> str:
    """Where the backbone stands in the class of ``task``."""
    generic = task == "question-answering" and model.model_type != "mistral"
    return "transformer" if generic else "model"  # GenericForQuestionAnswering's name for it


def head_has_bias(model: Model) -> bool:
    """Whether ``lm_head`` has a bias (PhiForCausalLM alone)."""
    return model.model_type == "phi"


def _attention(model: Model) -> list[Module]:
    kind, hidden = model.model_type, model.hidden_size
    queries, keys = model.heads * model.head_dim, model.kv_heads * model.head_dim
    if kind == "phi3":
        return [
            linear("self_attn.o_proj", queries, hidden),
            linear("self_attn.qkv_proj", hidden, queries + 2 * keys),
        ]
    if kind == "starcoder2":
        qkv_bias = out_bias = bool(model.hf["use_bias"])
    elif kind in ("qwen2", "phi"):
        qkv_bias, out_bias = True, kind == "phi"
    elif kind == "stablelm":
        qkv_bias, out_bias = bool(model.hf["use_qkv_bias"]), False
    else:
        qkv_bias = out_bias = bool(model.hf.get("attention_bias"))
    return [
        linear("self_attn.q_proj", hidden, queries, qkv_bias),
        linear("self_attn.k_proj", hidden, keys, qkv_bias),
        linear("self_attn.v_proj", hidden, keys, qkv_bias),
        linear("self_attn.dense" if kind == "phi" else "self_attn.o_proj", queries, hidden, out_bias),
        *_query_key_norms(model, queries, keys),
    ]


def _query_key_norms(model: Model, queries: int, keys: int) -> list[Module]:
    kind, width = model.model_type, model.head_dim
    if kind in ("qwen3", "gemma3_text"):
        return [rms_norm("self_attn.q_norm", width), rms_norm("self_attn.k_norm", width)]
    if kind in ("olmo2", "olmo3"):
        return [rms_norm("self_attn.q_norm", queries), rms_norm("self_attn.k_norm", keys)]
    if kind == "phi" and model.hf["qk_layernorm"]:
        return [layer_norm("self_attn.q_layernorm", width), layer_norm("self_attn.k_layernorm", width)]
    if kind == "stablelm" and model.hf["qk_layernorm"]:  # one norm a head, without bias
        return [
            rms_norm(f"self_attn.{side}_layernorm.norms.{head}", width)
            for side, heads in (("q", model.heads), ("k", model.kv_heads))
            for head in range(heads)
        ]
    return []


def _feed_forward(model: Model) -> list[Module]:
    kind, hidden, inner = model.model_type, model.hidden_size, model.intermediate_size
    if kind == "phi":
        return [linear("mlp.fc1", hidden, inner, True), linear("mlp.fc2", inner, hidden, True)]
    if kind == "starcoder2":
        bias = bool(model.hf["use_bias"])
        return [linear("mlp.c_fc", hidden, inner, bias), linear("mlp.c_proj", inner, hidden, bias)]
    if kind == "phi3":
        return [linear("mlp.gate_up_proj", hidden, 2 * inner), linear("mlp.down_proj", inner, hidden)]
    bias = kind in ("llama", "granite", "smollm3") and bool(model.hf["mlp_bias"])
    return [
        linear("mlp.gate_proj", hidden, inner, bias),
        linear("mlp.up_proj", hidden, inner, bias),
        linear("mlp.down_proj", inner, hidden, bias),
    ]


def _layer_norms(model: Model) -> list[Module]:
    names = {
        "gemma2": ["input", "post_attention", "pre_feedforward", "post_feedforward"],
        "gemma3_text": ["input", "post_attention", "pre_feedforward", "post_feedforward"],
        "olmo2": ["post_attention", "post_feedforward"],
        "olmo3": ["post_attention", "post_feedforward"],
        "phi": ["input"],
    }.get(model.model_type, ["input", "post_attention"])
    if model.model_type == "stablelm" and model.parallel_residual:
        names = ["input"]
    return [_norm(model, f"{name}_layernorm") for name in names]


def _last_norm(model: Model) -> list[Module]:
    return [_norm(model, "final_layernorm" if model.model_type == "phi" else "norm")]


def _norm(model: Model, path: str) -> Module:
    if model.norm == "rms":
        return rms_norm(path, model.hidden_size)
    return layer_norm(path, model.hidden_size, affine=model.model_type != "olmo")
