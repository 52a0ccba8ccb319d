"""Rehearsals as a plan asks for them: one configuration in, whether it fits and how long a step took."""

from __future__ import annotations

from trimtab.cluster import Cluster
from trimtab.config import Config
from trimtab.errors import RefusedConfig
from trimtab.plan import Proof
from trimtab.rehearse.answer import rehearse


def under_fake_tensors(config: Config, cluster: Cluster) -> Proof:
    """What a phantom rehearsal says: the real engine's bytes, no time.

    Raises:
        MissingExtra: torch, DeepSpeed or transformers is not installed.
        Unsupported: the rehearsal could not be made.
    """
    return _proof(config, cluster, phantom=True)


def on_this_gpu(config: Config, cluster: Cluster) -> Proof:
    """What a rehearsal on this machine's GPU says: its bytes, and its time with predicted communication.

    Raises:
        MissingExtra: torch, DeepSpeed or transformers is not installed.
        Unsupported: there is no GPU, or it is smaller than the one that is asked for.
    """
    return _proof(config, cluster, phantom=False)


def _proof(config: Config, cluster: Cluster, *, phantom: bool) -> Proof:
    how = "phantom" if phantom else "rehearsal"
    try:
        answer = rehearse(config, cluster, phantom=phantom)
    except RefusedConfig as error:
        return Proof(how=how, fits=False, fits_probability=0.0, needed_bytes=None, said=str(error))
    seen = answer.seen
    time = answer.step_seconds if seen is not None and seen.out_of_memory is None else None
    return Proof(
        how=how if seen is not None else "arithmetic",
        fits=answer.fits,
        fits_probability=answer.fits_probability,
        needed_bytes=round(answer.needed.expected),
        step_seconds=None if time is None else time.expected,
        said=(answer.why_not or "")
        if seen is None
        else seen.out_of_memory.message
        if seen.out_of_memory
        else "",
    )
