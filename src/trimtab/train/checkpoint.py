"""Checkpoints that are whole or absent: written under another name, summed, then renamed.

    RUN/checkpoints/step-000100/
        manifest.json      every file's size and SHA-256, the step, the data position, versions, the world
        state/             what DeepSpeed wrote
        random/rank-0000.safetensors

DeepSpeed itself writes to the final name, without sums (checkpoint_engine/torch_checkpoint_engine.py), and
loads with pickle: nothing is loaded here that a manifest of ours does not vouch for.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trimtab.errors import UnreadableFile, UsageError

MANIFEST = "manifest.json"
STATE_TAG = "state"
FORMAT = 1
_NAME = re.compile(r"step-(\d{6,})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a checkpoint holds and where its run stood."""

    step: int
    samples: int
    """Global samples taken: the data position."""
    tokens: int
    loss: str | None
    """The last step's loss, as an exact hexadecimal float."""
    world_size: int
    stage: int
    seed: int
    model: str
    """SHA-256 of the model's config."""
    data: str
    """SHA-256 of the stored tokens."""
    config: str
    """SHA-256 of the configuration."""
    versions: Mapping[str, str]
    files: Mapping[str, Mapping[str, Any]]
    tensor_parallel: int = 1
    """Ranks over which every layer was split."""
    format: int = FORMAT


def digest_of(value: Any) -> str:
    """SHA-256 of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def folder_name(step: int) -> str:
    """The folder of a checkpoint: ``step-000100``."""
    return f"step-{step:06d}"


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a checkpoint, unverified.

    Raises:
        UnreadableFile: there is none, or it is broken.
    """
    try:
        values = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        return Manifest(**values)
    except (OSError, ValueError, TypeError) as error:
        raise UnreadableFile(
            f"{folder}: no whole checkpoint: its manifest cannot be read: {error}"
        ) from error


def verify(folder: Path) -> Manifest:
    """The manifest of a checkpoint whose every file is there, of the right size, and of the right SHA-256.

    Raises:
        UnreadableFile: one is not; names it.
    """
    manifest = read_manifest(folder)
    for name, facts in manifest.files.items():
        file = folder / name
        try:
            size = file.stat().st_size
        except OSError:
            raise UnreadableFile(f"{folder}: broken: {name} is missing") from None
        if size != facts["bytes"]:
            raise UnreadableFile(f"{folder}: broken: {name} has {size} bytes, not {facts['bytes']}")
        if _sum(file) != facts["sha256"]:
            raise UnreadableFile(f"{folder}: broken: {name} is not what was written (its SHA-256 differs)")
    return manifest


def whole_checkpoints(folder: Path) -> tuple[list[Path], list[str]]:
    """The newest whole checkpoint of ``RUN/checkpoints`` as a list of one (or none), and what was wrong
    with newer ones.
    """
    broken: list[str] = []
    for candidate in sorted(_finished(folder), key=_step, reverse=True):
        try:
            verify(candidate)
        except UnreadableFile as error:
            broken.append(str(error))
            continue
        return [candidate], broken
    return [], broken


def find_checkpoint(resume: str, checkpoints: Path) -> tuple[Path | None, tuple[str, ...]]:
    """The checkpoint that ``--resume`` means (None: start from the beginning), and what to tell the user.

    Raises:
        UsageError: it asks for one and none is whole, or every one is broken.
        UnreadableFile: a named checkpoint is broken.
    """
    if resume == "never":
        return None, ()
    if resume not in ("auto", "required"):
        path = Path(resume)
        if (path / MANIFEST).is_file() or _NAME.fullmatch(path.name):
            verify(path)
            return path, ()
        if not (path / "checkpoints").is_dir():
            raise UsageError(
                f"--resume {resume}: neither a checkpoint (a folder step-000100 with a manifest.json) "
                "nor a run's folder"
            )
        checkpoints = path / "checkpoints"
    whole, broken = whole_checkpoints(checkpoints)
    if whole:
        notes = [f"skipped {reason}" for reason in broken]
        return whole[0], (*notes, f"resuming from {whole[0]}")
    if broken:
        raise UsageError(
            f"--resume {resume}: no checkpoint in {checkpoints} is whole: {'; '.join(broken)}. "
            "To start over, use --overwrite without --resume"
        )
    if resume == "auto":
        return None, (f"no checkpoint in {checkpoints}: starting from the beginning",)
    raise UsageError(f"--resume {resume}: there is no checkpoint in {checkpoints}")


def check_resumable(
    manifest: Manifest, folder: Path, *, world: int, model: str, data: str, seed: int, split: int = 1
) -> None:
    """Refuse to continue another model, other data, another world or another ``split`` of the layers.

    Raises:
        UsageError: something differs; names it and the cure.
    """
    if manifest.model != model:
        raise UsageError(
            f"{folder} holds another model than the one configured: this is the wrong run to resume"
        )
    if manifest.data != data:
        raise UsageError(
            f"{folder} was trained on other data; resume with the data it began with, or start a new run "
            "from its "
            "model with --from RUN/model"
        )
    if manifest.seed != seed:
        raise UsageError(
            f"{folder} began with --seed {manifest.seed}, not {seed}: the order of the data would change"
        )
    if manifest.tensor_parallel != split:
        raise UsageError(
            f"{folder} was saved with every layer split over {manifest.tensor_parallel} ranks, not {split}: "
            f"use --set tensor_parallel.autotp_size={manifest.tensor_parallel}"
        )
    if manifest.world_size != world and (manifest.stage > 0 or split > 1):
        raise UsageError(
            f"{folder} was saved by {manifest.world_size} ranks and ZeRO stage {manifest.stage} shards "
            "cannot be "
            f"loaded by {world}: use --ranks {manifest.world_size}"
        )


def _finished(folder: Path) -> Sequence[Path]:
    if not folder.is_dir():
        return ()
    return [path for path in folder.iterdir() if path.is_dir() and _NAME.fullmatch(path.name)]


def _step(folder: Path) -> int:
    match = _NAME.fullmatch(folder.name)
    assert match is not None
    return int(match[1])


def _sum(file: Path) -> str:
    digest = hashlib.sha256()
    with open(file, "rb") as handle:
        while block := handle.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def _flush(path: Path) -> None:
    """Ask the file system to put ``path`` (a file or a folder) on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sums(folder: Path, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of the named files, each flushed to the disk first."""
    facts: dict[str, dict[str, Any]] = {}
    for name in names:
        _flush(folder / name)
        facts[name] = {"bytes": (folder / name).stat().st_size, "sha256": _sum(folder / name)}
    return facts


def publish(partial: Path, final: Path, manifest: Manifest) -> None:
    """Write the manifest and give the finished folder its name; until then no reader takes it for a
    checkpoint.
    """
    file = partial / MANIFEST
    file.write_text(json.dumps(asdict(manifest), indent=2) + "\n", encoding="utf-8")
    _flush(file)
    for folder in {path for path in partial.rglob("*") if path.is_dir()}:
        _flush(folder)
    _flush(partial)
    if final.exists():  # the same step saved again, after a resume from an older one
        aside = final.with_name(f"{final.name}.old-{secrets.token_hex(4)}")
        final.rename(aside)
        partial.rename(final)
        shutil.rmtree(aside, ignore_errors=True)
    else:
        partial.rename(final)
    _flush(final.parent)


def prune(folder: Path, keep: int) -> None:
    """Delete all but the ``keep`` newest checkpoints, and what unfinished saves left behind."""
    for old in sorted(_finished(folder), key=_step)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    for leftover in folder.glob("step-*.*-*"):
        shutil.rmtree(leftover, ignore_errors=True)


def partial_name(step: int) -> str:
    """A name that no finished checkpoint has, for one that is being written."""
    return f"{folder_name(step)}.tmp-{secrets.token_hex(4)}"


def needed_bytes(parameters: int, trainable: int, *, parameter_bytes: int, keep: int) -> int:
    """Disk that a run's checkpoints and its exported model take at most.

    A checkpoint holds the parameters as the engine computes with them, and per trained parameter a float32
    copy and Adam's two float32 moments (runtime/zero/stage_1_and_2.py, state_dict); one more than ``keep``
    exist while the newest is written.
    """
    one = parameters * parameter_bytes + 12 * trainable
    return one * (keep + 1) + parameters * parameter_bytes
