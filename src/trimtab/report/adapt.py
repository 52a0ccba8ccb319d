"""An adaptation for a reader and as JSON: each move with its reason, the difference, what it comes to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from trimtab.adapt import Adaptation, Nearest, Step
from trimtab.cluster import Cluster
from trimtab.estimate import Estimate
from trimtab.estimate import to_json as estimate_document
from trimtab.report.move_pages import document as move_document
from trimtab.units import format_bytes, format_seconds


def adapt_text(answer: Adaptation, diff: str, notes: Sequence[str] = ()) -> RenderableType:
    """The steps, the difference and the verdict, for any width."""
    blocks: list[RenderableType] = [_title(answer), Text()]
    for number, step in enumerate(answer.steps, 1):
        blocks += [*_step(number, step), Text()]
    if diff:
        blocks += [diff_text(diff), Text()]
    blocks += _verdict(answer)
    blocks += [Text(f"note: {note}", style="yellow") for note in (*notes, *answer.notes)]
    return Group(*blocks)


def machines(cluster: Cluster) -> str:
    """The machines in words: ``4 × a100-80gb`` or ``4 nodes of 8 × a100-80gb over infiniband-hdr``."""
    inside = f"{cluster.gpus_per_node} × {cluster.gpu.name}"
    return (
        f"{cluster.nodes} nodes of {inside} over {cluster.inter_link.name}" if cluster.nodes > 1 else inside
    )


def needs(answer: Estimate) -> str:
    """What an estimate needs of the card and of the host, in words."""
    text = f"{format_bytes(answer.needed.expected)} of {format_bytes(answer.capacity_bytes)} a GPU"
    if answer.profile.host_parts:
        host, has = answer.host_bytes_per_node.expected, answer.cluster.host_memory_bytes
        text += f", {format_bytes(host)} of {format_bytes(has)} a host"
    if answer.nvme_bytes_per_node:
        text += f", {format_bytes(answer.nvme_bytes_per_node)} of NVMe a node"
    return text


def diff_text(diff: str) -> Text:
    """A unified diff in its usual colours."""
    text = Text()
    for line in diff.splitlines():
        header = line.startswith(("---", "+++", "@@"))
        style = "dim" if header else {"+": "green", "-": "red"}.get(line[:1], "")
        text.append(f"{line}\n", style=style)
    text.rstrip()
    return text


def _title(answer: Adaptation) -> Text:
    text = Text(answer.before.name, style="bold cyan")
    text.append(f" on {machines(answer.cluster)}", style="bold")
    if answer.home is not None and machines(answer.home) != machines(answer.cluster):
        text.append(f" (made for {machines(answer.home)})")
    if answer.fits and not answer.steps:
        text.append("\nnothing to change", style="bold green")
    return text


def _step(number: int, step: Step) -> list[RenderableType]:
    head = Text(f"{number}  ", style="bold")
    head.append(step.title, style="bold")
    head.append(f"  {step.move.name}", style="dim")
    lines = [step.reason]
    if step.title == step.move.title:
        lines += [f"saves: {step.move.saves}", f"costs: {step.move.costs}"]
    if step.before is not None and step.after is not None:
        lines.append(_effect(step.before, step.after))
    return [head, *(Padding(Text(line), (0, 0, 0, 3)) for line in lines)]


def _effect(before: Estimate, after: Estimate) -> str:
    """What a step changes, in figures."""
    pairs = (
        ("a GPU", before.needed.expected, after.needed.expected, format_bytes),
        ("a host", before.host_bytes_per_node.expected, after.host_bytes_per_node.expected, format_bytes),
        ("a step", before.speed.step_seconds, after.speed.step_seconds, format_seconds),
    )
    words = [
        f"{what} {shown(old)} → {shown(new)}" for what, old, new, shown in pairs if shown(old) != shown(new)
    ]
    return "predicted: " + (", ".join(words) or "the same memory and time")


def _verdict(answer: Adaptation) -> list[RenderableType]:
    found = answer.answer
    if answer.fits and found is not None:
        text = Text("fits", style="bold green")
        text.append(f": {needs(found)}, {_step_time(found)}")
        blocks: list[RenderableType] = [text]
        if answer.faster:
            blocks.append(Text("faster, each for itself (--fastest finds the best of them together):"))
            blocks += [_gain(step) for step in answer.faster]
        return blocks
    blocks = [Text("nothing fits", style="bold red").append(f": {answer.missing}")]
    blocks += [_nearest(near) for near in answer.nearest]
    return blocks


def _gain(step: Step) -> Text:
    assert step.before is not None
    assert step.after is not None
    before, after = step.before.speed.step_seconds, step.after.speed.step_seconds
    rounds = ", rounds" if step.move.effect == "rounding" else ""
    return Text(f"  {step.move.name:<26} {after / before - 1:>+5.0%}  {_short(step.after)}{rounds}")


def _short(answer: Estimate) -> str:
    return f"{format_seconds(answer.speed.step_seconds)} a step, {format_bytes(answer.needed.expected)} a GPU"


def _step_time(answer: Estimate) -> str:
    speed = answer.speed
    return (
        f"{format_seconds(speed.step_seconds)} a step "
        f"({format_seconds(speed.low_seconds)} to {format_seconds(speed.high_seconds)}, predicted)"
    )


def _nearest(near: Nearest) -> RenderableType:
    return Padding(Text(f"would fit on {machines(near.cluster)}: {needs(near.answer)}"), (0, 0, 0, 2))


# -- as JSON ----------------------------------------------------------------------------------------------


def adapt_document(answer: Adaptation) -> dict[str, Any]:
    """The adaptation in base units."""
    return {
        "config": answer.before.name,
        "fits": answer.fits,
        "cluster": cluster_document(answer.cluster),
        "made_for": cluster_document(answer.home) if answer.home is not None else None,
        "moves": [_step_document(step) for step in answer.steps],
        "result": dict(answer.after.raw) if answer.after is not None else None,
        "estimate": estimate_document(answer.answer) if answer.answer is not None else None,
        "missing": answer.missing,
        "nearest": [{**cluster_document(near.cluster), **figures(near.answer)} for near in answer.nearest],
        "faster": [_step_document(step) for step in answer.faster],
        "notes": list(answer.notes),
    }


def cluster_document(cluster: Cluster) -> dict[str, Any]:
    """The machines."""
    return {
        "gpu": cluster.gpu.name,
        "gpus_per_node": cluster.gpus_per_node,
        "nodes": cluster.nodes,
        "inter_node_link": cluster.inter_link.name if cluster.nodes > 1 else None,
        "host_memory_bytes": cluster.host_memory_bytes,
    }


def figures(answer: Estimate | None) -> dict[str, Any]:
    """The figures of an estimate that moves are weighed by; null where there is none."""
    if answer is None:
        return dict.fromkeys(
            ("fits_probability", "needed_bytes", "host_bytes_per_node", "nvme_bytes_per_node", "step_seconds")
        )
    return {
        "fits_probability": answer.fits_probability,
        "needed_bytes": round(answer.needed.expected),
        "host_bytes_per_node": round(answer.host_bytes_per_node.expected),
        "nvme_bytes_per_node": answer.nvme_bytes_per_node,
        "step_seconds": answer.speed.step_seconds,
    }


def _step_document(step: Step) -> dict[str, Any]:
    return {
        **move_document(step.move),
        "title": step.title,
        "reason": step.reason,
        "changes": changes_document(step.changes),
        "before": figures(step.before),
        "after": figures(step.after),
    }


def changes_document(changes: Mapping[tuple[str, ...], Any]) -> list[dict[str, Any]]:
    """The keys that a move sets; a removed key has the action "remove"."""
    return [
        {"action": "remove", "key_path": list(path)}
        if value is None
        else {"action": "set", "key_path": list(path), "value": value}
        for path, value in changes.items()
    ]
