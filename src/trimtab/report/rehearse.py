"""A rehearsal for a reader: what was seen beside what was predicted, part by part and phase by phase."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from trimtab.cost.speed import Speed
from trimtab.estimate import Estimate
from trimtab.rehearse.answer import Answer
from trimtab.rehearse.document import to_json
from trimtab.rehearse.on_gpu import PHASES, Shortage
from trimtab.rehearse.seen import REST, STAYING, OnGpu, Seen
from trimtab.rehearse.way_out import WayOut
from trimtab.report.memory_chart import course_text
from trimtab.units import format_bytes, format_count, format_seconds

METHODS = {"phantom": "phantom rehearsal", "rehearsal": "rehearsal on a GPU"}


def rehearsal_text(answer: Answer, notes: Sequence[str] = (), *, modules: int = 0) -> RenderableType:
    """The rehearsal in words and tables, 80 columns wide; ``modules`` rows of what activations take."""
    blocks: list[RenderableType] = []
    if answer.seen is None:
        from trimtab.report.estimate import estimate_text

        assert answer.predicted is not None
        blocks += [Text(f"not rehearsed: {answer.why_not}", style="bold yellow"), Text()]
        return Group(*blocks, Text(estimate_text(answer.predicted, notes)))
    blocks += [_verdict(answer, answer.seen), Text(), _comparison(answer, answer.seen), Text()]
    chart = course_text(to_json(answer))
    if chart is not None:
        blocks += [chart, Text()]
    if seen_time := answer.seen.on_gpu:
        blocks += [_time(answer, seen_time), Text()] if seen_time.seconds is not None else []
    if answer.seen.speed is not None:
        blocks += [_simulated(answer, answer.seen.speed), Text()]
    blocks.append(_host(answer))
    if modules and answer.seen.modules:
        blocks += [Text(), _modules(answer.seen, modules)]
    blocks.append(Text())
    blocks += [Text(f"warning: {one}", style="yellow") for one in answer.warnings]
    blocks += [Text(f"note: {note}", style="yellow") for note in notes]
    blocks.append(Text("how this was got: " + "; ".join(answer.assumptions), style="dim"))
    return Group(*blocks)


def _verdict(answer: Answer, seen: Seen) -> Text:
    cluster, config = answer.cluster, answer.config
    batch = config.batch(cluster.world_size)
    text = Text()
    text.append("fits" if answer.fits else "does not fit", style="bold green" if answer.fits else "bold red")
    text.append(f"   {METHODS[seen.method]}, {seen.seconds:.0f} s\n")
    text.append(f"{answer.model.name}, {format_count(seen.parameters)} parameters")
    if seen.trainable != seen.parameters:
        text.append(f", {format_count(seen.trainable)} trained")
    text.append(f"\n{cluster.world_size} × {cluster.gpu.name}, ZeRO-{config.stage}, {config.precision}, ")
    text.append(f"batch {batch.train} = {batch.micro} × {batch.accumulation} × {batch.data_parallel}")
    text.append(f", {config.job.sequence_length} tokens")
    if seen.out_of_memory:
        text.append(_shortage(seen.out_of_memory), style="red")
    if answer.way_out is not None:
        text.append(_way_out(answer, answer.way_out), style="green")
    return text


def _way_out(answer: Answer, out: WayOut) -> str:
    """The least that would fit, and what it costs."""
    titles = "; then ".join(move.title for move in out.moves)
    return (
        f"\nwould fit: {titles} ({format_bytes(out.needed_bytes)} of {format_bytes(answer.capacity_bytes)}, "
        f"{format_seconds(out.predicted.speed.step_seconds)} a step, predicted)"
    )


def _shortage(short: Shortage) -> str:
    """When, where and for what there was no memory."""
    when = f"in step {short.step}, {short.phase}" if short.step else f"before the first step, {short.phase}"
    lines = [f"{short.memory.upper() if short.memory == 'gpu' else 'host'} memory ran out {when}"]
    if short.module is not None:
        lines[0] += f", in {short.module} ({short.module_class})"
    if short.frame is not None:
        lines.append(f"  at {short.frame}")
    asked = "" if short.asked_bytes is None else f"{format_bytes(short.asked_bytes)} were asked for; "
    lines.append(
        f"  {asked}tensors held {format_bytes(short.allocated_bytes)}, the allocator had taken "
        f"{format_bytes(short.reserved_bytes)}"
    )
    return "".join(f"\n{line}" for line in lines)


def _comparison(answer: Answer, seen: Seen) -> RenderableType:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("GPU memory at the peak", min_width=22)
    for name in ("predicted", "rehearsed", "difference"):
        table.add_column(name, justify="right", min_width=10)
    predicted = answer.predicted
    # a part of a few blocks says nothing
    _rows(table, _predicted_parts(predicted, seen.parts), seen.parts, least=seen.peak.expected * 1e-4)
    peak = predicted.peak_allocated.expected if predicted else None
    needed = predicted.needed.expected if predicted else None
    bound = seen.out_of_memory is not None
    _row(table, "peak allocated", peak, seen.peak.expected, style="bold", bound=bound)
    _row(table, "needed of the card", needed, answer.needed.expected, style="bold", bound=bound)
    has = format_bytes(answer.capacity_bytes)
    table.add_row(Text(f"{answer.cluster.gpu.name} has", style="bold"), has, has, "")
    table.add_row("", "", "", "")
    table.add_row(Text("peak by phase", style="bold"), "", "", "")
    _rows(table, _predicted_phases(predicted), seen.phases)
    return table


def _predicted_parts(predicted: Estimate | None, seen: Mapping[str, int]) -> Mapping[str, int]:
    """The prediction's parts, put together where ``seen`` cannot tell them apart."""
    if predicted is None:
        return {}
    parts = {**predicted.profile.peak_parts, "workspace, slack": predicted.slack_bytes}
    if REST not in seen:
        return parts
    staying = {name: size for name, size in parts.items() if name in STAYING}
    return {**staying, REST: sum(parts.values()) - sum(staying.values())}


def _predicted_phases(predicted: Estimate | None) -> Mapping[str, int]:
    if predicted is None:
        return {}
    peaks = predicted.profile.phase_peaks
    return {name: size + predicted.slack_bytes * (name != "init") for name, size in peaks.items()}


def _rows(table: Table, predicted: Mapping[str, int], seen: Mapping[str, int], *, least: float = 0) -> None:
    for name in dict.fromkeys((*predicted, *seen)):
        ours, found = predicted.get(name), seen.get(name)
        if max(ours or 0, found or 0) > least:
            # a GPU cannot say what its bytes are for; a phantom that names no part has none of it
            _row(table, name, ours if predicted else None, found or 0 if seen else None)


def _row(
    table: Table,
    name: str,
    predicted: float | None,
    seen: float | None,
    *,
    style: str = "",
    bound: bool = False,
) -> None:
    """One line; ``bound`` says that no more was seen because memory ran out."""
    difference = "" if predicted is None or seen is None or bound else _difference(predicted, seen)
    table.add_row(
        Text(name, style=style),
        "" if predicted is None else format_bytes(predicted),
        "" if seen is None else "≥ " * bound + format_bytes(seen),
        difference,
    )


def _difference(predicted: float, seen: float) -> str:
    if abs(seen - predicted) < 0.5:
        return "none"
    if not predicted or not seen:
        return f"{'+' if seen > predicted else '-'}{format_bytes(abs(seen - predicted))}"
    return f"{seen / predicted - 1:+.1%}"


def _simulated(answer: Answer, simulated: Speed) -> RenderableType:
    """The step that was replayed, beside the closed form's."""
    predicted = None if answer.predicted is None else answer.predicted.speed
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("time of a step", min_width=22)
    for name in ("predicted", "simulated", "difference"):
        table.add_column(name, justify="right", min_width=10)
    rows: list[tuple[str, Callable[[Speed], float]]] = [
        ("kernels", lambda one: one.compute_seconds),
        ("communication", lambda one: one.communication_seconds),
        ("offload", lambda one: one.offload_seconds),
        ("waiting for the host", lambda one: one.host_seconds),
        ("a step", lambda one: one.step_seconds),
    ]
    for name, part in rows:
        ours, found = None if predicted is None else part(predicted), part(simulated)
        table.add_row(
            Text(name, style="bold" * (name == "a step")),
            "" if ours is None else format_seconds(ours),
            format_seconds(found),
            "" if ours is None or name != "a step" else f"{found / ours - 1:+.1%}",
        )
    return table


def _time(answer: Answer, measured: OnGpu) -> RenderableType:
    """The phases of a step by the GPU's clock, beside the arithmetic's time where it is the same card's."""
    assert measured.seconds is not None
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column(f"a step on this {measured.gpu}", min_width=22)
    for name in ("predicted", "rehearsed", "difference"):
        table.add_column(name, justify="right", min_width=10)
    for phase in PHASES:
        table.add_row(phase, "", format_seconds(measured.phase_seconds[phase]), "")
    predicted = answer.predicted if answer.on_the_card else None
    alone = None if predicted is None else predicted.speed.compute_seconds + predicted.speed.offload_seconds
    table.add_row(
        Text("without communication", style="bold"),
        "" if alone is None else format_seconds(alone),
        format_seconds(measured.seconds),
        "" if alone is None else f"{measured.seconds / alone - 1:+.1%}",
    )
    if answer.step_seconds is not None and predicted is not None and answer.cluster.world_size > 1:
        table.add_row(
            "with the predicted one",
            format_seconds(predicted.speed.step_seconds),
            format_seconds(answer.step_seconds.expected),
            "",
        )
    return table


def _host(answer: Answer) -> Text:
    host = answer.host_bytes_per_node
    text = Text("host      ", style="bold")
    text.append(f"{format_bytes(host.expected)} a node of {format_bytes(answer.cluster.host_memory_bytes)}")
    if answer.predicted is not None:
        text.append(f", predicted {format_bytes(answer.predicted.host_bytes_per_node.expected)}")
    if answer.nvme_bytes_per_node:
        text.append(f"; NVMe {format_bytes(answer.nvme_bytes_per_node)} a node")
    return text


def _modules(seen: Seen, count: int) -> RenderableType:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("kept for the backward pass by", overflow="fold")
    table.add_column("class", overflow="fold")
    table.add_column("bytes", justify="right", min_width=9)
    for module in seen.modules[:count]:
        table.add_row(module.name, module.class_name, format_bytes(module.kept_bytes))
    left = seen.modules[count:]
    if left:
        table.add_row(f"{len(left)} more", "", format_bytes(sum(module.kept_bytes for module in left)))
    return table
