"""A run's folder is never taken over, never lost to a mistake, and never shared by two runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from trimtab.errors import UsageError
from trimtab.train.folder import RunFolder, check_disk
from trimtab.train.metrics import Events, read_events, read_steps
from trimtab.train.report import beside


def a_run(path: Path) -> RunFolder:
    folder = RunFolder(path)
    folder.open(resume="never", overwrite=False)
    folder.settings.write_text("{}", encoding="utf-8")
    folder.events.write_text("old\n", encoding="utf-8")
    return folder


def test_a_run_is_not_started_over_another(tmp_path: Path) -> None:
    folder = a_run(tmp_path / "run")
    with pytest.raises(UsageError, match="--resume auto, replace it with --overwrite"):
        folder.open(resume="never", overwrite=False)
    folder.open(resume="auto", overwrite=False)
    folder.open(resume="never", overwrite=True)
    with pytest.raises(UsageError, match="give one of them"):
        folder.open(resume="auto", overwrite=True)


def test_a_folder_of_someone_elses_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work", encoding="utf-8")
    for overwrite in (False, True):
        with pytest.raises(UsageError, match=r"thesis\.tex is there"):
            RunFolder(tmp_path).open(resume="never", overwrite=overwrite)
    with pytest.raises(UsageError, match="is a file"):
        RunFolder(tmp_path / "thesis.tex").open(resume="never", overwrite=False)


def test_nothing_to_resume(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no run to resume"):
        RunFolder(tmp_path / "new").open(resume="required", overwrite=False)


def test_a_start_that_fails_leaves_no_folder_behind(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "deep" / "run")
    with pytest.raises(UsageError), folder.opened(resume="never", overwrite=False):
        raise UsageError("the data are empty")
    assert not folder.path.exists()


def test_a_replaced_run_comes_back_if_its_successor_cannot_start(tmp_path: Path) -> None:
    folder = a_run(tmp_path / "run")

    def fail() -> None:
        with folder.replacing(True):
            assert not folder.events.exists()
            folder.data.mkdir()
            raise UsageError("the data are empty")

    with pytest.raises(UsageError, match="empty"):
        fail()
    assert folder.events.read_text(encoding="utf-8") == "old\n"
    assert not folder.data.exists()
    with folder.replacing(True):
        folder.settings.write_text("new", encoding="utf-8")
    assert not folder.events.exists()
    assert [path.name for path in folder.path.iterdir()] == ["settings.json"]


def test_a_second_run_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    folder = a_run(tmp_path / "run")
    with folder.lock(), pytest.raises(UsageError, match="in use by a run that is going on"), folder.lock():
        pass
    with folder.lock():
        pass


def test_too_little_disk_is_said_with_both_numbers(tmp_path: Path) -> None:
    check_disk(tmp_path / "not" / "there" / "yet", 1000, what="checkpoints")
    with pytest.raises(
        UsageError, match=r"checkpoints need 8\.9\d* EiB|checkpoints need .* TiB, but only .* are free"
    ):
        check_disk(tmp_path, 10**19, what="checkpoints")


def test_events_survive_a_torn_line_and_a_resume(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    events = Events(path)
    for step in (1, 2, 3):
        events.write("step", step=step, loss=float(step))
    events.write("resume", step=1)
    events.write("step", step=2, loss=float("nan"))
    with open(path, "a", encoding="utf-8") as file:
        file.write('{"event": "st')
    assert len(list(read_events(path))) == 5
    assert [(row["step"], row["loss"]) for row in read_steps(path)] == [(1, 1.0), (2, None)]


def test_predictions_stand_beside_what_was_measured() -> None:
    prediction = {
        "gpu": {"peak_allocated_bytes": {"expected": 200}},
        "speed": {"step_seconds": {"expected": 0.5}},
    }
    rows = beside(prediction, {"step_peak_memory_bytes": 100, "step_seconds": 1.0})
    assert [(row["quantity"], row["ratio"]) for row in rows] == [
        ("peak memory bytes", 0.5),
        ("step seconds", 2.0),
    ]
    assert beside({}, {"step_peak_memory_bytes": 100, "step_seconds": 1.0}) == []
