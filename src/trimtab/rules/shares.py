"""What each GPU holds of the model's parameters, for rules that an odd or a large share breaks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from trimtab.errors import TrimtabError
from trimtab.rules.subject import Subject

if TYPE_CHECKING:
    from trimtab.parameters.shares import Share


def shares_of(subject: Subject) -> Sequence[Share]:
    """Every parameter's share at stage 3.

    Empty where the model or the world is not known, or where something else splits the parameters too.
    """
    from trimtab.parameters.shares import shares

    model, world, job = subject.model, subject.world.size, subject.job
    split = (subject.integer("tensor_parallel.autotp_size") or 1) > 1
    if model is None or world is None or job is None or split or job.pipeline_stages > 1:
        return ()
    try:
        return shares(model, job.task, job.lora, world)
    except TrimtabError:
        return ()  # a task or a variant whose parameters nobody knows
