"""What a project says of its checks: ``trimtab.toml``, or ``[tool.trimtab]`` in ``pyproject.toml``."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from trimtab.errors import UnreadableFile, UsageError, nearest

FILES = ("trimtab.toml", ".trimtab.toml", "pyproject.toml")
_LISTS = ("select", "ignore", "exclude")
_TEXTS = ("deepspeed", "loader", "model", "gpu")
_COUNTS = ("gpus-per-node", "nodes")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How to check, as a project states it; None and empty mean that it does not say.

    ``per_file_ignores`` maps a pattern of paths below ``folder`` to selectors.
    """

    select: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    per_file_ignores: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    deepspeed: str | None = None
    loader: str | None = None
    model: str | None = None
    gpu: str | None = None
    gpus_per_node: int | None = None
    nodes: int | None = None
    folder: Path = field(default_factory=Path)

    def ignored_in(self, file: str) -> tuple[str, ...]:
        """The selectors that are ignored in ``file``."""
        return tuple(
            selector
            for pattern, selectors in self.per_file_ignores.items()
            if self._fits(file, pattern)
            for selector in selectors
        )

    def excluded(self, file: str) -> bool:
        """Whether ``file`` is left out of folders."""
        return any(self._fits(file, pattern) for pattern in self.exclude)

    def _fits(self, file: str, pattern: str) -> bool:
        full = os.path.abspath(file)
        below = os.path.relpath(full, self.folder) if self.folder.is_absolute() else file
        return any(fnmatch(name, pattern) for name in (below, os.path.basename(full), full))


def find_settings(start: Path) -> Settings:
    """The settings that hold for ``start``: of the nearest folder above it that has some.

    Raises:
        UsageError: a setting that there is none of, or of a wrong type.
        UnreadableFile: a file that is no TOML.
    """
    start = start.resolve()
    for folder in (start, *start.parents):
        for name in FILES:
            file = folder / name
            if file.is_file():
                table = _table(file)
                if table is not None:
                    return _settings(table, file)
    return Settings()


def read_settings(file: Path) -> Settings:
    """The settings in ``file``; see `find_settings`."""
    if not file.is_file():
        raise UnreadableFile(f"{file}: no such file")
    return _settings(_table(file) or {}, file.resolve())


def _table(file: Path) -> Mapping[str, Any] | None:
    """The file's settings; None for a ``pyproject.toml`` without any."""
    text = file.read_bytes()
    if file.name == "pyproject.toml" and b"tool.trimtab" not in text:
        return None
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        document = tomllib.loads(text.decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UnreadableFile(f"{file}: {error}") from None
    if file.name == "pyproject.toml":
        found: Mapping[str, Any] | None = document.get("tool", {}).get("trimtab")
        return found
    return document


def _settings(table: Mapping[str, Any], file: Path) -> Settings:
    made = Settings(folder=file.parent)
    known = (*_LISTS, *_TEXTS, *_COUNTS, "per-file-ignores")
    for written, value in table.items():
        name = written.replace("_", "-")
        where = f"{file.name}: '{written}'"
        if name not in known:
            hint = nearest(name, known, count=1)
            raise UsageError(f"{where} is no setting.{f' Did you mean {hint[0]}?' if hint else ''}")
        if name in _LISTS:
            value = _texts(value, where)
        elif name == "per-file-ignores":
            if not isinstance(value, dict):
                raise UsageError(f"{where} must be a table of patterns and lists of rules")
            value = {pattern: _texts(rules, f"{where} for {pattern}") for pattern, rules in value.items()}
        elif name in _TEXTS and not isinstance(value, str):
            raise UsageError(f"{where} must be a text")
        elif name in _COUNTS and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise UsageError(f"{where} must be a whole number above 0")
        made = replace(made, **{name.replace("-", "_"): value})
    return made


def _texts(value: Any, where: str) -> tuple[str, ...]:
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise UsageError(f"{where} must be a list of texts")
    return tuple(value)
