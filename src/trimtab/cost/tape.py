"""One micro step of a model, written down once and played for any engine.

What a model allocates and when depends on its shape, the batch and the job, not on how DeepSpeed shards
it.  So the counting machine runs a micro step on a `Tape`, which notes every storage's beginning and end,
every use of a parameter and every finished gradient, and a `Recording` plays that back to as many engines as
are asked about.  A stack of equal layers is run on four of them: the first two, one that stands for all
between, and the last (`tests/cost/test_tape.py` holds the result against whole models).  Where some layers of
a model are recomputed and the others kept, those are two stacks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from trimtab.cost.coordinator import AGAIN, OWNER, USE, USED, USES, Heard, Order, order_of
from trimtab.cost.meter import PARTS, Storage, Work

if TYPE_CHECKING:
    from trimtab.cost.engine import Engine
    from trimtab.cost.machine import Weight
    from trimtab.cost.meter import RequestingMeter

SHOWN = 4
"""Layers of a stack that are run."""
EDGE = 1
"""Layers at either end of a stack of which a quick replay sees everything; more tell it nothing more about
what is needed (scripts/make_spread.py)."""
REPEATED, LAST = 2, 3

START, FORWARD, RELEASE, BACKWARD, FINISH = range(5)
"""What a micro step consists of: its inputs; the forward pass; once its loss has taken the name of the last
step's, the end of what lived as long as that; the backward pass; the end of the inputs."""
PHASES = (START, FORWARD, RELEASE, BACKWARD, FINISH)

TAKE, GIVE, MOVE, VIEW, VIEWED, GRADIENT, PRODUCT = range(1, 8)
HEARD = (*USES, VIEW, VIEWED)
"""Only of interest to an engine that gathers parameters."""
Stack = tuple[str, int]
"""Equal layers: their path, and the place of the first of them there."""
Place = tuple[Stack, int]
"""A stack and one of its layers that are run, counted from its first."""
Numbers = dict[tuple[int, int], dict[int, int]]
"""The requests that were made, by group of sections and layer."""
Chunk = tuple[int, int, int, tuple[int, ...]]
"""Bytes at its highest and at its end, and the event for the engine that follows."""
Step = tuple[int, int, tuple[Any, ...]]
"""Bytes at their highest and at the end of what no allocator is asked for, and the event that follows; of a
use its kind, and the weights together."""


class Section:
    """What happens in one layer of one phase, or between layers."""

    def __init__(self, number: int, place: Place | None) -> None:
        self.number, self.place = number, place
        self.events: list[tuple[int, ...]] = []
        """(TAKE, bytes, part, number), (GIVE, bytes, part, section, number), (MOVE, bytes, part, part),
        (USE, weight…), (AGAIN, weight…), (USED, weight…), (OWNER,), (VIEW, weight), (VIEWED, weight),
        (GRADIENT, bytes, part, section, number, weight) or (PRODUCT,), a phase's first; a storage is known by
        its section and its number among what was taken there."""
        self.takes = self.sums = 0
        self.work = Work()
        self._chunks: dict[bool, list[Chunk]] = {}
        self._steps: dict[tuple[bool, bool], list[Step]] = {}
        self._net_parts: list[int] | None = None

    @cached_property
    def uses(self) -> list[tuple[int, tuple[int, ...]]]:
        """What is heard of uses, and of which weights."""
        return [(event[0], event[1:]) for event in self.events if event[0] in USES]

    def chunks(self, uses: bool) -> list[Chunk]:
        """The section as stretches between what an engine hears: gradients, and ``uses`` of weights."""
        if uses not in self._chunks:
            self._chunks[uses] = list(self._cut(uses))
        return self._chunks[uses]

    def _cut(self, uses: bool) -> Iterator[Chunk]:
        high = live = 0
        for event in self.events:
            kind = event[0]
            if kind == TAKE:
                live += event[1]
                high = max(high, live)
            elif kind == GIVE:
                live -= event[1]
            elif kind == GRADIENT:  # the engine's from here on
                yield high, live - event[1], GRADIENT, (event[5], event[1], event[2])
                high = live = 0
            elif kind in HEARD and uses:
                yield high, live, kind, event[1:]
                high = live = 0
        if high or live:
            yield high, live, 0, ()

    def steps(self, whole: bool, uses: bool) -> list[Step]:
        """The section event by event, with or without ``uses`` of weights.

        Unless it shall be ``whole``, storages that begin and end here only show in the bytes before an event.
        """
        if (whole, uses) not in self._steps:
            self._steps[whole, uses] = list(self._shorten(whole, uses))
        return self._steps[whole, uses]

    def _shorten(self, whole: bool, uses: bool) -> Iterator[Step]:
        here = self.number
        brief = {event[4] for event in self.events if event[0] == GIVE and event[3] == here and not whole}
        high = live = 0
        for event in self.events:
            kind = event[0]
            if kind == TAKE and event[3] in brief:
                live += event[1]
                high = max(high, live)
            elif kind == GIVE and event[3] == here and not whole:
                live -= event[1]
            elif kind in (TAKE, GIVE, GRADIENT, PRODUCT) or (uses and kind != MOVE):
                yield high, live, (kind, event[1:]) if kind in USES else event
                high = live = 0
        if high or live:
            yield high, live, (0,)

    def net_parts(self) -> list[int]:
        """How much the bytes of each part change."""
        if self._net_parts is None:
            self._net_parts = [0] * len(PARTS)
            for event in self.events:
                _count_parts(self._net_parts, event)
        return self._net_parts

    def parts_until(self, parts: list[int], count: int, *, uses: bool, inside: bool) -> None:
        """Add to ``parts`` what ``count`` chunks change; of the last only up to its highest if ``inside``."""
        high = self.chunks(uses)[count - 1][0] if inside else -1
        live = done = 0
        for event in self.events:
            if done == count or (inside and done == count - 1 and live == high):
                return
            live += _count_parts(parts, event)
            if event[0] == GRADIENT or (uses and event[0] in HEARD):
                done, live = done + 1, 0


def _count_parts(parts: list[int], event: tuple[int, ...]) -> int:
    """Put ``event`` down in ``parts``; how much the bytes change by it."""
    kind, change = event[0], 0
    if kind == TAKE:
        change = event[1]
    elif kind in (GIVE, GRADIENT):
        change = -event[1]
    elif kind == MOVE:
        parts[event[2]] -= event[1]
        parts[event[3]] += event[1]
    if change:
        parts[event[2]] += change
    return change


class Tape:
    """An account that writes down what it is told, and listens to the machine as an engine does."""

    def __init__(self, *, shown: int = SHOWN) -> None:
        self.shown = shown
        self.stacks: dict[Stack, int] = {}
        """How many layers each has."""
        self.phases: list[list[int]] = [[] for _ in PHASES]
        """Numbers of the sections of each."""
        self.sections: list[Section] = []
        self.place: object = None
        self._homes: list[tuple[int, int] | None] = []
        self.turn_to_phase(START)

    def turn_to_phase(self, phase: int) -> None:
        """What follows belongs to ``phase``."""
        self.phase = phase
        self._multiplied = False
        self.turn_to(None)

    def turn_to(self, place: object) -> None:
        """Open a section."""
        assert place is None or isinstance(place, tuple)
        self.place = place
        self._section = Section(len(self.sections), place)
        self.work = self._section.work
        self.phases[self.phase].append(len(self.sections))
        self.sections.append(self._section)

    def layers(self, path: str, first: int, end: int) -> Iterator[int]:
        """The first few, each a section of its own."""
        if first == end:
            return
        stack = (path, first)
        self.stacks[stack] = end - first
        for index in range(min(end - first, self.shown)):
            self.turn_to((stack, index))
            yield first + index
        self.turn_to(None)

    # -- an account ------------------------------------------------------------------------------------

    def add(self, count: int, part: int, stream: int = 0) -> int:
        """Note a storage's beginning."""
        section = self._section
        self._homes.append((len(self.sections) - 1, section.takes))
        section.takes += 1
        section.events.append((TAKE, count, part, section.takes - 1))
        return len(self._homes) - 1

    def add_sum(self, count: int, part: int) -> int:
        """The same of what only some of equal layers make, numbered apart: others' numbers agree."""
        section = self._section
        section.sums += 1
        self._homes.append((len(self.sections) - 1, -section.sums))
        section.events.append((TAKE, count, part, -section.sums))
        return len(self._homes) - 1

    def drop(self, count: int, part: int, number: int) -> None:
        """Note its end, unless it is the engine's by now."""
        home = self._homes[number]
        if home is not None:
            self._section.events.append((GIVE, count, part, *home))

    def move(self, count: int, part: int, new: int) -> None:
        """Note that it counts as another part."""
        self._section.events.append((MOVE, count, part, new))

    def product(self) -> None:
        """Note the first of a phase."""
        if not self._multiplied:
            self._multiplied = True
            self._section.events.append((PRODUCT,))

    # -- a listener ------------------------------------------------------------------------------------

    def before_use(self, weights: tuple[Weight, ...], *, again: bool = False) -> None:
        """Note the use."""
        self._section.events.append((AGAIN if again else USE, *(weight.index for weight in weights)))

    def after_use(self, weights: tuple[Weight, ...]) -> None:
        """Note its end."""
        if weights:
            self._section.events.append((USED, *(weight.index for weight in weights)))

    def after_owner(self) -> None:
        """Note it."""
        self._section.events.append((OWNER,))

    def on_view(self, weight: Weight) -> None:
        """Note that what is gathered of it has one reference more."""
        self._section.events.append((VIEW, weight.index))

    def on_view_end(self, weight: Weight) -> None:
        """Note that it has one less."""
        self._section.events.append((VIEWED, weight.index))

    def on_gradient(self, weight: Weight, gradient: Storage) -> None:
        """Note that it is the engine's from now on."""
        home = self._homes[gradient.number]
        assert home is not None
        self._homes[gradient.number] = None
        self._section.events.append((GRADIENT, gradient.bytes, gradient.part, *home, weight.index))


class Recording:
    """A micro step of a whole model, layers repeated as often as the model has them."""

    def __init__(
        self, tape: Tape, strides: Mapping[Stack, int], numels: tuple[int, ...], moved: int = 0
    ) -> None:
        """``strides``: by stack, how many parameters a layer has; ``numels``: of every parameter; ``moved``:
        by how many layers a stack that follows another at its path begins later than on the tape."""
        self._tape, self._strides, self._numels, self._moved = tape, strides, numels, moved
        self.sections, self.shown = tape.sections, tape.shown
        cut = {path for path, first in tape.stacks if first}
        self.stacks = {
            (path, first): length + (path in cut and (-moved if first else moved))
            for (path, first), length in tape.stacks.items()
        }
        self._groups = self._grouped(tape.phases)
        self._homes: dict[tuple[int, int], tuple[int, int, bool]] = {}
        self.reels = [list(self._reel(tape.phases[phase], phase)) for phase in PHASES]
        """By phase: sections with the layer that each stands for and the distance of its parameters."""

    def moved(self, layers: int) -> Recording:
        """The same of a model whose first stack has so many layers more, and the second as many fewer."""
        return Recording(self._tape, self._strides, self._numels, layers)

    def _grouped(self, phases: Sequence[Sequence[int]]) -> list[int]:
        """By section, one number for all layers of a stack in one phase: that of the first."""
        groups = list(range(len(self.sections)))
        for numbers in phases:
            firsts: dict[Stack, int] = {}
            for number in numbers:
                place = self.sections[number].place
                if place is not None:
                    groups[number] = firsts.setdefault(place[0], number)
        return groups

    def _reel(self, numbers: Sequence[int], phase: int) -> Iterator[tuple[int, int, int]]:
        for number in numbers:
            place = self.sections[number].place
            if not self.sections[number].events and not self.sections[number].work:
                continue
            if place is None:
                yield number, 0, 0
                continue
            stack, shown = place
            last, moved = self.stacks[stack] - 1, self._moved if stack[1] else 0
            layers: Sequence[int] = (shown,)
            if last >= self.shown and shown >= REPEATED:
                layers = range(REPEATED, last) if shown == REPEATED else (last,)
            for layer in reversed(layers) if phase == BACKWARD else layers:
                yield number, layer, (moved + layer - shown) * self._strides[stack]

    @cached_property
    def work(self) -> Work:
        """How often which operator runs in the whole micro step."""
        total = Work()
        for reel in self.reels:
            for number, times in Counter(number for number, _, _ in reel).items():
                for key, count in self.sections[number].work.items():
                    total[key] += count * times
        return total

    @cached_property
    def order(self) -> Order:
        """The order in which the two passes use the parameters."""
        return order_of(self.heard, self._numels)

    @cached_property
    def heard(self) -> Heard:
        """What an engine hears of parameters through the two passes."""
        heard: list[tuple[int, tuple[int, ...]]] = []
        for phase in (FORWARD, BACKWARD):
            for number, _, shift in self.reels[phase]:
                uses = self.sections[number].uses
                if shift:
                    uses = [
                        (use[0], tuple([index + shift for index in use[1]])) if use[1] else use
                        for use in uses
                    ]
                heard += uses
        return tuple(heard)

    # -- playing ---------------------------------------------------------------------------------------

    def play(self, phase: int, engine: Engine) -> None:
        """Let ``engine`` and its meter go through ``phase``; parts of what is recorded are left out."""
        meter, weights, uses = engine.meter, engine.weights, engine.hears_uses
        now = meter.now
        for number, _, shift in self.reels[phase]:
            for high, net, kind, about in self.sections[number].chunks(uses):
                now += 1
                meter.now = now
                live = meter.live
                if live + high > meter.peak:
                    meter.peak = live + high
                    meter.peak_parts = meter.parts.copy()
                    meter.peak_at = -now
                meter.live = live + net
                if kind in (USE, AGAIN):
                    engine.before_use(about, shift, again=kind == AGAIN)
                elif kind == USED:
                    engine.after_use(about, shift)
                elif kind == OWNER:
                    engine.after_owner()
                elif kind == VIEW:
                    engine.on_view(about[0] + shift)
                elif kind == VIEWED:
                    engine.on_view_end(about[0] + shift)
                elif kind == GRADIENT:
                    index, count, part = about
                    meter.live += count
                    meter.parts[part] += count
                    gradient = Storage.adopted(meter, count, part, 0)
                    engine.on_gradient(weights[index + shift], gradient)
                    del gradient

    def play_to_allocate(
        self, phase: int, engine: Engine, meter: RequestingMeter, numbers: Numbers, *, uses: bool = True
    ) -> None:
        """The same storage by storage, for an allocator.

        Unless ``meter`` sees all, it does not hear in the middle of a long stack of what ends in its layer,
        and the engine without ``uses`` not there either that parameters are used.
        """
        weights, hears = engine.weights, engine.hears_uses
        take, give, before_use, after_use = meter.take, meter.give, engine.before_use, engine.after_use
        now = meter.now
        for here, layer, shift in self.reels[phase]:
            section = self.sections[here]
            edge = meter.sees_all or self._is_edge(section, layer)
            taken: dict[int, int] = {}
            numbers[self._groups[here], layer] = taken
            end = now + len(section.chunks(hears))
            for high, net, event in section.steps(edge, hears and (uses or edge)):
                if high or net:
                    live = meter.live
                    if live + high > meter.peak:
                        meter.peak = live + high
                        meter.peak_parts = meter.parts.copy()
                        meter.peak_at = -now - 1
                    meter.live = live + net
                    meter.hidden += net
                kind = event[0]
                if kind == TAKE:
                    taken[event[3]] = take(event[1], -now - 1)
                elif kind == GIVE:
                    home = event[3]
                    there = taken if home == here else numbers[self._home_of(home, here, layer)]
                    give(event[1], there[event[4]])
                elif kind == GRADIENT:
                    meter.now = now = now + 1
                    _, count, part, home_section, number, index = event
                    meter.parts[part] += count
                    request = numbers[self._home_of(home_section, here, layer)][number]
                    gradient = Storage.adopted(meter, count, part, request)
                    engine.on_gradient(weights[index + shift], gradient)
                    del gradient
                elif kind == PRODUCT:
                    meter.product()
                elif kind == USE:
                    meter.now = now = now + 1
                    before_use(event[1], shift)
                elif kind == USED:
                    meter.now = now = now + 1
                    after_use(event[1], shift)
                elif kind == AGAIN:
                    meter.now = now = now + 1
                    before_use(event[1], shift, again=True)
                elif kind == OWNER:
                    meter.now = now = now + 1
                    engine.after_owner()
                elif kind in HEARD:
                    meter.now = now = now + 1
                    (engine.on_view if kind == VIEW else engine.on_view_end)(event[1] + shift)
            meter.now = now = end

    def _is_edge(self, section: Section, layer: int) -> bool:
        place = section.place
        return place is None or not EDGE <= layer < self.stacks[place[0]] - EDGE

    def _home_of(self, home: int, here: int, layer: int) -> tuple[int, int]:
        """Group and layer meant by what was taken in section ``home``, seen from section ``here``.

        A neighbour of the layer that runs is the neighbour of the ``layer`` that it stands for.
        """
        known = self._homes.get((home, here)) or self._homes.setdefault((home, here), self._home(home, here))
        group, place, relative = known
        return group, layer + place if relative else place

    def _home(self, home: int, here: int) -> tuple[int, int, bool]:
        """The group, and the layer or the distance to it."""
        there, seen, group = self.sections[home].place, self.sections[here].place, self._groups[home]
        if there is None:
            return group, 0, False
        stack, shown = there
        if seen is not None and seen[0] == stack and abs(seen[1] - shown) <= 1:
            return group, shown - seen[1], True
        return group, self.stacks[stack] - 1 if shown == self.shown - 1 else shown, False

    # -- what the bytes are ----------------------------------------------------------------------------

    @cached_property
    def _nets(self) -> list[list[int]]:
        """By phase, how much the bytes of each part change."""
        nets = []
        for reel in self.reels:
            parts = [0] * len(PARTS)
            for number, times in Counter(number for number, _, _ in reel).items():
                net = self.sections[number].net_parts()
                parts = [one + times * more for one, more in zip(parts, net, strict=True)]
            nets.append(parts)
        return nets

    def parts_before(self, phase: int) -> list[int]:
        """Bytes by part of what is recorded when ``phase`` begins, in any step but the first."""
        parts = [-kept for kept in self._nets[RELEASE]]
        for net in self._nets[:phase]:
            parts = [one + more for one, more in zip(parts, net, strict=True)]
        return parts

    def parts_at(self, phase: int, moment: int, *, uses: bool) -> list[int]:
        """The same, ``moment`` chunks later; within the last at its highest if ``moment`` is negative."""
        parts = self.parts_before(phase)
        left = abs(moment)
        whole: Counter[int] = Counter()
        for number, _, _ in self.reels[phase] if phase < len(PHASES) else ():
            section = self.sections[number]
            chunks = len(section.chunks(uses))
            if left <= chunks:
                section.parts_until(parts, left, uses=uses, inside=moment < 0)
                break
            left -= chunks
            whole[number] += 1
        for number, times in whole.items():
            parts = [a + times * b for a, b in zip(parts, self.sections[number].net_parts(), strict=True)]
        return parts
