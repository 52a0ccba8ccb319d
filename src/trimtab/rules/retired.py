"""Rules for blocks that older releases read: compression, sparse attention, elasticity.

DeepSpeed 0.19.7 dropped the first two and 0.19.8 the last; there the rules about keys speak (KY). Here is
what the releases that read them refuse.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from trimtab.rules.base import Hit, rule, shown
from trimtab.rules.subject import Subject
from trimtab.rules.types import BATCH
from trimtab.source.tree import KeyPath

COMPRESSION = "compression_training"
GROUP_KEYS: Mapping[str, tuple[str, ...]] = {
    "weight_quantization": ("start_bits", "target_bits"),
    "activation_quantization": ("bits",),
    "sparse_pruning": ("dense_ratio",),
    "row_pruning": ("dense_ratio",),
    "head_pruning": ("dense_ratio",),
    "channel_pruning": ("dense_ratio",),
}
"""What the ``params`` of each group must hold, by technique."""
SHARED_CHOICES: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "weight_quantization": {
        "quantization_type": ("symmetric", "asymmetric"),
        "rounding": ("nearest", "stochastic"),
    },
    "activation_quantization": {
        "quantization_type": ("symmetric", "asymmetric"),
        "range_calibration": ("dynamic", "static"),
    },
    "sparse_pruning": {"method": ("l1", "topk", "snip_momentum")},
    "row_pruning": {"method": ("l1", "topk")},
    "head_pruning": {"method": ("l1", "topk")},
    "channel_pruning": {"method": ("l1", "topk")},
}
SPARSE_MODES = ("dense", "fixed", "variable", "bigbird", "bslongformer")


def _techniques(subject: Subject) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if subject.schema.key(COMPRESSION) is None:
        return
    for name, block in subject.block(COMPRESSION).items():
        if name in GROUP_KEYS and isinstance(block, dict):
            yield name, block


@rule("RT001", "compression-groups", "error", refused="reading")
def compression_groups(subject: Subject) -> Iterable[Hit]:
    """Finds compression techniques whose groups are missing or lack what a group must say.

    Why is this bad?
        DeepSpeed reads the groups of every technique that stands in the file, enabled or not, and stops with
        a KeyError where they are missing.
    Example
        With `--deepspeed 0.17.6`:
        {"compression_training": {"row_pruning": {"shared_parameters": {"enabled": true}}}}
    Use instead
        With `--deepspeed 0.17.6`:
        {"compression_training": {"row_pruning": {"shared_parameters": {"enabled": true},
          "different_groups": {"all": {"params": {"dense_ratio": 0.5}, "modules": ["*"]}}}}}
    Source
        deepspeed/compression/config.py:130-450 (0.17.6)
    """
    for name, block in _techniques(subject):
        place: KeyPath = (COMPRESSION, name)
        groups = block.get("different_groups")
        if "different_groups" not in block:
            yield Hit(place, f'{name} has no "different_groups".')
        elif not isinstance(groups, dict):
            message = f"different_groups is {shown(groups)}, but must hold a block for each group."
            yield Hit((*place, "different_groups"), message, at_value=True)
        else:
            for group, content in groups.items():
                params = content.get("params") if isinstance(content, dict) else None
                missing = [
                    key for key in GROUP_KEYS[name] if not isinstance(params, dict) or key not in params
                ]
                if missing:
                    where = (*place, "different_groups", group)
                    yield Hit(where, f'"params" of group {group} lacks {" and ".join(missing)}.')


@rule("RT002", "compression-parameters", "error", refused="reading")
def compression_parameters(subject: Subject) -> Iterable[Hit]:
    """Finds shared parameters of a compression technique that DeepSpeed does not take.

    Why is this bad?
        It stops with an AssertionError, whether the technique is enabled or not.
    Example
        With `--deepspeed 0.17.6`:
        {"compression_training": {"row_pruning": {"shared_parameters": {"method": "l2"},
          "different_groups": {}}}}
    Use instead
        With `--deepspeed 0.17.6`:
        {"compression_training": {"row_pruning": {"shared_parameters": {"method": "l1"},
          "different_groups": {}}}}
    Source
        deepspeed/compression/config.py:80-434 (0.17.6)
    """
    if subject.schema.key(COMPRESSION) is not None:
        yield from _shared_of_nothing(subject)
    for name, block in _techniques(subject):
        shared = block.get("shared_parameters")
        if not isinstance(shared, dict):
            continue
        place: KeyPath = (COMPRESSION, name, "shared_parameters")
        for key, choices in SHARED_CHOICES[name].items():
            if key in shared and shared[key] not in choices:
                message = f"{key} is {shown(shared[key])}, but must be one of {', '.join(choices)}."
                yield Hit((*place, key), message, at_value=True)
        if name == "head_pruning" and shared.get("enabled") and "num_heads" not in shared:
            yield Hit(place, "head_pruning is enabled without num_heads.")
        if shared.get("method") == "snip_momentum":
            ratio = shared.get("dense_ratio", 0.1)
            if not isinstance(ratio, (int, float)) or not 0 < ratio < 1:
                message = f"dense_ratio is {shown(ratio)}, but must lie between 0 and 1."
                yield Hit((*place, "dense_ratio"), message, at_value=True)
            start = shared.get("schedule_offset", 1000)
            end = shared.get("schedule_offset_end", start)
            if isinstance(start, (int, float)) and isinstance(end, (int, float)) and start > end:
                message = f"schedule_offset_end {end} comes before schedule_offset {start}."
                yield Hit((*place, "schedule_offset_end"), message, at_value=True)


def _shared_of_nothing(subject: Subject) -> Iterator[Hit]:
    """Of ``shared_parameters`` outside a technique: the engine reads them as weight quantization's."""
    place: KeyPath = (COMPRESSION, "shared_parameters")
    shared = subject.block(COMPRESSION).get("shared_parameters")
    if not isinstance(shared, dict):
        return
    choices = SHARED_CHOICES["weight_quantization"]
    bad = any(key in shared and shared[key] not in words for key, words in choices.items())
    if bad or shared.get("enabled"):
        yield Hit(place, "shared_parameters must stand inside a technique, such as weight_quantization.")


@rule("RT003", "sparse-attention-mode", "error", refused="reading")
def sparse_attention_mode(subject: Subject) -> Iterable[Hit]:
    """Finds sparse attention patterns that DeepSpeed does not have.

    Why is this bad?
        It stops with a NotImplementedError.
    Example
        With `--deepspeed 0.17.6`:
        {"sparse_attention": {"mode": "local"}}
    Use instead
        With `--deepspeed 0.17.6`:
        {"sparse_attention": {"mode": "bslongformer"}}
    Source
        deepspeed/runtime/config.py:240-256 (0.17.6)
    """
    mode = subject.block("sparse_attention").get("mode", "fixed")
    if subject.schema.key("sparse_attention") is not None and mode not in SPARSE_MODES:
        message = f"mode is {shown(mode)}, but must be one of {', '.join(SPARSE_MODES)}."
        yield Hit(("sparse_attention", "mode"), message, at_value=True)


@rule("RT004", "elastic-batch", "error", refused="reading")
def elastic_batch(subject: Subject) -> Iterable[Hit]:
    """Finds elasticity that is enabled without what it needs, or beside the batch keys that it replaces.

    Why is this bad?
        DeepSpeed stops with an ElasticityConfigError: it must know the largest batch and the micro batches,
        and it refuses batch keys beside it unless told to ignore them.
    Example
        With `--deepspeed 0.17.6`:
        {"elasticity": {"enabled": true, "max_train_batch_size": 64}}
    Use instead
        With `--deepspeed 0.17.6`:
        {"elasticity": {"enabled": true, "max_train_batch_size": 64, "micro_batch_sizes": [1, 2, 4],
          "version": 0.1}}
    Source
        deepspeed/elasticity/config.py:49-101, deepspeed/runtime/config.py:689-727 (0.17.6)
    """
    block = subject.block("elasticity")
    if subject.schema.key("elasticity") is None or not block.get("enabled"):
        return
    place: KeyPath = ("elasticity",)
    for key in ("max_train_batch_size", "micro_batch_sizes"):
        if key not in block:
            yield Hit(place, f"elasticity is enabled without {key}.")
    sizes = block.get("micro_batch_sizes", [1])
    if not isinstance(sizes, list) or not all(isinstance(size, int) and size > 0 for size in sizes):
        message = f"micro_batch_sizes is {shown(sizes)}, but must be a list of whole numbers above 0."
        yield Hit((*place, "micro_batch_sizes"), message, at_value=True)
    for key, least in (("min_gpus", 1), ("max_gpus", 1), ("model_parallel_size", 1), ("num_gpus_per_node", 1),
                       ("min_time", 0)):  # fmt: skip
        value = block.get(key, least)
        if not isinstance(value, (int, float)) or value < least:
            yield Hit((*place, key), f"{key} is {shown(value)}, but must be {least} or more.", at_value=True)
    if block.get("version", 0.2) not in (0.1, 0.2, "0.1", "0.2"):
        message = f"version is {shown(block['version'])}, but must be 0.1 or 0.2."
        yield Hit((*place, "version"), message, at_value=True)
    if not block.get("ignore_non_elastic_batch_info"):
        for key in BATCH:
            if key in subject.raw:
                message = f"{key} stands beside elasticity, which sets the batch itself."
                yield Hit((key,), message)


@rule("RT005", "block-without-switch", "error", refused="reading")
def block_without_switch(subject: Subject) -> Iterable[Hit]:
    """Finds `amp`, `progressive_layer_drop` and `curriculum_learning` without their switch.

    Why is this bad?
        DeepSpeed takes the switch out of the block, and stops with a KeyError: 'enabled'.
    Example
        With `--deepspeed 0.17.6`:
        {"amp": {"opt_level": "O1"}}
    Use instead
        With `--deepspeed 0.17.6`:
        {"amp": {"enabled": true, "opt_level": "O1"}}
    Source
        deepspeed/runtime/config.py:133-155, deepspeed/runtime/data_pipeline/config.py:140 (0.17.6)
    """
    for name in ("amp", "progressive_layer_drop", "curriculum_learning"):
        value = subject.raw.get(name)
        if subject.schema.key(name) is not None and isinstance(value, dict) and "enabled" not in value:
            yield Hit((name,), f'{name} has no "enabled".')
