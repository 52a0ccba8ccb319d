"""What measurements of the same job, and of a job alike, do to an estimate."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from trimtab import catalogue
from trimtab.cluster import Cluster
from trimtab.config import Config
from trimtab.corrections import Measurement, Traits, corrected, in_words, traits_of
from trimtab.estimate import Estimate, Range, estimate, to_json
from trimtab.units import GIB

NAME = "gpt2_baseline"


def answer_of(changes: dict[str, Any] | None = None, gpu: str = "a100-40gb", gpus: int = 4) -> Estimate:
    return estimate(catalogue.load_config(NAME).with_values(changes or {}), Cluster.of(gpu, gpus))


@pytest.fixture(scope="module")
def answer() -> Estimate:
    return answer_of()


def exactly(value: float) -> Range:
    return Range(low=value, expected=value, high=value)


def measured(own: Traits, **figures: Any) -> Measurement:
    values: dict[str, Any] = {
        "fits_probability": None,
        "peak_allocated": None,
        "needed": None,
        "host_bytes_per_node": None,
        "step_seconds": None,
        "alone_seconds": None,
        "predicted_alone": None,
    }
    head = {"id": 7, "how": "rehearsal", "date": "2026-11-22", "traits": own}
    return Measurement(**{**head, **values, **figures})


def test_nothing_measured_changes_nothing(answer: Estimate) -> None:
    assert corrected(answer, ()) is answer


def test_the_same_job_gives_its_figures_and_the_old_ones_stay(answer: Estimate) -> None:
    peak = answer.peak_allocated.expected
    found = corrected(answer, [measured(traits_of(answer), peak_allocated=exactly(peak + GIB))])
    assert found.peak_allocated == exactly(peak + GIB)
    (correction,) = found.corrections
    assert (correction.uncorrected, correction.offset, correction.factor) == (peak, GIB, None)
    document = to_json(found)
    assert document["corrections"] == [
        {
            "what": "gpu.peak_allocated_bytes",
            "factor": None,
            "offset": GIB,
            "uncorrected": peak,
            "corrected": peak + GIB,
            "from": "rehearsal on a GPU 7 of 2026-11-22",
        }
    ]
    assert "rehearsal on a GPU 7 of 2026-11-22" in found.assumptions[-1]
    assert "the arithmetic says" in in_words(correction)
    assert found.speed == answer.speed


def test_the_deeper_proof_is_believed(answer: Estimate) -> None:
    own = traits_of(answer)
    known = [
        measured(own, id=9, how="phantom", peak_allocated=exactly(3), needed=exactly(30)),
        measured(own, id=8, how="training", peak_allocated=exactly(1)),
        measured(own, id=7, how="rehearsal", peak_allocated=exactly(2), needed=exactly(20)),
    ]
    found = corrected(answer, known)
    assert (found.peak_allocated.expected, found.needed.expected) == (1, 20)


def test_a_training_gives_step_time_with_its_spread(answer: Estimate) -> None:
    own = traits_of(answer)
    known = [
        measured(own, id=1, how="training", step_seconds=Range(low=1.0, expected=1.2, high=1.5)),
        measured(own, id=2, how="training", step_seconds=Range(low=1.05, expected=1.1, high=1.2)),
    ]
    speed = corrected(answer, known).speed
    assert (speed.low_seconds, speed.step_seconds, speed.high_seconds) == (1.05, 1.1, 1.2)
    assert corrected(answer, known).samples_per_second_per_gpu == pytest.approx(speed.samples_per_step / 1.1)


def test_a_rehearsal_gives_what_is_no_communication(answer: Estimate) -> None:
    found = corrected(answer, [measured(traits_of(answer), alone_seconds=exactly(2.0))])
    assert found.speed.step_seconds == pytest.approx(2.0 + answer.speed.communication_seconds)
    assert found.corrections[0].factor == pytest.approx(found.speed.step_seconds / answer.speed.step_seconds)


@pytest.mark.parametrize(("chance", "fits"), [(0.0, False), (0.99, True)])
def test_a_run_proves_whether_it_fits(answer: Estimate, chance: float, fits: bool) -> None:
    other = dataclasses.replace(answer, fits=not fits, fits_probability=0.5)
    found = corrected(other, [measured(traits_of(answer), fits_probability=chance)])
    assert (found.fits, found.fits_probability) == (fits, chance)


def test_no_run_elsewhere_gives_this_host_memory(answer: Estimate) -> None:
    poor = dataclasses.replace(answer.cluster, host_memory_bytes=GIB)
    short = estimate(answer.config, poor)
    assert short.fits_probability == 0.0
    assert not corrected(short, [measured(traits_of(answer), fits_probability=0.99)]).fits


def alike(answer: Estimate, factor: float, **changes: Any) -> Measurement:
    """A rehearsal of a job like ``answer``'s that took ``factor`` times what the arithmetic says."""
    own = dataclasses.replace(traits_of(answer), job="another", **changes)
    said = Range(low=0.7, expected=1.0, high=1.75)
    return measured(own, alone_seconds=exactly(factor), predicted_alone=said, peak_allocated=exactly(1))


def test_a_job_alike_gives_the_cards_efficiency_alone(answer: Estimate) -> None:
    found = corrected(answer, [alike(answer, 1.25)])
    (correction,) = found.corrections
    before = answer.speed
    assert (correction.what, correction.factor) == ("speed.step_seconds", 1.25)
    alone = before.compute_seconds + before.offload_seconds
    assert found.speed.step_seconds == pytest.approx(alone * 1.25 + before.communication_seconds)
    assert found.peak_allocated == answer.peak_allocated
    assert correction.source.endswith("a job like this")


@pytest.mark.parametrize(
    "other",
    [
        {"factor": 2.0},  # beyond the prediction's own bounds: another cause
        {"factor": 1.2, "parameters": 10**10},
        {"factor": 1.2, "tokens": 1},
        {"factor": 1.2, "kin": "h100|gpt2|2|none|none|fp16"},
    ],
)
def test_another_kind_of_job_says_nothing(answer: Estimate, other: dict[str, Any]) -> None:
    assert corrected(answer, [alike(answer, **other)]) is answer


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer.params.lr": 1.0},
        {"scheduler": None},
        {"steps_per_print": 7},
    ],
)
def test_values_of_the_arithmetic_make_no_other_job(answer: Estimate, changes: dict[str, Any]) -> None:
    assert traits_of(answer_of(changes)) == traits_of(answer)


@pytest.mark.parametrize(
    "changes",
    [
        {"train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": None},
        {"zero_optimization.reduce_bucket_size": 1_000_000},
        {"trimtab.sequence_length": 512},
        {"trimtab.checkpoint_activations": True},
    ],
)
def test_what_changes_memory_or_time_makes_another_job(answer: Estimate, changes: dict[str, Any]) -> None:
    assert traits_of(answer_of(changes)).job != traits_of(answer).job


def test_other_machines_make_another_job(answer: Estimate) -> None:
    raw = {**answer.config.raw, "train_batch_size": None}
    config = Config.from_mapping({key: value for key, value in raw.items() if value is not None})
    eight = estimate(config, Cluster.of("a100-40gb", 8))
    four = estimate(config, Cluster.of("a100-40gb", 4))
    assert traits_of(eight).job != traits_of(four).job
    assert traits_of(eight).kin == traits_of(four).kin
