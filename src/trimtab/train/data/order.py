"""Which sample comes when: one global order that the seed fixes, dealt to the ranks, every sample once an
epoch.

The order knows nothing of ranks: global sample ``n`` of a run is the same on any world, so a run's position
is one number, the samples taken so far.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from trimtab.train.data.samples import Sample, SampleMaker, collate


@dataclass(slots=True)
class GlobalOrder:
    """The sequence of all samples of a run: epoch after epoch, each shuffled by the seed and its number."""

    samples: int
    seed: int
    _epoch: int = -1
    _shuffled: Any = field(default=None, repr=False)

    def __getitem__(self, position: int) -> tuple[int, int]:
        """``(epoch, sample index)`` of global sample ``position``."""
        epoch, place = divmod(position, self.samples)
        if epoch != self._epoch:
            self._shuffled = np.random.default_rng((self.seed, 1, epoch)).permutation(self.samples)
            self._epoch = epoch
        return epoch, int(self._shuffled[place])


def positions(*, start: int, micro: int, rank: int, world: int) -> Iterator[list[int]]:
    """The global positions of one rank's micro batches from ``start`` on, without end.

    >>> from itertools import islice
    >>> list(islice(positions(start=8, micro=2, rank=1, world=2), 2))
    [[10, 11], [14, 15]]
    """
    place = start + rank * micro
    while True:
        yield list(range(place, place + micro))
        place += world * micro


class Samples:
    """A dataset of global positions, for PyTorch's loader."""

    def __init__(self, maker: SampleMaker, seed: int) -> None:
        self.maker = maker
        self.order = GlobalOrder(len(maker), seed)

    def __getitem__(self, position: int) -> Sample:
        epoch, index = self.order[position]
        return self.maker.make(index, epoch)


@dataclass(frozen=True, slots=True)
class Collate:
    """`collate` with its padding, in a form that a loader's worker process can receive."""

    pad_token: int

    def __call__(self, samples: list[Sample]) -> Any:
        return collate(samples, pad_token=self.pad_token)


def micro_batches(
    maker: SampleMaker, *, seed: int, start: int, micro: int, rank: int, world: int, workers: int = 0
) -> Iterator[Any]:
    """One rank's micro batches from global sample ``start`` on, without end."""
    import torch

    pad = maker.prepared.tokenizer.pad_token_id
    loader = torch.utils.data.DataLoader(
        Samples(maker, seed),  # type: ignore[arg-type, unused-ignore]
        batch_sampler=positions(start=start, micro=micro, rank=rank, world=world),
        collate_fn=Collate(0 if pad is None else pad),
        num_workers=workers,
        generator=torch.Generator().manual_seed(
            seed
        ),  # its own, so that the model's random state stays untouched
    )
    return iter(loader)
