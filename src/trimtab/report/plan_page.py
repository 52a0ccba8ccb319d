"""A plan as one HTML file that needs nothing else: the file, why, what was weighed, pictures."""

from __future__ import annotations

import json
from collections.abc import Iterator
from html import escape

from trimtab.plan.answer import Choice, Plan
from trimtab.plan.document import file_of
from trimtab.plan.frontier import points
from trimtab.plan.reasons import machines
from trimtab.report.page import items, page, wide
from trimtab.report.plan_picture import scatter_svg
from trimtab.units import format_bytes, format_count, format_dollars, format_seconds

_STYLE = (
    ".considered table{width:100%;min-width:44rem;font-size:14px}"
    ".considered td,.considered th{padding-right:.7rem;text-align:left}"
    ".considered .number{text-align:right;white-space:nowrap}.considered .machines{white-space:nowrap}"
    "tr.chosen{font-weight:600}tr.unfit{opacity:.65}"
    ".figures{display:flex;flex-wrap:wrap;gap:1.6rem;margin:1rem 0}"
    ".figures div{min-width:7rem}.figures b{display:block;font-size:1.25rem}"
    "svg.bar{display:block;width:100%;height:auto;margin:1rem 0}"
    ".key span{display:inline-block;width:.8em;height:.8em;margin:0 .4em 0 0;border-radius:2px}"
    ".key i{font-style:normal}.key{display:flex;flex-wrap:wrap;gap:0 1.2em}"
)
_COLOURS = ("#2a7de1", "#e67e22", "#27ae60", "#8e44ad", "#16a085", "#c0392b", "#7f8c8d", "#d4ac0d", "#5d6d7e",
            "#af7ac5", "#48c9b0")  # fmt: skip
BAR_WIDTH, BAR_HEIGHT = 640, 34


def plan_page(plan: Plan) -> str:
    """The whole report; no script, no font and no picture from elsewhere."""
    title = f"Plan: {plan.wishes.objective} {plan.wishes.model.name}"
    said = "; figures by arithmetic alone unless it says otherwise."
    return page(title, _sections(plan), style=_STYLE, said=said)


def _sections(plan: Plan) -> Iterator[str]:
    wishes, job = plan.wishes, plan.wishes.job
    yield f"<h1>{escape(wishes.objective)} {escape(wishes.model.name)}</h1>"
    yield (
        f"<p>{format_count(wishes.parameters)} parameters, {escape(job.task)}, "
        f"{job.sequence_length} tokens a sample</p>"
    )
    choice = plan.chosen or (plan.nearest.choice if plan.nearest else None)
    if plan.chosen is None:
        yield '<p class="bad"><b>No plan.</b></p>' + items(plan.broken)
        if plan.nearest is not None:
            yield f"<h2>Nearest: {escape(plan.nearest.change)}</h2>"
    if choice is not None:
        yield from _choice(choice)
    if plan.chosen is not None:
        yield "<h2>Why</h2>" + items(plan.why)
    if plan.considered:
        yield "<h2>Considered</h2>" + _table(plan)
    if plan.counterfactuals:
        yield "<h2>Other machines</h2>" + items([one.sentence for one in plan.counterfactuals])
    shown = points(plan)
    if len(shown) > 1:
        yield "<h2>Time, money and free memory</h2>" + wide(scatter_svg(shown))
        yield (
            '<p class="key"><i><span style="background:#1a9850"></span>chosen</i>'
            '<i><span style="background:#2a7de1"></span>beaten in nothing</i>'
            '<i><span style="background:#888"></span>beaten</i>larger points leave more memory free</p>'
        )
    if plan.proven:
        yield "<h2>Proven by the real engine</h2>" + items(
            [
                f"{machines(one.contender.cluster)}, ZeRO-{one.contender.config.stage}, micro batch "
                f"{one.contender.micro}: {'fits' if one.proof.fits else 'does not fit'} ({one.proof.how})"
                f"{' ' + one.proof.said if one.proof.said else ''}"
                for one in plan.proven
            ]
        )
    yield f'<div class="soft">{items(plan.notes)}</div>'


def _choice(choice: Choice) -> Iterator[str]:
    answer, bill = choice.estimate, choice.bill
    yield f"<p><b>{escape(machines(choice.cluster))}: {escape(choice.summary)}</b></p>"
    probability = answer.fits_probability
    odds = "&gt;99 %" if probability > 0.99 else f"{probability:.0%}".replace("%", " %")
    figures = [
        ("a step", format_seconds(answer.speed.step_seconds)),
        ("tokens/s per GPU", format_count(answer.tokens_per_second_per_gpu)),
        ("MFU", f"{answer.mfu:.0%}".replace("%", " %")),
        ("GPU memory", f"{format_bytes(answer.needed.expected)} of {format_bytes(answer.capacity_bytes)}"),
        ("sure to fit", odds),
    ]
    if bill.usd_per_hour is not None and bill.usd_per_token is not None:
        figures.append(("an hour", format_dollars(bill.usd_per_hour)))
        figures.append(("a billion tokens", format_dollars(bill.usd_per_token * 1e9)))
    if bill.seconds is not None and bill.tokens is not None:
        figures.append((f"{format_count(bill.tokens)} tokens", format_seconds(bill.seconds)))
        if bill.usd is not None:
            figures.append(("the run", format_dollars(bill.usd)))
    yield '<div class="figures">'
    yield "".join(f"<div><b>{value}</b>{escape(name)}</div>" for name, value in figures)
    yield "</div>"
    yield "<h2>Memory of a GPU at the peak</h2>" + memory_svg(choice)
    yield "<h2>The file</h2>"
    yield f"<pre>{escape(json.dumps(file_of(choice), indent=2))}</pre>"
    yield f"<pre>{escape(choice.launch)}</pre>"


def memory_svg(choice: Choice) -> str:
    """The parts of the peak as one bar against the card, with a key."""
    answer = choice.estimate
    parts = [(name, size) for name, size in answer.profile.peak_parts.items() if size]
    outside = answer.needed.expected - sum(size for _, size in parts)
    parts.append(("workspace, fragmentation, CUDA, NCCL", max(0, round(outside))))
    whole = max(answer.capacity_bytes, answer.needed.expected)
    x, bar, key = 0.0, [], []
    for index, (name, size) in enumerate(parts):
        width = size / whole * BAR_WIDTH
        colour = _COLOURS[index % len(_COLOURS)]
        bar.append(
            f'<rect x="{x:.1f}" y="0" width="{width:.1f}" height="{BAR_HEIGHT}" fill="{colour}">'
            f"<title>{escape(name)}: {format_bytes(size)}</title></rect>"
        )
        key.append(f'<i><span style="background:{colour}"></span>{escape(name)} {format_bytes(size)}</i>')
        x += width
    edge = answer.capacity_bytes / whole * BAR_WIDTH
    return (
        f'<svg class="bar" xmlns="http://www.w3.org/2000/svg" role="img" '
        f'viewBox="-1 -1 {BAR_WIDTH + 2} {BAR_HEIGHT + 2}" '
        f'aria-label="GPU memory by part">{"".join(bar)}<rect x="0" y="0" width="{edge:.1f}" '
        f'height="{BAR_HEIGHT}" fill="none" stroke="#777"/></svg><p class="key">{"".join(key)}</p>'
    )


def _table(plan: Plan) -> str:
    rows = [
        '<tr><th>machines</th><th>configuration</th><th class="number">a step</th>'
        '<th class="number">a billion tokens</th><th>why not</th></tr>'
    ]
    for row in plan.considered:
        kind = "chosen good" if row.why_not is None else "" if row.fits else "unfit"
        step = "–" if row.step_seconds is None else format_seconds(row.step_seconds)
        usd = "–" if row.usd_per_billion_tokens is None else format_dollars(row.usd_per_billion_tokens)
        rows.append(
            f'<tr class="{kind}"><td class="machines">{escape(row.machines)}</td>'
            f"<td>{escape(row.summary)}</td>"
            f'<td class="number">{step}</td><td class="number">{usd}</td>'
            f"<td>{escape(row.why_not or 'chosen')}</td></tr>"
        )
    return f'<div class="wide considered"><table>{"".join(rows)}</table></div>'
