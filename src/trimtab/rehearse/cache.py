"""Answers of phantom rehearsals, kept on disk: the same question on the same versions has the same answer."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from functools import cache
from importlib import metadata
from pathlib import Path

from trimtab.folders import cache_folder
from trimtab.rehearse.request import PhantomRequest, Rehearsal

PACKAGES = ("torch", "deepspeed", "transformers", "peft", "liger-kernel")
SOURCES = ("config.py", "job.py", "cost/allocator.py", "cost/reduction.py", "rehearse", "train/model.py")
"""What of this package an answer depends on."""


def folder() -> Path:
    """Where answers are kept."""
    return Path(cache_folder(), "phantom")


def key(request: PhantomRequest) -> str:
    """A hash of all that the answer depends on: the request, the versions, and this package's own source."""
    text = json.dumps(
        {"request": request.to_json(), "versions": _versions(), "source": _source_hash()}, sort_keys=True
    )
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def find(request: PhantomRequest) -> Rehearsal | None:
    """The kept answer to ``request``; None if there is none, or none that can be read."""
    path = folder() / f"{key(request)}.json"
    try:
        return Rehearsal.from_json(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, KeyError):
        return None


def keep(request: PhantomRequest, answer: Rehearsal) -> None:
    """Keep ``answer``; a folder that cannot be written is no error, for the answer is there already."""
    path = folder() / f"{key(request)}.json"
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, suffix=".part")
        with os.fdopen(handle, "w", encoding="utf-8") as part:
            json.dump(answer.to_json(), part)
        Path(name).replace(path)  # two processes may write the same answer at once


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


@cache
def _source_hash() -> str:
    package = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for name in SOURCES:
        place = package / name
        for path in sorted(place.rglob("*.py")) if place.is_dir() else (place,):
            digest.update(path.read_bytes())
    return digest.hexdigest()
