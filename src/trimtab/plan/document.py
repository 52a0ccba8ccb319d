"""A plan as JSON values, under the keys that other tools rely on."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from trimtab.estimate import to_json as estimate_document
from trimtab.plan.answer import Choice, Counterfactual, Plan
from trimtab.plan.costs import Bill
from trimtab.plan.reasons import machines, summary

# the order in which DeepSpeed's documentation speaks of them
_ORDER = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps",
          "zero_optimization", "bf16", "fp16", "optimizer", "scheduler", "gradient_clipping")  # fmt: skip


def file_of(choice: Choice) -> dict[str, Any]:
    """The configuration file, its keys in the usual order and the ``"trimtab"`` block last."""
    raw = dict(choice.config.raw)
    block = raw.pop("trimtab")
    ordered = {key: raw[key] for key in _ORDER if key in raw}
    return {**ordered, **{key: value for key, value in raw.items() if key not in ordered}, "trimtab": block}


def to_json(plan: Plan) -> dict[str, Any]:
    """The plan in base units: bytes, seconds, dollars; null for what is not known."""
    return {
        "chosen": None if plan.chosen is None else _choice(plan.chosen),
        "considered": [dataclasses.asdict(row) for row in plan.considered],
        "why": list(plan.why),
        "nearest": None
        if plan.nearest is None
        else {
            "change": plan.nearest.change,
            "missing": plan.nearest.missing,
            **_choice(plan.nearest.choice),
        },
        "broken": list(plan.broken),
        "recipe": _recipe(plan),
        "counterfactuals": [_counterfactual(one) for one in plan.counterfactuals],
        "proven": [
            {
                "summary": summary(one.contender),
                **dataclasses.asdict(one.proof),
            }
            for one in plan.proven
        ],
        "notes": list(plan.notes),
    }


def _choice(choice: Choice) -> dict[str, Any]:
    return {
        "config": file_of(choice),
        "estimate": dict(estimate_document(choice.estimate)),
        "launch": choice.launch,
        "summary": choice.summary,
        "machines": machines(choice.cluster),
        "run": _bill(choice.bill),
    }


def _bill(one: Bill) -> Mapping[str, Any]:
    return {
        "tokens": one.tokens,
        "seconds": one.seconds,
        "usd": one.usd,
        "tokens_per_second": one.tokens_per_second,
        "usd_per_hour": one.usd_per_hour,
        "usd_per_billion_tokens": None if one.usd_per_token is None else one.usd_per_token * 1e9,
    }


def _counterfactual(one: Counterfactual) -> dict[str, Any]:
    return {
        "change": one.change,
        "summary": one.summary,
        "machines": machines(one.bill.contender.cluster),
        "step_seconds": one.bill.contender.step_seconds,
        "seconds_ratio": one.seconds_ratio,
        "usd_ratio": one.usd_ratio,
    }


def _recipe(plan: Plan) -> dict[str, Any]:
    recipe = plan.wishes.recipe
    return {
        "learning_rate": recipe.learning_rate,
        "schedule": recipe.schedule,
        "batch_tokens": recipe.batch_tokens,
        "batch_samples": recipe.batch_samples,
        "source": recipe.source,
    }
