"""The figures of a ready configuration beside what the guide claimed of the same quantity."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from trimtab.cards import Card, Claim, Figure
from trimtab.catalogue import Hardware
from trimtab.cluster import find_gpu
from trimtab.units import GB, format_bytes, format_seconds

QUANTITIES = {
    "gpu_memory_bytes": "memory per GPU, the most that PyTorch had allocated",
    "host_memory_bytes_per_node": "host memory per node",
    "tokens_per_second_per_gpu": "tokens a second per GPU",
    "samples_per_second_per_gpu": "samples a second per GPU",
    "step_seconds": "time of an optimizer step",
    "mfu": "MFU",
}
RATES = ("tokens_per_second_per_gpu", "samples_per_second_per_gpu")
SPEEDS = (*RATES, "step_seconds", "mfu")
PER_RANK = {"host_memory_bytes_per_rank": "host_memory_bytes_per_node"}
"""Quantities of one rank, shown as those of a node."""
ORDER = ("predicted", "phantom", "rehearsed", "measured")
FLATTERING = (None, "without communication")
"""Conditions under which a figure is no lower than the whole run's."""
SAME = 0.1
"""A claim within this share of a figure is called the same."""

Row = tuple[str, str, str]
"""A value, how it was got, and where."""


def figures_text(card: Card) -> list[RenderableType]:
    """For each quantity the guide's number, then every figure with how and where it was got; notes last."""
    quantities = [claim.quantity for claim in card.claims if claim.quantity != "statement"]
    quantities += [_shown_as(figure) for figure in card.figures]
    parts: list[RenderableType] = []
    if any(rate in quantities for rate in RATES):
        quantities = [quantity for quantity in quantities if quantity != "step_seconds"]
    for quantity in sorted(dict.fromkeys(quantities), key=_place):
        parts.append(Padding(Text(QUANTITIES.get(quantity, quantity)), (0, 0, 0, 2)))
        parts.append(Padding(_table(tuple(dict.fromkeys(_rows(card, quantity)))), (0, 0, 0, 4)))
    return [*parts, *(Padding(Text(note, style="dim"), (0, 0, 0, 2)) for note in _notes(card))]


def _place(quantity: str) -> int:
    known = list(QUANTITIES)
    return known.index(quantity) if quantity in known else len(known)


def _table(rows: Sequence[Row]) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(width=23)
    table.add_column(width=9)
    table.add_column(ratio=1)
    for row in rows:
        table.add_row(*row)
    return table


def _rows(card: Card, quantity: str) -> Iterator[Row]:
    figures = sorted(
        (figure for figure in card.figures if _shown_as(figure) == quantity),
        key=lambda figure: ORDER.index(figure.how),
    )
    for claim in card.claims:
        if claim.quantity == quantity:
            yield _said(claim), "the guide", _verdict(claim, figures, card.hardware)
    if not figures:
        yield "no figure yet", "", ""
    for figure in figures:
        amount, beside = _amount(figure), ""
        if figure.quantity in PER_RANK:
            ranks = min(figure.world_size or 1, card.hardware.gpus_per_node)
            amount = _bytes(figure.value * ranks)
            beside = f"{ranks} ranks of {_bytes(figure.value)}" if ranks > 1 else ""
        elif figure.quantity in RATES:
            amount += _step(card, figure)
        yield amount, figure.how, "; ".join(filter(None, (figure.where, beside, figure.conditions)))


def _reached(claim: Claim, figures: Sequence[Figure], gpu: str) -> str:
    """Says so where a GPU that is faster on paper stays below the claim; the reverse proves nothing."""
    for figure in figures:
        faster = figure.gpu is not None and min(_ratios(figure.gpu, gpu)) >= 1
        if faster and figure.conditions in FLATTERING and claim.low and figure.value < claim.low:
            return f"more than the faster {figure.gpu} reached"
    return ""


def _step(card: Card, rate: Figure) -> str:
    """The step's time that a rate was got from, in brackets."""
    same = (rate.how, rate.where, rate.conditions)
    for figure in card.figures:
        if figure.quantity == "step_seconds" and (figure.how, figure.where, figure.conditions) == same:
            return f" ({format_seconds(figure.value)} a step)"
    return ""


def _shown_as(figure: Figure) -> str:
    return PER_RANK.get(figure.quantity, figure.quantity)


def _said(claim: Claim) -> str:
    """The claim without what the heading says already."""
    return claim.claim.replace(" per GPU", "").replace(" of host memory", "")


def _verdict(claim: Claim, figures: Sequence[Figure], machines: Hardware) -> str:
    """The guide's number against the best figure for as many GPUs, or against a faster GPU's speed."""
    if claim.quantity in RATES:
        return _reached(claim, figures, machines.gpu)
    alike = [figure for figure in figures if figure.world_size == machines.world_size]
    if claim.quantity != "gpu_memory_bytes" or not alike:
        return ""
    best, low, high = alike[-1], claim.low or 0.0, claim.high or claim.low or 0.0
    if low * (1 - SAME) <= best.value <= high * (1 + SAME):
        return f"within 10 % of what was {best.how}"
    nearest = high if best.value > high else low
    return f"{nearest / best.value:.2g} times what was {best.how}"


def _amount(figure: Figure) -> str:
    if "bytes" in figure.quantity:
        return f"{_bytes(figure.value)} ({format_bytes(figure.value)})"
    if figure.quantity == "mfu":
        return f"{figure.value:.1%}"
    if figure.quantity == "step_seconds":
        return format_seconds(figure.value)
    return f"{figure.value:,.0f}" if figure.value >= 100 else f"{figure.value:.3g}"


def _bytes(count: float) -> str:
    return f"{count / GB:.0f} GB" if count >= 100 * GB else f"{count / GB:.1f} GB"


def _notes(card: Card) -> Iterator[str]:
    if _fewer_need_more(card):
        yield "Fewer GPUs hold larger shares of the sharded states, and need more memory each."
    others = dict.fromkeys(
        figure.gpu
        for figure in card.figures
        if figure.quantity in SPEEDS and figure.gpu not in (None, card.hardware.gpu)
    )
    for gpu in filter(None, others):
        yield _faster(gpu, card.hardware.gpu)
    if any(_cut_short(figure) for figure in card.figures):
        yield (
            "With accumulation cut short, the optimizer's step weighs more: expect the file as it "
            "stands to be faster, and clearly so where that step is done on the host."
        )
    for software in dict.fromkeys((figure.software, figure.date) for figure in card.figures):
        if all(software):
            yield f"Run on {software[1]} with {software[0]}."


def _fewer_need_more(card: Card) -> bool:
    world = card.hardware.world_size
    memory = [figure for figure in card.figures if figure.quantity == "gpu_memory_bytes"]
    own = max((figure.value for figure in memory if figure.world_size == world), default=0.0)
    return any((figure.world_size or world) < world and figure.value > own * (1 + SAME) for figure in memory)


def _cut_short(figure: Figure) -> bool:
    return figure.quantity in SPEEDS and "accumulation" in (figure.conditions or "")


def _faster(gpu: str, own: str) -> str:
    flops, reading = _ratios(gpu, own)
    dtype = _dtype(own)
    return (
        f"The speeds are of {gpu}, not of {own}, which the guide speaks of: on paper {gpu} computes "
        f"{flops:.2g} times as fast ({dtype}) and reads its memory {reading:.2g} times as fast."
    )


def _ratios(gpu: str, own: str) -> tuple[float, float]:
    """How many times ``gpu`` computes and reads its memory as fast as ``own``, by their datasheets."""
    there, here, dtype = find_gpu(gpu), find_gpu(own), _dtype(own)
    return (
        there.matrix_flops(dtype) / here.matrix_flops(dtype),
        there.memory_bytes_per_second / here.memory_bytes_per_second,
    )


def _dtype(gpu: str) -> str:
    return "bf16" if find_gpu(gpu).bf16 else "fp16"


def documents(figures: Sequence[Figure]) -> list[Mapping[str, object]]:
    """Figures as JSON, without what was not said of them."""
    return [
        {name: getattr(figure, name) for name in Figure.__slots__ if getattr(figure, name) is not None}
        for figure in figures
    ]
