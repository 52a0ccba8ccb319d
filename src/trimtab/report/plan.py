"""A plan for a reader: what to run, why, what was weighed, and what other machines would change."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from trimtab.plan.answer import Choice, Considered, Plan
from trimtab.plan.frontier import points
from trimtab.plan.reasons import machines
from trimtab.report.plan_picture import scatter_text
from trimtab.units import format_bytes, format_count, format_dollars, format_seconds

SHOWN = 12
"""Rows of the considered table; ``--json`` has all."""


def plan_text(plan: Plan, *, written: str | None = None) -> RenderableType:
    """The plan in words, a table and a picture, 80 columns wide."""
    return Group(*_blocks(plan, written))


def _blocks(plan: Plan, written: str | None) -> Iterator[RenderableType]:
    yield _question(plan)
    yield Text()
    if plan.chosen is not None:
        yield _choice(plan.chosen, "bold green")
        yield from _list("Why", plan.why)
    else:
        yield Text("no plan", style="bold red")
        yield from _list("What cannot be had", plan.broken)
        if plan.nearest is not None:
            yield Text()
            yield Text(f"Nearest: {plan.nearest.change}", style="bold")
            yield _choice(plan.nearest.choice, "bold yellow")
        else:
            yield Text("\nNothing near would do either: no larger cluster, card or shorter sequence fits.")
    yield from _weighed(plan.considered)
    yield from _list("Other machines", [one.sentence for one in plan.counterfactuals])
    shown = points(plan)
    if plan.chosen is not None and len(shown) > 1:
        yield Text()
        yield scatter_text(shown)
    yield from _proven(plan)
    yield Text()
    for note in plan.notes:
        yield Text(note, style="dim")
    yield from _next(plan, written)


def _question(plan: Plan) -> Text:
    wishes = plan.wishes
    job = wishes.job
    text = Text(f"{wishes.objective} {wishes.model.name}", style="bold")
    text.append(f", {format_count(wishes.parameters)} parameters, {job.task}, ", style="default not bold")
    lengths = f"{job.sequence_length}" + (f" to {job.target_length}" if job.target_length else "")
    text.append(f"{lengths} tokens a sample", style="default not bold")
    return text


def _choice(choice: Choice, style: str) -> RenderableType:
    answer, bill = choice.estimate, choice.bill
    speed = answer.speed
    text = Text()
    text.append(f"{machines(choice.cluster)}: ", style="default")
    text.append(f"{choice.summary}, {answer.config.precision}\n", style=style)
    rate = format_count(answer.tokens_per_second_per_gpu)
    text.append(
        f"{format_seconds(speed.step_seconds)} a step ({format_seconds(speed.low_seconds)} to "
        f"{format_seconds(speed.high_seconds)}), {rate} tokens/s per GPU, "
        f"{answer.mfu:.0%} MFU\n".replace("%", " %")
    )
    odds = ">99 %" if answer.fits_probability > 0.99 else f"{answer.fits_probability:.0%}".replace("%", " %")
    capacity = format_bytes(answer.capacity_bytes)
    text.append(f"{format_bytes(answer.needed.expected)} of {capacity} a GPU, fits {odds} sure")
    if bill.usd_per_hour is not None and bill.usd_per_token is not None:
        text.append(
            f"; {format_dollars(bill.usd_per_hour)} an hour, "
            f"{format_dollars(bill.usd_per_token * 1e9)} a billion tokens"
        )
    if bill.tokens is not None and bill.seconds is not None:
        cost = "" if bill.usd is None else f", {format_dollars(bill.usd)}"
        text.append(f"\n{format_count(bill.tokens)} tokens in {format_seconds(bill.seconds)}{cost}")
    return Padding(text, (0, 0, 0, 2))


def _list(title: str, lines: Sequence[str]) -> Iterator[RenderableType]:
    if not lines:
        return
    yield Text()
    yield Text(title, style="bold")
    table = Table.grid(padding=(0, 1, 0, 0))
    table.add_column(width=3, justify="right")
    table.add_column(ratio=1)
    for line in lines:
        table.add_row("·", line)
    yield table


def _weighed(rows: Sequence[Considered]) -> Iterator[RenderableType]:
    if not rows:
        return
    yield Text()
    yield Text("Considered", style="bold")
    several = len({row.machines for row in rows}) > 1
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim", expand=True)
    table.add_column("", width=1)
    table.add_column("configuration", ratio=5)
    table.add_column("a step", justify="right", min_width=7)
    table.add_column("why not", ratio=6)
    shown = _most_telling(rows)
    for row in shown:
        chosen = row.why_not is None
        name = f"{row.machines}: {row.summary}" if several else row.summary
        time = "–" if row.step_seconds is None else format_seconds(row.step_seconds)
        table.add_row(
            Text("✓" if chosen else "", style="green"),
            Text(name, style="green" if chosen else "default"),
            time,
            Text(row.why_not or "chosen", style="green" if chosen else "default"),
        )
    yield table
    if len(rows) > len(shown):
        yield Text(f"  and {len(rows) - len(shown)} more: --json shows all", style="dim")


def _most_telling(rows: Sequence[Considered]) -> Sequence[Considered]:
    """The first rows; of several clusters some of the chosen one's and the best of the others."""
    own = [row for row in rows if row.machines == rows[0].machines]
    others = [row for row in rows if row.machines != rows[0].machines]
    if not others:
        return rows[:SHOWN]
    return [*own[: max(SHOWN // 3, SHOWN - len(others))], *others][:SHOWN]


def _proven(plan: Plan) -> Iterator[RenderableType]:
    lines = []
    for one in plan.proven:
        proof = one.proof
        verdict = "fits" if proof.fits else "does not fit"
        need = "" if proof.needed_bytes is None else f", needs {format_bytes(proof.needed_bytes)}"
        time = "" if proof.step_seconds is None else f", {format_seconds(proof.step_seconds)} a step"
        said = f": {proof.said}" if proof.said else ""
        contender = one.contender
        name = f"ZeRO-{contender.config.stage}, micro batch {contender.micro}"
        lines.append(f"{name}: {verdict}{need}{time} ({proof.how}){said}")
    yield from _list("Proven by the real engine", lines)


def _next(plan: Plan, written: str | None) -> Iterator[RenderableType]:
    if plan.chosen is None:
        return
    yield Text()
    if written is None:
        yield Text("Next: the same with -o plan.json writes the file; then", style="bold")
    else:
        yield Text("Next:", style="bold")
    yield Text(_folded(plan.chosen.launch))


def _folded(line: str) -> str:
    """A command line over several lines, as a shell reads it, each shorter than 80 columns."""
    lines = ["  "]
    for word in line.split(" --"):
        piece = word if lines == ["  "] else f" --{word}"
        if len(lines[-1]) + len(piece) > 77:
            lines[-1] += " \\"
            lines.append("   ")
        lines[-1] += piece
    return "\n".join(lines)
