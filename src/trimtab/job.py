"""What is trained, beside what DeepSpeed is told: the ``"trimtab"`` block of a configuration file.

DeepSpeed has no key for the model, the task, the sequence length or recomputation.  A run's file holds them
in a top-level ``"trimtab"`` object, which DeepSpeed ignores as it ignores every unknown top-level key, so the
same file goes to ``deepspeed.initialize`` unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

from trimtab.errors import UsageError, nearest
from trimtab.frozen import dataclass

Task = Literal[
    "causal-lm",
    "masked-lm",
    "sequence-classification",
    "token-classification",
    "question-answering",
    "seq2seq-lm",
    "span-corruption",
]
Attention = Literal["sdpa", "eager", "flash"]
Kernels = Literal["plain", "fused"]

TASKS: tuple[str, ...] = get_args(Task)
ATTENTIONS: tuple[str, ...] = get_args(Attention)
KERNELS: tuple[str, ...] = get_args(Kernels)
ENCODER_DECODER_TASKS = ("seq2seq-lm", "span-corruption")
# liger_kernel/transformers/monkey_patch.py (0.6), MODEL_TYPE_TO_APPLY_LIGER_FN, of those counted here
LIGER = frozenset(("llama", "mistral", "mixtral", "qwen2", "qwen3", "gemma", "gemma2", "phi3", "olmo2"))
DEFAULT_SEQUENCE_LENGTH = {"causal-lm": 2048, "span-corruption": 512, "seq2seq-lm": 512}
DEFAULT_ENCODER_SEQUENCE_LENGTH = 128
DEFAULT_TARGET_LENGTH = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Lora:
    """peft's ``LoraConfig``, as far as a run's file states it (names are peft's)."""

    r: int = 8
    lora_alpha: int = 16
    lora_dropout: float = 0.0
    target_modules: tuple[str, ...] | None = None
    """None leaves the choice to peft's table for the model type."""
    modules_to_save: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One training job, as the ``"trimtab"`` block and the command line state it."""

    model: str | None = None
    """Catalogue name, Hugging Face id, or a path to a ``config.json``."""
    task: str = "causal-lm"
    sequence_length: int = 2048
    """Tokens per sample (of the encoder, for encoder-decoders)."""
    target_length: int | None = None
    """Tokens per sample of the decoder; only for encoder-decoders."""
    checkpoint_activations: bool = False
    """Recompute activations in the backward pass (Hugging Face's ``gradient_checkpointing_enable``)."""
    recomputed_layers: int | None = None
    """Of how many layers, the first in order of execution, an encoder's before its decoder's; None: of all.

    The block says both in one key: ``"checkpoint_activations": 12``."""
    attention: str = "sdpa"
    kernels: str = "plain"
    """``plain``: Hugging Face's own modules; ``fused``: Liger's fused norm, rotary, SwiGLU and loss."""
    lora: Lora | None = None
    pipeline_stages: int = 1

    @classmethod
    def from_block(cls, block: Mapping[str, Any] | None, *, where: str = "the configuration") -> Job:
        """The job that a ``"trimtab"`` block states; None or an empty block gives the defaults, as null does.

        Raises:
            UsageError: a key or value that the block cannot hold, named with its cure.
        """
        block = {} if block is None else block
        if not isinstance(block, Mapping):
            raise UsageError(f'{where}: "trimtab" must be an object, not {type(block).__name__}')
        known = [key for key in cls.__slots__ if key != "recomputed_layers"]
        for key in block:
            if key not in known:
                hint = nearest(key, known, count=1)
                raise UsageError(
                    f'{where}: "trimtab" has no key "{key}".'
                    + (f' Did you mean "{hint[0]}"?' if hint else f" It knows {', '.join(known)}.")
                )
        values = {key: value for key, value in block.items() if value is not None}
        task = _choice(values.get("task", "causal-lm"), TASKS, "task", where)
        values["task"] = task
        values.setdefault(
            "sequence_length", DEFAULT_SEQUENCE_LENGTH.get(task, DEFAULT_ENCODER_SEQUENCE_LENGTH)
        )
        if task in ENCODER_DECODER_TASKS and values.get("target_length") is None:
            values["target_length"] = DEFAULT_TARGET_LENGTH
        for key in ("sequence_length", "target_length", "pipeline_stages"):
            if values.get(key) is not None:
                values[key] = _positive(values[key], key, where)
        if task not in ENCODER_DECODER_TASKS and values.get("target_length") is not None:
            raise UsageError(
                f'{where}: "target_length" is for {" and ".join(ENCODER_DECODER_TASKS)}, not {task}'
            )
        _choice(values.get("attention", "sdpa"), ATTENTIONS, "attention", where)
        _choice(values.get("kernels", "plain"), KERNELS, "kernels", where)
        layers = values.get("checkpoint_activations", False)
        if not isinstance(layers, int) or layers < 0:
            raise UsageError(
                f'{where}: "checkpoint_activations" must be true, false or a number of layers, not {layers!r}'
            )
        if not isinstance(layers, bool):
            values |= {"checkpoint_activations": layers > 0, "recomputed_layers": layers or None}
        if values.get("model") is not None and not isinstance(values["model"], str):
            raise UsageError(f'{where}: "model" must be a name or a path, not {values["model"]!r}')
        values["lora"] = _lora(values.get("lora"), where)
        return cls(**values)

    @property
    def recomputation(self) -> bool | int:
        """The value of the block's ``checkpoint_activations``: all layers, none, or how many."""
        if self.checkpoint_activations and self.recomputed_layers is not None:
            return self.recomputed_layers
        return self.checkpoint_activations

    @property
    def activations(self) -> str:
        """What becomes of them, in words: ``kept``, ``recomputed``, ``of 12 layers recomputed``."""
        if self.recomputed_layers is not None and self.checkpoint_activations:
            return f"of {self.recomputed_layers} layer{'s' * (self.recomputed_layers > 1)} recomputed"
        return "recomputed" if self.checkpoint_activations else "kept"

    def recomputed_of(self, layers: int, model: str) -> int:
        """How many of the ``layers`` that ``model`` has are recomputed.

        Raises:
            UsageError: the job names more layers than there are.
        """
        if not self.checkpoint_activations:
            return 0
        if self.recomputed_layers is None:
            return layers
        refuse_too_many(self.recomputed_layers, layers, model)
        return self.recomputed_layers

    def to_block(self) -> dict[str, Any]:
        """The block that gives this job back, without what equals a default."""
        block: dict[str, Any] = {}
        if self.model is not None:
            block["model"] = self.model
        block["task"] = self.task
        block["sequence_length"] = self.sequence_length
        if self.target_length is not None:
            block["target_length"] = self.target_length
        if self.checkpoint_activations:
            block["checkpoint_activations"] = self.recomputation
        block["attention"] = self.attention
        if self.kernels != "plain":
            block["kernels"] = self.kernels
        if self.lora is not None:
            lora: dict[str, Any] = {"r": self.lora.r, "lora_alpha": self.lora.lora_alpha}
            if self.lora.lora_dropout:
                lora["lora_dropout"] = self.lora.lora_dropout
            if self.lora.target_modules is not None:
                lora["target_modules"] = list(self.lora.target_modules)
            if self.lora.modules_to_save:
                lora["modules_to_save"] = list(self.lora.modules_to_save)
            block["lora"] = lora
        if self.pipeline_stages != 1:
            block["pipeline_stages"] = self.pipeline_stages
        return block


def refuse_too_many(recomputed: int, layers: int, model: str) -> None:
    """Raise UsageError where more layers shall be recomputed than ``model`` has."""
    if recomputed > layers:
        raise UsageError(
            f'"checkpoint_activations" is {recomputed}, but {model} has {layers} layers: give {layers} at '
            "most, or true for all"
        )


def _choice(value: object, options: tuple[str, ...], key: str, where: str) -> str:
    if value not in options:
        hint = nearest(str(value), options, count=1)
        tail = f' Did you mean "{hint[0]}"?' if hint else f" It is one of {', '.join(options)}."
        raise UsageError(f'{where}: "{key}" cannot be {value!r}.{tail}')
    return str(value)


def _positive(value: object, key: str, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UsageError(f'{where}: "{key}" must be a whole number above 0, not {value!r}')
    return value


def _lora(value: object, where: str) -> Lora | None:
    if value is None or isinstance(value, Lora):
        return value
    if not isinstance(value, Mapping):
        raise UsageError(
            f'{where}: "lora" must be an object such as {{"r": 8, "target_modules": ["q_proj"]}}'
        )
    for key in value:
        if key not in Lora.__slots__:
            hint = nearest(str(key), Lora.__slots__, count=1)
            tail = f' Did you mean "{hint[0]}"?' if hint else f" It knows {', '.join(Lora.__slots__)}."
            raise UsageError(f'{where}: "lora" has no key "{key}".{tail}')
    values = dict(value)
    for key in ("r", "lora_alpha"):
        if key in values:
            _positive(values[key], f"lora.{key}", where)
    dropout = values.get("lora_dropout", 0.0)
    if isinstance(dropout, bool) or not isinstance(dropout, (int, float)) or not 0 <= dropout < 1:
        raise UsageError(f'{where}: "lora.lora_dropout" must be at least 0 and below 1, not {dropout!r}')
    for key in ("target_modules", "modules_to_save"):
        names = values.get(key)
        if names is None:
            values.pop(key, None)
        elif isinstance(names, str):
            values[key] = (names,)
        elif isinstance(names, (list, tuple)) and all(isinstance(name, str) for name in names):
            values[key] = tuple(names)
        else:
            raise UsageError(f'{where}: "lora.{key}" must be a list of module names')
    return Lora(**values)
