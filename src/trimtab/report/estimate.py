"""An estimate for a reader: the verdict, memory by part against the card, time and money."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from trimtab.estimate import Estimate
from trimtab.report.paint import DEFAULT_WIDTH, Paint, wrapped
from trimtab.units import format_bytes, format_count, format_dollars, format_seconds

if TYPE_CHECKING:
    from trimtab.cost.run import WholeRun

NAME_WIDTH, SIZE_WIDTH, BAR_WIDTH = 22, 9, 46
INDENT = " " * 10


def estimate_text(
    answer: Estimate, notes: Sequence[str] = (), *, colour: bool = False, columns: int = DEFAULT_WIDTH
) -> str:
    """The estimate in words and bars, made for 80 columns and wider."""
    paint = Paint(colour)
    lines = _verdict(answer, paint, columns)
    for warning in answer.warnings:
        lines += _styled(f"warning: {warning}", "warning", paint, columns)
    lines += ["", *_memory(answer, paint), ""]
    lines += _paragraph("by phase", _phases(answer), paint, columns)
    host = _host(answer)
    if host:
        lines += ["", *_paragraph("host", host, paint, columns)]
    lines.append("")
    lines += _paragraph("a step", _step(answer), paint, columns)
    lines += _paragraph("speed", _rates(answer), paint, columns)
    lines += _paragraph("cost", _cost(answer), paint, columns)
    if answer.run is not None:
        for number, said in enumerate(_run(answer.run)):
            lines += _paragraph("" if number else "the run", said, paint, columns)
    lines.append("")
    if answer.corrections:
        from trimtab.corrections import in_words

        for correction in answer.corrections:
            lines += _styled(f"corrected: {in_words(correction)}", "corrected", paint, columns)
    for note in notes:
        lines += _styled(f"note: {note}", "note", paint, columns)
    lines += _styled("how this was got: " + "; ".join(answer.assumptions), "dim", paint, columns)
    return "\n".join(lines)


def _paragraph(name: str, text: str, paint: Paint, columns: int) -> list[str]:
    """``text`` beside its bold name, wrapped under itself."""
    first, *rest = wrapped(text, columns, first=f"{name:<{len(INDENT)}}", rest=INDENT)
    return [paint(name, "bold") + first[len(name) :], *rest]


def _styled(text: str, style: str, paint: Paint, columns: int) -> list[str]:
    return [paint(line, style) for line in wrapped(text, columns)]


def _verdict(answer: Estimate, paint: Paint, columns: int) -> list[str]:
    cluster, config = answer.cluster, answer.config
    batch = config.batch(cluster.world_size)
    machines = f"{cluster.world_size} × {cluster.gpu.name}" + (
        f" on {cluster.nodes} nodes" * (cluster.nodes > 1)
    )
    percent = answer.fits_probability
    odds = ">99 %" if percent > 0.99 else "<1 %" if percent < 0.01 else f"{percent:.0%}".replace("%", " %")
    verdict = "fits" if answer.fits else "does not fit"
    trained = ""
    if answer.profile.trainable != answer.profile.parameters:
        trained = f", {format_count(answer.profile.trainable)} trained"
    parameters = f"{answer.model.name}, {format_count(answer.profile.parameters)} parameters{trained}"
    first, *rest = wrapped(f"{verdict} ({odds} sure)   {parameters}", columns)
    job = (
        f"{machines}, ZeRO-{config.stage}, {config.precision}, "
        f"batch {batch.train} = {batch.micro} × {batch.accumulation} × {batch.data_parallel}, "
        f"{config.job.sequence_length} tokens"
    )
    coloured = paint(verdict, "yes" if answer.fits else "no") + first[len(verdict) :]
    return [coloured, *rest, *wrapped(job, columns)]


def _memory(answer: Estimate, paint: Paint) -> list[str]:
    has = answer.capacity_bytes
    parts = [(name, size) for name, size in answer.profile.peak_parts.items() if size]
    lines = [paint("GPU memory at the peak", "bold")]
    for name, size in [*parts, ("workspace, slack", answer.slack_bytes)]:
        lines.append(_row(name, size, paint(_bar(size, has), "bar")))
    peak, needed = answer.peak_allocated, answer.needed
    for name, figure in (("peak allocated", peak), ("needed of the card", needed)):
        bounds = f"{format_bytes(figure.low)} to {format_bytes(figure.high)}"
        lines.append(paint(_row(name, figure.expected, ""), "bold") + f"  {bounds}")
    bar = paint(_bar(needed.expected, has), "good bar" if answer.fits else "bad bar")
    lines.append(paint(_row(f"{answer.cluster.gpu.name} has", has, ""), "bold") + f"  {bar}")
    return [line.rstrip() for line in lines]


def _row(name: str, size: float, rest: str) -> str:
    text = f"{name:<{NAME_WIDTH}}  {format_bytes(size):>{SIZE_WIDTH}}"
    return f"{text}  {rest}" if rest else text


def _bar(size: float, whole: float) -> str:
    cells = size / whole * BAR_WIDTH
    full = min(BAR_WIDTH, int(cells))
    bar = "█" * full + ("▌" if cells - full >= 0.5 and full < BAR_WIDTH else "")
    return bar + "▶" if cells > BAR_WIDTH else bar


def _phases(answer: Estimate) -> str:
    return "   ".join(
        f"{name} {format_bytes(size + answer.slack_bytes * (name != 'init'))}"
        for name, size in answer.profile.phase_peaks.items()
    )


def _host(answer: Estimate) -> str:
    if not answer.profile.host_parts and not answer.nvme_bytes_per_node:
        return ""
    host = answer.host_bytes_per_node
    parts = ", ".join(f"{name} {format_bytes(size)}" for name, size in answer.profile.host_parts.items())
    said = (
        f"{format_bytes(host.expected)} a node of {format_bytes(answer.cluster.host_memory_bytes)} "
        f"({format_bytes(host.low)} to {format_bytes(host.high)}), per rank: {parts}"
    )
    if answer.nvme_bytes_per_node:
        said += f"; NVMe {format_bytes(answer.nvme_bytes_per_node)} a node"
    return said


def _step(answer: Estimate) -> str:
    speed = answer.speed
    return (
        f"{format_seconds(speed.step_seconds)} ({format_seconds(speed.low_seconds)} to "
        f"{format_seconds(speed.high_seconds)}): compute {format_seconds(speed.compute_seconds)}, "
        f"communication {format_seconds(speed.communication_seconds)}, "
        f"offload {format_seconds(speed.offload_seconds)}"
    )


def _rates(answer: Estimate) -> str:
    return (
        f"{format_count(answer.tokens_per_second_per_gpu)} tokens/s and "
        f"{format_count(answer.samples_per_second_per_gpu)} samples/s per GPU, {answer.mfu:.0%} MFU"
    )


def _cost(answer: Estimate) -> str:
    if answer.price is None or answer.usd_per_hour is None or answer.usd_per_billion_tokens is None:
        return f"no price known for {answer.cluster.gpu.name}"
    return (
        f"{format_dollars(answer.usd_per_hour)} an hour, "
        f"{format_dollars(answer.usd_per_billion_tokens)} a billion tokens "
        f"({answer.price.source}, {answer.price.date})"
    )


def _run(run: WholeRun) -> list[str]:
    usd = "" if run.usd is None else f", {format_dollars(run.usd)}"
    expected = f"{run.interruptions:.2g}" if run.interruptions >= 0.01 else "fewer than 0.01"
    return [
        f"{format_seconds(run.seconds)}{usd} for {format_count(run.tokens)} tokens, {run.steps:,} steps",
        f"{expected} interruptions expected, one in "
        f"{format_seconds(run.seconds_between_interruptions)}; {run.effective_ratio:.1%} trains",
        f"a checkpoint of {format_bytes(run.checkpoint_bytes)} takes "
        f"{format_seconds(run.save_seconds)}: save every {format_seconds(run.checkpoint_interval_seconds)}",
    ]
