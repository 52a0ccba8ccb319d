"""What DeepSpeed's typed sections make of a value: pydantic's lax conversions, without pydantic.

DeepSpeed 0.19.8 declares them in runtime/config_utils.py:100-110 (no strict mode), so ``"2"``, ``2.0`` and
``true`` all pass where an integer is due.  Held against the installed engine by a test.
"""

from __future__ import annotations

import math
from typing import Any

from trimtab.schema import Key

TRUE = frozenset(("1", "on", "t", "true", "y", "yes"))
FALSE = frozenset(("0", "off", "f", "false", "n", "no"))
INT64 = 2**63


class Misfit(Exception):
    """A value that the engine refuses at this key."""


def coerced(key: Key, value: Any) -> Any:
    """``value`` as the engine's typed section keeps it under ``key``.

    Raises:
        Misfit: the engine refuses it.
    """
    if value is None and "null" in key.types:
        return None
    if value is None and key.path == "zero_optimization.leaf_module":
        return {}  # runtime/zero/leaf_module_config.py takes null for the defaults
    if isinstance(value, str) and key.path.startswith("zero_optimization.leaf_module."):
        return [value]
    for name in key.types:
        if name != "null":
            try:
                made = _CONVERSIONS[name](value)
            except Misfit:
                continue
            _hold_to_choices(key, made)
            return made
    raise Misfit


def true_or_false(value: Any) -> bool:
    """A boolean, the numbers 0 and 1, and their usual words."""
    if isinstance(value, (bool, int, float)) and value in (0, 1):
        return bool(value)
    if isinstance(value, str) and value.lower() in TRUE | FALSE:
        return value.lower() in TRUE
    raise Misfit


def whole(value: Any) -> int:
    """An integer, a float that is one, or a text of one."""
    if isinstance(value, int):
        return int(value)
    if isinstance(value, str):
        text = value.strip()
        digits, point, zeros = text.partition(".")
        if point and (zeros.strip("0") or not zeros):
            raise Misfit
        return int(_parsed(int, digits))
    if isinstance(value, float) and value.is_integer() and abs(value) < INT64:
        return int(value)
    raise Misfit


def number(value: Any) -> float:
    """A number or a text of one."""
    if isinstance(value, (int, float)):
        return float(value) if abs(value) < 1e308 or isinstance(value, float) else math.inf
    if isinstance(value, str):
        return float(_parsed(float, value.strip()))
    raise Misfit


def _parsed(kind: type[int] | type[float], text: str) -> Any:
    if not text.isascii() or text.startswith("_") or len(text) > 300:
        raise Misfit
    try:
        return kind(text)
    except (ValueError, OverflowError):
        raise Misfit from None


def _exactly(kind: type) -> Any:
    def same(value: Any) -> Any:
        if isinstance(value, kind):
            return value
        raise Misfit

    return same


_CONVERSIONS: dict[str, Any] = {
    "boolean": true_or_false,
    "integer": whole,
    "number": number,
    "string": _exactly(str),
    "array": _exactly(list),
    "object": _exactly(dict),
    "any": lambda value: value,
}
# accepted by no text: torch.dtype is an object (runtime/tensor_parallel/config.py:42)
_NEVER_FROM_TEXT = frozenset(("tensor_parallel.dtype",))
# the engine looks at these later, and only where the feature is on
_CHOICES_LATER = frozenset(("tensor_parallel.preset_model",))


def _hold_to_choices(key: Key, value: Any) -> None:
    if key.path in _NEVER_FROM_TEXT:
        raise Misfit
    if not key.choices or key.path in _CHOICES_LATER or value in key.choices:
        return
    if (
        key.any_case
        and isinstance(value, str)
        and value.lower() in [str(choice).lower() for choice in key.choices]
    ):
        return
    raise Misfit


def out_of_bounds(key: Key, value: Any) -> tuple[str, str] | None:
    """The bound that ``value`` breaks, and in words; None for none, and for what is no number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    checks = {
        "ge": (value >= key.bounds.get("ge", value), "at least"),
        "gt": (key.bounds.get("gt") is None or value > key.bounds["gt"], "more than"),
        "le": (value <= key.bounds.get("le", value), "at most"),
        "lt": (key.bounds.get("lt") is None or value < key.bounds["lt"], "less than"),
    }
    for bound, (holds, words) in checks.items():
        if bound in key.bounds and not holds:
            return bound, f"{words} {key.bounds[bound]:g}"
    return None
