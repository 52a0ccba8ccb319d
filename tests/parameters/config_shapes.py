"""Small and odd configs of every known model type, for comparison with transformers' own models."""

from __future__ import annotations

from typing import Any

Config = dict[str, Any]
_SMALL: Config = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 101}
_GPT2: Config = {"n_embd": 48, "n_layer": 3, "n_head": 4, "vocab_size": 101, "n_positions": 40}
_NEO: Config = {"hidden_size": 48, "num_heads": 4, "max_position_embeddings": 32}
_T5: Config = {"d_model": 48, "d_kv": 10, "d_ff": 60, "num_layers": 3, "num_heads": 4, "vocab_size": 101}
_DISTIL: Config = {"dim": 48, "hidden_dim": 60, "n_layers": 3, "n_heads": 4, "vocab_size": 101}


def _small(**fields: Any) -> Config:
    return {**_SMALL, **fields}


def _decoder(*more: Config) -> list[Config]:
    """Full, grouped and single key-value heads; tied and not; more labels than two."""
    return [
        _small(num_key_value_heads=4, intermediate_size=80),
        _small(num_key_value_heads=2, intermediate_size=72, tie_word_embeddings=True),
        _small(num_key_value_heads=1, intermediate_size=72, tie_word_embeddings=False, num_labels=5),
        *more,
    ]


def _encoder(*more: Config) -> list[Config]:
    return [
        _small(intermediate_size=70, type_vocab_size=1, max_position_embeddings=33),
        _small(tie_word_embeddings=False, num_labels=3),
        *more,
    ]


_ATTENTION_BIAS = _small(attention_bias=True, num_key_value_heads=2, num_hidden_layers=8)

SHAPES: dict[str, list[Config]] = {
    "llama": _decoder(_small(attention_bias=True, mlp_bias=True, head_dim=20)),
    "mistral": _decoder(_small(head_dim=20, num_key_value_heads=2)),
    "qwen2": _decoder(),
    "qwen3": _decoder(_ATTENTION_BIAS),
    "gemma": _decoder(_ATTENTION_BIAS),
    "gemma2": _decoder(_ATTENTION_BIAS),
    "gemma3_text": _decoder(_ATTENTION_BIAS),
    "olmo": _decoder(_ATTENTION_BIAS),
    "olmo2": _decoder(_ATTENTION_BIAS),
    "olmo3": _decoder(_ATTENTION_BIAS),
    "granite": _decoder(_small(attention_bias=True, mlp_bias=True, num_key_value_heads=2)),
    "smollm3": [
        {**config, "pad_token_id": 0}
        for config in _decoder(_small(attention_bias=True, mlp_bias=True, num_key_value_heads=2))
    ],
    "phi": _decoder(_small(qk_layernorm=True)),
    "phi3": [{**config, "pad_token_id": 0} for config in _decoder()],
    "starcoder2": _decoder(_small(use_bias=False, num_key_value_heads=2)),
    "stablelm": _decoder(
        _small(num_key_value_heads=2, use_qkv_bias=True, qk_layernorm=True, use_parallel_residual=True)
    ),
    "gpt2": [_GPT2, {**_GPT2, "n_inner": 100, "tie_word_embeddings": False, "num_labels": 4}, _SMALL],
    "gptj": [
        {**_GPT2, "rotary_dim": 8},
        {**_GPT2, "rotary_dim": 8, "n_inner": 50, "tie_word_embeddings": True},
    ],
    "gpt_neo": [
        {**_NEO, "num_layers": 2, "attention_types": [[["global", "local"], 1]], "vocab_size": 101},
        {
            **_NEO,
            "num_layers": 3,
            "attention_types": [[["global"], 3]],
            "intermediate_size": 50,
            "tie_word_embeddings": False,
        },
    ],
    "gpt_neox": [
        _SMALL,
        _small(attention_bias=False, rotary_pct=0.5, intermediate_size=60, num_labels=3),
        _small(tie_word_embeddings=True),
    ],
    "opt": [
        _SMALL,
        _small(ffn_dim=60, word_embed_proj_dim=24, do_layer_norm_before=False),
        _small(
            enable_bias=False, layer_norm_elementwise_affine=False, tie_word_embeddings=False, num_labels=3
        ),
        _small(_remove_final_layer_norm=True),
    ],
    "bloom": [
        {"hidden_size": 48, "n_layer": 3, "n_head": 4, "vocab_size": 101},
        {"n_embed": 48, "n_layer": 2, "n_head": 4, "tie_word_embeddings": False, "num_labels": 3},
    ],
    "falcon": [
        _SMALL,
        _small(new_decoder_architecture=True, num_kv_heads=2, bias=True),
        _small(multi_query=False, parallel_attn=False, alibi=True, ffn_hidden_size=70),
        _small(
            new_decoder_architecture=True,
            num_kv_heads=2,
            num_ln_in_parallel_attn=1,
            tie_word_embeddings=False,
        ),
        _small(multi_query=False, num_kv_heads=2),
    ],
    "bert": _encoder(),
    "roberta": _encoder(),
    "xlm-roberta": _encoder(),
    "camembert": _encoder(),
    "electra": _encoder(_small(embedding_size=48)),
    "distilbert": [_DISTIL, {**_DISTIL, "tie_word_embeddings": False}],
    "t5": [
        _T5,
        {**_T5, "num_decoder_layers": 4, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    ],
    "mt5": [_T5, {**_T5, "num_decoder_layers": 2, "feed_forward_proj": "relu", "num_labels": 3}],
}
