"""What a contender comes to in time and money, and how two of them compare under the wishes."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from trimtab.cluster import Cluster
from trimtab.plan.contender import Contender
from trimtab.plan.machines import price_of
from trimtab.plan.wishes import Wishes
from trimtab.prices import Price
from trimtab.units import format_count, format_dollars, format_seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How fast a cluster trains, and what that comes to; None where the tokens or the price are not known."""

    cluster: Cluster
    seconds_per_token: float
    """Of the whole cluster."""
    price: Price | None
    tokens: int | None
    """Of the run: as wished, or as many as budget and deadline allow."""

    @property
    def tokens_per_second(self) -> float:
        """Of the whole cluster."""
        return 1 / self.seconds_per_token

    @property
    def usd_per_hour(self) -> float | None:
        """Dollars for the whole cluster and one hour."""
        return None if self.price is None else self.price.usd_per_gpu_hour * self.cluster.world_size

    @property
    def usd_per_token(self) -> float | None:
        """Dollars for one token."""
        hour = self.usd_per_hour
        return None if hour is None else hour / 3600 * self.seconds_per_token

    @property
    def seconds(self) -> float | None:
        """The run's time, restarts and evaluation left out."""
        return None if self.tokens is None else self.tokens * self.seconds_per_token

    @property
    def usd(self) -> float | None:
        """The run's price."""
        each = self.usd_per_token
        return None if each is None or self.tokens is None else self.tokens * each

    def broken(self, wishes: Wishes) -> tuple[str, ...]:
        """The limits that the run does not keep, with both numbers."""
        found = []
        usd, seconds = self.usd, self.seconds
        if wishes.tokens is None or seconds is None:
            return ()
        said = format_count(wishes.tokens)
        if wishes.budget_usd is not None and usd is None:
            found.append(f"budget: no price is known for {self.cluster.gpu.name}")
        elif wishes.budget_usd is not None and usd is not None and usd > wishes.budget_usd:
            allowed = format_dollars(wishes.budget_usd)
            found.append(f"budget: {said} tokens cost {format_dollars(usd)}, {allowed} are allowed")
        if wishes.deadline_seconds is not None and seconds > wishes.deadline_seconds:
            allowed = format_seconds(wishes.deadline_seconds)
            found.append(f"deadline: {said} tokens take {format_seconds(seconds)}, {allowed} are allowed")
        return tuple(found)

    def rank(self, wishes: Wishes) -> tuple[float, ...]:
        """Smaller is better, by what the wishes ask for; no price counts as endless where money does."""
        each = self.usd_per_token
        money = math.inf if each is None else each
        world = self.cluster.world_size
        if wishes.optimize == "cheapest":
            return (money, self.seconds_per_token, world)
        if wishes.optimize == "fewest-gpus":
            return (world, self.seconds_per_token, money)
        if wishes.optimize == "most-tokens":
            return (-(self.tokens or 0), money, world)
        return (self.seconds_per_token, money, world)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bill(Pace):
    """What a contender comes to."""

    contender: Contender


def bill(contender: Contender, wishes: Wishes) -> Bill:
    """What the run of ``contender`` comes to."""
    made = pace(contender.cluster, contender.seconds_per_token, wishes)
    return Bill(
        cluster=made.cluster,
        seconds_per_token=made.seconds_per_token,
        price=made.price,
        tokens=made.tokens,
        contender=contender,
    )


def pace(cluster: Cluster, seconds_per_token: float, wishes: Wishes) -> Pace:
    """What a cluster comes to at a speed; the tokens that the limits allow where none are wished."""
    made = Pace(
        cluster=cluster,
        seconds_per_token=seconds_per_token,
        price=price_of(cluster, wishes),
        tokens=wishes.tokens,
    )
    if wishes.tokens is not None:
        return made
    most = math.inf
    each = made.usd_per_token
    if wishes.budget_usd is not None and each:
        most = wishes.budget_usd / each
    if wishes.deadline_seconds is not None:
        most = min(most, wishes.deadline_seconds / seconds_per_token)
    return made if most == math.inf else replace(made, tokens=int(most))
