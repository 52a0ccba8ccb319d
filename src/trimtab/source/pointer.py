"""Files that point at a DeepSpeed configuration, and the values they own beside it.

An Accelerate file names a configuration (or builds one from its own fields), a Trainer arguments file names
one under ``deepspeed``.  Both also hold values that DeepSpeed has keys for: batch, clipping, precision.
Where two owners of one value disagree, something breaks; here only who owns what is said.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from trimtab.errors import UnreadableFile
from trimtab.source.tree import KeyPath, Source, Span

# accelerate/utils/dataclasses.py:1280-1289 of 1.15.0 (plugin_to_config_mapping), under "deepspeed_config"
_ACCELERATE_PLUGIN: Mapping[str, tuple[str, ...]] = {
    "gradient_accumulation_steps": ("gradient_accumulation_steps",),
    "gradient_clipping": ("gradient_clipping",),
    "zero_stage": ("zero_optimization.stage",),
    "offload_optimizer_device": ("zero_optimization.offload_optimizer.device",),
    "offload_optimizer_nvme_path": ("zero_optimization.offload_optimizer.nvme_path",),
    "offload_param_device": ("zero_optimization.offload_param.device",),
    "offload_param_nvme_path": ("zero_optimization.offload_param.nvme_path",),
    "zero3_save_16bit_model": ("zero_optimization.stage3_gather_16bit_weights_on_model_save",),
    "zero3_init_flag": (),
}
# the same file, top level: set_mixed_precision and the size of the world
_ACCELERATE_TOP: Mapping[str, tuple[str, ...]] = {
    "mixed_precision": ("bf16.enabled", "fp16.enabled"),
    "num_machines": (),
    "num_processes": (),
}
# transformers/integrations/deepspeed.py:133-252 of 5.17 (trainer_config_process and _finalize); beside them
# axolotl's own name for the micro batch
_TRAINER: Mapping[str, tuple[str, ...]] = {
    "per_device_train_batch_size": ("train_micro_batch_size_per_gpu",),
    "micro_batch_size": ("train_micro_batch_size_per_gpu",),
    "gradient_accumulation_steps": ("gradient_accumulation_steps",),
    "max_grad_norm": ("gradient_clipping",),
    "learning_rate": ("optimizer.params.lr", "scheduler.params.warmup_max_lr"),
    "adam_beta1": ("optimizer.params.betas.0",),
    "adam_beta2": ("optimizer.params.betas.1",),
    "adam_epsilon": ("optimizer.params.eps",),
    "weight_decay": ("optimizer.params.weight_decay",),
    "warmup_steps": ("scheduler.params.warmup_num_steps",),
    "warmup_ratio": ("scheduler.params.warmup_num_steps",),
    "max_steps": ("scheduler.params.total_num_steps",),
    "num_train_epochs": ("scheduler.params.total_num_steps",),
    "fp16": ("fp16.enabled",),
    "fp16_full_eval": ("fp16.enabled",),
    "bf16": ("bf16.enabled",),
    "bf16_full_eval": ("bf16.enabled",),
    "save_on_each_node": ("checkpoint.use_node_local_storage",),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnedValue:
    """A value of a pointing file, and the DeepSpeed values that it sets or must equal.

    ``owns`` is empty for values that DeepSpeed has no key for but that decide its world, such as
    ``num_processes``.
    """

    key_path: KeyPath
    value: Any
    span: Span | None
    owns: tuple[KeyPath, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pointer:
    """What a file says of the DeepSpeed configuration that its program will use.

    ``path`` is the configuration's file, beside the pointing file or else under the working folder; None
    where the file has no path.  ``inline`` is then the key path of a configuration inside the file itself
    (Trainer), or None where Accelerate builds one from the ``owned`` values.
    """

    kind: Literal["accelerate", "trainer"]
    path: Path | None
    key_path: KeyPath
    span: Span | None
    inline: KeyPath | None
    owned: tuple[OwnedValue, ...]


def find_pointer(source: Source) -> Pointer | None:
    """The pointer that ``source`` is; None if it is a DeepSpeed configuration itself, or something else."""
    top = source.mapping
    plugin = top.get("deepspeed_config")
    if isinstance(plugin, dict) or str(top.get("distributed_type", "")).upper() == "DEEPSPEED":
        plugin = plugin if isinstance(plugin, dict) else {}
        owned = _owned(source, ("deepspeed_config",), plugin, _ACCELERATE_PLUGIN)
        owned += _owned(source, (), top, _ACCELERATE_TOP)
        key_path: KeyPath = ("deepspeed_config", "deepspeed_config_file")
        return _pointer(source, "accelerate", key_path, plugin.get("deepspeed_config_file"), None, owned)
    named = top.get("deepspeed")
    if isinstance(named, (str, dict)) and named:
        inline: KeyPath | None = ("deepspeed",) if isinstance(named, dict) else None
        return _pointer(source, "trainer", ("deepspeed",), named, inline, _owned(source, (), top, _TRAINER))
    return None


def refuse_pointer(source: Source) -> None:
    """Raises UnreadableFile where ``source`` is no DeepSpeed configuration but a file that points at one."""
    pointer = find_pointer(source)
    if pointer is None:
        return
    what = "a file of Accelerate" if pointer.kind == "accelerate" else "a file of training arguments"
    inside = "stands inside it: give it as a file of its own (`trimtab check` reads this one as it is)"
    where = inside if pointer.path is None else f"is {pointer.path}: give that one"
    raise UnreadableFile(f"{source.file} is {what}; its DeepSpeed configuration {where}")


def _pointer(
    source: Source,
    kind: Literal["accelerate", "trainer"],
    key_path: KeyPath,
    named: Any,
    inline: KeyPath | None,
    owned: tuple[OwnedValue, ...],
) -> Pointer:
    path = _resolved(source.file, named) if isinstance(named, str) and named not in ("", "none") else None
    return Pointer(
        kind=kind, path=path, key_path=key_path, span=source.spans.get(key_path), inline=inline, owned=owned
    )


def _resolved(file: str, named: str) -> Path:
    """The named file beside ``file``; if there is none, but one under the working folder, that one."""
    beside = Path(file).parent / Path(named)
    try:
        return beside if beside.exists() or not Path(named).exists() else Path(named)
    except (OSError, ValueError):  # a name no file system takes
        return beside


def _owned(
    source: Source, parent: KeyPath, mapping: Mapping[str, Any], table: Mapping[str, tuple[str, ...]]
) -> tuple[OwnedValue, ...]:
    return tuple(
        OwnedValue(
            key_path=(*parent, key),
            value=mapping[key],
            span=source.spans.get((*parent, key)),
            owns=tuple(_key_path(dotted) for dotted in table[key]),
        )
        for key in mapping
        if key in table and mapping[key] is not None
    )


def _key_path(dotted: str) -> KeyPath:
    return tuple(int(key) if key.isdecimal() else key for key in dotted.split("."))
