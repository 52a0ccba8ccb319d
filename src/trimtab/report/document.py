"""The one JSON object that an answering command prints."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from trimtab import __version__

SCHEMA_VERSION = 1


def to_json(answer: Mapping[str, Any]) -> str:
    """``answer`` as one JSON object with ``schema_version`` and ``tool_version`` in front.

    Numbers stay in base units.  What is not a finite number becomes null: NaN is not JSON.

    >>> to_json({"mfu": float("nan"), "fits": True}).splitlines()[3:5]
    ['  "mfu": null,', '  "fits": true']
    """
    document = {"schema_version": SCHEMA_VERSION, "tool_version": __version__, **answer}
    return json.dumps(_finite(document), indent=2, ensure_ascii=False, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(entry) for entry in value]
    return value
