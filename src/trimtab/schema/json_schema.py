"""A JSON Schema (draft-07) of the configuration file, for editors that complete and check as one types."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trimtab.job import ATTENTIONS, KERNELS, TASKS
from trimtab.schema.values import Component, Key, Kind

if TYPE_CHECKING:
    from trimtab.schema.release import Schema

BOUND_NAMES = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}
AUTO = {"const": "auto"}
LARGEST_EXACT = 2**53  # beyond it JSON readers round, so such a default is better left out
COMMENTS = "^([$]schema|_.*|//.*|#.*)$"


def json_schema(schema: Schema) -> dict[str, Any]:
    """The schema of one release's file: every key with its description, and unknown keys marked as wrong.

    Keys that the engine would silently ignore are wrong in an editor too: a typo looks just like them.
    """
    made = _block(schema, "")
    made["properties"]["trimtab"] = _own_block()
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": f"DeepSpeed {schema.version.name} configuration",
        **made,
        "patternProperties": {COMMENTS: {}},
    }


def _block(schema: Schema, path: str) -> dict[str, Any]:
    properties: dict[str, Any] = {}
    for child in schema.children(path):
        key = schema.key(child)
        assert key is not None
        described = _property(schema, key)
        for name in (key.name, *key.aliases):
            properties[name] = described
    made: dict[str, Any] = {"type": "object", "properties": properties}
    if path in ("optimizer", "scheduler"):
        _name_components(schema, "optimizer" if path == "optimizer" else "scheduler", made)
    if schema.unknown_key_behaviour(path) != "passed":
        made["additionalProperties"] = False
    return made


def _property(schema: Schema, key: Key) -> dict[str, Any]:
    if "object" not in key.types:
        return _described(key, _value(key))
    block = _block(schema, key.path)
    others = [name for name in key.types if name != "object"]
    return _described(key, {"anyOf": [block, {"type": others}]} if others else block)


def _value(key: Key) -> dict[str, Any]:
    value: dict[str, Any] = {}
    if key.choices:
        choices = list(key.choices)
        if key.any_case:
            choices += [change(choice) for choice in key.choices for change in (str.lower, str.upper)]
        if "null" in key.types:
            choices.append(None)
        value["enum"] = list(dict.fromkeys(choices))
    elif "any" not in key.types:
        value["type"] = key.types[0] if len(key.types) == 1 else list(key.types)
    value |= {BOUND_NAMES[bound]: limit for bound, limit in key.bounds.items()}
    if key.item_choices:
        value["items"] = {"enum": list(key.item_choices)}
    return {"anyOf": [value, AUTO]} if key.auto else value


def _described(key: Key, value: dict[str, Any]) -> dict[str, Any]:
    text = key.description + (f" Unit: {key.unit}." if key.unit else "")
    for note in key.notes:
        text += f" {note.text}."
    if key.deprecated:
        text += f" Deprecated; use {key.replacement}." if key.replacement else " Deprecated."
    made = {"description": text, **value}
    if key.has_default and not (isinstance(key.default, int) and key.default > LARGEST_EXACT):
        made["default"] = key.default
    return made


def _name_components(schema: Schema, kind: Kind, block: dict[str, Any]) -> None:
    """Offer the built-in names, and for each the parameters that it takes."""
    built_in = list(schema.components(kind))
    spellings = {component.name: _spellings(component) for component in built_in}
    names = [name for found in spellings.values() for name in found]
    # any class of torch.optim or torch.optim.lr_scheduler is accepted by its exact name
    block["properties"]["type"]["anyOf"] = [{"enum": names}, {"type": "string"}]
    del block["properties"]["type"]["type"]
    block["allOf"] = [
        {
            "if": {"properties": {"type": {"enum": spellings[component.name]}}, "required": ["type"]},
            "then": {"properties": {"params": _parameters(component)}},
        }
        for component in built_in
        if component.unknown != "passed"
    ]


def _spellings(component: Component) -> list[str]:
    if component.kind == "scheduler":
        return [component.name]
    return [component.name, component.name.lower()]


def _parameters(component: Component) -> dict[str, Any]:
    made: dict[str, Any] = {
        "type": "object",
        "properties": {name: _described(key, _value(key)) for name, key in component.params.items()},
        "additionalProperties": False,
    }
    required = [name for name, key in component.params.items() if key.required]
    if required:
        made["required"] = required
    return made


def _own_block() -> dict[str, Any]:
    """The ``"trimtab"`` block, which DeepSpeed ignores; `trimtab.job.Job` reads it."""
    positive = {"type": "integer", "minimum": 1}
    names = {"type": "array", "items": {"type": "string"}}
    modules = {"anyOf": [names, {"type": "string"}, {"type": "null"}]}
    lora = {
        "r": {**positive, "description": "Rank of the adapters."},
        "lora_alpha": {**positive, "description": "Scale of the adapters' output, over r."},
        "lora_dropout": {
            "type": "number",
            "minimum": 0,
            "exclusiveMaximum": 1,
            "description": "Dropout before the adapters.",
        },
        "target_modules": {**modules, "description": "Modules that get adapters."},
        "modules_to_save": {**modules, "description": "Modules that are trained and saved whole."},
    }
    properties: dict[str, Any] = {
        "model": {
            "type": ["string", "null"],
            "description": "Catalogue name, Hugging Face id, or path to a config.json.",
        },
        "task": {"enum": list(TASKS), "description": "What the model is trained to do."},
        "sequence_length": {**positive, "description": "Tokens in one sample."},
        "target_length": {
            "anyOf": [positive, {"type": "null"}],
            "description": "Tokens in one target, for encoder-decoder models.",
        },
        "checkpoint_activations": {
            "anyOf": [{"type": "boolean"}, {"type": "integer", "minimum": 0}],
            "description": "Recompute activations in the backward pass instead of keeping them: of all "
            "layers, of none, or of so many, the first in order of execution.",
        },
        "attention": {"enum": list(ATTENTIONS), "description": "Attention implementation."},
        "lora": {
            "description": "Train low-rank adapters instead of the weights.",
            "anyOf": [
                {"type": "object", "properties": lora, "additionalProperties": False},
                {"type": "null"},
            ],
        },
        "pipeline_stages": {**positive, "description": "Pipeline stages that the layers are split into."},
        "kernels": {"enum": list(KERNELS), "description": "Plain modules, or fused kernels."},
    }
    return {
        "type": "object",
        "description": "What is trained, beside what DeepSpeed is told. DeepSpeed ignores it.",
        "properties": properties,
        "additionalProperties": False,
    }
