"""Values out: JSON in DeepSpeed's own key order, and files that are whole or untouched."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trimtab.source.tree import Source

# the order of DeepSpeed's own documents, and of the thirteen configurations
_ORDER = (
    "train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps",
    "zero_optimization", "zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer",
    "fp16", "bf16", "data_types", "torch_autocast",
    "optimizer", "scheduler", "gradient_clipping",
    "activation_checkpointing", "pipeline", "tensor_parallel", "sequence_parallel_size", "expert_parallel",
    "communication_data_type", "prescale_gradients", "gradient_predivide_factor",
    "aio", "checkpoint", "compile",
    "steps_per_print", "wall_clock_breakdown", "memory_breakdown", "dump_state",
    "flops_profiler", "comms_logger", "tensorboard", "wandb", "comet", "csv_monitor",
)  # fmt: skip
_LAST = "trimtab"

# keys that count elements, samples, steps or things: written as integers even when computed as floats
_COUNT = re.compile(
    r"(batch_size|_steps|_size|_size_per_gpu|_threshold|_count|_live_parameters|_reuse_distance|max_in_cpu"
    r"|_scale_power|_scale_window|hysteresis|_checkpoints|_length|_interval|steps_per_print|^stage)$"
)


def dump_json(value: Mapping[str, Any]) -> str:
    """A configuration as JSON text: two blanks, DeepSpeed's key order, counts as integers, a final newline.

    Unknown keys keep their order after the known ones; ``"trimtab"`` comes last.

    >>> print(dump_json({"trimtab": {}, "zero_optimization": {"reduce_bucket_size": 5e8}}), end="")
    {
      "zero_optimization": {
        "reduce_bucket_size": 500000000
      },
      "trimtab": {}
    }

    Raises:
        ValueError: a NaN, an infinity, or something else that JSON has no form for.
    """
    known = [key for key in _ORDER if key in value]
    others = [key for key in value if key not in _ORDER and key != _LAST]
    last = [_LAST] if _LAST in value else []
    ordered = {key: value[key] for key in (*known, *others, *last)}
    return render_json(_with_whole_counts(ordered)) + "\n"


def render_json(value: Any, *, indent: str = "", unit: str = "  ", newline: str = "\n") -> str:
    """``value`` as JSON: objects over several lines, lists of plain values on one.

    ``indent`` begins every line but the first.

    Raises:
        ValueError: a NaN, an infinity, or something else that JSON has no form for.
    """
    deeper = indent + unit
    if isinstance(value, Mapping) and value:
        members = [
            f"{deeper}{render_text(key)}: {render_json(item, indent=deeper, unit=unit, newline=newline)}"
            for key, item in value.items()
        ]
        return "{" + newline + f",{newline}".join(members) + newline + indent + "}"
    if isinstance(value, (list, tuple)) and any(isinstance(item, (Mapping, list, tuple)) for item in value):
        items = [deeper + render_json(item, indent=deeper, unit=unit, newline=newline) for item in value]
        return "[" + newline + f",{newline}".join(items) + newline + indent + "]"
    return render_inline_json(value)


def render_inline_json(value: Any) -> str:
    """``value`` as JSON on one line.

    Raises:
        ValueError: a NaN, an infinity, or something else that JSON has no form for.
    """
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except TypeError as error:
        raise ValueError(str(error)) from error


def render_text(text: str) -> str:
    """``text`` as a JSON text in quotes.

    Raises:
        ValueError: not a text.
    """
    if not isinstance(text, str):
        raise ValueError(f"a key must be a text, not a {type(text).__name__}")
    return json.dumps(text, ensure_ascii=False)


def write_atomic(path: str | os.PathLike[str], text: str) -> None:
    """Writes ``text`` as UTF-8 so that ``path`` is at every moment the old file or the new one, whole.

    A link is followed; the file's permissions stay.

    Raises:
        OSError: the folder cannot be written to; the old file is then untouched.
    """
    import tempfile  # 3 ms, and reading is what most runs do

    target = Path(path).resolve()
    descriptor, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp")
    try:
        with open(descriptor, "wb") as file:
            file.write(text.encode("utf-8"))
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, target.stat().st_mode & 0o7777 if target.exists() else 0o666 & ~_umask())
        os.replace(temporary, target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    _sync_folder(target.parent)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    """Makes a rename in ``folder`` outlast a power cut, where the system can open folders."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _with_whole_counts(value: Any, key: str = "") -> Any:
    if isinstance(value, Mapping):
        return {name: _with_whole_counts(item, str(name)) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_with_whole_counts(item) for item in value]
    whole = isinstance(value, float) and value.is_integer() and _COUNT.search(key)
    return int(value) if whole else value


def unified_diff(source: Source, text: str) -> str:
    """The change of a text as a unified diff; empty where nothing changes."""
    import difflib  # only who looks at a change needs it

    before, after = source.text.splitlines(keepends=True), text.splitlines(keepends=True)
    lines = difflib.unified_diff(before, after, source.file, source.file)
    return "".join(line if line.endswith("\n") else f"{line}\n" for line in lines)
