"""The part on models that no grid has (`choices.py`) of the page that `quality_page.py` writes."""

from __future__ import annotations

import statistics
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "bench")]

import choices  # noqa: E402
from page_text import wrapped  # noqa: E402
from plan_quality import Point, Row, named, point, read  # noqa: E402

from trimtab.config import Config  # noqa: E402

ROWS = ROOT / "bench" / "data" / "choices.jsonl"

HEAD = """\
## Models that nobody had measured

The plan was asked for {jobs} trainings of models that no grid has; its choice, the fastest rivals as
predicted and the fastest of each other stage were measured then (`bench/choices.py`), {rows} points in
all. Nothing had been changed for any of these models. The choice was {median:.1%} as fast as the best
measured in the median, {least:.1%} at the least, and none ran out of memory. Its time was predicted to
{off:.1%} in the median and {most:.1%} at most. What the best
of all points is, only a whole grid could tell: these are the ones that the plan holds for fast."""

TAIL = """\
*Now* is what the plan chooses since: the usual host's pace is that of more machines, these rows' among
them, and over several GPUs stage 1 counts as no less simple than stage 0, which `gpt2` on two GPUs taught."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """A training with what was measured of it; seconds by point, in the order that the plan had them."""

    model: str
    world: int
    seconds: dict[Point, float]
    now: Point
    predicted: float
    """Seconds of the first choice, as they were predicted then."""

    @property
    def choice(self) -> Point:
        """What the plan chose before anything ran."""
        return next(iter(self.seconds))

    @property
    def best(self) -> Point:
        """The fastest measured."""
        return min(self.seconds, key=lambda place: self.seconds[place])

    def share(self, place: Point) -> float | None:
        """How fast a point is, of the fastest; None if it was not measured."""
        return self.seconds[self.best] / self.seconds[place] if place in self.seconds else None


def trainings() -> list[Training]:
    """Every training of `choices.TRAININGS` that was measured, with the plan asked anew."""
    measured: dict[tuple[str, int], list[Row]] = defaultdict(list)
    for row in read([ROWS]):
        measured[row["job"]["model"], row["world"]].append(row)
    found = []
    for (model, world), rows in measured.items():
        places = [point(Config.from_mapping(row["config"]), world) for row in rows]
        answer = choices.asked(model, world, None)
        assert answer.chosen is not None
        found.append(
            Training(
                model=model,
                world=world,
                seconds={place: row["step_seconds"] for place, row in zip(places, rows, strict=True)},
                now=point(answer.chosen.config, world),
                predicted=rows[0]["job"]["predicted_seconds"],
            )
        )
    return found


def choices_section(found: Sequence[Training]) -> Iterator[str]:
    """The choices beside the best of what was measured with them."""
    shares = [one.share(one.choice) or 0.0 for one in found]
    off = [abs(one.predicted / one.seconds[one.choice] - 1) for one in found]
    yield wrapped(
        HEAD.format(
            jobs=len(found),
            rows=sum(len(one.seconds) for one in found),
            median=statistics.median(shares),
            least=min(shares),
            off=statistics.median(off),
            most=max(off),
        )
    )
    yield ""
    yield "| model, GPUs | choice | predicted s | measured s | of the best | best measured | s | now |"
    yield "|---|---|---|---|---|---|---|---|"
    for one, share in zip(found, shares, strict=True):
        now = one.share(one.now)
        other = f"{named(one.now)}: " + ("not measured" if now is None else f"{now:.1%}")
        yield (
            f"| {one.model}, {one.world} | {named(one.choice)} | {one.predicted:.3f} "
            f"| {one.seconds[one.choice]:.3f} | {share:.1%} | {named(one.best)} "
            f"| {one.seconds[one.best]:.3f} | {'the same' if one.now == one.choice else other} |"
        )
    yield ""
    yield wrapped(TAIL)
