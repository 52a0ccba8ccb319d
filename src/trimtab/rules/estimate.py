"""The one seam to the memory arithmetic: what a configuration needs, for rules that weigh it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from trimtab.config import Config
from trimtab.errors import TrimtabError
from trimtab.rules.subject import Subject


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """What one GPU allocates at its peak, and what one host holds for its GPUs; bytes."""

    gpu_bytes: int
    host_bytes_per_node: int


def need(subject: Subject, changes: dict[str, Any] | None = None) -> Need | None:
    """The need of a configuration, with dotted ``changes`` if given; None where it cannot be worked out.

    Model, cluster and a configuration that DeepSpeed accepts are needed.
    """
    config, model, cluster = subject.typed, subject.model, subject.cluster
    if config is None or model is None or cluster is None or subject.world.size is None:
        return None
    wanted = tuple(sorted(changes or {}))
    if wanted not in subject.needs:
        subject.needs[wanted] = _need(subject, changes or {}, subject.world.size)
    found: Need | None = subject.needs[wanted]
    return found


def _need(subject: Subject, changes: dict[str, Any], world_size: int) -> Need | None:
    from trimtab.cost.memory import profile

    config, model, cluster = subject.typed, subject.model, subject.cluster
    assert config is not None
    assert model is not None
    assert cluster is not None
    try:
        if changes:
            made = config.with_values(changes)
            config = Config(raw=made.raw, name=config.name, job=config.job)
        found = profile(config, model, world_size)
    except (
        TrimtabError,
        ArithmeticError,
        AssertionError,
        AttributeError,
        LookupError,
        TypeError,
        ValueError,
    ):
        return None  # other rules say what is wrong with the configuration
    return Need(gpu_bytes=found.peak, host_bytes_per_node=found.host_bytes * cluster.gpus_per_node)
