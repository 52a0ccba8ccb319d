"""Whether a model trains over the ranks that a configuration has share it."""

from __future__ import annotations

from trimtab.config import Config
from trimtab.errors import Unsupported
from trimtab.model import Model
from trimtab.parameters import sequence_parallel, tensor_parallel


def check_parallel(config: Config, model: Model) -> None:
    """Refuse tensor and sequence parallelism that does not train as one GPU does.

    Raises:
        Unsupported: names the key and the reason.
    """
    for key, size, why_not in (
        ("tensor_parallel.autotp_size", config.tensor_parallel, tensor_parallel.why_not),
        ("sequence_parallel_size", config.sequence_parallel, sequence_parallel.why_not),
    ):
        reason = why_not(config, model) if size > 1 else None
        if reason is not None:
            raise Unsupported(f"{config.name}: {key} {size}: {reason}. Remove it, or set it to 1")
