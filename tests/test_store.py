"""The history: kept, found, forgotten; and what happens where it cannot be."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sources import SRC, python
from test_rehearse_command import rehearsal
from trimtab.cli.main import main
from trimtab.corrections import Traits
from trimtab.errors import NotFound, UnreadableFile
from trimtab.folders import history_file
from trimtab.rehearse import answer as answers
from trimtab.store import database
from trimtab.store.entry import Entry
from trimtab.train.settings import Settings

Capture = pytest.CaptureFixture[str]
NAME = "llama_7b_single_node"


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A history of its own."""
    path = tmp_path / "data" / "history.sqlite"
    monkeypatch.setenv("TRIMTAB_HISTORY", str(path))
    monkeypatch.setattr(database, "_said", set())
    return path


@pytest.fixture
def phantom(monkeypatch: pytest.MonkeyPatch) -> None:
    """Phantom rehearsals answer at once, with 20 GiB."""
    monkeypatch.setattr(answers, "rehearse_phantom", lambda *_, **__: rehearsal())


def traits(job: str = "a job", kin: str = "a kind") -> Traits:
    return Traits(job=job, kin=kin, parameters=10, tokens=20)


def entry(**changes: Any) -> Entry:
    values: dict[str, Any] = {
        "how": "training",
        "config": "gpt2_baseline",
        "model": "gpt2",
        "gpu": "h200",
        "gpus_per_node": 4,
        "nodes": 2,
        "outcome": "ended",
        "traits": traits(),
        "figures": {"peak_allocated": {"low": 1, "expected": 2, "high": 3}, "fits_probability": 0.99},
        "document": {"config": {"bf16": {"enabled": True}}},
    }
    return Entry(**{**values, **changes})


# -- the file ------------------------------------------------------------


def test_what_is_kept_comes_back(file: Path) -> None:
    assert database.keep(entry()) == 1
    assert database.keep(entry(config="other")) == 2
    first = database.entry(1)
    assert (first.document, first.traits, first.gpus_per_node) == (entry().document, traits(), 4)
    assert [one.id for one in database.entries()] == [2, 1]
    assert [one.id for one in database.entries(config="other", limit=5)] == [2]
    (own, _) = database.measurements(traits())
    assert own.peak_allocated is not None
    assert (own.peak_allocated.high, own.fits_probability, own.step_seconds) == (3, 0.99, None)


def test_the_same_phantom_is_kept_once(file: Path) -> None:
    database.keep(entry(how="phantom"))
    database.keep(entry(how="rehearsal"))
    database.keep(entry(how="phantom"))
    assert [one.id for one in database.entries()] == [3, 2]


def test_jobs_alike_are_found_after_the_job_itself(file: Path) -> None:
    database.keep(entry())
    database.keep(entry(traits=traits("another job")))
    database.keep(entry(traits=traits("another job", "another kind")))
    database.keep(entry(traits=None))
    assert [one.id for one in database.measurements(traits())] == [1, 2]


def test_an_older_arithmetics_time_is_not_compared(file: Path) -> None:
    figures = {"predicted_alone": {"low": 1, "expected": 2, "high": 3}}
    database.keep(entry(figures=figures))
    database.keep(entry(figures=figures, tool_version="0.0.1"))
    assert [one.predicted_alone is None for one in database.measurements(traits())] == [True, False]


def test_runs_are_forgotten_together_or_not_at_all(file: Path) -> None:
    for _ in range(3):
        database.keep(entry())
    with pytest.raises(NotFound):
        database.forget([1, 9])
    assert database.forget([1, 3, 3]) == 2
    assert [one.id for one in database.entries()] == [2]
    assert database.forget(None) == 1
    assert database.keep(entry()) == 4  # a number is never given twice


def test_no_file_is_an_empty_history(file: Path) -> None:
    assert (database.entries(), database.measurements(traits()), database.forget(None)) == ((), (), 0)
    assert not file.exists()


def test_an_empty_variable_keeps_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIMTAB_HISTORY", "")
    assert history_file() is None
    assert database.keep(entry()) is None


def test_the_users_data_folder_is_the_usual_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("TRIMTAB_HISTORY")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert history_file() == str(tmp_path / "trimtab" / "history.sqlite")


def test_processes_share_the_file(file: Path) -> None:
    program = (
        "from test_store import entry\nfrom trimtab.store import database\n"
        "for _ in range(10):\n    assert database.keep(entry()) is not None\n"
    )
    path = os.pathsep.join((str(SRC), str(Path(__file__).parent)))
    environment = {**os.environ, "PYTHONPATH": path, "TRIMTAB_HISTORY": str(file)}
    running = [
        subprocess.Popen([sys.executable, "-c", program], env=environment, stderr=subprocess.PIPE)
        for _ in range(4)
    ]
    for process in running:
        _, said = process.communicate(timeout=120)
        assert (process.returncode, said) == (0, b"")
    assert sorted(one.id for one in database.entries()) == list(range(1, 41))


def test_every_migration_is_one_version(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    database.keep(entry())
    later = (*database.MIGRATIONS, "ALTER TABLE runs ADD COLUMN note TEXT; UPDATE runs SET note = 'old'")
    monkeypatch.setattr(database, "MIGRATIONS", later)
    assert database.keep(entry()) == 2
    with sqlite3.connect(file) as connection:
        assert connection.execute("SELECT note FROM runs").fetchall() == [("old",), (None,)]
        assert connection.execute("PRAGMA user_version").fetchone() == (2,)
    connection.close()


# -- where there can be none ------------------------------------------------------------


def spoil(file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"this is no database, but it is long enough to be taken for one" * 50)


def from_the_future(file: Path) -> None:
    database.keep(entry())
    with sqlite3.connect(file) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()


def half_a_row(file: Path) -> None:
    database.keep(entry())
    with sqlite3.connect(file) as connection:
        connection.execute("DROP TABLE runs")
    connection.close()


@pytest.mark.parametrize("damage", [spoil, from_the_future, half_a_row])
def test_a_damaged_history_is_one_warning(file: Path, damage: Any, phantom: None, capsys: Capture) -> None:
    damage(file)
    capsys.readouterr()
    assert main(["rehearse", NAME, "--phantom"]) == 0
    said = capsys.readouterr().err
    assert said.startswith("warning: this run is not in the history: ")
    assert said.count("\n") == 1
    assert main(["estimate", NAME]) == 0
    said = capsys.readouterr().err
    assert said.startswith("warning: nothing is corrected by earlier runs: ")
    assert said.count("\n") == 1
    assert main(["history"]) == 2
    assert capsys.readouterr().err.startswith(f"error: {file}: ")
    with pytest.raises(UnreadableFile, match="TRIMTAB_HISTORY"):
        database.entries()


def test_a_folder_that_cannot_be_made_is_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, phantom: None, capsys: Capture
) -> None:
    (tmp_path / "a file").write_text("", encoding="utf-8")
    monkeypatch.setattr(database, "_said", set())
    monkeypatch.setenv("TRIMTAB_HISTORY", str(tmp_path / "a file" / "history.sqlite"))
    assert main(["rehearse", NAME, "--phantom"]) == 0
    assert "cannot be opened" in capsys.readouterr().err


# -- what the commands do with it ------------------------------------------------------------


def test_a_rehearsal_corrects_the_next_estimate(file: Path, phantom: None, capsys: Capture) -> None:
    assert main(["rehearse", NAME, "--phantom"]) == 0
    capsys.readouterr()
    assert main(["estimate", NAME, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["gpu"]["peak_allocated_bytes"]["expected"] == 20 * 2**30
    peak = next(one for one in answer["corrections"] if one["what"] == "gpu.peak_allocated_bytes")
    assert peak["from"].startswith("phantom rehearsal 1 of ")
    assert peak["uncorrected"] == sum(part["bytes"] for part in answer["gpu"]["parts"])
    assert main(["estimate", NAME]) == 0
    text = capsys.readouterr().out
    assert "corrected: peak allocated 20.0 GiB, the arithmetic says 28.7 GiB" in " ".join(text.split())
    assert max(map(len, text.splitlines())) <= 80
    assert main(["estimate", NAME, "--no-corrections", "--json"]) == 0
    plain = json.loads(capsys.readouterr().out)
    assert plain["corrections"] == []
    assert plain["gpu"]["peak_allocated_bytes"]["expected"] == peak["uncorrected"]
    assert main(["estimate", NAME, "--micro-batch", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["corrections"] == []


def test_a_rehearsals_own_prediction_is_uncorrected(file: Path, phantom: None, capsys: Capture) -> None:
    main(["rehearse", NAME, "--phantom"])
    capsys.readouterr()
    main(["rehearse", NAME, "--phantom", "--json"])
    assert json.loads(capsys.readouterr().out)["predicted"]["corrections"] == []


def test_the_list_shows_and_forgets(file: Path, phantom: None, capsys: Capture) -> None:
    assert main(["history"]) == 0
    assert "No run is stored" in capsys.readouterr().out
    main(["rehearse", NAME, "--phantom"])
    short = {"fits_probability": 0.0}
    database.keep(entry(outcome="out of memory", figures=short, document={"error": "no memory"}))
    capsys.readouterr()
    assert main(["history"]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    assert NAME in text
    assert "ran out" in text
    assert main(["history", "show", "1"]) == 0
    peak = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("peak allocated"))
    assert peak.split()[2:6] == ["28.7", "GiB", "20.0", "GiB"]
    assert main(["history", "show", "2"]) == 0
    assert "no memory" in capsys.readouterr().out
    assert main(["history", "--json"]) == 0
    runs = json.loads(capsys.readouterr().out)["runs"]
    assert [(run["id"], run["how"], run["outcome"]) for run in runs] == [
        (2, "training", "out of memory"),
        (1, "phantom", "ended"),
    ]
    assert main(["history", "show", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["run"]["answer"]["method"] == "phantom"
    assert main(["history", "forget", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["forgotten"] == 1
    assert main(["history", "forget", "--all"]) == 0
    assert capsys.readouterr().out == "forgotten: 1 run\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["shwo", "1"], "Did you mean show?"),
        (["show"], "the number of one run"),
        (["show", "7"], "unknown run '7'"),
        (["forget"], "the numbers of runs, or --all"),
        (["forget", "1", "--all"], "the numbers of runs, or --all"),
        (["forget", "7"], "unknown run '7'"),
        (["list", "7"], "takes no numbers"),
    ],
)
def test_mistakes_name_their_cure(file: Path, capsys: Capture, arguments: list[str], said: str) -> None:
    assert main(["history", *arguments]) == 2
    assert said in capsys.readouterr().err


def test_an_estimate_without_a_history_opens_no_database() -> None:
    program = f"from trimtab.cli.main import main; main(['estimate', '{NAME}', '--json']); import sys; "
    done = python(
        "-c", program + "sys.exit(str('sqlite3' in sys.modules))", TRIMTAB_HISTORY="/nowhere/at.all"
    )
    assert done.stderr.strip() == "False"


# -- trainings ------------------------------------------------------------


def run_folder(folder: Path, *, peaks: tuple[int, ...], parameters: int) -> Settings:
    """The folder that a run of gpt2_baseline leaves behind, its steps a second and a tenth more each."""
    folder.mkdir()
    start = {"event": "start", "parameters": parameters, "trainable": parameters, "versions": {"torch": "0"}}
    rows = [start] + [
        {
            "event": "step",
            "step": n,
            "seconds": 1 + n / 10,
            "memory_peak_bytes": peak,
            "loss": 2.0,
            "tokens": n,
        }
        for n, peak in enumerate(peaks)
    ]
    (folder / "events.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return Settings(config="gpt2_baseline", data=("x",), run=str(folder), device="cuda")


def predicted(capsys: Capture, *flags: str) -> dict[str, Any]:
    main(["estimate", "gpt2_baseline", *flags, "--json"])
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_a_training_corrects_its_estimate(file: Path, tmp_path: Path, capsys: Capture) -> None:
    from trimtab.train.entry import keep_run

    flags = ("--gpu", "h200", "--gpus-per-node", "1")
    before = predicted(capsys, *flags)
    settings = run_folder(tmp_path / "run", peaks=(9, 5, 7, 6), parameters=before["parameters"]["total"])
    assert keep_run(settings, ranks=1, outcome="ended", prediction=before) == 1
    after = predicted(capsys, *flags)
    # the first step makes the states, and stands for itself
    assert after["gpu"]["peak_allocated_bytes"] == {"low": 7, "expected": 7, "high": 7}
    assert after["speed"]["step_seconds"] == {"low": 1.1, "expected": 1.2, "high": 1.3}
    assert after["fits_probability"] == 0.99
    assert {one["from"].split(" of ")[0] for one in after["corrections"]} == {"training 1"}


def test_another_vocabulary_is_another_job(file: Path, tmp_path: Path, capsys: Capture) -> None:
    from trimtab.train.entry import keep_run

    before = predicted(capsys, "--gpu", "h200", "--gpus-per-node", "1")
    settings = run_folder(tmp_path / "run", peaks=(9, 5, 7), parameters=1)
    assert keep_run(settings, ranks=1, outcome="ended", prediction=before) == 1
    assert database.entry(1).traits is None


def test_a_training_that_ran_out_of_memory_does_not_fit(file: Path, tmp_path: Path, capsys: Capture) -> None:
    from trimtab.train.entry import keep_run

    flags = ("--gpu", "h200", "--gpus-per-node", "1")
    before = predicted(capsys, *flags)
    settings = run_folder(tmp_path / "run", peaks=(), parameters=before["parameters"]["total"])
    keep_run(settings, ranks=1, outcome="out of memory", error="out of GPU memory", prediction=before)
    after = predicted(capsys, *flags)
    assert (before["fits"], after["fits"], after["fits_probability"]) == (True, False, 0.0)


def test_a_run_that_never_stepped_is_not_kept(file: Path, tmp_path: Path) -> None:
    from trimtab.train.entry import keep_run

    settings = run_folder(tmp_path / "run", peaks=(), parameters=1)
    assert keep_run(settings, ranks=1, outcome="failed") is None
    assert not file.exists()
