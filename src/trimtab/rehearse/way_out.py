"""What would have fitted, where a rehearsal did not: the fewest of the ladder's moves, by the arithmetic.

Of recomputation too no more than it takes: as few layers as fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trimtab.adapt.search import WORTH, fewest_layers, recomputing
from trimtab.cluster import Cluster
from trimtab.config import Config
from trimtab.errors import TrimtabError
from trimtab.estimate import Estimate, estimate
from trimtab.ladder import OUT_OF_MEMORY
from trimtab.model import Model
from trimtab.moves import Move, recomputation


@dataclass(frozen=True, slots=True, kw_only=True)
class WayOut:
    """The moves, the configuration after them, and what it is predicted to need."""

    moves: tuple[Move, ...]
    config: Config
    predicted: Estimate
    needed_bytes: float
    """The prediction, and what the rehearsal needed beyond its own."""


def way_out(config: Config, cluster: Cluster, model: Model, *, beyond_bytes: float = 0.0) -> WayOut | None:
    """The first rung of the ladder that fits ``cluster``, without those of its moves that are not needed.

    ``beyond_bytes`` is what the rehearsal needed more than predicted: the moved job is taken to need it too.
    None where no rung fits.
    """
    beyond = max(0.0, beyond_bytes)

    def attempt(moves: Sequence[Move]) -> WayOut | None:
        made: list[Move] = []
        after = config
        for move in moves:
            if move.applies(after, model, cluster) is None:
                after = move.apply(after, cluster)
                made.append(move)
        if not made:
            return None
        try:
            found = estimate(after, cluster, model=model)
        except TrimtabError:
            return None  # DeepSpeed would refuse it
        needed = found.needed.expected + beyond
        if not found.fits or needed > found.capacity_bytes:
            return None
        return WayOut(moves=tuple(made), config=after, predicted=found, needed_bytes=needed)

    rungs = (attempt(OUT_OF_MEMORY[:count]) for count in range(1, len(OUT_OF_MEMORY) + 1))
    best = next((rung for rung in rungs if rung is not None), None)
    for move in best.moves if best is not None else ():
        assert best is not None
        best = attempt([one for one in best.moves if one is not move]) or best
    if best is None or recomputation(True) not in best.moves:
        return best
    some = best.moves
    layers = fewest_layers(model.all_layers, lambda count: attempt(recomputing(some, count)) is not None)
    fewer = attempt(recomputing(some, layers))
    limit = best.predicted.speed.step_seconds * (1 - WORTH)
    return fewer if fewer is not None and fewer.predicted.speed.step_seconds < limit else best
