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
    from trimtab.cost.memory import profile

    try:
        if changes:
            config = _changed(config, changes)
        found = profile(config, model, subject.world.size)
    except (TrimtabError, ValueError, TypeError, KeyError, AttributeError, ZeroDivisionError, AssertionError):
        return None  # other rules say what is wrong with the configuration
    return Need(gpu_bytes=found.peak, host_bytes_per_node=found.host_bytes * cluster.gpus_per_node)


def _changed(config: Config, changes: dict[str, Any]) -> Config:
    made = config.with_values(changes)
    return Config(raw=made.raw, name=config.name, job=config.job)
