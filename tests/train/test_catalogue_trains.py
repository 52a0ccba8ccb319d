"""Every catalogue configuration goes through the real engine: trains, saves, resumes with the same bits.

The DeepSpeed block and the task are the catalogue's; the model is a small copy, the batch and the sequences
are short, and what only a GPU has is replaced by its nearest CPU form (printed).  Two gloo ranks train all
thirteen in one pair of processes, since importing DeepSpeed costs seconds.
"""

from __future__ import annotations

import fcntl
import json
import subprocess
import sys
from pathlib import Path
from statistics import mean

import pytest

from trimtab import catalogue
from trimtab.launch import Launch, choose_port, environment

pytest.importorskip("deepspeed")
pytestmark = pytest.mark.engine

WORKER = Path(__file__).with_name("catalogue_worker.py")


def make_tokenizers(data: Path, files: dict[str, Path]) -> None:
    from trimtab.train.data.tokenizer import save_tokenizer, train_tokenizer

    code = [files["code.txt"].read_text(encoding="utf-8")[:400_000]]
    prose = files["prose.txt"].read_text(encoding="utf-8").splitlines()
    for kind, model_type, texts in (
        ("bpe", "llama", code),
        ("wordpiece", "bert", prose),
        ("unigram", "t5", prose),
    ):
        save_tokenizer(train_tokenizer(model_type, texts, vocab_size=1024), data / kind)


def train_all(folder: Path) -> None:
    import real_text

    data, output = folder / "data", folder / "runs"
    output.mkdir(parents=True)
    make_tokenizers(data, real_text.write(data))
    launch = Launch(ranks=2, device="cpu", port=choose_port(None))
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nnodes", "1", "--nproc_per_node", "2",
        "--master_addr", "127.0.0.1", "--master_port", str(launch.port), str(WORKER), str(data), str(output),
    ]  # fmt: skip
    with open(folder / "log.txt", "w", encoding="utf-8") as log:
        subprocess.run(command, env=environment(launch), stdout=log, stderr=log, timeout=900, check=False)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """The worker's results by configuration; test processes that run side by side share one training."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if base.name.startswith("popen-") else base) / "catalogue"
    folder.mkdir(exist_ok=True)
    with open(folder / "lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "done").exists():
            train_all(folder)
            (folder / "done").touch()
    results = folder / "runs" / "results.jsonl"
    assert results.exists(), (folder / "log.txt").read_text(encoding="utf-8")[-3000:]
    rows = [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]
    return {row["name"]: row for row in rows} | {"": {"log": str(folder)}}


@pytest.mark.parametrize("name", catalogue.names())
def test_trains_saves_and_resumes(name: str, trained: dict[str, dict]) -> None:
    assert name in trained, _error(trained[""]["log"])
    row = trained[name]
    print(f"\n{name}: {row['seconds']:.1f} s; changed for this test and the CPU:")
    for change in row["changes"]:
        print(f"    {change}")
    assert row["exit_codes"] == [0, 0]
    losses = [float.fromhex(row["losses"][step]) for step in sorted(row["losses"], key=int)]
    print("    losses " + " ".join(f"{loss:.3f}" for loss in losses))
    third = len(losses) // 3
    assert mean(losses[-third:]) < mean(losses[:third]), losses
    assert row["stage"] == catalogue.load_config(name).stage
    assert row["checkpoint"]["step"] == len(losses) >= 12
    assert row["checkpoint"]["world_size"] == 2
    # the steps before the interruption are the copied ones; those after it were trained again
    assert row["resumed"] == row["losses"]
    assert Path(row["report"]["plot"]).stat().st_size > 1000
    assert (Path(row["report"]["model"]) / "config.json").exists() or (
        Path(row["report"]["model"]) / "adapter_config.json"
    ).exists()


def _error(folder: str) -> str:
    errors = sorted(Path(folder).glob("runs/error-*.txt"))
    return (
        errors[0].read_text(encoding="utf-8")[-3000:]
        if errors
        else Path(folder, "log.txt").read_text()[-3000:]
    )
