"""How much of a card a job needs: what PyTorch's allocator must be able to take, and how sure that is."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from trimtab.cluster import Cluster
from trimtab.config import Config
from trimtab.cost.allocator import WORKSPACE_BYTES
from trimtab.cost.memory import Profile, profile, replayed
from trimtab.model import Model
from trimtab.units import GIB

# device memory outside PyTorch's allocator: CUDA context and kernels (0.6 GiB before the first step, 0.82
# with DeepSpeed's kernels, one H200), and NCCL's buffers: 0.48 GiB more for one rank; 1.23 GiB for two and
# for four at stages 0 to 2 and 0.95 at stage 3 (44 rows of bench/data/real_worlds.jsonl)
CONTEXT_BYTES = int(0.82 * GIB)
NCCL_ALONE_BYTES = int(0.48 * GIB)
NCCL_BYTES = int(1.23 * GIB)
NCCL_STAGE_3_BYTES = int(0.95 * GIB)
HARDLY, SURELY = 0.02, 0.995
"""The probabilities of fitting by a quick replay that need no whole one: what is taken to fit must."""
SURE = 0.9
"""The probability from which on `plan` and `adapt` take a job for fitting, unless told otherwise."""
NEARER = (0.98, 0.965)
"""The shares of a room that is enough that are tried too, in order, until one is not.

Before them comes the one at which the room is enough with `SURE`: mostly that is all that is asked.
"""
REPLAY_STEPS = 5
"""Bisections of the smallest capacity: a thirty-second of the span between peak and reserved memory."""

T = TypeVar("T")
Ratios = tuple[tuple[float, float], ...]
"""Probabilities, and the ratios of truth to expectation that are not passed with that probability."""
# the smallest capacity of a whole replay over what one quick replay sees in use at once, of jobs that need up
# to `LARGE_BYTES` and of those that need more: 521 measured jobs, 13 ready ones and 400 of bench/sweep.py
# (scripts/make_spread.py)
LARGE_BYTES = 32 * GIB
QUICK_RATIOS: Ratios = (
    (0.0, 0.81), (0.005, 0.859), (0.025, 0.919), (0.1, 0.959), (0.25, 1.0), (0.5, 1.004), (0.75, 1.026),
    (0.9, 1.083), (0.975, 1.174), (0.995, 1.214), (1.0, 1.31),
)  # fmt: skip
LARGE_QUICK_RATIOS: Ratios = (
    (0.0, 0.92), (0.005, 0.923), (0.025, 0.961), (0.1, 0.98), (0.25, 1.0), (0.5, 1.003), (0.75, 1.013),
    (0.9, 1.042), (0.975, 1.093), (0.995, 1.103), (1.0, 1.12),
)  # fmt: skip
# the phantom engine's smallest capacity over that of a whole replay: 200 drawn jobs (bench/needs.py), the end
# by judgement.  A GPU's is the phantom's: 50 jobs at 111 caps differ by less than this (bench/near_limit.py)
REPLAY_RATIOS: Ratios = (
    (0.0, 0.807), (0.025, 0.977), (0.1, 1.0), (0.25, 1.0), (0.5, 1.001), (0.75, 1.002), (0.9, 1.006),
    (0.975, 1.029), (0.995, 1.06), (1.0, 1.07),
)  # fmt: skip


class Need:
    """Bytes that PyTorch's allocator must be able to take, as a distribution around what is expected.

    >>> Need(100.0, ((0.0, 0.9), (0.5, 1.0), (1.0, 1.2))).probability_within(110)
    0.75
    """

    def __init__(self, expected: float, ratios: Ratios) -> None:
        self._expected, self.ratios = expected, ratios

    @property
    def expected(self) -> float:
        """What one replay or several find."""
        return self._expected

    @property
    def low(self) -> float:
        """Passed with a probability of 97.5 %."""
        return self.expected * _ratio(self.ratios, 0.025)

    @property
    def high(self) -> float:
        """Enough with a probability of 97.5 %."""
        return self.at(0.975)

    def at(self, sure: float) -> float:
        """Enough with a probability of ``sure``."""
        return self.expected * _ratio(self.ratios, sure)

    @property
    def within(self) -> tuple[float, float]:
        """The least and the most that ``expected`` may turn out to be, by what is known so far."""
        return self.expected, self.expected

    def narrow(self) -> None:
        """Know it closer, where that is possible."""

    def decided(self, decide: Callable[[float], T]) -> T:
        """``decide(expected)``, where that rises or falls with what is expected and changes in steps."""
        while True:
            low, high = map(decide, self.within)
            if low == high:
                return high
            self.narrow()

    def probability_within(self, capacity_bytes: float) -> float:
        """That ``capacity_bytes`` are enough."""
        ratio = capacity_bytes / self.expected
        before = (0.0, float("-inf"))
        for point in self.ratios:
            if ratio < point[1]:
                break
            before = point
        else:
            return 1.0
        if before[1] == float("-inf"):
            return 0.0
        share = (ratio - before[1]) / (point[1] - before[1])
        return round(before[0] + share * (point[0] - before[0]), 4)

    def fits(self, capacity_bytes: float, sure: float) -> bool:
        """Whether ``capacity_bytes`` are enough with a probability of ``sure``."""
        return self.probability_within(capacity_bytes) >= sure


class CapacitySearch:
    """The smallest capacity that lets a job run, by replays of its requests: as many as an answer takes.

    A card's ``room`` comes first, so that the answer never lies on the wrong side of it; then, if it is
    enough, what is a little less: a job may run where it would not with somewhat more, by how its blocks
    happen to lie.  Needs a profile made with ``allocator=True``; the CUDA context and NCCL's buffers come on
    top.
    """

    def __init__(self, counted: Profile, room: int | None = None) -> None:
        self._counted, self._left = counted, REPLAY_STEPS
        self._tried: dict[int, bool] = {}
        self._room = room
        self._near: list[int] | None = None
        """The shares of the room that are still to be tried; None before anything was."""
        self._low = self._high = 0

    def _begin(self) -> list[int]:
        """What is known without a limit, and what is near the room."""
        if self._near is None:
            readings, room = self._counted.readings.values(), self._room
            self._low = max(reading.peak_allocated for reading in readings) - 1
            self._high = max(reading.peak_reserved for reading in readings)
            self._near = []
            if room is not None and self._low < room < self._high:
                self._near = [room, self._surely(room), *(int(room * share) for share in NEARER)]
        return self._near

    @property
    def within(self) -> tuple[int, int]:
        """The least and the most bytes that it may be, by what was tried; the same once enough was."""
        near = self._begin()
        return (self._low + 1 if near or self._left else self._high), self._high

    def smallest(self) -> int:
        """In bytes."""
        while self._begin() or self._left:
            self.narrow()
        return self._high

    def narrow(self) -> None:
        """Try one capacity more, if any is left."""
        near = self._begin()
        if near:
            below = near.pop(0)
            if below <= self._low or not self._try(below):
                near.clear()
            return
        if not self._left:
            return
        self._left -= 1
        if self._high - self._low > 1:
            self._try((self._low + self._high) // 2)

    def exceeds(self, capacity_bytes: float) -> bool:
        """Whether the smallest capacity is larger.

        Of the room's first share that is known by the two alone, where a card without limit takes more.
        """
        room = self._room
        asks = room is not None and self._surely(room) <= capacity_bytes < self._surely(room) + 1
        if room is not None and asks and self._counted.passes(room):
            return not (self._enough(self._surely(room)) and self._enough(room))
        while self.within[0] <= capacity_bytes < self.within[1]:
            self.narrow()
        return self.within[0] > capacity_bytes

    @staticmethod
    def _surely(room: int) -> int:
        """The bytes with which, if they are enough, the room is with `SURE`."""
        return int(room * (1 / _ratio(REPLAY_RATIOS, SURE)))

    def _try(self, capacity_bytes: int) -> bool:
        fits = self._enough(capacity_bytes)
        if fits:
            self._high = capacity_bytes
        else:
            self._low = capacity_bytes
        return fits

    def _enough(self, capacity_bytes: int) -> bool:
        if capacity_bytes not in self._tried:
            self._tried[capacity_bytes] = self._counted.fits(capacity_bytes)
        return self._tried[capacity_bytes]


class SearchedNeed(Need):
    """The same by a search that goes no further than what is asked."""

    def __init__(self, search: CapacitySearch) -> None:
        self._search, self.ratios = search, REPLAY_RATIOS

    @property
    def expected(self) -> float:
        """The smallest capacity."""
        return self._search.smallest()

    @property
    def within(self) -> tuple[float, float]:
        """The least and the most that the smallest capacity may be."""
        return self._search.within

    def narrow(self) -> None:
        """Try one capacity more."""
        self._search.narrow()

    def fits(self, capacity_bytes: float, sure: float) -> bool:
        """Whether ``capacity_bytes`` are enough with a probability of ``sure``."""
        return not self._search.exceeds(capacity_bytes / _ratio(self.ratios, sure))


def _ratio(ratios: Ratios, probability: float) -> float:
    """The ratio that is not passed with ``probability``, straight lines between those known."""
    before = ratios[0]
    for point in ratios:
        if point[0] >= probability:
            break
        before = point
    if point[0] == before[0]:
        return point[1]
    return before[1] + (point[1] - before[1]) * (probability - before[0]) / (point[0] - before[0])


def outside_allocator(world_size: int, stage: int = 0) -> int:
    """Bytes of a GPU that PyTorch's allocator never sees: the CUDA context and NCCL."""
    if world_size == 1:
        return CONTEXT_BYTES + NCCL_ALONE_BYTES
    return CONTEXT_BYTES + (NCCL_STAGE_3_BYTES if stage == 3 else NCCL_BYTES)


def needed(
    config: Config, model: Model, cluster: Cluster, *, quick: tuple[Profile, Need] | None = None
) -> tuple[Profile, Need]:
    """What the job allocates, and what PyTorch's allocator needs for it on the cards of ``cluster``.

    The allocator is replayed quickly first; only where a card's memory is near what that finds is every
    request replayed, as often as it takes to find the smallest capacity.  ``quick`` is what `quickly_needed`
    says, where that is known already.

    Raises:
        RefusedConfig: the batch does not solve for this world.
        UnknownArchitecture: the arithmetic does not know the model type.
    """
    counted, need = quick or quickly_needed(config, model, cluster)
    world = cluster.world_size
    room = cluster.gpu.usable_bytes - outside_allocator(world, config.stage)
    if not HARDLY < need.probability_within(room) < SURELY:
        return counted, need
    counted = replayed(counted, config, model, world, _workspace_bytes(cluster))
    return counted, SearchedNeed(CapacitySearch(counted, room))


def quickly_needed(config: Config, model: Model, cluster: Cluster) -> tuple[Profile, Need]:
    """The same by the quick replay alone, whatever room there is."""
    workspace = _workspace_bytes(cluster)
    counted = profile(
        config, model, cluster.world_size, allocator=True, whole=False, workspace_bytes=workspace
    )
    used = max(reading.peak_used for reading in counted.readings.values())
    expected = max(used, counted.allocated_peak)
    return counted, Need(expected, QUICK_RATIOS if expected <= LARGE_BYTES else LARGE_QUICK_RATIOS)


def _workspace_bytes(cluster: Cluster) -> int:
    gpu = cluster.gpu
    return WORKSPACE_BYTES[gpu.vendor == "nvidia" and float(gpu.compute_capability) >= 9]
