"""The thirteen ready configurations and their cards.

A configuration is one JSON file under ``data/configs/<family>/``; its card, the facts about it that are not
configuration, lies under ``data/cards/``.  Measured figures are rows of ``data/measured.jsonl``,
joined by name.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from trimtab.config import Config
from trimtab.errors import NotFound, UnreadableFile
from trimtab.folders import read_shipped, shipped
from trimtab.frozen import dataclass

if TYPE_CHECKING:
    from pathlib import Path

    from trimtab.cards import Card
    from trimtab.source import Source
    from trimtab.source.read import Written

_POINTING = frozenset(("deepspeed", "deepspeed_config", "distributed_type"))
"""Keys of files of Accelerate and of training arguments, which point at a configuration."""
FAMILIES = ("llama", "gpt", "bert", "t5")


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """The machines that a catalogue configuration was made for."""

    gpu: str
    gpus_per_node: int
    nodes: int
    host_memory_bytes: int
    """Per node."""
    inter_node_link: str | None = None

    @property
    def world_size(self) -> int:
        """GPUs in all."""
        return self.gpus_per_node * self.nodes


@cache
def _paths() -> Mapping[str, str]:
    folders = [shipped("configs", family) for family in FAMILIES]
    return {
        file.removesuffix(".json"): os.path.join(folder, file)
        for folder in folders
        for file in sorted(os.listdir(folder))
        if file.endswith(".json")
    }


def names() -> tuple[str, ...]:
    """The names of all catalogue configurations, by family."""
    return tuple(_paths())


def path(name: str) -> Path:
    """The file of a catalogue configuration.

    Raises:
        NotFound: no configuration has this name; carries the nearest ones.
    """
    from pathlib import Path

    return Path(_path(name))


def _path(name: str) -> str:
    paths = _paths()
    if name not in paths:
        raise NotFound("configuration", name, paths, cure="`trimtab list` shows all.")
    return paths[name]


def load_config(name_or_path: str) -> Config:
    """The configuration of a catalogue name or of a file.

    Raises:
        NotFound: neither a catalogue name nor a file.
        UnreadableFile: the file is no readable configuration.
        UsageError: its ``"trimtab"`` block holds something it cannot.
    """
    file: str | Path | None = _paths().get(name_or_path)
    if file is None:
        from pathlib import Path  # the ready ones do not need it

        if not name_or_path:
            raise NotFound("configuration", "", (), cure="`trimtab list` shows the ready ones.")
        file = Path(name_or_path)
        looks_like_a_path = file.suffix or "/" in name_or_path
        if not file.exists() and not looks_like_a_path:
            _path(name_or_path)
    return Config.from_mapping(_read(file), name=name_or_path)


def read(given: str | os.PathLike[str] | Mapping[str, Any], *, written: Written | None = None) -> Source:
    """The text of a catalogue name, or of what `trimtab.source.read_source` takes; a file wins over a name.

    Raises:
        NotFound: neither a catalogue name nor a file; carries the nearest ones.
        UnreadableFile: a folder, or a file that the system does not let us read.
    """
    from pathlib import Path

    from trimtab.source import read_source

    try:
        return read_source(given, written=written)
    except NotFound:
        if not isinstance(given, str) or not given or Path(given).suffix or "/" in given:
            raise
        return read_source(path(given), written=written)


def _read(file: str | Path) -> Mapping[str, Any]:
    try:
        with open(file, encoding="utf-8") as opened:
            text = opened.read()
    except FileNotFoundError:
        raise UnreadableFile(
            f"{file}: no such file. `trimtab list` shows the ready configurations."
        ) from None
    except IsADirectoryError:
        raise UnreadableFile(f"{file} is a folder: name a configuration file in it") from None
    except OSError as error:
        raise UnreadableFile(f"{file}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise UnreadableFile(f"{file}: not readable as a configuration: {error}") from None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        from trimtab.source import read_text  # comments and other forms that DeepSpeed reads, at more cost

        source = read_text(text, file=str(file))
        if not source.complete:
            raise UnreadableFile(
                f"{file}: not readable as a configuration: {error}. `trimtab check {file}` shows the place"
            ) from None
        value = source.value
    if not isinstance(value, dict):
        kind = "a list" if isinstance(value, list) else "a single value"
        raise UnreadableFile(f"{file}: the top is {kind}: a configuration is an object {{ }}")
    if not _POINTING.isdisjoint(value):
        from trimtab.source import read_dict, refuse_pointer

        refuse_pointer(read_dict(value, file=str(file)))
    return value


@cache
def _described(name: str) -> Mapping[str, Any]:
    _path(name)
    data: Mapping[str, Any] = read_shipped("cards", f"{name}.json")
    return data


def hardware(name: str) -> Hardware:
    """The machines that a catalogue configuration was made for.

    Raises:
        NotFound: no configuration has this name.
    """
    return Hardware(**_described(name)["hardware"])


@cache
def card(name: str) -> Card:
    """The card of a catalogue configuration.

    Raises:
        NotFound: no configuration has this name.
    """
    from trimtab import cards  # an estimate needs the hardware alone

    return cards.read(name, _described(name), hardware(name), shipped("measured.jsonl"))
