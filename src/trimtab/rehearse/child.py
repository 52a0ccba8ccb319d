"""The child process of a rehearsal: torch and DeepSpeed live there, and it changes them for good.

It is asked by one JSON object on its standard input and answers in a file: ``{"rehearsal": {...}}`` or
``{"error": {"kind": ..., "message": ...}}``.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from trimtab import errors
from trimtab.errors import EngineMoved, RefusedConfig, TrimtabError, Unsupported

TAIL_LINES = 8
CURE = "the arithmetic estimate (`trimtab estimate`) needs none of this"


class NoAnswer(Unsupported):
    """A child that was killed, broke, or did not end in time."""


def ask(module: str, request: Mapping[str, Any], timeout_seconds: float, *, device: str) -> dict[str, Any]:
    """Run ``python -m module ANSWER`` with ``request`` on its standard input, and return its answer.

    Raises:
        NoAnswer: the child did not end in time, or ended without an answer.
        TrimtabError: what the child raised; RefusedConfig where DeepSpeed or the model itself did.
    """
    with tempfile.TemporaryDirectory(prefix="trimtab-rehearse-") as folder:
        answer_file = Path(folder) / "answer.json"
        try:
            child = subprocess.run(
                [sys.executable, "-m", module, str(answer_file)],
                input=json.dumps(request),
                capture_output=True,
                text=True,
                timeout=timeout_seconds,
                cwd=folder,
                env=environment(device),
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise too_slow(timeout_seconds) from None
        return read(answer_file, child.returncode, child.stderr)


def environment(device: str) -> dict[str, str]:
    """What a child finds in its environment; DeepSpeed reads ``device`` when it is imported."""
    found = {**os.environ, "DS_ACCELERATOR": device, "TOKENIZERS_PARALLELISM": "false"}
    found["PYTHONPATH"] = os.pathsep.join(
        filter(None, (str(Path(__file__).parents[2]), found.get("PYTHONPATH")))
    )
    found.pop("DS_PIN_MEMORY_BACKEND", None)
    if device == "cpu":  # a phantom's functions are Python, which TorchScript cannot compile (DeBERTa's do)
        found["PYTORCH_JIT"] = "0"
    return found


def too_slow(timeout_seconds: float) -> NoAnswer:
    """The error for a child that did not end in time."""
    return NoAnswer(f"the rehearsal did not end within {timeout_seconds:.0f} s; {CURE}")


def read(answer_file: Path, exit_code: int, said: str) -> dict[str, Any]:
    """The answer of a child that has ended, as `ask` returns it; ``said`` is its standard error."""
    if exit_code == -signal.SIGKILL:
        raise NoAnswer(f"the rehearsal was killed: this machine's own memory ran out, most likely; {CURE}")
    if not answer_file.exists():
        raise NoAnswer(f"the rehearsal ended with exit code {exit_code} and no answer: {_tail(said)}")
    answer: dict[str, Any] = json.loads(answer_file.read_text(encoding="utf-8"))
    if "error" in answer:
        raise _error(answer["error"]["kind"], answer["error"]["message"])
    return answer


def answer_with(run: Callable[[], Mapping[str, Any]], answer_file: Path) -> NoReturn:
    """In the child: write what ``run`` returns, or how it failed, to ``answer_file``; ends the process."""
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    try:
        answer: dict[str, Any] = {"rehearsal": run()}
    except TrimtabError as error:
        answer = {"error": {"kind": type(error).__name__, "message": str(error)}}
    except Exception as error:  # noqa: BLE001  the parent decides what a failure of the engine means
        traceback.print_exc()
        answer = {"error": {"kind": "Engine", "message": f"{type(error).__name__}: {error}"}}
    answer_file.write_text(json.dumps(answer), encoding="utf-8")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # neither a made-up device nor a made-up process group has an orderly end


def _tail(text: str) -> str:
    return " | ".join(line.strip() for line in text.strip().splitlines()[-TAIL_LINES:])


def _error(kind: str, message: str) -> TrimtabError:
    if kind == "EngineMoved":
        return EngineMoved(message)
    known = getattr(errors, kind, None)
    if isinstance(known, type) and issubclass(known, TrimtabError):
        try:
            return known(message)
        except TypeError:
            return Unsupported(message)
    first = message.strip().partition("\n")[0]
    if "'phantom' backend" in message:  # torch's own words, at any length
        operator = first.partition("Could not run '")[2].partition("'")[0] or "an operator"
        return Unsupported(
            f"a phantom rehearsal cannot follow this model: it calls {operator} where no fake tensor "
            f"reaches; {CURE}"
        )
    if first.startswith(("DynamicOutputShape", "DataDependentOutput")):  # torch/_subclasses/fake_tensor.py
        operator = first.rpartition(": ")[2]
        return Unsupported(
            "a phantom rehearsal cannot follow this model: what it does next depends on the values that "
            f"{operator} finds; {CURE}"
        )
    return RefusedConfig(f"the DeepSpeed engine stopped: {first[:600]}")
