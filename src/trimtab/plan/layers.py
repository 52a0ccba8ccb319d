"""How many layers a configuration must recompute to fit, and what that saves and costs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from trimtab.cluster import Cluster
from trimtab.plan.candidates import with_micro_batch
from trimtab.plan.contender import TIE, Contender, Line
from trimtab.plan.counting import Arithmetic
from trimtab.plan.shortfall import Shortfall
from trimtab.plan.wishes import Wishes


@dataclass(slots=True)
class Layers:
    """The layers to recompute on one cluster; what is asked of it is kept."""

    wishes: Wishes
    cluster: Cluster
    arithmetic: Arithmetic
    exact: bool
    """Whether the caching allocator is replayed; where not, what it usually loses is taken."""
    wholly: Callable[[Contender], Contender]
    """The same with all layers recomputed."""
    _saved: dict[tuple[tuple[str, ...], int], float] = field(default_factory=dict)
    """By sharding and micro batch, what recomputing a layer saves."""
    _range: dict[Line, tuple[int, float]] = field(default_factory=dict)
    """By sharding, the largest micro batch that may fit with all recomputed, and the smallest that cannot."""

    def least(self, one: Contender, short: Shortfall | None) -> int:
        """No more than `needed` says, from what ``one`` is known to lack; 0 where that cannot help."""
        every = self.wishes.model.all_layers
        if one.config.job.recomputation is True or (short is not None and short.where != "GPU memory"):
            return 0
        certain = short if short is not None and not short.close else None
        more = math.ceil(certain.least_lack / self.saved_by_one(one)) if certain else 1
        layers = self._done(one) + more
        return layers if layers < every else 0

    def needed(self, one: Contender, short: Shortfall | None) -> int:
        """How many layers ``one``, which does not fit, must recompute at least; 0 where that cannot help."""
        every, done = self.wishes.model.all_layers, self._done(one)
        if one.config.job.recomputation is True or not self._may_fit(one):
            return 0
        short = self.arithmetic.shortfall(one.config, self.cluster) or short
        if short is not None:
            # where the cache was cut up another layer may do, though bytes alone ask for many
            most = max(1, (every - done) // 2) if short.close else every
            each = self.saved_by_one(one)
            layers = done + short.by_lack(lambda lack: min(most, max(1, math.ceil(lack / each))))
        else:  # a proof refused it, and does not say by how much: half of them once, then all
            layers = every if done else every // 2
        return layers if layers < every else 0

    def least_seconds(self, one: Contender, layers: int) -> float:
        """Less than a step of ``one`` takes with so many layers recomputed: a line up to all of them."""
        every, done = self.wishes.model.all_layers, self._done(one)
        more = self.wholly(one).careful_seconds - one.careful_seconds
        line = one.careful_seconds + more * (layers - done) / (every - done)
        return max(one.careful_seconds, line * (1 - TIE))

    def saved_by_one(self, one: Contender) -> float:
        """Bytes that the model keeps for its backward pass less if the first layer is recomputed.

        An encoder's layers differ from its decoder's; all others are equal.
        """
        key = (one.family.sharding, one.micro)
        if key not in self._saved:
            model, cluster = self.wishes.model, self.cluster
            few: tuple[int | bool, int] = (1, 1) if model.decoder_layers else (True, model.layers)
            kept, less = (
                self.arithmetic.kept_bytes(
                    with_micro_batch(one.family.recomputing(layers, cluster), one.micro, cluster), cluster
                )
                for layers in (False, few[0])
            )
            self._saved[key] = max(1, (kept - less) / few[1])
        return self._saved[key]

    def _done(self, one: Contender) -> int:
        model = self.wishes.model
        return one.config.job.recomputed_of(model.all_layers, model.name)

    def _may_fit(self, one: Contender) -> bool:
        """Whether ``one`` may with all layers recomputed; what does so does at smaller micro batches too."""
        line = one.family.sharding, one.accumulation > 1
        fits, does_not = self._range.get(line, (0, math.inf))
        if fits < one.micro < does_not:
            config = self.wholly(one).config
            short = self.arithmetic.shortfall(config, self.cluster)
            if short is None and not self.exact:
                short = self.arithmetic.usual_shortfall(config, self.cluster)
            fits, does_not = (one.micro, does_not) if short is None else (fits, one.micro)
            self._range[line] = fits, does_not
        return one.micro <= fits
