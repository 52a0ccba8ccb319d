"""PL: the data pipeline, curricula and random layer-token dropping."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from trimtab.rules.base import Hit, remove, rule, shown
from trimtab.rules.subject import Subject


@rule("PL008", "data-efficiency-without-its-parts", "error", refused="reading")
def data_efficiency_without_parts(subject: Subject) -> Iterable[Hit]:
    """Finds curriculum learning and dynamic batching without the keys they need.

    Why is this bad?
        DeepSpeed asserts that `curriculum_metrics` and `max_tokens` are given where these are enabled.
    Example
        {"data_efficiency": {"data_sampling": {"dynamic_batching": {"enabled": true}}}}
    Use instead
        {"data_efficiency": {"data_sampling": {"dynamic_batching": {"enabled": true, "max_tokens": 4096}}}}
    Source
        deepspeed/runtime/data_pipeline/config.py:63-97
    """
    above = "data_efficiency.data_sampling"
    for name, needed in (("curriculum_learning", "curriculum_metrics"), ("dynamic_batching", "max_tokens")):
        block = subject.block(f"{above}.{name}")
        if block.get("enabled") and needed not in block:
            place = subject.place(f"{above}.{name}") or ()
            yield Hit(place, f"{name} is enabled without {needed}.")


LTD = "data_efficiency.data_routing.random_ltd"
SCHEDULE = "random_ltd_schedule"
NEEDED = ("total_layer_num", "random_ltd_layer_num", SCHEDULE)
NEEDED_IN_SCHEDULE = ("min_value", "max_value", "schedule_type", "schedule_config")
NEEDED_IN_CONFIG = ("require_steps", "seq_per_step")
LINEAR = "fixed_linear"


@rule("PL015", "random-ltd-without-its-parts", "error", refused="building")
def random_ltd_without_parts(subject: Subject) -> Iterable[Hit]:
    """Finds random layer-token dropping without the keys that it needs, and with what it has not.

    Why is this bad?
        The engine makes its scheduler wherever `random_ltd` is enabled, whatever the `enabled` of the blocks
        above says, and stops with a KeyError on the first key that is missing. Of schedules there is
        "fixed_linear" alone; a learning rate by tokens raises NotImplementedError.
    Example
        {"data_efficiency": {"data_routing": {"random_ltd": {"enabled": true, "total_layer_num": 24,
         "random_ltd_layer_num": 22}}}}
    Use instead
        {"data_efficiency": {"data_routing": {"random_ltd": {"enabled": true, "total_layer_num": 24,
         "random_ltd_layer_num": 22, "random_ltd_schedule": {"min_value": 128, "max_value": 2048,
         "schedule_type": "fixed_linear", "schedule_config": {"require_steps": 2000, "seq_per_step": 16}}}}}}
    Fix safety
        A learning rate by tokens is removed: unsafe. Counts of layers and tokens only their author knows.
    Source
        deepspeed/runtime/engine.py:698-702; deepspeed/runtime/data_pipeline/data_routing/scheduler.py:19-65
    """
    block, above = subject.block(LTD), subject.place(LTD)
    if above is None or not subject.on(f"{LTD}.enabled"):
        return
    missing = [name for name in NEEDED if name not in block]
    if missing:
        yield Hit(above, f"random_ltd is enabled without {' and '.join(missing)}.")
    by_tokens = block.get("layer_token_lr_schedule")
    if isinstance(by_tokens, Mapping) and by_tokens.get("enabled", True):
        place = (*above, "layer_token_lr_schedule")
        yield Hit(
            place, "DeepSpeed has no learning rate by layer tokens yet.", remove(place, safety="unsafe")
        )
    schedule = block.get(SCHEDULE)
    if not isinstance(schedule, Mapping):
        return
    place = (*above, SCHEDULE)
    missing = [name for name in NEEDED_IN_SCHEDULE if name not in schedule]
    if missing:
        yield Hit(place, f"{SCHEDULE} has no {' and '.join(missing)}.")
    if schedule.get("schedule_type", LINEAR) != LINEAR:
        yield Hit(
            (*place, "schedule_type"),
            f"schedule_type is {shown(schedule['schedule_type'])}, but there is {LINEAR} alone.",
            at_value=True,
            refused="running",
        )
    steps = schedule.get("schedule_config")
    if isinstance(steps, Mapping):
        missing = [name for name in NEEDED_IN_CONFIG if name not in steps]
        if missing:
            message = f"schedule_config has no {' and '.join(missing)}."
            yield Hit((*place, "schedule_config"), message, refused="running")
