"""A small copy of a model: the same architecture, code path and task, few enough weights for a laptop."""

from __future__ import annotations

import copy
from typing import Any

HEAD_SIZE = 32
"""Elements of one attention head in a shrunken model."""


def shrink(hf: Any, *, layers: int = 2, hidden_size: int = 128, vocab_size: int | None = 2048) -> Any:
    """A copy of the Hugging Face config ``hf`` with at most ``layers`` layers, ``hidden_size`` wide.

    Heads, their groups, the feed-forward width and rotary sizes follow in proportion, so that grouped-query,
    parallel and encoder-decoder models stay what they are.  ``vocab_size`` None keeps the vocabulary.
    """
    small = copy.deepcopy(hf)
    hidden = min(hidden_size, hf.hidden_size)
    heads = max(1, min(hf.num_attention_heads, hidden // HEAD_SIZE))
    changes: dict[str, Any] = {"num_hidden_layers": min(layers, hf.num_hidden_layers)}
    if getattr(hf, "num_decoder_layers", None) is not None:
        changes["num_decoder_layers"] = min(layers, hf.num_decoder_layers)
    for key in ("num_key_value_heads", "num_kv_heads"):
        groups = getattr(hf, key, None)
        if groups is not None:
            changes[key] = heads if groups == hf.num_attention_heads else max(1, heads // 2)
    feed_forward = {"llama": "intermediate_size", "t5": "d_ff", "gpt2": "n_inner", "gptj": "n_inner"}.get(
        hf.model_type, "intermediate_size"
    )
    width = getattr(hf, feed_forward, None)
    if width is not None:
        changes[feed_forward] = max(hidden, round(width * hidden / hf.hidden_size / HEAD_SIZE) * HEAD_SIZE)
    changes["num_attention_heads"] = heads
    changes["hidden_size"] = hidden
    for key in ("head_dim", "d_kv"):
        follows = isinstance(getattr(type(hf), key, None), property)  # Falcon's from the two above
        if getattr(hf, key, None) is not None and not follows:
            changes[key] = hidden // heads
    rotary = getattr(hf, "rotary_dim", None)
    if rotary is not None:
        changes["rotary_dim"] = min(rotary, hidden // heads // 2)
    if vocab_size is not None and vocab_size < hf.vocab_size:
        changes["vocab_size"] = vocab_size
        for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
            token = getattr(hf, key, None)
            if isinstance(token, int) and token >= vocab_size:
                changes[key] = vocab_size - 1
    for key, value in changes.items():
        setattr(small, key, value)
    return small
