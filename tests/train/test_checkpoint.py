"""A checkpoint is whole or absent: flips, cuts and losses are found before anything is loaded."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import pytest

from trimtab.errors import UnreadableFile, UsageError
from trimtab.train import checkpoint
from trimtab.train.checkpoint import (
    Manifest,
    check_resumable,
    find_checkpoint,
    folder_name,
    needed_bytes,
    partial_name,
    prune,
    publish,
    sums,
    verify,
    whole_checkpoints,
)

FACTS = {
    "samples": 80, "tokens": 640, "loss": (1.5).hex(), "world_size": 2, "stage": 2, "seed": 7,
    "model": "m", "data": "d", "config": "c", "versions": {"torch": "2"},
}  # fmt: skip


def save(checkpoints: Path, step: int) -> Path:
    partial = checkpoints / partial_name(step)
    (partial / "state").mkdir(parents=True)
    content = random.Random(step)
    for name in ("state/rank0.pt", "state/rank1.pt"):
        (partial / name).write_bytes(content.randbytes(5000))
    files = sums(partial, ["state/rank0.pt", "state/rank1.pt"])
    publish(partial, checkpoints / folder_name(step), Manifest(step=step, files=files, **FACTS))
    return checkpoints / folder_name(step)


def test_a_published_checkpoint_is_whole(tmp_path: Path) -> None:
    saved = save(tmp_path, 10)
    manifest = verify(saved)
    assert manifest.step == 10
    assert float.fromhex(manifest.loss or "") == 1.5
    assert [path.name for path in tmp_path.iterdir()] == ["step-000010"]


@pytest.mark.parametrize("seed", range(25))
def test_a_flipped_bit_is_found(tmp_path: Path, seed: int) -> None:
    saved = save(tmp_path, 10)
    choose = random.Random(seed)
    file = saved / choose.choice(["state/rank0.pt", "state/rank1.pt"])
    content = bytearray(file.read_bytes())
    content[choose.randrange(len(content))] ^= 1 << choose.randrange(8)
    file.write_bytes(content)
    with pytest.raises(UnreadableFile, match=f"{file.name} is not what was written"):
        verify(saved)


@pytest.mark.parametrize("length", [0, 1, 4095, 4999])
def test_a_cut_file_is_found(tmp_path: Path, length: int) -> None:
    saved = save(tmp_path, 10)
    os.truncate(saved / "state/rank1.pt", length)
    with pytest.raises(UnreadableFile, match=f"has {length} bytes, not 5000"):
        verify(saved)


def test_missing_and_swapped_files_and_a_torn_manifest_are_found(tmp_path: Path) -> None:
    missing, swapped, torn = save(tmp_path, 1), save(tmp_path, 2), save(tmp_path, 3)
    (missing / "state/rank0.pt").unlink()
    (swapped / "state/rank0.pt").rename(swapped / "x")
    (swapped / "state/rank1.pt").rename(swapped / "state/rank0.pt")
    (swapped / "x").rename(swapped / "state/rank1.pt")
    text = (torn / "manifest.json").read_text(encoding="utf-8")
    (torn / "manifest.json").write_text(text[: len(text) // 2], encoding="utf-8")
    for folder in (missing, swapped, torn):
        with pytest.raises(UnreadableFile):
            verify(folder)
    with pytest.raises(UsageError, match=r"no checkpoint in .* is whole"):
        find_checkpoint("auto", tmp_path)


def test_the_newest_whole_one_is_taken_and_the_broken_one_named(tmp_path: Path) -> None:
    for step in (10, 20, 30):
        save(tmp_path, step)
    os.truncate(tmp_path / "step-000030/state/rank0.pt", 100)
    found, said = find_checkpoint("auto", tmp_path)
    assert found == tmp_path / "step-000020"
    assert "step-000030" in said[0]
    assert "rank0.pt" in said[0]


def test_an_unfinished_save_is_no_checkpoint(tmp_path: Path) -> None:
    save(tmp_path, 10)
    partial = tmp_path / partial_name(20)
    (partial / "state").mkdir(parents=True)
    (partial / "state/rank0.pt").write_bytes(b"half")
    whole, broken = whole_checkpoints(tmp_path)
    assert whole == [tmp_path / "step-000010"]
    assert broken == []
    prune(tmp_path, 1)
    assert not partial.exists()


@pytest.mark.parametrize("point", ["write_text", "rename"])
def test_a_save_that_dies_leaves_the_previous_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    save(tmp_path, 10)

    def die(*_: object, **__: object) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(Path, point, die)
        with pytest.raises(OSError, match="disk full"):
            save(tmp_path, 20)
    assert find_checkpoint("required", tmp_path)[0] == tmp_path / "step-000010"


def test_the_same_step_can_be_saved_again(tmp_path: Path) -> None:
    first = verify(save(tmp_path, 10))
    assert verify(save(tmp_path, 10)).files == first.files
    assert [path.name for path in tmp_path.iterdir()] == ["step-000010"]


def test_old_checkpoints_go_and_the_newest_stay(tmp_path: Path) -> None:
    for step in (5, 10, 999999, 1000000):
        save(tmp_path, step)
    prune(tmp_path, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-1000000", "step-999999"]


def test_resume_words(tmp_path: Path) -> None:
    assert find_checkpoint("never", tmp_path) == (None, ())
    nothing, said = find_checkpoint("auto", tmp_path)
    assert nothing is None
    assert "starting from the beginning" in said[0]
    with pytest.raises(UsageError, match="there is no checkpoint"):
        find_checkpoint("required", tmp_path)
    with pytest.raises(UsageError, match="neither a checkpoint"):
        find_checkpoint(str(tmp_path), tmp_path)
    saved = save(tmp_path / "checkpoints", 10)
    assert find_checkpoint(str(saved), tmp_path)[0] == saved
    assert find_checkpoint(str(tmp_path), tmp_path / "elsewhere")[0] == saved


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"model": "other"}, "another model"),
        ({"data": "other"}, "other data"),
        ({"seed": 8}, "--seed 7, not 8"),
        ({"world": 4}, "use --ranks 2"),
    ],
)
def test_the_wrong_run_is_refused(tmp_path: Path, changed: dict, message: str) -> None:
    manifest = verify(save(tmp_path, 10))
    right = {"world": 2, "model": "m", "data": "d", "seed": 7}
    check_resumable(manifest, tmp_path, **right)
    with pytest.raises(UsageError, match=message):
        check_resumable(manifest, tmp_path, **(right | changed))


def test_needed_disk_counts_one_checkpoint_more_than_are_kept() -> None:
    one = 2 * 1000 + 12 * 1000
    assert needed_bytes(1000, 1000, parameter_bytes=2, keep=2) == 3 * one + 2000


def test_a_manifest_is_plain_json(tmp_path: Path) -> None:
    values = json.loads((save(tmp_path, 10) / "manifest.json").read_text(encoding="utf-8"))
    assert values["format"] == checkpoint.FORMAT
    assert set(values["files"]) == {"state/rank0.pt", "state/rank1.pt"}
