"""GPT-2 and those after it: gptj, gpt_neo, gpt_neox, opt, bloom and falcon.

Registration orders and biases as in transformers 5.17's modeling files of each model type.
"""

from __future__ import annotations

from collections.abc import Callable

from trimtab.model import Model
from trimtab.parameters.modules import Module, conv1d, embedding, layer_norm, linear, stack


def _gpt2(model: Model) -> list[Module]:
    hidden, inner = model.hidden_size, model.intermediate_size
    return [
        embedding("wte", model.vocab_size, hidden),
        embedding("wpe", model.max_positions, hidden),
        *stack(
            "h",
            model.layers,
            [
                layer_norm("ln_1", hidden),
                conv1d("attn.c_attn", hidden, 3 * hidden),
                conv1d("attn.c_proj", hidden, hidden),
                layer_norm("ln_2", hidden),
                conv1d("mlp.c_fc", hidden, inner),
                conv1d("mlp.c_proj", inner, hidden),
            ],
        ),
        layer_norm("ln_f", hidden),
    ]


def _gptj(model: Model) -> list[Module]:
    hidden, inner = model.hidden_size, model.intermediate_size
    return [
        embedding("wte", model.vocab_size, hidden),
        *stack(
            "h",
            model.layers,
            [
                layer_norm("ln_1", hidden),
                *(
                    linear(f"attn.{name}", hidden, hidden)
                    for name in ("k_proj", "v_proj", "q_proj", "out_proj")
                ),
                linear("mlp.fc_in", hidden, inner, True),
                linear("mlp.fc_out", inner, hidden, True),
            ],
        ),
        layer_norm("ln_f", hidden),
    ]


def _gpt_neo(model: Model) -> list[Module]:
    hidden, inner = model.hidden_size, model.intermediate_size
    return [
        embedding("wte", model.vocab_size, hidden),
        embedding("wpe", model.max_positions, hidden),
        *stack(
            "h",
            model.layers,
            [
                layer_norm("ln_1", hidden),
                *(
                    linear(f"attn.attention.{name}", hidden, hidden)
                    for name in ("k_proj", "v_proj", "q_proj")
                ),
                linear("attn.attention.out_proj", hidden, hidden, True),
                layer_norm("ln_2", hidden),
                linear("mlp.c_fc", hidden, inner, True),
                linear("mlp.c_proj", inner, hidden, True),
            ],
        ),
        layer_norm("ln_f", hidden),
    ]


def _gpt_neox(model: Model) -> list[Module]:
    hidden, inner, bias = model.hidden_size, model.intermediate_size, bool(model.hf["attention_bias"])
    return [
        embedding("embed_in", model.vocab_size, hidden),
        *stack(
            "layers",
            model.layers,
            [
                layer_norm("input_layernorm", hidden),
                layer_norm("post_attention_layernorm", hidden),
                linear("attention.query_key_value", hidden, 3 * hidden, bias),
                linear("attention.dense", hidden, hidden, bias),
                linear("mlp.dense_h_to_4h", hidden, inner, True),
                linear("mlp.dense_4h_to_h", inner, hidden, True),
            ],
        ),
        layer_norm("final_layer_norm", hidden),
    ]


def _opt(model: Model) -> list[Module]:
    hidden, inner, narrow = model.hidden_size, model.intermediate_size, model.embedding_size
    bias, affine = bool(model.hf["enable_bias"]), bool(model.hf["layer_norm_elementwise_affine"])
    # OPTLearnedPositionalEmbedding keeps two rows more than there are positions.
    modules = [
        embedding("embed_tokens", model.vocab_size, narrow),
        embedding("embed_positions", model.max_positions + 2, hidden),
    ]
    if narrow != hidden:
        modules += [linear("project_out", hidden, narrow), linear("project_in", narrow, hidden)]
    if model.hf["do_layer_norm_before"] and not model.hf["_remove_final_layer_norm"]:
        modules.append(layer_norm("final_layer_norm", hidden, affine))
    return modules + stack(
        "layers",
        model.layers,
        [
            *(
                linear(f"self_attn.{name}", hidden, hidden, bias)
                for name in ("k_proj", "v_proj", "q_proj", "out_proj")
            ),
            layer_norm("self_attn_layer_norm", hidden, affine),
            linear("fc1", hidden, inner, bias),
            linear("fc2", inner, hidden, bias),
            layer_norm("final_layer_norm", hidden, affine),
        ],
    )


def _bloom(model: Model) -> list[Module]:
    hidden = model.hidden_size
    return [
        embedding("word_embeddings", model.vocab_size, hidden),
        layer_norm("word_embeddings_layernorm", hidden),
        *stack(
            "h",
            model.layers,
            [
                layer_norm("input_layernorm", hidden),
                linear("self_attention.query_key_value", hidden, 3 * hidden, True),
                linear("self_attention.dense", hidden, hidden, True),
                layer_norm("post_attention_layernorm", hidden),
                linear("mlp.dense_h_to_4h", hidden, 4 * hidden, True),
                linear("mlp.dense_4h_to_h", 4 * hidden, hidden, True),
            ],
        ),
        layer_norm("ln_f", hidden),
    ]


def _falcon(model: Model) -> list[Module]:
    hidden, inner, bias = model.hidden_size, model.intermediate_size, bool(model.hf["bias"])
    new = bool(model.hf["new_decoder_architecture"])
    norms = model.hf["num_ln_in_parallel_attn"] or (2 if new else None)
    if not model.hf["parallel_attn"]:
        names = ["post_attention_layernorm", "input_layernorm"]
    else:
        names = ["ln_attn", "ln_mlp"] if norms == 2 else ["input_layernorm"]
    return [
        embedding("word_embeddings", model.vocab_size, hidden),
        *stack(
            "h",
            model.layers,
            [
                linear(
                    "self_attention.query_key_value",
                    hidden,
                    (model.heads + 2 * model.kv_heads) * model.head_dim,
                    bias,
                ),
                linear("self_attention.dense", hidden, hidden, bias),
                linear("mlp.dense_h_to_4h", hidden, inner, bias),
                linear("mlp.dense_4h_to_h", inner, hidden, bias),
                *(layer_norm(name, hidden) for name in names),
            ],
        ),
        layer_norm("ln_f", hidden),
    ]


BACKBONES: dict[str, Callable[[Model], list[Module]]] = {
    "gpt2": _gpt2,
    "gptj": _gptj,
    "gpt_neo": _gpt_neo,
    "gpt_neox": _gpt_neox,
    "opt": _opt,
    "bloom": _bloom,
    "falcon": _falcon,
}
PREFIXES = {"gpt_neox": "gpt_neox", "opt": "model.decoder"}
"""Where the backbone stands in the classes with a head; ``transformer`` for the others."""
