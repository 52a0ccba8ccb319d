"""The way out of out-of-memory as an ordered list of moves, and the four levels of offload, with figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trimtab.adapt import SURE, Estimates, named_model
from trimtab.cluster import Cluster
from trimtab.config import Config
from trimtab.estimate import Estimate
from trimtab.model import Model
from trimtab.moves import (
    ALREADY,
    Move,
    micro_batch,
    offload_optimizer,
    offload_param,
    recomputation,
    sequence_parallel,
    zero_stage,
)

OUT_OF_MEMORY: tuple[Move, ...] = (
    micro_batch(1),
    recomputation(True),
    zero_stage(3),
    offload_optimizer("cpu"),
    offload_param("cpu"),
    offload_optimizer("nvme"),
    offload_param("nvme"),
)
"""What to try when memory runs out, in this order; each rung keeps those before it."""

SHARING: tuple[Move, ...] = tuple(sequence_parallel(size) for size in (2, 4, 8))
"""What is left where none of these does: a sample over several GPUs of a node, over the fewest that do."""

LEVELS: tuple[tuple[str, tuple[Move, ...]], ...] = (
    ("no offload", (zero_stage(2), offload_optimizer("none"))),
    ("optimizer on the host", (zero_stage(3), offload_param("none"), offload_optimizer("cpu"))),
    ("optimizer and parameters on the host", (zero_stage(3), offload_optimizer("cpu"), offload_param("cpu"))),
    ("parameters on NVMe", (zero_stage(3), offload_optimizer("cpu"), offload_param("nvme"))),
)
"""From the fastest to the one that needs least of the GPU."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rung:
    """One step: its moves, the configuration with all steps up to it, and what that needs."""

    title: str
    moves: tuple[Move, ...]
    config: Config
    answer: Estimate | None
    """None where DeepSpeed would refuse the configuration."""
    skipped: str | None = None
    """Why the move changes nothing here."""

    def fits(self, sure: float) -> bool:
        """Whether the configuration up to here fits."""
        return self.answer is not None and self.answer.fits_probability >= sure


@dataclass(frozen=True, slots=True, kw_only=True)
class Ladder:
    """The configuration as it is, then the rungs down to the least memory; and the levels of offload."""

    config: Config
    cluster: Cluster
    model: Model
    start: Rung
    rungs: tuple[Rung, ...]
    levels: tuple[Rung, ...]
    sure: float

    @property
    def first(self) -> Rung | None:
        """The first rung that fits, the configuration as it is included."""
        return next((rung for rung in (self.start, *self.rungs) if rung.fits(self.sure)), None)

    @property
    def fastest_level(self) -> Rung | None:
        """The level that fits and is fastest."""
        fitting = [rung for rung in self.levels if rung.fits(self.sure) and rung.answer is not None]
        return min(fitting, key=lambda rung: rung.answer.speed.step_seconds, default=None)  # type: ignore[union-attr]


def ladder(config: Config, cluster: Cluster, *, model: Model | None = None, sure: float = SURE) -> Ladder:
    """What each step out of out-of-memory would need and cost on ``cluster``, one after the other.

    Raises:
        UsageError: no model is named.
        RefusedConfig: the batch does not solve on this cluster.
        NotFound, UnknownArchitecture: the model is not known.
    """
    model = model or named_model(config)
    config.batch(cluster.world_size)
    known = Estimates(model=model, cluster=cluster, sure=sure)

    def rung(title: str, moves: Sequence[Move], before: Config, *, cumulative: bool) -> Rung:
        after, skipped = before, None
        for move in moves:
            reason, changed = move.applies(after, model, cluster), move.apply(after, cluster)
            if reason is None:
                after = changed
            elif changed.raw != after.raw:
                after, skipped = before, reason
                break
        if cumulative and moves and after is before:
            skipped = skipped or ALREADY
        return Rung(
            title=title, moves=tuple(moves), config=after, answer=known.answer(after), skipped=skipped
        )

    start = rung("as it is", (), config, cumulative=True)
    rungs: list[Rung] = []
    for move in OUT_OF_MEMORY:
        rungs.append(rung(move.title, (move,), (rungs or [start])[-1].config, cumulative=True))
    if not any(one.fits(sure) for one in (start, *rungs)):
        shared = [rung(move.title, (move,), rungs[-1].config, cumulative=True) for move in SHARING]
        shared = [one for one in shared if one.skipped is None]
        rungs += [one for one in shared if one.fits(sure)][:1] or shared[-1:]
    levels = tuple(rung(title, moves, config, cumulative=False) for title, moves in LEVELS)
    return Ladder(
        config=config, cluster=cluster, model=model, start=start, rungs=tuple(rungs), levels=levels, sure=sure
    )
