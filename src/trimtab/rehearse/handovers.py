"""What other ranks do for their own gradients when the optimizer is offloaded at stages 1 and 2.

A rank keeps neighbouring parameters, so most of a bucket that was reduced is one rank's, which hands it to
the host while the others go on; the next collective waits for it.  The record is one rank's, and says of each
reduction which gradients are whose (`trimtab.rehearse.request.Rehearsal.handovers`).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from trimtab.cost.rates import Rates
from trimtab.cost.speed import HOOKS
from trimtab.rehearse.request import PHASES, Rehearsal

WAYS = {"to_device": "to device", "to_host": "to host"}
"""Directions of copies over the host link, and what the rates call them."""
CHECKED_BYTES = 28
"""Moved for an element in 16 bits before the step: to float64 (10), its norm (8), extremes (4), the cast (6);
zero/stage_1_and_2.py:1886, 1791 and 1900."""
AFTER_CHECK = 2
"""Of `Hooks.handed` those that the host issues after it waited for the check: the cast and the copy."""


def linked_bytes(record: Rehearsal) -> Mapping[int, Mapping[str, float]]:
    """Bytes over the host link for an element that a rank hands over, by micro step from 1 and direction."""
    sums: defaultdict[int, Counter[str]] = defaultdict(Counter)
    elements: Counter[int] = Counter()
    micro, phase = 0, ""
    for kind, index in record.order:
        if kind == "phase":
            phase = PHASES[index]
            micro += phase == "forward"
        elif kind == "handover":
            elements[micro] += sum(record.handovers[index][0])
        elif kind == "copy" and phase == "backward" and record.copies[index].direction in WAYS:
            sums[micro][WAYS[record.copies[index].direction]] += record.copies[index].bytes
    return {
        micro: {way: sums[micro][way] / own for way in sums[micro]} for micro, own in elements.items() if own
    }


def handing(
    sizes: Sequence[int],
    linked: Mapping[str, float],
    rates: Rates,
    *,
    stage: int,
    first: bool,
    last: bool,
) -> tuple[float, float]:
    """Seconds of a rank's host to issue what hands over gradients of so many elements, and until it is done.

    While one is copied the next one's kernels are issued.  In the last micro step the host then waits for the
    gradient's check before it issues the cast and the copy.

    Args:
        linked: of the micro step, as `linked_bytes` has them.
        first: whether it is the step's first micro step, which finds nothing to add to.
        last: whether it is the last.
    """
    hooks, host = HOOKS[stage, True], rates.host
    checks = hooks.handed - AFTER_CHECK if last else 0
    added = hooks.added if stage == 2 and not first else 0  # stage 1 adds on the device
    issue = (hooks.kept + added + checks) * host.engine
    after = AFTER_CHECK * host.engine if last else 0.0
    done = 0.0
    for size in sizes:
        work = sum(rates.copy(way, item * size) for way, item in linked.items())
        if last:
            work += rates.moving(CHECKED_BYTES * size, "to fp32")
        done += max(issue, work) + after
    return len(sizes) * (issue + after), done
