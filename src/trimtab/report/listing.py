"""The list of ready configurations, for a reader and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from trimtab.cards import Card
from trimtab.catalogue import Hardware
from trimtab.config import Config


def listing_text(entries: Sequence[tuple[Card, Config]]) -> RenderableType:
    """One line a configuration: name, model, GPUs, and how memory is shared out."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold", expand=False)
    for heading in ("name", "model", "GPUs", "memory"):
        table.add_column(heading, overflow="fold")
    family = None
    for card, config in entries:
        if family not in (None, card.family):
            table.add_row()
        family = card.family
        gpus = f"{card.hardware.world_size} × {card.hardware.gpu}"
        table.add_row(Text(card.name, style="cyan"), config.job.model or "any", gpus, sharding(config))
    hint = Text("`trimtab show NAME` tells what is known about one.", style="dim")
    return Group(table, Text(), hint)


def sharding(config: Config) -> str:
    """How a configuration shares out memory: ``ZeRO-3, cpu offload``."""
    parts = [f"ZeRO-{config.stage}"]
    offloaded = sorted({config.offload_optimizer, config.offload_param} - {"none"})
    if offloaded:
        parts.append(f"{' and '.join(offloaded)} offload")
    if config.job.lora is not None:
        parts.append("LoRA")
    return ", ".join(parts)


def listing_document(entries: Sequence[tuple[Card, Config, Path]]) -> dict[str, Any]:
    """``{"configs": [...]}``: every configuration with what one chooses by."""
    return {"configs": [summary(card, config, path) for card, config, path in entries]}


def summary(card: Card, config: Config, path: Path) -> dict[str, Any]:
    """A configuration's name, place, purpose, hardware, job and batch."""
    return {
        "name": card.name,
        "family": card.family,
        "path": str(path),
        "title": card.title,
        "purpose": list(card.purpose),
        "model": config.job.model,
        "task": config.job.task,
        "sequence_length": config.job.sequence_length,
        "target_length": config.job.target_length,
        "hardware": hardware(card.hardware),
        "zero_stage": config.stage,
        "offload_optimizer": config.offload_optimizer,
        "offload_param": config.offload_param,
        "precision": config.precision,
        "lora": config.job.lora is not None,
        "checkpoint_activations": config.job.recomputation,
        "batch": asdict(config.batch(card.hardware.world_size)),
    }


def hardware(machines: Hardware) -> Mapping[str, Any]:
    """The machines as base units, with the number of GPUs in all."""
    return {**asdict(machines), "world_size": machines.world_size}
