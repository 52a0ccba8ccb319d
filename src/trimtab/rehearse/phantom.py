"""Rehearse a configuration with no GPU and no memory: the real engine under fake tensors, in a child process.

Request (standard input of ``python -m trimtab.rehearse.engine_run ANSWER``): the fields of
`trimtab.rehearse.request.PhantomRequest` as one JSON object.  The file ANSWER holds ``{"rehearsal": ...}``
with the fields of `trimtab.rehearse.request.Rehearsal`, or ``{"error": {"kind": ..., "message": ...}}``.
"""

from __future__ import annotations

from trimtab.errors import need_packages
from trimtab.rehearse import cache
from trimtab.rehearse.child import ask
from trimtab.rehearse.request import PhantomRequest, Rehearsal


def rehearse_phantom(
    request: PhantomRequest, *, timeout_seconds: float = 900, use_cache: bool = True
) -> Rehearsal:
    """Run ``request`` in a child process and return what it saw; the same request again comes from disk.

    Raises:
        MissingExtra: torch, DeepSpeed or transformers is not installed.
        EngineMoved: a part of torch or DeepSpeed that the rehearsal stands on is gone.
        RefusedConfig: DeepSpeed or the model refused the configuration; carries their message.
        Unsupported: the job needs something that has no stand-in, or the run took too long.
    """
    need_packages("a phantom rehearsal")
    if use_cache:
        kept = cache.find(request)
        if kept is not None:
            return kept
    answer = Rehearsal.from_json(
        ask("trimtab.rehearse.engine_run", request.to_json(), timeout_seconds, device="cpu")["rehearsal"]
    )
    if use_cache:
        cache.keep(request, answer)
    return answer
