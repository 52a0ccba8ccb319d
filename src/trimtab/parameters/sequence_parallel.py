"""Ulysses: which jobs DeepSpeed 0.19.8 trains with the tokens of a sample over several GPUs.

The exchange stands around transformers' attention function (runtime/sequence_parallel/ulysses_sp.py,
``UlyssesSPAttentionHF``); the rest of the model sees its own tokens.
That the losses are those of one rank was seen on two and four ranks for each of `SEEN` (fp32, SGD, four
steps).
"""

from __future__ import annotations

from trimtab.config import Config
from trimtab.model import Model

SEEN = frozenset((
    "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "phi", "phi3", "starcoder2", "stablelm", "olmo",
    "olmo2",
))  # fmt: skip
# their configs have no num_key_value_heads, which ulysses_sp.py:512 reads
_NAMELESS = frozenset(("gpt2", "gpt_neox", "opt", "falcon"))
# transformers has no sdpa for them (ulysses_sp.py:468 refuses eager)
_EAGER = frozenset(("gptj", "gpt_neo", "bloom"))


def why_not(config: Config, model: Model) -> str | None:
    """None where ``config`` can spread the samples of ``model`` as it says, else why not."""
    job, size, kind = config.job, config.sequence_parallel, model.model_type
    if kind in _EAGER or job.attention == "eager":
        return "Ulysses refuses eager attention (runtime/sequence_parallel/ulysses_sp.py:468)"
    if kind in _NAMELESS:
        return f"{kind}'s config has no num_key_value_heads (runtime/sequence_parallel/ulysses_sp.py:512)"
    if kind not in SEEN or job.task != "causal-lm":
        return f"no one has seen Ulysses train {kind} for {job.task} as one GPU does"
    if model.heads % size or (model.kv_heads % size and size % model.kv_heads):
        return (
            f"{size} does not divide {model.heads} heads and {model.kv_heads} key-value heads "
            "(runtime/sequence_parallel/ulysses_sp.py:143-150)"
        )
    if job.sequence_length % size:
        return f"{size} does not divide {job.sequence_length} tokens"
    if model.sliding_layers and (model.sliding_window or 0) < job.sequence_length:
        window = model.sliding_window
        return f"Ulysses drops masks (ulysses_sp.py:546), and with them the window of {window} tokens"
    if job.kernels == "fused":
        return "Liger's fused loss takes labels that the ranks of a group must shift over their borders"
    if config.tensor_parallel > 1:
        return "tensor parallelism takes the place of the groups that Ulysses needs (runtime/engine.py:957)"
    return None
