"""An estimate corrected by what was measured before, of the very same job or of one like it.

The same job (same engine settings, model, batch and machines) gives its measured figures.  A job that is only
like it gives one thing: how fast this card really computes such work, as a factor on the time that is no
communication.  Memory is counted tensor by tensor, so another job's says nothing about this one's.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trimtab.cluster import Cluster
from trimtab.config import Config
from trimtab.estimate import Estimate, Range
from trimtab.units import format_bytes, format_seconds

DEPTHS = ("training", "rehearsal", "phantom")
"""The ways to measure, the one that is believed most first."""
RAN = 0.99
"""That a job fits which ran to its end: another rank or a later step may still differ."""
ALIKE = 2.0
"""Jobs alike have so many times each other's parameters, and tokens in a micro step, at most: beyond that
kernels have other shapes, and another efficiency."""
# what changes neither memory nor time: values of the optimizer's arithmetic, logs
_NO_MATTER = ("scheduler", "steps_per_print", "wall_clock_breakdown", "tensorboard", "wandb", "csv_monitor",
              "comms_logger", "flops_profiler", "checkpoint", "dump_state", "$schema")  # fmt: skip
_BATCH = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
_OPTIMIZER_VALUES = ("lr", "betas", "eps", "weight_decay", "momentum")


@dataclass(frozen=True, slots=True, kw_only=True)
class Correction:
    """One figure that a measurement changed, in its base unit."""

    what: str
    """Its place in the JSON answer, such as ``speed.step_seconds``."""
    factor: float | None = None
    offset: float | None = None
    """How the measurement acts on such figures: by a factor or by an offset; neither where it replaces."""
    uncorrected: float
    corrected: float
    source: str
    """The run that was measured, in words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Traits:
    """What a job is recognized by."""

    job: str
    """A hash of all that its memory and time follow from."""
    kin: str
    """What jobs alike have in common: card, model type, stage, offload, precision."""
    parameters: int
    tokens: int
    """Of a micro step of one rank."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """What one stored run tells; a figure that it did not measure is None."""

    id: int
    how: str
    """One of `DEPTHS`."""
    date: str
    traits: Traits
    fits_probability: float | None
    peak_allocated: Range | None
    needed: Range | None
    host_bytes_per_node: Range | None
    step_seconds: Range | None
    """With its communication: trainings alone."""
    alone_seconds: Range | None
    """Without communication: rehearsals on the very card, trainings on one GPU."""
    predicted_alone: Range | None
    """What the arithmetic of this version says of that."""

    @property
    def source(self) -> str:
        """The run in words."""
        name = {"rehearsal": "rehearsal on a GPU", "phantom": "phantom rehearsal"}.get(self.how, self.how)
        return f"{name} {self.id} of {self.date}"


def traits(
    config: Config, hf: Mapping[str, Any], cluster: Cluster, parameters: int, extra: Any = None
) -> Traits:
    """What the job is recognized by; ``hf`` is the model's whole config, ``extra`` what else matters."""
    batch, job = config.batch(cluster.world_size), config.job
    settings = {key: value for key, value in config.deepspeed().items() if key not in (*_NO_MATTER, *_BATCH)}
    if isinstance(settings.get("optimizer"), dict):
        settings["optimizer"]["params"] = {
            key: value for key, value in config.optimizer_params.items() if key not in _OPTIMIZER_VALUES
        }
    shape = {key: value for key, value in hf.items() if not key.startswith("_")}
    machines = (cluster.gpu.name, cluster.gpus_per_node, cluster.nodes)
    block = {**dataclasses.asdict(job), "model": None}
    whole = (settings, batch.micro, batch.accumulation, batch.data_parallel, block, shape, machines, extra)
    text = json.dumps(whole, sort_keys=True, default=str)
    offload = (config.offload_optimizer, config.offload_param)
    kin = (cluster.gpu.name, hf.get("model_type"), config.stage, *offload, config.precision)
    return Traits(
        job=hashlib.sha256(text.encode()).hexdigest()[:32],
        kin="|".join(map(str, kin)),
        parameters=parameters,
        tokens=batch.micro * job.sequence_length,
    )


def traits_of(answer: Estimate) -> Traits:
    """What the estimate's job is recognized by."""
    return traits(answer.config, answer.model.hf, answer.cluster, answer.profile.parameters)


def corrected(answer: Estimate, measurements: Iterable[Measurement]) -> Estimate:
    """``answer`` with what ``measurements`` tell of its job; each change stands in ``corrections``."""
    known, own = tuple(measurements), traits_of(answer)
    same = sorted(
        (one for one in known if one.traits.job == own.job), key=lambda one: (DEPTHS.index(one.how), -one.id)
    )
    answer = _memory(answer, same)
    answer = _same_time(answer, same) or _alike_time(answer, own, known) or answer
    if not answer.corrections:
        return answer
    sources = ", ".join(dict.fromkeys(correction.source for correction in answer.corrections))
    said = f"corrected by {sources}; --no-corrections gives the arithmetic alone"
    return dataclasses.replace(answer, assumptions=(*answer.assumptions, said))


def _memory(answer: Estimate, same: Sequence[Measurement]) -> Estimate:
    """Peak, need, host memory and whether it fits, each by the deepest proof that has it."""
    changes: dict[str, Any] = {}
    made: list[Correction] = []
    for field, what in (
        ("peak_allocated", "gpu.peak_allocated_bytes"),
        ("needed", "gpu.needed_bytes"),
        ("host_bytes_per_node", "host.bytes_per_node"),
    ):
        found = next((one for one in same if getattr(one, field) is not None), None)
        if found is None:
            continue
        measured, said = getattr(found, field), getattr(answer, field)
        changes[field] = measured
        made.append(_replaced(what, said.expected, measured.expected, found.source, bytes_=True))
    proof = next((one for one in same if one.fits_probability is not None), None)
    # what the host lacks, no run on other hosts can prove away
    short = (
        answer.fits_probability == 0.0
        and answer.host_bytes_per_node.expected > answer.cluster.host_memory_bytes
    )
    if proof is not None and proof.fits_probability is not None and not short:
        chance = proof.fits_probability
        if (chance >= 0.5) != answer.fits or abs(chance - answer.fits_probability) > 0.005:
            changes |= {"fits": chance >= 0.5, "fits_probability": chance}
            made.append(
                Correction(
                    what="fits_probability",
                    uncorrected=answer.fits_probability,
                    corrected=chance,
                    source=proof.source,
                )
            )
    if not made:
        return answer
    return dataclasses.replace(answer, **changes, corrections=(*answer.corrections, *made))


def _same_time(answer: Estimate, same: Sequence[Measurement]) -> Estimate | None:
    """The measured step time of the very job; a rehearsal's, with the predicted communication."""
    found = next((one for one in same if one.step_seconds or one.alone_seconds), None)
    if found is None:
        return None
    speed = answer.speed
    if found.step_seconds is not None:
        others = [one.step_seconds.expected for one in same if one.how == found.how and one.step_seconds]
        low, expected = min(found.step_seconds.low, *others), found.step_seconds.expected
        high = max(found.step_seconds.high, *others)
    else:
        assert found.alone_seconds is not None
        alone, communication = found.alone_seconds, speed.communication_seconds
        low, expected = alone.low, alone.expected + communication
        high = alone.high + communication * speed.high_seconds / speed.step_seconds
    change = _replaced("speed.step_seconds", speed.step_seconds, expected, found.source, bytes_=False)
    return _with_time(answer, low, expected, high, change)


def _alike_time(answer: Estimate, own: Traits, known: Sequence[Measurement]) -> Estimate | None:
    """The card's real efficiency on work like this, as a factor on all but communication.

    A factor outside the prediction's own bounds had another cause, and is not carried over.
    """
    speed = answer.speed
    alone = speed.compute_seconds + speed.offload_seconds
    for one in sorted(known, key=lambda one: -one.id):
        like = one.traits.kin == own.kin and one.traits.job != own.job
        near = _near(one.traits.parameters, own.parameters) and _near(one.traits.tokens, own.tokens)
        if not (like and near and one.alone_seconds and one.predicted_alone):
            continue
        predicted = one.predicted_alone
        if not predicted.low <= one.alone_seconds.expected <= predicted.high:
            continue
        factor = one.alone_seconds.expected / predicted.expected
        expected = alone * factor + speed.communication_seconds
        scale = expected / speed.step_seconds
        change = Correction(
            what="speed.step_seconds",
            factor=factor,
            uncorrected=speed.step_seconds,
            corrected=expected,
            source=f"{one.source}, a job like this",
        )
        return _with_time(answer, speed.low_seconds * scale, expected, speed.high_seconds * scale, change)
    return None


def _near(one: float, other: float) -> bool:
    return min(one, other) > 0 and max(one, other) / min(one, other) <= ALIKE


def _with_time(answer: Estimate, low: float, expected: float, high: float, change: Correction) -> Estimate:
    speed = dataclasses.replace(
        answer.speed, step_seconds=expected, low_seconds=min(low, expected), high_seconds=max(high, expected)
    )
    return dataclasses.replace(answer, speed=speed, corrections=(*answer.corrections, change))


def _replaced(what: str, said: float, measured: float, source: str, *, bytes_: bool) -> Correction:
    return Correction(
        what=what,
        factor=None if bytes_ or not said else measured / said,
        offset=measured - said if bytes_ else None,
        uncorrected=said,
        corrected=measured,
        source=source,
    )


_LABELS = {
    "gpu.peak_allocated_bytes": ("peak allocated", format_bytes),
    "gpu.needed_bytes": ("needed of the card", format_bytes),
    "host.bytes_per_node": ("host memory a node", format_bytes),
    "speed.step_seconds": ("a step", format_seconds),
    "fits_probability": ("sure that it fits", lambda chance: f"{chance:.0%}"),
}


def in_words(correction: Correction) -> str:
    """The correction for a reader: what, to which figure, from which, by what."""
    label, show = _LABELS[correction.what]
    before, after = show(correction.uncorrected), show(correction.corrected)
    said = "as the arithmetic says" if before == after else f"the arithmetic says {before}"
    return f"{label} {after}, {said} ({correction.source})"
