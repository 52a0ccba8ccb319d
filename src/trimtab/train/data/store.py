"""Token rows on disk: flat arrays with offsets, mapped into memory by every rank."""

from __future__ import annotations

import json
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trimtab.errors import UnreadableFile

INDEX = "store.json"


class StoreWriter:
    """Writes rows column by column, inside a ``with``; `finish` makes the store readable."""

    def __init__(self, folder: Path, columns: Sequence[str]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / INDEX).unlink(missing_ok=True)
        self._folder = folder
        self._offsets = {name: array("q", [0]) for name in columns}
        self._files = {name: open(folder / f"{name}.values", "wb") for name in columns}  # noqa: SIM115

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            file.close()

    @property
    def rows(self) -> int:
        """Rows written so far."""
        return len(next(iter(self._offsets.values()))) - 1

    def add(self, row: Mapping[str, Sequence[int]]) -> None:
        """Append one row; every column must be there."""
        for name, file in self._files.items():
            values = np.asarray(row[name], dtype=np.int32)
            file.write(values.tobytes())
            self._offsets[name].append(self._offsets[name][-1] + len(values))

    def finish(self, facts: Mapping[str, Any]) -> None:
        """Finish, with ``facts`` about what was stored."""
        for name, file in self._files.items():
            file.close()
            np.asarray(self._offsets[name], dtype=np.int64).tofile(self._folder / f"{name}.offsets")
        index = {"columns": list(self._offsets), "rows": self.rows, "facts": dict(facts)}
        partial = self._folder / f"{INDEX}.tmp"
        partial.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        partial.replace(self._folder / INDEX)


@dataclass(frozen=True, slots=True)
class Store:
    """Stored rows, read by index or as one flat stream."""

    values: Mapping[str, Any]
    offsets: Mapping[str, Any]
    facts: Mapping[str, Any]

    @classmethod
    def open(cls, folder: Path) -> Store:
        """Map the store in ``folder``.

        Raises:
            UnreadableFile: it is missing or unfinished.
        """
        try:
            index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
            values: dict[str, Any] = {
                name: np.memmap(folder / f"{name}.values", dtype=np.int32, mode="r")
                if (folder / f"{name}.values").stat().st_size
                else np.zeros(0, dtype=np.int32)
                for name in index["columns"]
            }
            offsets = {
                name: np.fromfile(folder / f"{name}.offsets", dtype=np.int64) for name in index["columns"]
            }
        except (OSError, ValueError, KeyError) as error:
            raise UnreadableFile(
                f"{folder}: the run's prepared data are missing or broken: {error}"
            ) from error
        return cls(values, offsets, index["facts"])

    def __len__(self) -> int:
        return len(next(iter(self.offsets.values()))) - 1

    def row(self, index: int) -> dict[str, Any]:
        """Row ``index``: column name to int32 array."""
        return {
            name: self.values[name][self.offsets[name][index] : self.offsets[name][index + 1]]
            for name in self.values
        }

    def stream(self, name: str = "input_ids") -> Any:
        """All of a column's values as one array."""
        return self.values[name]
