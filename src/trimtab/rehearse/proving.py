"""Rehearsals as a plan asks for them: one configuration in, whether it fits and how long a step took."""

from __future__ import annotations

from trimtab.cluster import Cluster
from trimtab.config import Config
from trimtab.errors import RefusedConfig
from trimtab.plan import Proof
from trimtab.rehearse.answer import ACCUMULATION_ENOUGH, Answer, rehearse


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
    return Proof(
        how=how if answer.seen is not None else "arithmetic",
        fits=answer.fits,
        fits_probability=answer.fits_probability,
        needed_bytes=round(answer.needed.expected),
        step_seconds=None if phantom else _step_seconds(answer),
        said=(answer.seen.out_of_memory or "") if answer.seen is not None else (answer.why_not or ""),
    )


def _step_seconds(answer: Answer) -> float | None:
    """The measured step, stretched to all its micro steps, and the communication that one GPU cannot see."""
    seen, predicted = answer.seen, answer.predicted
    if seen is None or predicted is None or seen.out_of_memory:
        return None
    measured = seen.extras.get("step_seconds_without_communication")
    if not isinstance(measured, float):
        return None
    accumulation = answer.config.batch(answer.cluster.world_size).accumulation
    micros = min(accumulation, ACCUMULATION_ENOUGH)
    return measured * accumulation / micros + predicted.speed.communication_seconds
