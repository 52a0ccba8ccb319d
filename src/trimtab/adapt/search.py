"""The search over moves: the fewest that make a configuration fit, and those that make it faster."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from itertools import combinations, product

from trimtab.adapt.answer import Step
from trimtab.cluster import Cluster
from trimtab.config import Config
from trimtab.errors import RefusedConfig
from trimtab.estimate import Estimate, estimate
from trimtab.model import Model
from trimtab.moves import (
    Move,
    attention,
    differences,
    micro_batch,
    offload_optimizer,
    offload_param,
    overlap_comm,
    quantized_gradients,
    quantized_weights,
    recomputation,
    reduce_bucket,
    secondary_partition,
    sequence_parallel,
    sub_group,
    zero_stage,
)
from trimtab.moves.batch import sizes, stated_micro_batch
from trimtab.moves.communication import MIDDLE_BUCKET, SMALL_BUCKET
from trimtab.moves.offload import DEVICES
from trimtab.plan.counting import Arithmetic

MOST_MOVES = 5
MOST_FASTER = 4
WORTH = 0.03
"""The share of a step that a change must save to be worth naming; below it the arithmetic says nothing."""

Path = list[tuple[Move, Config, str]]
"""Moves with the configuration after each and the reason for it."""


class Estimates:
    """Estimates of configurations of one model on one cluster, each made once."""

    def __init__(self, *, model: Model, cluster: Cluster, sure: float) -> None:
        self.model, self.cluster, self.sure = model, cluster, sure
        self._known: dict[str, Estimate | None] = {}

    def answer(self, config: Config) -> Estimate | None:
        """The estimate; None where DeepSpeed would refuse the configuration."""
        key = json.dumps(config.raw, sort_keys=True, default=str)
        if key not in self._known:
            try:
                self._known[key] = estimate(config, self.cluster, model=self.model)
            except RefusedConfig:
                self._known[key] = None
        return self._known[key]


class Search(Estimates):
    """The search over moves, by the cheap form of the arithmetic; what is shown is estimated in full."""

    def __init__(self, *, model: Model, cluster: Cluster, sure: float) -> None:
        super().__init__(model=model, cluster=cluster, sure=sure)
        self._arithmetic = Arithmetic(model, sure)

    def may_fit(self, config: Config) -> bool:
        """Whether the cheap form of the arithmetic lets the configuration pass."""
        return self._arithmetic.shortfall(config, self.cluster) is None

    def fits(self, config: Config) -> bool:
        """Whether the configuration fits with the probability asked for, as `trimtab estimate` says it."""
        if not self.may_fit(config):
            return False
        answer = self.answer(config)
        return answer is not None and answer.fits_probability >= self.sure

    def seconds(self, config: Config) -> float:
        """Of one optimizer step."""
        return self._arithmetic.speed(config, self.cluster).step_seconds

    def fewest(self, config: Config) -> Path | None:
        """The fewest moves after which ``config`` fits, the fastest of equally few; None if none do.

        A sample is spread over GPUs only where it fits none of them: the script has to know of that.
        """
        spreading = self._spreading(config)
        return self._fewest(config) or (self._fewest(config, spreading) if spreading else None)

    def _fewest(self, config: Config, *last: tuple[Move, ...]) -> Path | None:
        """The fewest moves, of which those of the kinds ``last`` end."""
        kinds = self._savers(config)
        for count in range(1 - len(last), MOST_MOVES + 1 - len(last)):
            chosen = ((*some, *last) for some in combinations(kinds, count))
            paths = [path for some in chosen for path in self._paths(config, some)]
            for path in sorted(paths, key=lambda path: self.seconds(path[-1][1])):
                if self.fits(path[-1][1]):
                    return self._with_fewest_layers(config, path)
        return None

    def _with_fewest_layers(self, config: Config, path: Path) -> Path:
        """``path`` with no more layers recomputed than it takes to fit, where that is worth the time."""
        moves = tuple(move for move, _, _ in path)

        def made(layers: int) -> Path:
            return self._made(config, recomputing(moves, layers))

        def fits(layers: int) -> bool:
            found = made(layers)
            return bool(found) and self.fits(found[-1][1])

        if recomputation(True) not in moves:
            return path
        fewer = made(fewest_layers(self.model.all_layers, fits))
        limit = self.seconds(path[-1][1]) * (1 - WORTH)
        return fewer if fewer and self.seconds(fewer[-1][1]) < limit else path

    def _paths(self, config: Config, chosen: tuple[tuple[Move, ...], ...]) -> Iterator[Path]:
        """The paths through one move of each chosen kind; none where the last of each does not fit.

        Memory falls along each kind's moves, so then no other choice of them would.
        """
        hardest = [self._made(config, ends) for ends in product(*(_ends(moves) for moves in chosen))]
        if any(path and self.may_fit(path[-1][1]) for path in hardest):
            paths = (self._made(config, moves) for moves in product(*chosen))
            yield from (path for path in paths if path)

    def _made(self, config: Config, moves: tuple[Move, ...]) -> Path:
        """The moves one after the other; empty where one of them does not apply."""
        path: Path = []
        for move in moves:
            if move.applies(config, self.model, self.cluster) is not None:
                return []
            config = move.apply(config, self.cluster)
            path.append((move, config, ""))
        return path

    def _savers(self, config: Config) -> list[tuple[Move, ...]]:
        """The moves that save memory, by kind; within a kind each saves more than the one before.

        Kinds stand in the order in which they can be made: parameters are offloaded after stage 3 is set.
        """
        cluster = self.cluster
        micro = stated_micro_batch(config, cluster) or 1
        smaller = [
            size for size in sizes(config, self.model, cluster) if isinstance(size, int) and size < micro
        ]
        bucket = int(config.zero("reduce_bucket_size"))
        kinds: list[list[Move]] = [
            [zero_stage(stage) for stage in (1, 2, 3) if stage > config.stage],
            [offload_optimizer(device) for device in DEVICES if device != config.offload_optimizer],
            [offload_param(device) for device in DEVICES if device != config.offload_param],
            [] if config.job.recomputation is True else [recomputation(True)],
            [attention("sdpa")] if config.job.attention == "eager" else [],
            [secondary_partition(1)] if int(config.zero("zero_hpz_partition_size")) > 1 else [],
            [sub_group(100_000_000)],
            [reduce_bucket(size) for size in (MIDDLE_BUCKET, SMALL_BUCKET) if size < bucket],
            [overlap_comm(False)] if config.stage in (1, 2) and config.zero("overlap_comm") else [],
            [micro_batch(size) for size in smaller],
        ]
        return [tuple(moves) for moves in kinds if moves]

    def _spreading(self, config: Config) -> tuple[Move, ...]:
        """A sample over ever more GPUs of a node.

        AutoTP is no way out: it spreads the same weights as ZeRO stage 3, with which it does not go.
        """
        if config.sequence_parallel > 1:
            return ()
        if config.job.attention == "eager":  # which a saver changes
            config = attention("sdpa").apply(config, self.cluster)
        moves = map(sequence_parallel, (2, 4, 8))
        return tuple(move for move in moves if move.applies(config, self.model, self.cluster) is None)

    def strongest(self, config: Config) -> Config:
        """``config`` with every move that saves memory, as far as they apply."""
        best = config
        for moves in self._savers(config):
            for move in reversed(moves):
                if move.value in ("none",) or move.applies(best, self.model, self.cluster) is not None:
                    continue
                best = move.apply(best, self.cluster)
                break
        return best

    def faster(self, config: Config) -> list[Step]:
        """Single moves that save time and still fit, the best first, one of each kind.

        ZeRO++'s quantized collectives are among them, though they round: for a slow network they are the way.
        """
        now = self.answer(config)
        assert now is not None
        made = {
            move: move.apply(config, self.cluster)
            for move in (*self._quicker(config), quantized_weights(True), quantized_gradients(True))
            if move.applies(config, self.model, self.cluster) is None
        }
        seconds = {move: self.seconds(after) for move, after in made.items()}
        limit = now.speed.step_seconds * (1 - WORTH)
        found: dict[str, Step] = {}
        for move in sorted(made, key=lambda move: seconds[move]):
            if seconds[move] > limit or len(found) == MOST_FASTER:
                break
            if move.kind not in found and self.fits(made[move]):
                gain = 1 - seconds[move] / now.speed.step_seconds
                found[move.kind] = Step(
                    move=move,
                    reason=f"it fits, and saves {gain:.0%} of a step",
                    changes=differences(config.raw, made[move].raw),
                    before=now,
                    after=self.answer(made[move]),
                )
        return list(found.values())

    def quickest(self, config: Config) -> Path:
        """The moves that together make the fastest configuration that fits; of those near it, the fewest."""
        kinds: dict[str, list[Move]] = {}
        for move in self._quicker(config):
            kinds.setdefault(move.kind, []).append(move)
        paths: dict[str, Path] = {}
        for moves in product(*([None, *moves] for moves in kinds.values())):
            path = self._made(config, tuple(move for move in moves if move is not None))
            if path:
                key = json.dumps(path[-1][1].raw, sort_keys=True)
                paths[key] = min(paths.get(key, path), path, key=len)
        seconds = {id(path): self.seconds(path[-1][1]) for path in paths.values()}
        now, limit = self.seconds(config), self.seconds(config) * (1 - WORTH)
        best: Path = []
        for path in sorted(paths.values(), key=lambda path: seconds[id(path)]):
            if seconds[id(path)] > limit:
                break
            if (not best or len(path) < len(best)) and self.fits(path[-1][1]):
                limit = limit if best else min(limit, seconds[id(path)] * (1 + WORTH))
                best = path
        gain = 1 - seconds[id(best)] / now if best else 0.0
        reason = f"the fastest that fits: {gain:.0%} of a step saved" + " by these together" * (len(best) > 1)
        return [(move, after, reason) for move, after, _ in best]

    def _quicker(self, config: Config) -> Iterator[Move]:
        """Moves that may save time and leave the training as it is."""
        cluster = self.cluster
        micro = stated_micro_batch(config, cluster) or 1
        yield from (zero_stage(stage) for stage in range(4) if stage != config.stage)
        yield from (offload_optimizer(device) for device in DEVICES[:2])
        yield from (offload_param(device) for device in DEVICES[:2])
        yield from (recomputation(False), overlap_comm(True), attention("sdpa"))
        if config.job.recomputation is True:
            yield recomputation(
                fewest_layers(
                    self.model.all_layers,
                    lambda layers: self.fits(recomputation(layers).apply(config, cluster)),
                )
            )
        yield secondary_partition(cluster.gpus_per_node)
        for size in sizes(config, self.model, cluster):
            if isinstance(size, int) and micro < size <= 8 * micro:
                yield micro_batch(size)


def fewest_layers(layers: int, fits: Callable[[int], bool]) -> int:
    """The fewest recomputed layers that fit, where all of them do: each takes less memory than the last.

    >>> fewest_layers(32, lambda count: count >= 12)
    12
    """
    short, enough = 0, layers
    while enough - short > 1:
        middle = (short + enough) // 2
        if fits(middle):
            enough = middle
        else:
            short = middle
    return enough


def recomputing(moves: Iterable[Move], layers: int) -> tuple[Move, ...]:
    """``moves`` with so many layers recomputed where they recompute all."""
    return tuple(recomputation(layers) if move == recomputation(True) else move for move in moves)


def _ends(moves: tuple[Move, ...]) -> tuple[Move, ...]:
    """The moves of a kind that save the most; offload saves in two places, so each of its moves is an end."""
    return moves if moves[0].kind.startswith("offload") else moves[-1:]
