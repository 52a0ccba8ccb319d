"""The model: a Hugging Face architecture built for a job, at ZeRO stage 3 straight into its shards.

From scratch or from pretrained weights, with recomputation that is really on, LoRA adapters, frozen weights
and the attention that the architecture has.
"""

from __future__ import annotations

import contextlib
import fnmatch
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trimtab.config import Config
from trimtab.errors import MissingExtra, TrimtabError, UnreadableFile, Unsupported, UsageError
from trimtab.job import Job, Lora, refuse_too_many
from trimtab.parameters.lora import ALL_LINEAR

AUTO_CLASSES = {
    "causal-lm": "AutoModelForCausalLM",
    "masked-lm": "AutoModelForMaskedLM",
    "sequence-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "question-answering": "AutoModelForQuestionAnswering",
    "seq2seq-lm": "AutoModelForSeq2SeqLM",
    "span-corruption": "AutoModelForSeq2SeqLM",
}
PEFT_TASKS = {
    "causal-lm": "CAUSAL_LM",
    "seq2seq-lm": "SEQ_2_SEQ_LM",
    "span-corruption": "SEQ_2_SEQ_LM",
    "sequence-classification": "SEQ_CLS",
    "token-classification": "TOKEN_CLS",
    "question-answering": "QUESTION_ANS",
}
ATTENTION_NAMES = {"sdpa": "sdpa", "eager": "eager", "flash": "flash_attention_2"}
TORCH_DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
# architectures whose position table ends at the config's limit, and the key that holds it
POSITION_LIMITS = {
    "gpt2": "n_positions",
    "gptj": "n_positions",
    "bert": "max_position_embeddings",
    "opt": "max_position_embeddings",
}


FILLED_AT_ONCE = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """What to build, beside what the job says."""

    pretrained: str | None = None
    """A folder or hub id whose weights to start from; None starts from random weights."""
    freeze: tuple[str, ...] = ()
    """Shell patterns of parameter names that are not trained."""
    initialize: bool = True
    """False fills the weights quickly instead of as the architecture asks: for measuring memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """A model ready for ``deepspeed.initialize``, and what to say about it."""

    module: Any
    parameters: int
    trainable: int
    notes: tuple[str, ...] = ()
    zero3: Any = field(default=None, repr=False)
    """Hugging Face's switch for ZeRO stage 3; it is on as long as this object lives."""


def quiet_transformers() -> None:
    """Leave transformers' warnings and bars out: what matters of them is said here, once."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def read_model_config(name: str) -> Any:
    """The Hugging Face config for ``name``: catalogue name, ``config.json``, a model's folder, or hub id.

    Raises:
        UnreadableFile: the file is missing or no Hugging Face config, or the hub cannot be asked.
    """
    path = Path(name).expanduser()
    if path.suffix == ".json" or path.is_file():
        return _from_file(path)
    if (path / "config.json").is_file():
        return _from_file(path / "config.json")
    values = _catalogue_values(name)
    if values is not None:
        return _from_values(values, where=f"the catalogue's model '{name}'")
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise UnreadableFile(
            f"no model '{name}': it is no catalogue name, no folder with a config.json, and the Hugging Face "
            f"hub gave no config for it ({_first_line(error)}). Give a path to a config.json."
        ) from error


def _catalogue_values(name: str) -> dict[str, Any] | None:
    """The ``config.json`` of a catalogue model; None if the catalogue does not know ``name``."""
    try:
        from trimtab.model import find_model  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        return None
    try:
        return dict(find_model(name).hf)
    except TrimtabError:
        return None


def _from_file(path: Path) -> Any:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UnreadableFile(f"{path}: cannot read the model's config: {error.strerror}") from error
    except ValueError as error:
        raise UnreadableFile(f"{path}: not JSON: {error}") from error
    if not isinstance(values, dict) or "model_type" not in values:
        raise UnreadableFile(f'{path}: not a Hugging Face config.json: it has no "model_type"')
    return _from_values(values, where=str(path))


def _from_values(values: dict[str, Any], *, where: str) -> Any:
    from transformers import AutoConfig

    rest = dict(values)
    model_type = rest.pop("model_type")
    try:
        return AutoConfig.for_model(model_type, **rest)
    except (ValueError, TypeError) as error:
        raise UnreadableFile(f"{where}: transformers does not take it: {_first_line(error)}") from error


def prepare_config(hf: Any, job: Job, *, labels: int | None = None) -> tuple[str, ...]:
    """Set on ``hf`` what training needs (in place): no cache, the attention, T5's start token, class labels.

    Returns what was changed and why, for the user.

    Raises:
        UsageError: the sequences are longer than the architecture's position table.
        Unsupported: no head for the task.
    """
    if job.pipeline_stages > 1:
        raise Unsupported(
            f"pipeline_stages is {job.pipeline_stages}: Hugging Face models are not split into stages "
            "here. Remove the key and use ZeRO stage 3."
        )
    notes = []
    hf.use_cache = False
    limit = getattr(hf, POSITION_LIMITS.get(hf.model_type, ""), None)
    if limit and job.sequence_length > limit:
        raise UsageError(
            f"sequence_length is {job.sequence_length} but {hf.model_type} has {limit} positions; "
            f"set sequence_length to {limit} or less"
        )
    if hf.is_encoder_decoder:
        if hf.pad_token_id is None:
            hf.pad_token_id = 0
        if getattr(hf, "decoder_start_token_id", None) is None:
            hf.decoder_start_token_id = hf.pad_token_id
    if labels is not None:
        hf.num_labels = labels
    if job.task == "sequence-classification" and hf.pad_token_id is None:
        hf.pad_token_id = hf.eos_token_id if isinstance(hf.eos_token_id, int) else 0
    attention = ATTENTION_NAMES[job.attention]
    if attention == "sdpa" and not _model_class(hf, job.task)._supports_sdpa:
        attention = "eager"
        notes.append(f"{hf.model_type} has no sdpa attention in transformers: eager attention is used")
    if attention == "flash_attention_2":
        from transformers.utils import is_flash_attn_2_available

        if not is_flash_attn_2_available():
            raise Unsupported(
                'attention "flash" needs the flash-attn package and a GPU it supports; use "sdpa", which '
                "runs PyTorch's own flash kernel"
            )
    hf._attn_implementation = attention
    return tuple(notes)


def build_model(config: Config, hf: Any, build: Build, *, device: str) -> Built:
    """The module for ``config``'s job on ``device`` (``cpu`` or ``cuda``), in the engine's dtype.

    At stage 3 each rank holds only its shard from the first parameter on; the process group must be up.

    Raises:
        UsageError: LoRA's target modules or a freeze pattern match nothing.
        UnreadableFile: the pretrained weights cannot be loaded.
        MissingExtra: a package that the job needs is not installed.
    """
    import torch

    dtype = getattr(torch, TORCH_DTYPES[config.precision])
    module, zero3 = _create(config, hf, build, dtype=dtype, device=device)
    parameters = _count(module.parameters())
    for pattern in build.freeze:
        frozen = [p for name, p in module.named_parameters() if fnmatch.fnmatch(name, pattern)]
        if not frozen:
            examples = ", ".join(name for name, _ in list(module.named_parameters())[:3])
            raise UsageError(f"--freeze {pattern} matches no parameter; names look like {examples}")
        for parameter in frozen:
            parameter.requires_grad_(False)
    if config.job.kernels == "fused":
        _use_liger_kernels(module)
    if config.job.lora is not None:
        module = add_lora(module, config.job.lora, config.job.task)
    if config.job.checkpoint_activations:
        adapted = config.job.lora is not None
        recompute(module, config.job.recomputed_layers, frozen=adapted or bool(build.freeze))
    module.train()
    trainable = _count(p for p in module.parameters() if p.requires_grad)
    if not trainable:
        raise UsageError("every parameter is frozen: nothing to train")
    return Built(module=module, parameters=parameters, trainable=trainable, zero3=zero3)


def recompute(module: Any, count: int | None, *, frozen: bool) -> None:
    """Recompute the first ``count`` transformer layers of ``module`` in the backward pass; None: all of them.

    The first in order of execution: an encoder's before its decoder's.  ``frozen`` says that some weights are
    not trained, so that what the embedding gives must be made to need a gradient.

    Raises:
        UsageError: the model has fewer layers.
    """
    # DeepSpeed's own "activation_checkpointing" block turns nothing on for a Hugging Face model
    module.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if frozen:
        module.enable_input_require_grads()
    if count is None:
        return
    layers = transformer_layers(module)
    refuse_too_many(count, len(layers), module.config.model_type)
    for layer in layers[count:]:
        for part in layer.modules():  # T5's attentions have a flag of their own
            if hasattr(part, "gradient_checkpointing"):
                part.gradient_checkpointing = False


def transformer_layers(module: Any) -> list[Any]:
    """The layers of ``module`` that transformers can recompute, in order of execution."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    return [one for one in module.modules() if isinstance(one, GradientCheckpointingLayer)]


def auto_class(task: str, hf: Any) -> Any:
    """The class of transformers that builds a model of the config ``hf`` for ``task``.

    Raises:
        UsageError: this architecture has no head for the task; names those that it has.
    """
    import transformers

    classes = {one: getattr(transformers, name) for one, name in AUTO_CLASSES.items()}
    having = [one for one, auto in classes.items() if type(hf) in auto._model_mapping]
    if task in having:
        return classes[task]
    if not having:
        raise UsageError(
            f"{hf.model_type} has no head for any task that can be trained here: {', '.join(AUTO_CLASSES)}"
        )
    raise UsageError(
        f'{hf.model_type} has no head for {task}; it has {", ".join(having)}. Give --task, or "task" in the '
        '"trimtab" block'
    )


def count_parameters(config: Config, hf: Any, build: Build) -> tuple[int, int]:
    """All and trained parameters of the model for ``config``'s job, without its weights."""
    import torch

    with torch.device("meta"):
        module = auto_class(config.job.task, hf).from_config(hf)
    parameters = _count(module.parameters())
    if config.job.lora is not None:
        module = add_lora(module, config.job.lora, config.job.task)
    trained = (
        p
        for name, p in module.named_parameters()
        if p.requires_grad and not any(fnmatch.fnmatch(name, pattern) for pattern in build.freeze)
    )
    return parameters, _count(trained)


def _create(config: Config, hf: Any, build: Build, *, dtype: Any, device: str) -> tuple[Any, Any]:
    import torch

    auto = auto_class(config.job.task, hf)
    if not build.initialize:
        return _create_filled(config, hf, auto, dtype=dtype, device=device), None
    zero3 = None
    if config.stage == 3:
        from transformers.integrations import HfDeepSpeedConfig

        zero3 = HfDeepSpeedConfig(config.deepspeed())
    if build.pretrained is not None:
        try:
            module = auto.from_pretrained(build.pretrained, config=hf, dtype=dtype)
        except (OSError, ValueError, RuntimeError) as error:
            raise UnreadableFile(
                f"{build.pretrained}: cannot load the weights: {_first_line(error)}"
            ) from error
        return module, zero3
    with contextlib.nullcontext() if config.stage == 3 else torch.device(device):
        return auto.from_config(hf, dtype=dtype), zero3


def _create_filled(config: Config, hf: Any, auto: Any, *, dtype: Any, device: str) -> Any:
    """The model with quick random weights: the same memory as a real one, without the initializers' time."""
    import torch
    from transformers.initialization import no_init_weights

    with contextlib.ExitStack() as stack:
        stack.enter_context(no_init_weights())
        if config.stage == 3:
            import deepspeed

            stack.enter_context(deepspeed.zero.Init(config_dict_or_path=config.deepspeed(), dtype=dtype))
        else:
            stack.enter_context(torch.device(device))
        module = auto.from_config(hf, dtype=dtype)
        module.tie_weights()  # no_init_weights leaves this out too
    with torch.no_grad():
        for parameter in module.parameters():
            _fill(parameter.ds_tensor if hasattr(parameter, "ds_tensor") else parameter.data)
    return module


def _fill(tensor: Any) -> None:
    """Random values, on the CPU a million of them over and over: it draws them one at a time."""
    if tensor.is_cuda or not tensor.is_contiguous():
        tensor.normal_(0, 0.02)
        return
    pieces = tensor.view(-1).split(FILLED_AT_ONCE)
    pieces[0].normal_(0, 0.02)
    for piece in pieces[1:]:
        piece.copy_(pieces[0][: len(piece)])


def _model_class(hf: Any, task: str) -> Any:
    import transformers

    auto = getattr(transformers, AUTO_CLASSES[task])
    try:
        found = auto._model_mapping[type(hf)]
    except KeyError as error:
        raise Unsupported(f"transformers has no {task} head for {hf.model_type}") from error
    return found[0] if isinstance(found, (list, tuple)) else found


def add_lora(module: Any, lora: Lora, task: str) -> Any:
    """``module`` under peft's adapters: all else is frozen but the head that a task's own class keeps.

    Raises:
        MissingExtra: peft is not installed.
        UsageError: the target modules match nothing.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise MissingExtra("peft", "train", "LoRA") from error
    names = lora.target_modules
    settings = LoraConfig(
        r=lora.r,
        lora_alpha=lora.lora_alpha,
        lora_dropout=lora.lora_dropout,
        # peft knows its shorthand as a text alone: in a list it would be a module's name
        target_modules=ALL_LINEAR if names == (ALL_LINEAR,) else names and list(names),
        modules_to_save=list(lora.modules_to_save) or None,
        task_type=PEFT_TASKS.get(task),
    )
    try:
        # the engine casts the adapters with the rest, so peft must not make them float32 first
        return get_peft_model(module, settings, autocast_adapter_dtype=False)
    except ValueError as error:
        raise UsageError(f'"lora.target_modules": {_first_line(error)}') from error


def _use_liger_kernels(module: Any) -> None:
    try:
        from liger_kernel.transformers import (  # type: ignore[import-not-found, unused-ignore]
            _apply_liger_kernel_to_instance,
        )
    except ImportError as error:
        raise MissingExtra("liger-kernel", "train", 'kernels "fused"') from error
    _apply_liger_kernel_to_instance(model=module)


def _count(parameters: Any) -> int:
    return sum(getattr(parameter, "ds_numel", parameter.numel()) for parameter in parameters)


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__


@contextlib.contextmanager
def whole_weights(module: Any, stage: int, *, names: Sequence[str] | None = None) -> Iterator[None]:
    """Inside, every rank sees the parameters whole, also at stage 3 (all ranks must enter)."""
    if stage < 3:
        yield
        return
    import deepspeed

    wanted = [p for name, p in module.named_parameters() if names is None or name in names]
    with deepspeed.zero.GatheredParameters(wanted):
        yield
