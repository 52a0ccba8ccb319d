"""What is asked of a plan: the model, the training, and what must hold of time and money."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

from trimtab.cost.need import SURE
from trimtab.errors import NotFound, UsageError
from trimtab.hf_config import lora_targets
from trimtab.job import (
    DEFAULT_ENCODER_SEQUENCE_LENGTH,
    DEFAULT_SEQUENCE_LENGTH,
    DEFAULT_TARGET_LENGTH,
    ENCODER_DECODER_TASKS,
    LIGER,
    Job,
    Lora,
)
from trimtab.model import Model, find_model
from trimtab.parameters import parameters, tasks_of
from trimtab.plan.recipes import Recipe, recipe_for, recipe_kind

Objective = Literal["pretrain", "finetune", "lora"]
Optimize = Literal["fastest", "cheapest", "fewest-gpus", "most-tokens"]
OBJECTIVES: tuple[str, ...] = get_args(Objective)
OPTIMIZE: tuple[str, ...] = get_args(Optimize)
TASKS = {
    "causal": ("causal-lm", "causal-lm"),
    "encoder": ("masked-lm", "sequence-classification"),
    "encoder-decoder": ("span-corruption", "seq2seq-lm"),
}
"""The usual task of pre-training, and of adapting, by kind of model."""
SPAN_CORRUPTION_TARGET = 114
"""Tokens of a target for 512 of input: 15 % in spans of 3 (Raffel et al. 2020, T5, section 3.3.4)."""


class NothingToAdapt(UsageError):
    """LoRA for a model type of which peft names no modules."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """One question: bytes, seconds, dollars, tokens and samples."""

    model: Model
    objective: str
    job: Job
    """The training, recomputation left open."""
    parameters: int
    recipe: Recipe
    global_batch: int | None = None
    """Samples a step; None takes the recipe's, for each number of GPUs."""
    tokens: int | None = None
    budget_usd: float | None = None
    deadline_seconds: float | None = None
    optimize: str = "fastest"
    sure: float = SURE
    """The least probability that a plan fits."""
    spot: bool = False
    price_file: str | None = None

    @property
    def tokens_per_sample(self) -> int:
        """Tokens of the encoder or of the decoder-only input; what ``tokens`` counts."""
        return self.job.sequence_length

    def batch_for(self, world_size: int) -> int:
        """Samples of one optimizer step over ``world_size`` ranks."""
        if self.global_batch is not None:
            return self.global_batch
        return self.recipe.global_batch(self.job.sequence_length, world_size)

    def steps(self, batch: int) -> int | None:
        """Optimizer steps of the run, if its tokens are known."""
        if self.tokens is None:
            return None
        return max(1, round(self.tokens / (batch * self.tokens_per_sample)))


def make_wishes(
    model: Model | str,
    *,
    objective: str = "finetune",
    task: str | None = None,
    sequence_length: int | None = None,
    target_length: int | None = None,
    global_batch: int | None = None,
    tokens: int | None = None,
    budget_usd: float | None = None,
    deadline_seconds: float | None = None,
    optimize: str = "fastest",
    attention: str = "sdpa",
    kernels: str = "plain",
    lora: Lora | None = None,
    sure: float = SURE,
    spot: bool = False,
    price_file: str | None = None,
) -> Wishes:
    """The wishes with what was left open filled in from the model and the objective.

    Raises:
        NotFound: an unknown model, objective or way to optimize; carries the nearest names.
        UsageError: values that no training can have, or that contradict each other.
        UnknownArchitecture: a model that the arithmetic does not know.
    """
    _known("objective", objective, OBJECTIVES)
    _known("way to optimize", optimize, OPTIMIZE)
    for name, value in (
        ("global batch", global_batch),
        ("number of tokens", tokens),
        ("budget", budget_usd),
        ("deadline", deadline_seconds),
    ):
        if value is not None and not value > 0:
            raise UsageError(f"the {name} must be above 0, not {value}")
    if not 0 < sure < 1:
        raise UsageError(f"the probability of fitting must lie between 0 and 1, not {sure}")
    if optimize == "most-tokens" and budget_usd is None and deadline_seconds is None:
        raise UsageError(
            "most tokens for what? Give --budget-usd or --deadline-days with --optimize most-tokens"
        )
    if optimize == "most-tokens" and tokens is not None:
        raise UsageError("--tokens states what --optimize most-tokens would find; leave one of them out")
    found = find_model(model) if isinstance(model, str) else model
    given = model if isinstance(model, str) else found.name
    if objective != "lora" and lora is not None:
        raise UsageError(f"adapters are trained with --objective lora, not {objective}")
    adapters = (lora or Lora()) if objective == "lora" else None
    if adapters is not None and adapters.target_modules is None:
        adapters = Lora(
            r=adapters.r,
            lora_alpha=adapters.lora_alpha,
            lora_dropout=adapters.lora_dropout,
            target_modules=lora_targets(found.model_type),
            modules_to_save=adapters.modules_to_save,
        )
    if adapters is not None and adapters.target_modules is None:
        raise NothingToAdapt(
            f"{found.name}: peft names no modules to adapt for {found.model_type}; name them with "
            "--lora-targets"
        )
    if kernels == "fused" and found.model_type not in LIGER:
        raise UsageError(f"{found.name}: Liger has no kernels for {found.model_type}; leave --kernels out")
    job = _job(found, given, objective, task, sequence_length, target_length, attention, kernels, adapters)
    size = sum(one.numel for one in parameters(found, job.task, job.lora))
    return Wishes(
        model=found,
        objective=objective,
        job=job,
        parameters=size,
        recipe=recipe_for(objective, recipe_kind(found), size),
        global_batch=global_batch,
        tokens=tokens,
        budget_usd=budget_usd,
        deadline_seconds=deadline_seconds,
        optimize=optimize,
        sure=sure,
        spot=spot,
        price_file=price_file,
    )


def _job(
    model: Model,
    name: str,
    objective: str,
    task: str | None,
    sequence_length: int | None,
    target_length: int | None,
    attention: str,
    kernels: str,
    lora: Lora | None,
) -> Job:
    task = task or TASKS[model.kind][objective != "pretrain"]
    tasks = tasks_of(model)
    if task not in tasks:
        raise UsageError(f"{model.name} has no head for {task}; it has {', '.join(tasks)}. Give --task")
    if sequence_length is None:
        usual = DEFAULT_SEQUENCE_LENGTH.get(task, DEFAULT_ENCODER_SEQUENCE_LENGTH)
        sequence_length = min(usual, model.max_positions or usual)
    longest = model.longest_sequence
    if longest is not None and longest < sequence_length:
        raise UsageError(
            f"{model.name} has {longest} positions, fewer than {sequence_length} tokens a sample"
        )
    if task in ENCODER_DECODER_TASKS and target_length is None:
        target_length = DEFAULT_TARGET_LENGTH
        if task == "span-corruption":
            target_length = max(1, round(sequence_length * SPAN_CORRUPTION_TARGET / 512))
    block = {
        "model": name,
        "task": task,
        "sequence_length": sequence_length,
        "target_length": target_length,
        "attention": attention,
        "kernels": kernels,
        "lora": lora,
    }
    return Job.from_block({key: value for key, value in block.items() if value is not None}, where="the plan")


def _known(kind: str, name: str, options: Iterable[str]) -> None:
    if name not in options:
        raise NotFound(kind, name, options, cure=f"Known: {', '.join(options)}.")
