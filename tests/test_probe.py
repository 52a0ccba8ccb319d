"""The probe: what a rank notes, what is kept, and what a reader is shown; one whole run on the CPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from trimtab.cli.main import main
from trimtab.errors import RunFailed, UnreadableFile, UsageError
from trimtab.probe import kept, start
from trimtab.probe.collectives import groups
from trimtab.probe.notes import Notes, copies_for
from trimtab.probe.products import shapes
from trimtab.report.console import plain
from trimtab.report.probe import probe_text

Sheet = dict[str, Any]


def sheet(**changes: Any) -> Sheet:
    machine = {
        "gpu": "NVIDIA H200", "world_size": 4, "gpus_per_node": 4, "processor": "Xeon", "cores": 64,
        "versions": {"torch": "2.11.0"},
    }  # fmt: skip
    product = {"kind": "matrix", "precision": "bf16", "m": 8192, "k": 8192, "n": 8192, "layout": "nt"}
    reduced = {"kind": "collective", "name": "all_reduce", "group": "world", "ranks": 4, "bytes": 2**30}
    rows = [{**product, "seconds": 2 * 8192**3 / 793e12}, {**reduced, "seconds": 1.5 * 2**30 / 354e9}]
    rows.append({"kind": "host adam", "seconds": None, "skipped": "not compiled"})
    made = "2026-11-22T10:00:00+00:00"
    return {
        "schema_version": 1, "made": made, "machine": machine, "seconds": 61.0, "seconds_by_part": {},
        "failures": [], "measurements": rows, **changes,
    }  # fmt: skip


def test_samples_keep_their_median_and_what_cannot_be_measured_its_reason() -> None:
    notes = Notes("cpu")
    notes.add("copy", [3.0, 1.0, 2.0], bytes=8)
    notes.skip("copy", "no such device", bytes=16)
    assert notes.rows[0] == {"kind": "copy", "bytes": 8, "seconds": 2.0, "samples": [3.0, 1.0, 2.0]}
    assert notes.rows[1]["seconds"] is None


def test_operands_exceed_the_caches_together() -> None:
    assert copies_for(2**20) == 8
    assert copies_for(2**30) == 1
    assert copies_for(0) == 8


def test_every_layout_of_the_catalogues_layers_is_measured() -> None:
    wanted = set(shapes(small=False))
    assert {("bf16", 8192, 4096, 11008), ("bf16", 2048, 768, 50257), ("fp32", 4096, 4096, 4096)} <= wanted
    assert len(list(shapes(small=True))) <= 3


def test_groups_are_the_world_a_node_pairs_and_one_rank_of_each_node() -> None:
    assert dict(groups(1, 1)) == {"world": (0,)}
    assert dict(groups(4, 4)) == {"world": (0, 1, 2, 3), "pair": (0, 1)}
    assert dict(groups(4, 2)) == {"world": (0, 1, 2, 3), "node": (0, 1), "across": (0, 2)}


def test_a_sheet_is_kept_whole_under_its_cards_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path))
    file = kept.kept_file(sheet())
    assert file == tmp_path / "probe" / "nvidia-h200-x4.json"
    kept.write(sheet(), file)
    assert json.loads(file.read_text(encoding="utf-8")) == sheet()
    with pytest.raises(UnreadableFile, match="cannot be written"):
        kept.write(sheet(), file / "below.json")


def test_a_reader_sees_rates_beside_the_vendors_and_what_failed() -> None:
    failures = [{"part": "attention", "rank": 0, "error": "RuntimeError: no kernel"}]
    text = plain(probe_text(sheet(failures=failures), [Path("/tmp/x.json")]))
    assert "793 TFLOP/s" in text
    assert "80 %" in text
    assert "354 GB/s" in text
    assert "failed: attention: RuntimeError: no kernel" in text
    assert "could not be measured: host adam" in text
    assert max(map(len, text.splitlines())) <= 80


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no folder that can be written"):
        start.probe(device="cpu", ranks=1, disk=tmp_path / "none")


def test_a_rank_that_dies_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def die(command: list[str], **_: Any) -> None:
        logs = Path(command[command.index("--log-dir") + 1]) / "run" / "attempt_0" / "0"
        logs.mkdir(parents=True)
        (logs / "stderr.log").write_text("Traceback\n  File x\ntorch.AcceleratorError: CUDA error\n")

    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setattr(start.subprocess, "run", die)
    with pytest.raises(RunFailed, match=r"0: torch\.AcceleratorError: CUDA error"):
        start.probe(device="cpu", ranks=1)


@pytest.mark.nightly
def test_a_probe_on_the_cpu_measures_all_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "cache"))
    code = main(
        ["probe", "--ranks", "2", "--disk", str(tmp_path), "--output", str(tmp_path / "out.json"), "--json"]
    )
    answer = json.loads(capsys.readouterr().out)
    assert code == 0, answer["failures"]
    kinds = {row["kind"] for row in answer["measurements"] if row["seconds"]}
    assert kinds >= {
        "matrix", "element-wise", "attention", "issue", "model host", "engine host", "collective", "disk",
    }  # fmt: skip
    assert json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))["machine"]["world_size"] == 2
    assert (tmp_path / "cache" / "probe" / "cpu-x2.json").exists()


def test_a_sheet_that_nobody_could_write_is_not_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setattr("trimtab.cli.probe.measure", lambda **_: pytest.fail("it was measured"))
    for output in (tmp_path, tmp_path / "file" / "sheet.json"):
        assert main(["probe", "--output", str(output)]) == 2
        assert "cannot be written: give --output a file" in capsys.readouterr().err
    kept.check_writable(tmp_path / "new" / "sheet.json")
