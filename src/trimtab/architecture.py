"""What a Hugging Face config says of a model's shape, read under each class's own field names."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import compress
from typing import Any, Literal

from trimtab.errors import UnreadableFile
from trimtab.hf_config import ALWAYS_TIED, class_defaults

Kind = Literal["causal", "encoder", "encoder-decoder"]
Norm = Literal["rms", "layer"]
Positions = Literal["rotary", "learned", "alibi", "relative"]

# model types whose published weights were trained in bf16: their range does not fit fp16
# (the Llama 2 paper, section 2.2; T5's and Qwen's model cards; huggingface/transformers#10956 for T5)
BF16_FAMILIES = frozenset(("llama", "mistral", "mixtral", "qwen2", "qwen3", "gemma", "gemma2", "t5", "mt5"))
_FAMILIES = {
    "llama": ("llama",),
    "mistral": ("mistral",),
    "qwen": ("qwen2", "qwen3"),
    "gemma": ("gemma", "gemma2", "gemma3_text"),
    "phi": ("phi", "phi3"),
    "gpt": ("gpt2", "gptj", "gpt_neo", "gpt_neox"),
    "opt": ("opt",),
    "bloom": ("bloom",),
    "falcon": ("falcon",),
    "stablelm": ("stablelm",),
    "starcoder": ("starcoder2",),
    "olmo": ("olmo", "olmo2", "olmo3"),
    "granite": ("granite",),
    "smollm": ("smollm3",),
    "bert": ("bert", "roberta", "xlm-roberta", "camembert", "distilbert", "electra"),
    "t5": ("t5", "mt5"),
}
_FAMILY_OF = {model_type: family for family, members in _FAMILIES.items() for model_type in members}
_KIND_OF: dict[str, Kind] = {"bert": "encoder", "t5": "encoder-decoder"}  # the other families are causal
_BERTS = frozenset(_FAMILIES["bert"])
_LAYER_NORM = _BERTS | {"phi", "gpt2", "gptj", "gpt_neo", "gpt_neox", "opt", "bloom", "falcon", "stablelm",
                        "starcoder2", "olmo"}  # fmt: skip
_LEARNED_POSITIONS = _BERTS | {"gpt2", "gpt_neo", "opt"}
_GATED = frozenset({"llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3",
                    "stablelm", "olmo", "olmo2", "olmo3", "granite", "smollm3"})  # fmt: skip
_EMBEDDING_DROPOUT_AS_RESIDUAL = _BERTS | {"gpt_neox", "t5", "mt5"}
# A head of these classes has its own width, free of hidden_size / heads.
_FREE_HEAD_DIM = frozenset({"llama", "mistral", "qwen3", "gemma", "gemma2", "gemma3_text", "t5", "mt5"})
# Their heads divide hidden_size all the same (validate_architecture of these classes, transformers 5.17).
_DIVIDED_BY_HEADS = frozenset({"llama", "gemma2", "gemma3_text"})
# No scaled_dot_product_attention in their files of transformers 5.17 (models/gptj, gpt_neo, bloom).
EAGER_ONLY = frozenset(("gptj", "gpt_neo", "bloom"))
ACTIVATIONS = frozenset((  # of transformers 5.17, activations.py:324
    "gelu", "gelu_10", "gelu_fast", "gelu_new", "gelu_python", "gelu_pytorch_tanh", "gelu_python_tanh",
    "gelu_accurate", "hardswish", "laplace", "leaky_relu", "linear", "mish", "quick_gelu", "relu", "relu2",
    "relu6", "sigmoid", "silu", "sqrtsoftplus", "swish", "tanh", "prelu", "xielu",
))  # fmt: skip
MOST_LAYERS = 10_000
"""More than any model has: past it a config is a mistake, and would take long to count."""
# of so many layers the last sees all, the others through a window (__post_init__ of these classes)
_PATTERNS = {"gemma2": 2, "gemma3_text": 6, "olmo3": 4}
_PARALLEL_RESIDUAL = frozenset({"phi", "gptj"})


class Fields:
    """A completed config, read with the types that the figures need; a wrong one is named."""

    def __init__(self, hf: Mapping[str, Any], where: str) -> None:
        self.hf, self.where = hf, where
        self._declared = class_defaults(hf["model_type"])

    def wrong(self, key: str, wanted: str) -> UnreadableFile:
        return UnreadableFile(f'{self.where}: "{key}" is {self.hf.get(key)!r}, but must be {wanted}.')

    def key(self, *keys: str) -> str | None:
        """The first of ``keys`` that holds a value: of those that the class declares, if it declares any."""
        declared = [key for key in keys if key in self._declared]
        return next((key for key in declared or keys if self.hf.get(key) is not None), None)

    def size(self, *keys: str) -> int:
        """A positive whole number under the first of ``keys``."""
        key = self.key(*keys) or next((key for key in keys if key in self._declared), keys[0])
        value = self.hf.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise self.wrong(key, "a positive whole number")
        return value

    def size_or(self, default: int, *keys: str) -> int:
        """Like ``size``, but ``default`` where the config holds none of the keys, or null."""
        return self.size(*keys) if self.key(*keys) else default

    def share(self, *keys: str) -> float:
        """A probability, 0 where the config has none of the keys."""
        key = self.key(*keys)
        value = 0 if key is None else self.hf[key]
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= 1:
            raise self.wrong(key or keys[0], "a number from 0 to 1")
        return float(value)

    def text(self, *keys: str) -> str:
        """A name under the first of ``keys``."""
        key = self.key(*keys) or keys[0]
        value = self.hf.get(key)
        if not isinstance(value, str):
            raise self.wrong(key, "a name")
        return value


def figures(c: Fields) -> dict[str, Any]:
    """Every field of a Model but its name, source and config, read under each class's own field names."""
    hf, model_type = c.hf, str(c.hf["model_type"])
    family = _FAMILY_OF[model_type]
    kind = _KIND_OF.get(family, "causal")
    hidden = c.size("hidden_size", "n_embd", "d_model", "dim")
    heads = c.size("num_attention_heads", "n_head", "num_heads", "n_heads")
    layers = c.size("num_hidden_layers", "n_layer", "num_layers", "n_layers")
    decoder_layers = c.size_or(layers, "num_decoder_layers") if kind == "encoder-decoder" else 0
    most = max(layers, decoder_layers)
    if most > MOST_LAYERS:
        raise UnreadableFile(f"{c.where}: {most} layers are more than the {MOST_LAYERS} that are counted.")
    if heads > hidden:
        raise UnreadableFile(f"{c.where}: {heads} attention heads are more than the hidden size, {hidden}.")
    head_dim = c.size_or(hidden // heads, "d_kv" if family == "t5" else "head_dim")
    if head_dim * heads != hidden and model_type not in _FREE_HEAD_DIM:
        raise UnreadableFile(f"{c.where}: hidden size {hidden} is not {heads} heads of {head_dim}.")
    if hidden % heads and model_type in _DIVIDED_BY_HEADS:
        raise UnreadableFile(f"{c.where}: hidden size {hidden} is no multiple of {heads} attention heads.")
    kv_heads = _kv_heads(c, heads)
    if heads % kv_heads:
        raise UnreadableFile(
            f"{c.where}: {heads} attention heads cannot share {kv_heads} key-value heads evenly."
        )
    gated = model_type in _GATED
    gated, activation = _activation(c, family, gated)
    positions = _positions(hf, model_type)
    sliding_window, sliding_layers = _sliding(c, model_type, layers)
    return {
        "family": family,
        "model_type": model_type,
        "kind": kind,
        "hidden_size": hidden,
        "intermediate_size": c.size_or(
            4 * hidden, "intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size", "d_ff", "hidden_dim"
        ),
        "layers": layers,
        "decoder_layers": decoder_layers,
        "heads": heads,
        "kv_heads": kv_heads,
        "head_dim": head_dim,
        "vocab_size": c.size("vocab_size"),
        "embedding_size": c.size_or(hidden, "embedding_size", "word_embed_proj_dim"),
        "max_positions": c.size_or(0, "max_position_embeddings", "n_positions"),
        "type_vocab_size": c.size("type_vocab_size") if "type_vocab_size" in hf else 0,
        "tied_embeddings": model_type in ALWAYS_TIED or bool(hf["tie_word_embeddings"]),
        "activation": activation,
        "gated_mlp": gated,
        "norm": "layer" if model_type in _LAYER_NORM else "rms",
        "positions": positions,
        "rotary_dim": _rotary_dim(c, head_dim) if positions == "rotary" else 0,
        "parallel_residual": _parallel_residual(hf, model_type),
        "sliding_window": sliding_window,
        "sliding_layers": sliding_layers,
        "unturned_layers": _unturned(c, layers),
        "logit_softcap": bool(hf.get("final_logit_softcapping")),
        "attention_softcap": bool(hf.get("attn_logit_softcapping")),
        "labels": _labels(c),
        **_dropouts(c, model_type),
    }


def _kv_heads(c: Fields, heads: int) -> int:
    if c.hf["model_type"] == "falcon":
        if c.hf["multi_query"] and not c.hf["new_decoder_architecture"]:
            return 1
        return c.size_or(heads, "num_kv_heads") if c.hf["new_decoder_architecture"] else heads
    return c.size_or(heads, "num_key_value_heads")


def _activation(c: Fields, family: str, gated: bool) -> tuple[bool, str]:
    """Gated or not, and the activation's name (T5Config.__post_init__: gated-gelu means the tanh form)."""
    if family == "bloom":
        return False, "gelu_new"  # BloomGelu, which is that form and in no config
    if family != "t5":
        keys = ("hidden_activation", "hidden_act", "activation_function", "activation")
        name = c.text(*keys)
        if name not in ACTIVATIONS:
            raise c.wrong(c.key(*keys) or keys[0], "an activation that transformers knows")
        return gated, name
    feed_forward_proj = c.text("feed_forward_proj")
    gate, dash, activation = feed_forward_proj.rpartition("-")
    if (dash and gate != "gated") or activation not in ACTIVATIONS:
        raise c.wrong("feed_forward_proj", "an activation that transformers knows, or 'gated-' and one")
    c.size("relative_attention_num_buckets")
    said = c.hf.get("is_gated_act")  # what a file states comes after what __post_init__ derives
    return bool(dash) if said is None else bool(said), (
        "gelu_new" if feed_forward_proj == "gated-gelu" else activation
    )


def _positions(hf: Mapping[str, Any], model_type: str) -> Positions:
    if model_type in ALWAYS_TIED:
        return "relative"
    if model_type == "bloom" or hf.get("alibi"):
        return "alibi"
    return "learned" if model_type in _LEARNED_POSITIONS else "rotary"


def _rotary_dim(c: Fields, head_dim: int) -> int:
    if c.hf.get("rotary_dim") is not None:
        if c.size("rotary_dim") > head_dim:
            raise c.wrong("rotary_dim", f"no more than the width of a head, {head_dim}")
        return c.size("rotary_dim")
    nested = c.hf.get("rope_parameters")
    if isinstance(nested, Mapping) and nested.get("partial_rotary_factor") is not None:
        share = Fields({**nested, "model_type": c.hf["model_type"]}, c.where).share("partial_rotary_factor")
    else:
        key = c.key("rotary_pct", "partial_rotary_factor")
        share = c.share(key) if key else 1.0
    return int(head_dim * share)


def _parallel_residual(hf: Mapping[str, Any], model_type: str) -> bool:
    if model_type == "falcon":
        return bool(hf["new_decoder_architecture"] or hf["parallel_attn"])
    return model_type in _PARALLEL_RESIDUAL or bool(hf.get("use_parallel_residual"))


def _sliding(c: Fields, model_type: str, layers: int) -> tuple[int | None, tuple[int, ...]]:
    """The window in tokens and the layers that look through it, as the config classes settle them."""
    window = c.size_or(0, "sliding_window", "window_size")
    if model_type in ("qwen2", "qwen3", "smollm3") and not c.hf.get("use_sliding_window"):
        window = 0
    if not window:
        return None, ()
    places = range(layers)
    types = c.hf.get("layer_types")
    if isinstance(types, list):
        if len(types) != layers:
            raise UnreadableFile(
                f'{c.where}: "layer_types" names {len(types)} layers, but the model has {layers}. '
                "Make them equal."
            )
        sliding = [kind == "sliding_attention" for kind in types]
    elif model_type in ("qwen2", "qwen3"):
        sliding = [place >= _whole(c, "max_window_layers") for place in places]
    elif model_type in _PATTERNS:
        pattern = _PATTERNS[model_type]
        pattern = c.size_or(pattern, "sliding_window_pattern") if model_type == "gemma3_text" else pattern
        sliding = [(place + 1) % pattern > 0 for place in places]
    elif model_type == "gpt_neo":
        sliding = [kind == "local" for kind in _gpt_neo_layers(c, layers)]
    else:
        sliding = [True] * layers
    return window, tuple(compress(places, sliding))


def _unturned(c: Fields, layers: int) -> tuple[int, ...]:
    """The layers whose queries and keys are not rotated: every fourth of SmolLM 3's."""
    if c.hf["model_type"] != "smollm3":
        return ()
    turned = c.hf.get("no_rope_layers")
    if turned is None:
        return tuple(range(layers))[(every := c.size("no_rope_layer_interval")) - 1 :: every]
    if not isinstance(turned, list) or len(turned) != layers:
        raise c.wrong("no_rope_layers", f"a list of {layers} numbers, 0 where nothing is rotated")
    return tuple(place for place, turns in enumerate(turned) if not turns)


def _whole(c: Fields, key: str) -> int:
    """A whole number from 0 on."""
    value = c.hf.get(key) or 0
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise c.wrong(key, "a whole number")
    return value


def _gpt_neo_layers(c: Fields, layers: int) -> list[str]:
    """GPTNeoConfig.expand_attention_types_params; the class's default suits 24 layers alone."""
    groups = c.hf.get("attention_types") or [[["global", "local"], 12]]
    try:
        kinds = [kind for pattern, count in groups for kind in list(pattern) * count]
    except (TypeError, ValueError):
        raise c.wrong("attention_types", 'a list like [[["global", "local"], 12]]') from None
    if len(kinds) != layers:
        raise UnreadableFile(
            f'{c.where}: "attention_types" names {len(kinds)} layers, "num_layers" {layers}. Make them equal.'
        )
    return kinds


def _labels(c: Fields) -> int:
    """How many classes the head tells apart: ``id2label`` or ``num_labels``, else 2 as in transformers."""
    names = c.hf.get("id2label")
    return len(names) if isinstance(names, Mapping) and names else c.size_or(2, "num_labels")


def _dropouts(c: Fields, model_type: str) -> dict[str, float]:
    """Where each class drops, read from its modeling file in transformers 5.17."""
    residual = c.share("residual_dropout", "resid_pdrop", "resid_dropout", "hidden_dropout_prob",
                       "hidden_dropout", "dropout_rate", "dropout")  # fmt: skip
    embedding = c.share("embedding_dropout", "embd_pdrop", "embed_dropout")
    if model_type in _EMBEDDING_DROPOUT_AS_RESIDUAL:
        embedding = residual
    elif model_type == "phi3":  # declares embd_pdrop, and uses it nowhere
        embedding = 0.0
    return {
        "embedding_dropout": embedding,
        "residual_dropout": residual,
        "attention_dropout": c.share(
            "attention_dropout", "attn_pdrop", "attention_probs_dropout_prob", "dropout_rate"
        ),
        "mlp_dropout": c.share("dropout_rate"),
        "classifier_dropout": _classifier_dropout(c, model_type),
    }


def _classifier_dropout(c: Fields, model_type: str) -> float:
    """Before a classifier; causal classes that say nothing take 0.1 (modeling_layers.py, and each class)."""
    if model_type == "distilbert":
        return c.share("seq_classif_dropout")
    if _FAMILY_OF[model_type] in _KIND_OF or c.hf.get("classifier_dropout") is not None:
        return c.share("classifier_dropout", "hidden_dropout_prob")
    return 0.1 if c.hf.get("hidden_dropout") is None else c.share("hidden_dropout")
