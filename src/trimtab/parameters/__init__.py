"""Exact parameter lists without torch: names, shapes and order of the Hugging Face class that a task builds.

Order matters: ZeRO's flat partitions and stage 3's fetches follow it.  Held against transformers 5.17's own
models on the meta device by ``tests/parameters``.
"""

from __future__ import annotations

from trimtab.parameters.buffers import Buffer, buffers
from trimtab.parameters.lists import Parameter, given_up, parameters, skeleton, tasks_of
from trimtab.parameters.modules import Module, Skeleton

__all__ = [
    "Buffer", "Module", "Parameter", "Skeleton", "buffers", "given_up", "parameters", "skeleton", "tasks_of",
]  # fmt: skip
