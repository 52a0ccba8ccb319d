"""Learning rate, warm-up, schedule and batch to start from, each with the paper that it comes from.

The rows stand in ``data/recipes.json``, by objective, kind of model and size.  They are starting points: what
was published for models of that kind and size, not what is best for your data.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any

from trimtab.model import Model

DEFAULT_WARMUP_STEPS = 100
"""Where a paper states the warm-up as a share of the run and the run's length is not known."""
LONGEST_WARMUP_SHARE = 0.1
"""A paper's warm-up in steps never takes more of a shorter run than this (BERT's share; appendix A.2)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Hyperparameters as published for a kind and size of model."""

    learning_rate: float
    schedule: str
    """``cosine``, ``linear`` or ``constant``."""
    final_share: float
    """Of the learning rate, at the schedule's end."""
    betas: tuple[float, float]
    eps: float
    weight_decay: float
    gradient_clipping: float
    source: str
    batch_tokens: int | None = None
    batch_samples: int | None = None
    warmup_steps: int | None = None
    warmup_tokens: int | None = None
    warmup_share: float | None = None

    def global_batch(self, sequence_length: int, world_size: int) -> int:
        """Samples a step near the published batch: a power of two for each of ``world_size`` ranks.

        >>> row = recipe_for("finetune", "causal", 7_000_000_000)
        >>> row.global_batch(2048, 8), row.global_batch(2048, 6)
        (64, 48)
        """
        wanted = self.batch_samples or max(1.0, (self.batch_tokens or 1) / sequence_length)
        share = 2 ** max(0, round(math.log2(wanted / world_size)))
        return int(share * world_size)

    def warmup(self, steps: int | None, tokens_per_step: int) -> int:
        """Steps of warm-up in a run of ``steps``, at least 1 (`lr_schedules.py:733` refuses none)."""
        wanted = self.warmup_steps
        if self.warmup_tokens is not None:
            wanted = math.ceil(self.warmup_tokens / tokens_per_step)
        if self.warmup_share is not None:
            wanted = DEFAULT_WARMUP_STEPS if steps is None else math.ceil(self.warmup_share * steps)
        wanted = wanted or 1
        return max(1, wanted if steps is None else min(wanted, math.ceil(steps * LONGEST_WARMUP_SHARE)))

    def sections(self, steps: int | None, tokens_per_step: int) -> dict[str, Any]:
        """``optimizer``, ``scheduler`` and ``gradient_clipping`` of a configuration.

        Without ``steps`` the rate stays where the warm-up leads: DeepSpeed's falling schedules need an end.
        """
        warmup = self.warmup(steps, tokens_per_step)
        return {
            "optimizer": {
                "type": "AdamW",
                "params": {
                    "lr": self.learning_rate,
                    "betas": list(self.betas),
                    "eps": self.eps,
                    "weight_decay": self.weight_decay,
                },
            },
            "scheduler": self._scheduler(steps, warmup),
            "gradient_clipping": self.gradient_clipping,
        }

    def _scheduler(self, steps: int | None, warmup: int) -> dict[str, Any]:
        if steps is not None and steps > warmup and self.schedule == "cosine":
            return {
                "type": "WarmupCosineLR",
                "params": {
                    "total_num_steps": steps,
                    "warmup_min_ratio": 0.0,
                    "warmup_num_steps": warmup,
                    "cos_min_ratio": self.final_share,
                    "warmup_type": "linear",
                },
            }
        rise = {
            "warmup_min_lr": 0.0,
            "warmup_max_lr": self.learning_rate,
            "warmup_num_steps": warmup,
            "warmup_type": "linear",
        }
        if steps is not None and steps > warmup and self.schedule == "linear":
            return {"type": "WarmupDecayLR", "params": {"total_num_steps": steps, **rise}}
        return {"type": "WarmupLR", "params": rise}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    objective: str
    kind: str
    up_to_parameters: float
    recipe: Recipe = field(repr=False)


@cache
def _rows() -> tuple[_Row, ...]:
    rows = json.loads(files("trimtab").joinpath("data/recipes.json").read_text("utf-8"))["rows"]
    return tuple(_row(row) for row in rows)


def _row(row: Mapping[str, Any]) -> _Row:
    values = dict(row)
    head = {key: values.pop(key) for key in ("objective", "kind", "up_to_parameters")}
    values["betas"] = tuple(values["betas"])
    size = head.pop("up_to_parameters")
    return _Row(**head, up_to_parameters=math.inf if size is None else size, recipe=Recipe(**values))


def recipe_for(objective: str, kind: str, parameters: int) -> Recipe:
    """The row for an objective and a kind of model (`recipe_kind`) at its size."""
    kinds = (kind, "causal") if kind == "gated" else (kind,)
    for name in kinds:
        found = [row for row in _rows() if row.objective == objective and row.kind == name]
        for row in sorted(found, key=lambda row: row.up_to_parameters):
            if parameters <= row.up_to_parameters:
                return row.recipe
    raise AssertionError(f"no recipe for {objective} of {kind}")


def recipe_kind(model: Model) -> str:
    """``encoder``, ``encoder-decoder``, or for decoders ``gated`` (LLaMA and its kin) or ``causal``."""
    if model.kind != "causal":
        return model.kind
    return "gated" if model.gated_mlp else "causal"
