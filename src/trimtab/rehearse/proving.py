"""Rehearsals as a plan asks for them: one configuration in, whether it fits and how long a step took."""

from __future__ import annotations

from trimtab.cluster import Cluster
from trimtab.config import Config
from trimtab.errors import RefusedConfig
from trimtab.plan import Proof
from trimtab.rehearse.answer import Answer, rehearse
from trimtab.rehearse.child import NoAnswer


def under_fake_tensors(config: Config, cluster: Cluster) -> Proof:
    """What a phantom rehearsal says: the real engine's bytes, no time.

    Raises:
        MissingExtra: torch, DeepSpeed or transformers is not installed.
        Unsupported: the rehearsal could not be made.
    """
    return _proof(config, cluster, phantom=True)


def on_this_gpu(config: Config, cluster: Cluster) -> Proof:
    """What a rehearsal on this machine's GPU says: its bytes, and its time with predicted communication.

    One that is killed, breaks or does not end is no candidate for this machine, and the search goes on.

    Raises:
        MissingExtra: torch, DeepSpeed or transformers is not installed.
        Unsupported: there is no GPU, or it is smaller than the one that is asked for.
    """
    try:
        return _proof(config, cluster, phantom=False)
    except NoAnswer as lost:
        return Proof(how="rehearsal", fits=False, fits_probability=0.0, needed_bytes=None, said=str(lost))


def _proof(config: Config, cluster: Cluster, *, phantom: bool) -> Proof:
    how = "phantom" if phantom else "rehearsal"
    try:
        answer = rehearse(config, cluster, phantom=phantom)
    except RefusedConfig as error:
        return Proof(how=how, fits=False, fits_probability=0.0, needed_bytes=None, said=str(error))
    return Proof(
        how=how if answer.seen is not None else "arithmetic",
        fits=answer.fits,
        fits_probability=answer.fits_probability,
        needed_bytes=round(answer.needed.expected),
        step_seconds=None if answer.step_seconds is None else answer.step_seconds.expected,
        said=_said(answer),
    )


def _said(answer: Answer) -> str:
    """The allocator's words where memory ran out, or why nothing could be rehearsed."""
    if answer.seen is None:
        return answer.why_not or ""
    shortage = answer.seen.out_of_memory
    return "" if shortage is None else f"{shortage.message} ({shortage.phase})"
