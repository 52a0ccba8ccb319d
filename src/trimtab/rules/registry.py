"""All rules, by code and by family, and selectors such as ``ZR``, ``OF003`` and ``ALL`` over them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache

from trimtab.errors import NotFound
from trimtab.rules import (  # noqa: F401  importing a family enters its rules
    advice,
    batch,
    communication,
    data_pipeline,
    experts,
    files,
    keys,
    loader,
    nvme,
    offload,
    optimizer,
    optimizer_choices,
    parallel,
    precision,
    recomputation,
    retired,
    scheduler,
    types,
    zero,
    zero_plus_plus,
)
from trimtab.rules.base import Rule, entered

FAMILIES: Mapping[str, str] = {
    "FI": "Files: what is wrong with the text itself",
    "KY": "Keys: unknown, removed, misplaced, renamed",
    "TY": "Types: values that the engine cannot take",
    "BT": "Batch: the identity of train, micro, accumulation and GPUs",
    "ZR": "ZeRO: stages and the keys that need one of them",
    "OF": "Offload: the host's memory and NVMe",
    "PR": "Precision: formats of parameters and gradients",
    "OP": "Optimizer",
    "SC": "Scheduler",
    "RC": "Recomputation: activation checkpointing",
    "CM": "Communication, accumulation and logging",
    "PL": "Parallelism: pipelines, tensors, sequences, experts, DeepCompile",
    "RT": "Retired: blocks that only older releases read",
    "LD": 'Loader: who fills "auto" and who else owns a value',
    "AD": "Advice: what the numbers say of a known model on known machines",
}
ALL = "ALL"


@cache
def rules() -> Mapping[str, Rule]:
    """Every rule by code, in the order of the families."""
    order = list(FAMILIES)
    return dict(sorted(entered().items(), key=lambda item: (order.index(item[1].family), item[0])))


@cache
def by_name() -> Mapping[str, Rule]:
    """Every rule by its name."""
    return {rule.name: rule for rule in rules().values()}


def find_rule(code_or_name: str) -> Rule | None:
    """The rule of a code or a name, in any case; None when there is none."""
    return rules().get(code_or_name.upper()) or by_name().get(code_or_name.lower())


def selected(select: Iterable[str], ignore: Iterable[str]) -> tuple[Rule, ...]:
    """The rules that ``select`` names and ``ignore`` does not; where both do, the longer selector wins.

    Raises:
        NotFound: a selector that fits no rule.
    """
    wanted, unwanted = [_checked(text) for text in select] or [ALL], [_checked(text) for text in ignore]
    return tuple(
        rule
        for rule in rules().values()
        if (strength := max(_strength(rule, text) for text in wanted)) >= 0
        and not any(_strength(rule, text) >= strength for text in unwanted)
    )


def fits(rule: Rule, selectors: Iterable[str]) -> bool:
    """Whether any selector names the rule."""
    return any(_strength(rule, text.upper()) >= 0 or rule.name == text for text in selectors)


def _checked(text: str) -> str:
    named = by_name().get(text.strip().lower())
    selector = named.code if named else text.strip().upper()
    if selector != ALL and not any(_strength(rule, selector) >= 0 for rule in rules().values()):
        options = [*FAMILIES, *rules(), *by_name(), ALL]
        raise NotFound("rule", text, options, cure="`trimtab explain` lists all rules.")
    return selector


def _strength(rule: Rule, selector: str) -> int:
    """How closely a selector names a rule: its length, 0 for ALL, -1 if it does not."""
    if selector == ALL:
        return 0
    return len(selector) if rule.code.startswith(selector) else -1
