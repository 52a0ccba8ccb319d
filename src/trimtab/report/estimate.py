"""An estimate for a reader: the verdict, memory by part against the card, time and money."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from trimtab.corrections import in_words
from trimtab.cost.run import WholeRun
from trimtab.estimate import Estimate
from trimtab.units import format_bytes, format_count, format_dollars, format_seconds

BAR_WIDTH = 46


def estimate_text(answer: Estimate, notes: Sequence[str] = ()) -> RenderableType:
    """The estimate in words and bars, 80 columns wide."""
    blocks: list[RenderableType] = [_verdict(answer), Text(), _memory(answer), Text(), _phases(answer)]
    host = _host(answer)
    if host is not None:
        blocks += [Text(), host]
    blocks += [Text(), _speed(answer)]
    if answer.run is not None:
        blocks.append(_run(answer.run))
    blocks.append(Text())
    blocks += [Text(f"corrected: {in_words(correction)}", style="cyan") for correction in answer.corrections]
    blocks += [Text(f"note: {note}", style="yellow") for note in notes]
    blocks.append(Text("how this was got: " + "; ".join(answer.assumptions), style="dim"))
    return Group(*blocks)


def _verdict(answer: Estimate) -> Text:
    cluster, config = answer.cluster, answer.config
    batch = config.batch(cluster.world_size)
    machines = f"{cluster.world_size} × {cluster.gpu.name}" + (
        f" on {cluster.nodes} nodes" * (cluster.nodes > 1)
    )
    percent = answer.fits_probability
    odds = ">99 %" if percent > 0.99 else "<1 %" if percent < 0.01 else f"{percent:.0%}".replace("%", " %")
    text = Text()
    text.append("fits" if answer.fits else "does not fit", style="bold green" if answer.fits else "bold red")
    text.append(f" ({odds} sure)   {answer.model.name}, {format_count(answer.profile.parameters)} parameters")
    if answer.profile.trainable != answer.profile.parameters:
        text.append(f", {format_count(answer.profile.trainable)} trained")
    text.append(f"\n{machines}, ZeRO-{config.stage}, {config.precision}, ")
    text.append(f"batch {batch.train} = {batch.micro} × {batch.accumulation} × {batch.data_parallel}")
    text.append(f", {config.job.sequence_length} tokens")
    return text


def _memory(answer: Estimate) -> RenderableType:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("GPU memory at the peak", min_width=22)
    table.add_column("", justify="right", min_width=9)
    table.add_column("")
    parts = [(name, size) for name, size in answer.profile.peak_parts.items() if size]
    for name, size in [*parts, ("workspace, slack", answer.slack_bytes)]:
        table.add_row(name, format_bytes(size), _bar(size, answer.capacity_bytes, "cyan"))
    peak, needed = answer.peak_allocated, answer.needed
    table.add_row(
        Text("peak allocated", style="bold"),
        format_bytes(peak.expected),
        f"{format_bytes(peak.low)} to {format_bytes(peak.high)}",
    )
    table.add_row(
        Text("needed of the card", style="bold"),
        format_bytes(needed.expected),
        f"{format_bytes(needed.low)} to {format_bytes(needed.high)}",
    )
    table.add_row(
        Text(f"{answer.cluster.gpu.name} has", style="bold"),
        format_bytes(answer.capacity_bytes),
        _bar(needed.expected, answer.capacity_bytes, "green" if answer.fits else "red"),
    )
    return table


def _bar(size: float, whole: float, style: str) -> Text:
    cells = size / whole * BAR_WIDTH
    full = min(BAR_WIDTH, int(cells))
    text = Text("█" * full + ("▌" if cells - full >= 0.5 and full < BAR_WIDTH else ""), style=style)
    if cells > BAR_WIDTH:
        text.append("▶")
    return text


def _phases(answer: Estimate) -> Text:
    text = Text("by phase  ", style="bold")
    for name, size in answer.profile.phase_peaks.items():
        text.append(f"{name} {format_bytes(size + answer.slack_bytes * (name != 'init'))}   ", style="")
    return text


def _host(answer: Estimate) -> Text | None:
    if not answer.profile.host_parts and not answer.nvme_bytes_per_node:
        return None
    host = answer.host_bytes_per_node
    text = Text("host      ", style="bold")
    text.append(
        f"{format_bytes(host.expected)} a node of {format_bytes(answer.cluster.host_memory_bytes)} "
        f"({format_bytes(host.low)} to {format_bytes(host.high)}), per rank: "
    )
    text.append(", ".join(f"{name} {format_bytes(size)}" for name, size in answer.profile.host_parts.items()))
    if answer.nvme_bytes_per_node:
        text.append(f"; NVMe {format_bytes(answer.nvme_bytes_per_node)} a node")
    return text


def _speed(answer: Estimate) -> Text:
    speed = answer.speed
    text = Text("a step    ", style="bold")
    text.append(
        f"{format_seconds(speed.step_seconds)} ({format_seconds(speed.low_seconds)} to "
        f"{format_seconds(speed.high_seconds)}): compute {format_seconds(speed.compute_seconds)}, "
        f"communication {format_seconds(speed.communication_seconds)}, "
        f"offload {format_seconds(speed.offload_seconds)}\n"
    )
    text.append("speed     ", style="bold")
    text.append(
        f"{format_count(answer.tokens_per_second_per_gpu)} tokens/s and "
        f"{format_count(answer.samples_per_second_per_gpu)} samples/s per GPU, {answer.mfu:.0%} MFU\n"
    )
    text.append("cost      ", style="bold")
    if answer.price is None or answer.usd_per_hour is None or answer.usd_per_billion_tokens is None:
        text.append(f"no price known for {answer.cluster.gpu.name}")
    else:
        text.append(
            f"{format_dollars(answer.usd_per_hour)} an hour, "
            f"{format_dollars(answer.usd_per_billion_tokens)} a billion tokens "
            f"({answer.price.source}, {answer.price.date})"
        )
    return text


def _run(run: WholeRun) -> Text:
    usd = "" if run.usd is None else f", {format_dollars(run.usd)}"
    expected = f"{run.interruptions:.2g}" if run.interruptions >= 0.01 else "fewer than 0.01"
    text = Text("the run   ", style="bold")
    text.append(
        f"{format_seconds(run.seconds)}{usd} for {format_count(run.tokens)} tokens, {run.steps:,} steps\n"
        f"          {expected} interruptions expected, one in "
        f"{format_seconds(run.seconds_between_interruptions)}; {run.effective_ratio:.1%} trains\n"
        f"          a checkpoint of {format_bytes(run.checkpoint_bytes)} takes "
        f"{format_seconds(run.save_seconds)}: save every {format_seconds(run.checkpoint_interval_seconds)}"
    )
    return text
