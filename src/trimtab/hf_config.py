"""Hugging Face configs as data: complete a ``config.json`` with its class's defaults, transformers or not.

The defaults stand in ``data/hf_defaults.json`` (made by ``scripts/make_hf_defaults.py`` from transformers and
peft); the few values that a class derives from others in ``__post_init__`` are derived here.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from types import MappingProxyType
from typing import Any

from trimtab.errors import UnknownArchitecture, UnreadableFile
from trimtab.folders import read_shipped

# Older configs' names for a field (transformers 5.17: __post_init__ of BloomConfig and FalconConfig).
_LEGACY_NAMES = {"bloom": {"n_embed": "hidden_size"}, "falcon": {"n_embed": "hidden_size"}}

# Model types whose class sets tie_word_embeddings to True whatever the file says: transformers 5.17,
# T5Config.__post_init__ and MT5Config.__post_init__.
ALWAYS_TIED = frozenset({"t5", "mt5"})


@cache
def _table() -> Mapping[str, Any]:
    return MappingProxyType(read_shipped("hf_defaults.json"))


def known_model_types() -> tuple[str, ...]:
    """The values of ``model_type`` that the arithmetic knows."""
    return tuple(_table()["model_types"])


def class_defaults(model_type: str) -> Mapping[str, Any]:
    """The defaults that transformers' config class for ``model_type`` declares."""
    defaults: Mapping[str, Any] = _table()["model_types"][model_type]["defaults"]
    return defaults


def lora_targets(model_type: str) -> tuple[str, ...] | None:
    """The modules that peft adapts where none are named, or None where peft has no default."""
    names = _table()["model_types"][model_type]["lora_targets"]
    return tuple(names) if names else None


def _way_on(given: Mapping[str, Any]) -> str:
    """What to do with a config whose model type the arithmetic does not know."""
    text = given.get("text_config")
    inner = text.get("model_type") if isinstance(text, Mapping) else None
    if inner in _table()["model_types"]:
        return (
            f'Its language model is {inner}, which it knows: save "text_config" as a config.json of its own, '
            "and that is counted."
        )
    if given.get("auto_map"):
        return (
            'Its code is of its own ("auto_map"), which a rehearsal does not run either: if it is built like '
            'a known one, give its sizes with that one\'s name, such as "model_type": "llama".'
        )
    return "`trimtab rehearse --phantom` builds the real model of text through transformers and measures it."


def complete(given: Mapping[str, Any], *, where: str) -> dict[str, Any]:
    """The whole config that transformers would build from ``given``, under the class's own field names.

    ``where`` names the source in messages.  Raises UnknownArchitecture for a model type that is not in the
    table and UnreadableFile for a mapping without one.  Values that are None because the class derives them
    (``num_key_value_heads``, ``head_dim``, ``n_inner`` …) stay None: `trimtab.model.Model` has them derived.
    """
    model_type = given.get("model_type")
    if not isinstance(model_type, str) or not model_type:
        raise UnreadableFile(
            f'{where}: no "model_type". A Hugging Face config.json names its architecture there, '
            'for example "model_type": "llama".'
        )
    if model_type not in _table()["model_types"]:
        raise UnknownArchitecture(
            f"{where}: the arithmetic does not know the model type '{model_type}'. {_way_on(given)} "
            f"Known to it: {', '.join(known_model_types())}."
        )
    if given.get("per_layer_config"):
        raise UnknownArchitecture(
            f"{where}: per_layer_config gives layers different shapes, which the arithmetic does not know. "
            "`trimtab rehearse --phantom` builds the real model and measures it."
        )
    names = {**_table()["model_types"][model_type]["aliases"], **_LEGACY_NAMES.get(model_type, {})}
    config = {"model_type": model_type, **class_defaults(model_type)}
    for key, value in given.items():
        config[names.get(key, key)] = value
    return config
