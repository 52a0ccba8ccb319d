"""One ready configuration with everything known about it, for a reader and as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from trimtab.cards import Card, Claim
from trimtab.catalogue import Hardware
from trimtab.config import Config
from trimtab.report.figures import documents, figures_text
from trimtab.report.listing import sharding, summary
from trimtab.units import GB, format_count

Parameters = Mapping[str, int]
"""Parameters of a configuration's model: ``total`` and ``trainable``."""


def card_text(card: Card, config: Config, *, parameters: Parameters) -> RenderableType:
    """The card for a reader: what it is for, what was measured, what the guide said, what was changed."""
    title = Text(card.title, style="bold")
    title.append(f"  {card.name}", style="cyan")
    parts: list[RenderableType] = [title, *(_bullet(purpose) for purpose in card.purpose), Text()]
    parts.append(_facts(card, config, parameters))
    parts += _section("Memory and speed", figures_text(card))
    statements = [claim for claim in card.claims if claim.quantity == "statement"]
    parts += _section("What else the guide said", map(_statement, statements))
    parts += _section(
        "What was changed from the guide, and why",
        (_entry(f"{change.before} → {change.after}", change.why, change.source) for change in card.changes),
    )
    parts += _section(
        "For other needs",
        (_entry(other.when, _settings(other.changes) or "as it is") for other in card.alternatives),
    )
    hint = f"Next: trimtab init {card.name}\nOther machines: trimtab adapt {card.name} --gpu NAME"
    parts += [Text(), Text(hint, style="dim")]
    return Group(*parts)


def card_document(card: Card, config: Config, path: Path, *, parameters: Parameters) -> dict[str, Any]:
    """The card as JSON: the summary that ``list`` gives, the configuration itself, and all its facts."""
    return {
        **summary(card, config, path),
        "parameters": dict(parameters),
        "config": dict(config.raw),
        "figures": documents(card.figures),
        "claims": [asdict(claim) for claim in card.claims],
        "changes": [asdict(change) for change in card.changes],
        "alternatives": [{"when": other.when, "changes": dict(other.changes)} for other in card.alternatives],
    }


def _facts(card: Card, config: Config, parameters: Parameters) -> RenderableType:
    rows = {
        "Hardware": _machines(card.hardware),
        "Model": _model(config, parameters),
        "Task": _task(config),
        "Batch": _batch(config, card.hardware.world_size),
        "Memory": f"{sharding(config)}, {config.precision}",
        "Optimizer": _optimizer(config),
    }
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, fact in rows.items():
        table.add_row(name, fact)
    return table


def _machines(machines: Hardware) -> str:
    gpus = f"{machines.world_size} × {machines.gpu}"
    if machines.nodes > 1:
        gpus += f" ({machines.nodes} nodes of {machines.gpus_per_node}, {machines.inter_node_link})"
    return f"{gpus}, {machines.host_memory_bytes / GB:.0f} GB of host memory a node"


def _model(config: Config, parameters: Parameters) -> str:
    text = f"{config.job.model}, {format_count(parameters['total'])} parameters"
    if parameters["trainable"] != parameters["total"]:
        text += f", {format_count(parameters['trainable'])} of them trained"
    return text


def _task(config: Config) -> str:
    job = config.job
    target = f" to {job.target_length:,}" if job.target_length else ""
    return f"{job.task}, {job.sequence_length:,}{target} tokens a sample, activations {job.activations}"


def _batch(config: Config, world_size: int) -> str:
    batch = config.batch(world_size)
    tokens = batch.train * (config.job.sequence_length + (config.job.target_length or 0))
    return (
        f"{batch.train:,} samples = {batch.micro} per GPU × {batch.accumulation} accumulated "
        f"× {batch.data_parallel} GPUs; {format_count(tokens)} tokens a step"
    )


def _optimizer(config: Config) -> str:
    parts = [str(config.get("optimizer.type", "the caller's own"))]
    if "lr" in config.optimizer_params:
        parts.append(f"learning rate {config.optimizer_params['lr']:g}")
    if config.get("scheduler.type"):
        parts.append(str(config.get("scheduler.type")))
    return ", ".join(parts)


_VERDICTS: Mapping[bool | None, tuple[str, str]] = {
    True: ("true", "green"),
    False: ("not so", "red"),
    None: ("unproven", "yellow"),
}


def _statement(claim: Claim) -> RenderableType:
    verdict, style = _VERDICTS[claim.holds]
    head = Text(f"“{claim.claim}”: ")
    head.append(verdict, style=style)
    return _entry(head, claim.truth or "", claim.source)


def _entry(head: str | Text, body: str, source: str | None = None) -> RenderableType:
    text = head if isinstance(head, Text) else Text(head)
    lines: list[RenderableType] = [Padding(text, (0, 0, 0, 2))]
    if body:
        lines.append(Padding(Text(body), (0, 0, 0, 4)))
    if source:
        lines.append(Padding(Text(source, style="dim"), (0, 0, 0, 4)))
    return Group(*lines)


def _settings(changes: Mapping[str, Any]) -> str:
    """Dotted paths for a reader; what is set to nothing is removed."""
    return ", ".join(
        f"without {path}" if value is None else f"{path} = {value}" for path, value in changes.items()
    )


def _bullet(text: str) -> RenderableType:
    return Padding(Text(text), (0, 0, 0, 2))


def _section(title: str, entries: Iterable[RenderableType]) -> list[RenderableType]:
    shown = list(entries)
    return [Text(), Text(title, style="bold"), *shown] if shown else []
