"""From a model and a task to the list of its parameters, plain or under LoRA."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

from trimtab.errors import UnknownArchitecture, UsageError
from trimtab.job import Lora
from trimtab.model import Model
from trimtab.parameters import bert_like, gpt_like, llama_like, t5_like
from trimtab.parameters.modules import Module, Shape, Skeleton, linear, under

_ENCODER_TASKS = (
    "masked-lm",
    "sequence-classification",
    "token-classification",
    "question-answering",
    "causal-lm",
)
_ENCODER_DECODER_TASKS = (
    "seq2seq-lm",
    "span-corruption",
    "sequence-classification",
    "token-classification",
    "question-answering",
)
_NO_CLASSES = frozenset({"granite"})  # ... and no ForSequenceClassification, nor the two below
# Causal model types for which transformers 5.17 has no ForTokenClassification or ForQuestionAnswering.
_NO_TOKEN_HEAD = frozenset({"gptj", "opt", "olmo", "olmo2", "olmo3", "gemma3_text"})
_NO_ANSWER_HEAD = frozenset(
    {"gemma", "gemma2", "gemma3_text", "phi", "phi3", "stablelm", "starcoder2", "olmo", "olmo2", "olmo3"}
)


class Parameter(NamedTuple):
    """One parameter tensor: ``name`` as in ``named_parameters()``, its shape, its module's path."""

    name: str
    shape: Shape
    module: str
    trainable: bool = True

    @property
    def numel(self) -> int:
        """Elements in the tensor."""
        return math.prod(self.shape)


def tasks_of(model: Model) -> tuple[str, ...]:
    """The tasks for which transformers has a class of this model type, the usual one first."""
    if model.kind == "encoder-decoder":
        return _ENCODER_DECODER_TASKS
    if model.kind == "encoder":
        return tuple(
            task for task in _ENCODER_TASKS if model.model_type != "distilbert" or task != "causal-lm"
        )
    if model.model_type in _NO_CLASSES:
        return ("causal-lm",)
    tasks = ["causal-lm", "sequence-classification"]
    if model.model_type not in _NO_TOKEN_HEAD:
        tasks.append("token-classification")
    if model.model_type not in _NO_ANSWER_HEAD:
        tasks.append("question-answering")
    return tuple(tasks)


@lru_cache(maxsize=64)
def skeleton(model: Model, task: str) -> Skeleton:
    """The modules of the class that ``task`` builds, in registration order, with their ties.

    Raises UsageError for a task that the model type has no class for and UnknownArchitecture for variants
    whose lists are not known (cross-attention bolted on to BERT or GPT-2).
    """
    if task not in tasks_of(model):
        known = ", ".join(tasks_of(model))
        raise UsageError(f"{model.name} ({model.model_type}) cannot be built for {task}; it can for {known}.")
    if model.hf.get("add_cross_attention"):
        raise UnknownArchitecture(
            f"{model.name}: add_cross_attention is not known to the arithmetic. `trimtab rehearse --phantom` "
            "builds the real model and measures it."
        )
    if model.kind == "encoder":
        return bert_like.skeleton(model, task)
    if model.kind == "encoder-decoder":
        return t5_like.skeleton(model, task)
    return _causal(model, task)


def _causal(model: Model, task: str) -> Skeleton:
    hidden, width = model.hidden_size, model.embedding_size
    llama = model.model_type in llama_like.MODEL_TYPES
    if llama:
        body = llama_like.backbone(model)
        prefix = llama_like.prefix(model, task)
    else:
        body = gpt_like.BACKBONES[model.model_type](model)
        prefix = gpt_like.PREFIXES.get(model.model_type, "transformer")
    body = under(prefix, body)
    if task == "sequence-classification":
        return Skeleton([*body, linear("score", width, model.labels)])
    if task == "token-classification":
        return Skeleton([*body, linear("score" if llama else "classifier", hidden, model.labels, True)])
    if task == "question-answering":
        return Skeleton([*body, linear("qa_outputs", width, 2, True)])
    bias = llama_like.head_has_bias(model) or model.model_type == "gptj"
    head = linear("lm_head", width, model.vocab_size, bias)
    ties = [("lm_head.weight", f"{body[0].path}.weight")] if model.tied_embeddings else []
    return Skeleton([*body, head], ties, "lm_head")


@lru_cache(maxsize=64)
def parameters(model: Model, task: str = "causal-lm", lora: Lora | None = None) -> tuple[Parameter, ...]:
    """Every parameter tensor of the class that ``task`` builds, in the order of ``named_parameters()``.

    Tied tensors stand once, at their first place.  With ``lora`` the list is that of peft's
    ``get_peft_model``: base weights frozen, A and B matrices after the weight they adapt.

    >>> from trimtab.model import find_model
    >>> sum(p.numel for p in parameters(find_model("llama-7b")))
    6738415616
    """
    build = skeleton(model, task)
    if lora is not None:
        from trimtab.parameters.lora import adapted

        return adapted(model, task, build, lora)
    aliases = first_names(build)
    return tuple(
        Parameter(name, shape, module.path)
        for module in build.modules
        for name, shape in named(module)
        if aliases.get(name, name) == name
    )


@lru_cache(maxsize=64)
def given_up(model: Model, task: str = "causal-lm") -> tuple[tuple[int, int], ...]:
    """Tensors that are built like the others and then tied to an earlier one: how many of `parameters` are
    there before each, and its elements."""
    build = skeleton(model, task)
    if not build.ties:
        return ()
    aliases, before, found = first_names(build), 0, []
    for module in build.modules:
        for name, shape in named(module):
            if aliases.get(name, name) == name:
                before += 1
            else:
                found.append((before, math.prod(shape)))
    return tuple(found)


def named(module: Module) -> list[tuple[str, Shape]]:
    """A module's tensors under their full names."""
    return [(f"{module.path}.{name}", shape) for name, shape in module.tensors]


def first_names(build: Skeleton) -> Mapping[str, str]:
    """For every name in a tie, the one of the two that comes first in registration order."""
    if not build.ties:
        return {}
    tied = {name for tie in build.ties for name in tie}
    owners = {name.rpartition(".")[0] for name in tied}
    modules = [module for module in build.modules if module.path in owners]
    order = [name for module in modules for name, _ in named(module) if name in tied]
    place = {name: index for index, name in enumerate(order)}
    firsts = {}
    for tie in build.ties:
        first = min(tie, key=lambda name: place[name])
        firsts.update(dict.fromkeys(tie, first))
    return firsts
