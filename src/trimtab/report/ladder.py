"""A ladder for a reader and as JSON: what each rung needs and costs, and the first that fits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from trimtab.ladder import Ladder, Rung
from trimtab.moves import differences
from trimtab.report.adapt import changes_document, cluster_document, figures, machines
from trimtab.report.move_pages import document as move_document
from trimtab.units import format_bytes, format_seconds


def ladder_text(answer: Ladder) -> RenderableType:
    """Two tables, the rungs and the levels, 80 columns wide."""
    title = Text(answer.config.name, style="bold cyan")
    title.append(f" on {machines(answer.cluster)}", style="bold")
    title.append(f"\n{format_bytes(answer.start.answer.capacity_bytes)} a GPU" if answer.start.answer else "")
    title.append(f", {format_bytes(answer.cluster.host_memory_bytes)} a host")
    blocks: list[RenderableType] = [title, Text()]
    blocks.append(_table("out of memory, in this order, each with those before", answer, _rungs(answer)))
    blocks += [Text(), _table("levels of offload, each for itself", answer, _levels(answer)), Text()]
    blocks.append(_verdict(answer))
    return Group(*blocks)


def _rungs(answer: Ladder) -> list[tuple[str, Rung, bool]]:
    rungs = (answer.start, *answer.rungs)
    return [(str(number), rung, rung is answer.first) for number, rung in enumerate(rungs)]


def _levels(answer: Ladder) -> list[tuple[str, Rung, bool]]:
    return [(str(number), rung, rung is answer.fastest_level) for number, rung in enumerate(answer.levels, 1)]


def _table(title: str, answer: Ladder, rows: Sequence[tuple[str, Rung, bool]]) -> RenderableType:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold", expand=False)
    table.add_column("")
    table.add_column(title, max_width=38)
    for name in ("GPU", "host", "a step"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for number, rung, best in rows:
        found = rung.answer
        fits = rung.fits(answer.sure)
        mark = Text("◀ fits" if best else "fits" if fits else "", style="bold green" if best else "green")
        if found is None or (rung.skipped is not None and not best):
            reason = rung.skipped or "DeepSpeed refuses it"
            table.add_row(number, Text(f"{rung.title}: {reason}", style="dim"), "", "", "", "")
            continue
        table.add_row(
            number,
            Text(rung.title, style="bold" if best else ""),
            Text(format_bytes(found.needed.expected), style="" if fits else "red"),
            format_bytes(found.host_bytes_per_node.expected),
            format_seconds(found.speed.step_seconds),
            mark,
        )
    return table


def _verdict(answer: Ladder) -> Text:
    first = answer.first
    if first is None:
        return Text("no rung fits; `trimtab adapt` says which machines would", style="bold red")
    if first is answer.start:
        return Text("fits as it is", style="bold green")
    text = Text("first that fits: ", style="bold green")
    text.append(first.title, style="bold green")
    for move in first.moves:
        text.append(f"\ncosts: {move.costs}")
    text.append("\n`trimtab adapt` looks for fewer and faster changes than this order", style="dim")
    return text


def ladder_document(answer: Ladder) -> dict[str, Any]:
    """The ladder in base units."""
    return {
        "config": answer.config.name,
        "fits": answer.first is not None,
        "cluster": cluster_document(answer.cluster),
        "capacity_bytes": answer.cluster.gpu.usable_bytes,
        "rungs": [
            _rung_document(rung, answer, rung is answer.first) for rung in (answer.start, *answer.rungs)
        ],
        "levels": [_rung_document(rung, answer, rung is answer.fastest_level) for rung in answer.levels],
    }


def _rung_document(rung: Rung, answer: Ladder, chosen: bool) -> dict[str, Any]:
    return {
        "title": rung.title,
        "moves": [move_document(move) for move in rung.moves],
        "skipped": rung.skipped,
        "fits": rung.fits(answer.sure),
        "chosen": chosen,
        **figures(rung.answer),
        "changes": changes_document(differences(answer.config.raw, rung.config.raw)),
    }
