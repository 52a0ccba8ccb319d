"""Start the ranks of a probe, or be one of them, and keep what they found."""

from __future__ import annotations

import ctypes
import json
import os
import re
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from trimtab import errors
from trimtab.errors import MissingExtra, RunFailed, TrimtabError, Unsupported, UsageError

TIMEOUT_SECONDS = 900


def gpus_here() -> int:
    """How many GPUs CUDA's driver shows this process; imports nothing and makes no context."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
        count = ctypes.c_int(0)
        if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
            return 0
        return count.value
    except (OSError, AttributeError):
        return 0


def probe(*, device: str, ranks: int, disk: Path | None = None, build: bool = False) -> dict[str, Any] | None:
    """Measure this machine with one process a GPU; under torchrun, as the rank that this process is.

    Returns:
        The sheet of measurements; None on a rank other than 0.

    Raises:
        MissingExtra: torch is not installed.
        Unsupported: the measuring took too long.
        RunFailed: a rank failed.
        UsageError: ``disk`` cannot be written.
    """
    if find_spec("torch") is None:
        raise MissingExtra("torch", "train", "a probe")
    if disk is not None and not os.access(disk, os.W_OK):
        raise UsageError(f"{disk}: no folder that can be written; --disk takes one on the disk to measure")
    wishes = {"device": device, "disk": str(disk.resolve()) if disk else None, "build": build}
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        from trimtab.probe.rank import run

        return run(wishes)
    return _launch(wishes, ranks)


def _launch(wishes: dict[str, Any], ranks: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="trimtab-probe-") as folder:
        answer_file, wishes_file = Path(folder) / "answer.json", Path(folder) / "wishes.json"
        wishes_file.write_text(json.dumps({**wishes, "answer": str(answer_file)}), encoding="utf-8")
        environment = {**os.environ, "DS_ACCELERATOR": wishes["device"], "TOKENIZERS_PARALLELISM": "false"}
        environment["PYTHONPATH"] = os.pathsep.join(
            filter(None, (str(Path(__file__).parents[2]), environment.get("PYTHONPATH")))
        )
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += ["--nproc-per-node", str(ranks), "-m", "trimtab.probe.rank", str(wishes_file)]
        logs = Path(folder) / "logs"
        command[4:4] = ["--log-dir", str(logs), "--redirects", "3"]
        try:
            subprocess.run(
                command, capture_output=True, timeout=TIMEOUT_SECONDS, env=environment, check=False
            )
        except subprocess.TimeoutExpired:
            if not answer_file.exists():
                raise Unsupported(f"the probe did not end within {TIMEOUT_SECONDS} s") from None
        said = _last_words(logs)
        if not answer_file.exists():
            raise RunFailed(f"a rank of the probe failed: {said or 'it left no message'}")
        answer: dict[str, Any] = json.loads(answer_file.read_text(encoding="utf-8"))
    if "error" in answer:
        kind = getattr(errors, answer["error"]["kind"], TrimtabError)
        raise kind(answer["error"]["message"])
    sheet: dict[str, Any] = answer["sheet"]
    if not sheet["seconds_by_part"].keys() >= {"engine"}:
        sheet["failures"].append(
            {"part": "the rest", "rank": None, "error": f"the ranks ended early: {said}"}
        )
    return sheet


def _last_words(logs: Path) -> str:
    """The last lines of the first rank's standard error that ends in an exception."""
    for file in sorted(logs.rglob("stderr.log")):
        lines = [line.strip() for line in file.read_text(encoding="utf-8", errors="replace").splitlines()]
        wrong = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Interrupt)\b", line)]
        if wrong:
            return f"{file.parent.name}: {wrong[-1][:500]}"
    return ""
