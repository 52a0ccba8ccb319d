"""What a contender comes to in time and money, and how two of them compare under the wishes."""

from __future__ import annotations

import math
from dataclasses import dataclass

from trimtab.plan.search import Contender
from trimtab.plan.wishes import Wishes
from trimtab.prices import Price
from trimtab.units import format_count, format_dollars, format_seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Bill:
    """A contender's whole run: None where the tokens or the price are not known."""

    contender: Contender
    price: Price | None
    tokens: int | None
    """As wished, or as many as budget and deadline allow."""

    @property
    def tokens_per_second(self) -> float:
        """Of the whole cluster."""
        return 1 / self.contender.seconds_per_token

    @property
    def usd_per_hour(self) -> float | None:
        """Dollars for the whole cluster and one hour."""
        world = self.contender.cluster.world_size
        return None if self.price is None else self.price.usd_per_gpu_hour * world

    @property
    def usd_per_token(self) -> float | None:
        """Dollars for one token."""
        hour = self.usd_per_hour
        return None if hour is None else hour / 3600 * self.contender.seconds_per_token

    @property
    def seconds(self) -> float | None:
        """The run's time, restarts and evaluation left out."""
        return None if self.tokens is None else self.tokens * self.contender.seconds_per_token

    @property
    def usd(self) -> float | None:
        """The run's price."""
        each = self.usd_per_token
        return None if each is None or self.tokens is None else self.tokens * each

    def broken(self, wishes: Wishes) -> tuple[str, ...]:
        """The limits that the run does not keep, with both numbers."""
        found = []
        if wishes.tokens is None:
            return ()
        usd, seconds = self.usd, self.seconds
        if wishes.budget_usd is not None:
            if usd is None:
                found.append(f"budget: no price is known for {self.contender.cluster.gpu.name}")
            elif usd > wishes.budget_usd:
                found.append(
                    f"budget: {format_count(wishes.tokens)} tokens cost {format_dollars(usd)}, "
                    f"{format_dollars(wishes.budget_usd)} are allowed"
                )
        if wishes.deadline_seconds is not None and seconds is not None and seconds > wishes.deadline_seconds:
            found.append(
                f"deadline: {format_count(wishes.tokens)} tokens take {format_seconds(seconds)}, "
                f"{format_seconds(wishes.deadline_seconds)} are allowed"
            )
        return tuple(found)


def bill(contender: Contender, price: Price | None, wishes: Wishes) -> Bill:
    """What the run of ``contender`` comes to."""
    made = Bill(contender=contender, price=price, tokens=wishes.tokens)
    if wishes.tokens is not None:
        return made
    most = math.inf
    each = made.usd_per_token
    if wishes.budget_usd is not None and each:
        most = wishes.budget_usd / each
    if wishes.deadline_seconds is not None:
        most = min(most, wishes.deadline_seconds / contender.seconds_per_token)
    return made if most == math.inf else Bill(contender=contender, price=price, tokens=int(most))


def rank(one: Bill, wishes: Wishes) -> tuple[float, ...]:
    """Smaller is better, by what the wishes ask for; clusters without a price come last where money counts."""
    contender = one.contender
    each = one.usd_per_token
    money = math.inf if each is None else each
    world = contender.cluster.world_size
    if wishes.optimize == "cheapest":
        return (money, contender.seconds_per_token, world)
    if wishes.optimize == "fewest-gpus":
        return (world, contender.seconds_per_token, money)
    if wishes.optimize == "most-tokens":
        return (-(one.tokens or 0), money, world)
    return (contender.seconds_per_token, money, world)
