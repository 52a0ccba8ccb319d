"""Write src/trimtab/data/hf_defaults.json: the class defaults of the Hugging Face configs that Trimtab knows.

usage: python scripts/make_hf_defaults.py            (needs transformers and peft)

A published ``config.json`` holds only what differs from its class's defaults.  With this table Trimtab
completes such a file where transformers is not installed.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import peft
import transformers
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as LORA_TARGETS
from transformers import AutoConfig, PreTrainedConfig

MODEL_TYPES = (
    "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi", "phi3", "gpt2", "gptj",
    "gpt_neo", "gpt_neox", "opt", "bloom", "falcon", "stablelm", "starcoder2", "olmo", "olmo2", "olmo3",
    "granite", "smollm3", "bert", "roberta", "xlm-roberta", "camembert", "distilbert", "electra", "t5", "mt5",
)  # fmt: skip

# Fields with no bearing on shapes, memory or speed: token ids, initialization, generation, summaries.
IRRELEVANT = {
    "bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id", "initializer_range",
    "initializer_factor", "init_std", "use_cache", "pretraining_tp", "rope_parameters", "slow_but_exact",
    "scale_attn_by_inverse_layer_idx", "summary_type", "summary_use_proj", "summary_activation",
    "summary_proj_to_labels", "summary_first_dropout", "summary_last_dropout",
}  # fmt: skip

TARGET = Path(__file__).parents[1] / "src" / "trimtab" / "data" / "hf_defaults.json"


def class_defaults(config: PreTrainedConfig) -> dict[str, Any]:
    """The defaults that the class declares, before ``__post_init__`` derives one field from another."""
    inherited = {field.name for field in dataclasses.fields(PreTrainedConfig)}
    defaults = {
        field.name: field.default
        for field in dataclasses.fields(config)
        if field.name not in inherited | IRRELEVANT and field.default is not dataclasses.MISSING
    }
    # Set by __post_init__ alone, so no field declares them.
    defaults["tie_word_embeddings"] = config.tie_word_embeddings
    defaults["is_encoder_decoder"] = config.is_encoder_decoder
    rotary_share = (getattr(config, "rope_parameters", None) or {}).get("partial_rotary_factor")
    if rotary_share is not None:
        defaults["rotary_pct" if config.model_type == "gpt_neox" else "partial_rotary_factor"] = rotary_share
    return defaults


def main() -> None:
    configs = {}
    for model_type in MODEL_TYPES:
        config = AutoConfig.for_model(model_type)
        configs[model_type] = {
            "defaults": class_defaults(config),
            "aliases": dict(config.attribute_map),
            "lora_targets": LORA_TARGETS.get(model_type),
        }
    table = {"transformers": transformers.__version__, "peft": peft.__version__, "model_types": configs}
    TARGET.write_text(json.dumps(table, indent=1, sort_keys=False) + "\n")
    print(f"{TARGET}: {len(configs)} model types of transformers {transformers.__version__}")


if __name__ == "__main__":
    main()
