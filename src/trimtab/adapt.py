"""A configuration for other machines: the fewest moves that keep the global batch and the meaning.

First what the new machines demand, whatever the memory: a batch that divides, a number format that the card
has.  Then, where the job does not fit, a breadth-first search over moves that leave the training as it is;
among equally few moves the fastest wins.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations, product
from typing import Any

from trimtab.architecture import BF16_FAMILIES
from trimtab.cluster import Cluster, gpus
from trimtab.config import Config
from trimtab.errors import RefusedConfig, UsageError
from trimtab.estimate import Estimate, estimate
from trimtab.model import Model, find_model
from trimtab.moves import (
    Move,
    attention,
    differences,
    edits,
    micro_batch,
    offload_optimizer,
    offload_param,
    overlap_comm,
    precision,
    recomputation,
    reduce_bucket,
    secondary_partition,
    sub_group,
    zero_stage,
)
from trimtab.moves.batch import sizes, stated_micro_batch
from trimtab.moves.communication import MIDDLE_BUCKET, SMALL_BUCKET
from trimtab.moves.offload import DEVICES
from trimtab.moves.writing import data_parallel, global_batch, with_micro_batch
from trimtab.source import Source, apply_edits
from trimtab.units import format_bytes

SURE = 0.9
"""How probable "fits" must be."""
MOST_MOVES = 5
MOST_NODES = 64
SURER = "it takes the moves before it to a sure fit"
WORTH = 0.03
"""The share of a step that a change must save to be worth naming; below it the arithmetic says nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One move of an adaptation: why, which keys it changes, and the estimates around it."""

    move: Move
    reason: str
    changes: Mapping[tuple[str, ...], Any]
    """Key paths and their new values; None removes a key."""
    before: Estimate | None
    """None where the configuration could not run at all."""
    after: Estimate | None

    @property
    def title(self) -> str:
        """What is done: the move's own title, but for a batch of which the accumulation alone changes."""
        if set(self.changes) == {("gradient_accumulation_steps",)}:
            return f"{self.changes[('gradient_accumulation_steps',)]} micro steps of the same size"
        return self.move.title


@dataclass(frozen=True, slots=True, kw_only=True)
class Nearest:
    """The closest that would fit: other machines for the same job, with the moves that are made there."""

    cluster: Cluster
    answer: Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class Adaptation:
    """A configuration made to fit other machines, step by step."""

    before: Config
    after: Config | None
    """None where nothing fits."""
    cluster: Cluster
    home: Cluster | None
    """The machines that a ready configuration is made for."""
    steps: tuple[Step, ...]
    answer: Estimate | None
    """Of ``after``, or of what came nearest."""
    missing: str | None
    """What is lacking where nothing fits."""
    nearest: tuple[Nearest, ...]
    faster: tuple[Step, ...]
    """Single further moves that would save time and still fit, the best first."""
    notes: tuple[str, ...]

    @property
    def fits(self) -> bool:
        """Whether there is an answer."""
        return self.after is not None

    def written(self, source: Source) -> str:
        """The text of ``source``, which ``before`` was read from, after the moves; all else stays as it is.

        Raises:
            UsageError: a place that cannot be changed alone; names the key.
        """
        if self.after is None or self.after is self.before:
            return source.text
        return apply_edits(source, edits(self.before.raw, self.after.raw))


def adapt(
    config: Config,
    cluster: Cluster,
    *,
    model: Model | None = None,
    home: Cluster | None = None,
    sure: float = SURE,
    fastest: bool = False,
) -> Adaptation:
    """``config`` made to fit ``cluster`` with the fewest moves.

    Args:
        home: the machines that it is made for; they settle the global batch of a file that does not state it.
        sure: how probable "fits" must be.
        fastest: then take every further move that saves time and still fits.

    Raises:
        UsageError: no model is named.
        NotFound, UnknownArchitecture: the model is not known.
    """
    model = model or named_model(config)
    found = _Search(model=model, cluster=cluster, sure=sure)
    notes: list[str] = []
    train = global_batch(config, home or cluster)
    if train is None:
        config.batch((home or cluster).world_size)  # says what is wrong
        raise AssertionError("unreachable")
    if home is None and config.get("train_batch_size") is None:
        notes.append(
            f"the file states no train_batch_size: {train} is what its other keys give on these machines"
        )
    forced = list(_demanded(config, model, cluster, train))
    current = forced[-1][1] if forced else config
    try:
        current.batch(cluster.world_size)
    except RefusedConfig:
        return _no_batch(config, cluster, home, train, notes)
    steps = _steps(found, config, forced)
    answer = found.answer(current)
    if answer is None or answer.fits_probability < sure:
        path = found.fewest(current)
        if path is None:
            return _nothing_fits(found, config, current, home, steps, notes)
        steps += _steps(found, current, path)
        current = path[-1][1]
    faster = found.faster(current)
    while fastest and faster:
        steps.append(faster[0])
        current = faster[0].move.apply(current, cluster)
        faster = found.faster(current)
    return Adaptation(
        before=config,
        after=current,
        cluster=cluster,
        home=home,
        steps=tuple(steps),
        answer=found.answer(current),
        missing=None,
        nearest=(),
        faster=tuple(faster),
        notes=tuple(notes),
    )


def named_model(config: Config) -> Model:
    """The model that a configuration names.

    Raises:
        UsageError: it names none.
        NotFound, UnknownArchitecture: the model is not known.
    """
    if config.job.model is None:
        raise UsageError(f'{config.name}: no model is named. Give --model NAME, or a "trimtab" block')
    return find_model(config.job.model)


# -- what the machines demand --------------------------------------------------------------------------------

Path = list[tuple[Move, Config, str]]
"""Moves with the configuration after each and the reason for it."""


def _demanded(
    config: Config, model: Model, cluster: Cluster, train: int
) -> Iterator[tuple[Move, Config, str]]:
    """The moves that the machines ask for, whatever the memory."""
    gpu = cluster.gpu
    if config.precision == "bf16" and not gpu.bf16:
        move = precision("fp16")
        reason = f"{gpu.name} has no bf16 units"
        if model.model_type in BF16_FAMILIES:
            reason += f"; {model.name} was trained in bf16, so watch the loss scale: fp16 ends at 65,504"
        config = move.apply(config, cluster)
        yield move, config, reason
    move = attention("sdpa")
    reason = (
        attention("flash").applies(config.with_values({"trimtab.attention": "sdpa"}), model, cluster) or ""
    )
    if config.job.attention == "flash" and reason:
        config = move.apply(config, cluster)
        yield move, config, reason
    size = int(config.zero("zero_hpz_partition_size"))
    if config.stage == 3 and size > 1 and size != cluster.gpus_per_node:
        move = secondary_partition(cluster.gpus_per_node if cluster.nodes > 1 else 1)
        config = move.apply(config, cluster)
        yield move, config, f"a node has {cluster.gpus_per_node} GPUs, and {size} is not one node's"
    ranks = data_parallel(config, cluster)
    micro = stated_micro_batch(config, cluster) or 1
    size = max((n for n in range(1, micro + 1) if train % (n * ranks) == 0), default=0)
    if not size:
        return
    after = with_micro_batch(config, cluster, size, train)
    solved = global_batch(config, cluster) == train and _solves(config, cluster)
    if not solved:
        steps = train // (size * ranks)
        yield (
            micro_batch(size),
            after,
            f"{ranks} rank{'s' * (ranks > 1)}: {size} samples x {steps} micro steps x {ranks} keep the "
            f"global batch of {train}",
        )


def _solves(config: Config, cluster: Cluster) -> bool:
    try:
        config.batch(cluster.world_size)
    except RefusedConfig:
        return False
    return True


# -- the search ----------------------------------------------------------------------------------------------


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

    def fits(self, config: Config) -> bool:
        """Whether the estimate is sure enough."""
        found = self.answer(config)
        return found is not None and found.fits_probability >= self.sure


class _Search(Estimates):
    """The search over moves."""

    def fewest(self, config: Config) -> Path | None:
        """The fewest moves after which ``config`` fits, the fastest of equally few; None if none do."""
        kinds = self._savers(config)
        for count in range(1, MOST_MOVES + 1):
            paths = [path for chosen in combinations(kinds, count) for path in self._paths(config, chosen)]
            if paths:
                return min(paths, key=self._seconds)
        return None

    def _paths(self, config: Config, chosen: tuple[tuple[Move, ...], ...]) -> Iterator[Path]:
        """The paths through one move of each chosen kind that fit.

        Memory falls along each kind's moves, so where the last of each does not fit, none does.
        """
        hardest = [self._made(config, ends) for ends in product(*(_ends(moves) for moves in chosen))]
        if any(path and self.fits(path[-1][1]) for path in hardest):
            for moves in product(*chosen):
                path = self._made(config, moves)
                if path and self.fits(path[-1][1]):
                    yield path

    def _made(self, config: Config, moves: tuple[Move, ...]) -> Path:
        """The moves one after the other; empty where one of them does not apply."""
        path: Path = []
        for move in moves:
            if move.applies(config, self.model, self.cluster) is not None:
                return []
            config = move.apply(config, self.cluster)
            path.append((move, config, ""))
        return path

    def _seconds(self, path: Path) -> float:
        found = self.answer(path[-1][1])
        assert found is not None
        return found.speed.step_seconds

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
            [] if config.job.checkpoint_activations else [recomputation(True)],
            [attention("sdpa")] if config.job.attention == "eager" else [],
            [secondary_partition(1)] if int(config.zero("zero_hpz_partition_size")) > 1 else [],
            [sub_group(100_000_000)],
            [reduce_bucket(size) for size in (MIDDLE_BUCKET, SMALL_BUCKET) if size < bucket],
            [overlap_comm(False)] if config.stage in (1, 2) and config.zero("overlap_comm") else [],
            [micro_batch(size) for size in smaller],
        ]
        return [tuple(moves) for moves in kinds if moves]

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
        """Single moves that save time and still fit, the best first."""
        now = self.answer(config)
        assert now is not None
        found: list[Step] = []
        for move in self._quicker(config):
            if move.applies(config, self.model, self.cluster) is not None:
                continue
            after = move.apply(config, self.cluster)
            answer = self.answer(after)
            if answer is None or answer.fits_probability < self.sure:
                continue
            gain = 1 - answer.speed.step_seconds / now.speed.step_seconds
            if gain >= WORTH:
                found.append(
                    Step(
                        move=move,
                        reason=f"saves {gain:.0%} of a step: {move.saves}",
                        changes=differences(config.raw, after.raw),
                        before=now,
                        after=answer,
                    )
                )
        return sorted(found, key=lambda step: step.after.speed.step_seconds if step.after else 0.0)

    def _quicker(self, config: Config) -> Iterator[Move]:
        """Moves that may save time and leave the training as it is."""
        cluster = self.cluster
        micro = stated_micro_batch(config, cluster) or 1
        yield from (zero_stage(stage) for stage in range(4) if stage != config.stage)
        yield from (offload_optimizer(device) for device in DEVICES[:2])
        yield from (offload_param(device) for device in DEVICES[:2])
        yield from (recomputation(False), overlap_comm(True), attention("sdpa"))
        yield secondary_partition(cluster.gpus_per_node)
        for size in sizes(config, self.model, cluster):
            if isinstance(size, int) and micro < size <= 8 * micro:
                yield micro_batch(size)


def _ends(moves: tuple[Move, ...]) -> tuple[Move, ...]:
    """The moves of a kind that save the most; offload saves in two places, so each of its moves is an end."""
    return moves if moves[0].kind.startswith("offload") else moves[-1:]


def _steps(found: _Search, config: Config, path: Path) -> list[Step]:
    """A path as steps, with the estimates before and after each."""
    steps = []
    for move, after, reason in path:
        before_answer = found.answer(config)
        answer = found.answer(after)
        steps.append(
            Step(
                move=move,
                reason=reason or (missing(before_answer) if before_answer else None) or SURER,
                changes=differences(config.raw, after.raw),
                before=before_answer,
                after=answer,
            )
        )
        config = after
    return steps


def missing(answer: Estimate) -> str | None:
    """What an estimate lacks, in words; None where it lacks nothing."""
    for what, needed, capacity in (
        (f"a {answer.cluster.gpu.name}", answer.needed.expected, answer.capacity_bytes),
        ("a node's memory", answer.host_bytes_per_node.expected, answer.cluster.host_memory_bytes),
        ("a node's NVMe", answer.nvme_bytes_per_node, answer.cluster.nvme_bytes),
    ):
        if needed > capacity:
            return f"{format_bytes(needed)} are needed of {what}, which has {format_bytes(capacity)}"
    if answer.fits_probability < SURE:
        needed, capacity = answer.needed.expected, answer.capacity_bytes
        return f"{format_bytes(needed)} are needed of {format_bytes(capacity)}: too near the limit to be sure"
    return None


# -- where nothing fits --------------------------------------------------------------------------------------


def _no_batch(
    config: Config, cluster: Cluster, home: Cluster | None, train: int, notes: list[str]
) -> Adaptation:
    ranks = data_parallel(config, cluster)
    below = train // ranks * ranks
    near = " or ".join(str(size) for size in (below, below + ranks) if size)
    return Adaptation(
        before=config, after=None, cluster=cluster, home=home, steps=(), answer=None,
        missing=f"a global batch of {train} does not split over {ranks} ranks; {near} would, or "
        f"{max(n for n in range(1, ranks + 1) if train % n == 0)} ranks",
        nearest=(), faster=(), notes=tuple(notes),
    )  # fmt: skip


def _nothing_fits(
    found: _Search, config: Config, current: Config, home: Cluster | None, steps: list[Step], notes: list[str]
) -> Adaptation:
    hardest = found.strongest(current)
    answer = found.answer(hardest)
    return Adaptation(
        before=config,
        after=None,
        cluster=found.cluster,
        home=home,
        steps=tuple(steps),
        answer=answer,
        missing=missing(answer) if answer is not None else None,
        nearest=tuple(_nearest(found, hardest)),
        faster=(),
        notes=tuple(notes),
    )


def _nearest(found: _Search, config: Config) -> Iterator[Nearest]:
    """The fewest nodes of these GPUs, and the smallest other card, on which the smallest form fits."""
    here = found.cluster
    train = global_batch(config, here)
    nodes = here.nodes * 2
    while nodes <= MOST_NODES:
        if hit := _on(found, config, _resized(here, nodes=nodes), train):
            yield hit
            break
        nodes *= 2
    larger = sorted(
        (
            gpu
            for gpu in gpus().values()
            if gpu.usable_bytes > here.gpu.usable_bytes and gpu.vendor == here.gpu.vendor
        ),
        key=lambda gpu: gpu.usable_bytes,
    )
    for gpu in larger:
        host = max(here.host_memory_bytes, Cluster.of(gpu, here.gpus_per_node, here.nodes).host_memory_bytes)
        where = Cluster.of(
            gpu, here.gpus_per_node, here.nodes, inter_link=here.inter_link, host_memory_bytes=host
        )
        if hit := _on(found, config, where, train):
            yield hit
            break


def _resized(cluster: Cluster, *, nodes: int) -> Cluster:
    return Cluster.of(
        cluster.gpu,
        cluster.gpus_per_node,
        nodes,
        intra_link=cluster.intra_link,
        inter_link=cluster.inter_link,
        host_memory_bytes=cluster.host_memory_bytes,
        cpu_cores=cluster.cpu_cores,
        nvme_bytes=cluster.nvme_bytes,
    )


def _on(found: _Search, config: Config, cluster: Cluster, train: int | None) -> Nearest | None:
    if train is None or train % data_parallel(config, cluster):
        return None
    fitted = with_micro_batch(config, cluster, 1, train)
    try:
        answer = estimate(fitted, cluster, model=found.model)
    except RefusedConfig:
        return None
    return Nearest(cluster=cluster, answer=answer) if answer.fits_probability >= found.sure else None
