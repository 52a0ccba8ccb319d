"""Rehearse a configuration with no GPU and no memory: the real engine under fake tensors, in a child process.

Request (standard input of ``python -m trimtab.rehearse.engine_run ANSWER``): the fields of
`trimtab.rehearse.request.PhantomRequest` as one JSON object.  The file ANSWER holds ``{"rehearsal": ...}``
with the fields of `trimtab.rehearse.request.Rehearsal`, or ``{"error": {"kind": ..., "message": ...}}``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from trimtab import errors
from trimtab.errors import EngineMoved, MissingExtra, RefusedConfig, TrimtabError, Unsupported
from trimtab.rehearse import cache
from trimtab.rehearse.request import PhantomRequest, Rehearsal

TAIL_LINES = 8


def rehearse_phantom(
    request: PhantomRequest, *, timeout_seconds: float = 900, use_cache: bool = True
) -> Rehearsal:
    """Run ``request`` in a child process and return what it saw; the same request again comes from disk.

    Raises:
        MissingExtra: torch, DeepSpeed or transformers is not installed.
        EngineMoved: a part of torch or DeepSpeed that the rehearsal stands on is gone.
        RefusedConfig: DeepSpeed or the model refused the configuration; carries their message.
        Unsupported: the job needs something that has no stand-in, or the run took too long.
    """
    for package in ("torch", "deepspeed", "transformers"):
        if not _installed(package):
            raise MissingExtra(package, "train", "a phantom rehearsal")
    if use_cache:
        kept = cache.find(request)
        if kept is not None:
            return kept
    answer = _run(request, timeout_seconds)
    if use_cache:
        cache.keep(request, answer)
    return answer


def _run(request: PhantomRequest, timeout_seconds: float) -> Rehearsal:
    with tempfile.TemporaryDirectory(prefix="trimtab-phantom-") as folder:
        answer_file = Path(folder) / "answer.json"
        environment = {**os.environ, "DS_ACCELERATOR": "cpu", "TOKENIZERS_PARALLELISM": "false"}
        environment["PYTHONPATH"] = os.pathsep.join(
            filter(None, (str(Path(__file__).parents[2]), environment.get("PYTHONPATH")))
        )
        environment.pop("DS_PIN_MEMORY_BACKEND", None)
        try:
            child = subprocess.run(
                [sys.executable, "-m", "trimtab.rehearse.engine_run", str(answer_file)],
                input=json.dumps(request.to_json()),
                capture_output=True,
                text=True,
                timeout=timeout_seconds,
                cwd=folder,
                env=environment,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise Unsupported(
                f"the phantom rehearsal did not end within {timeout_seconds:.0f} s; "
                "give it more time, or use the arithmetic estimate"
            ) from None
        if not answer_file.exists():
            raise Unsupported(
                f"the phantom rehearsal ended with exit code {child.returncode} and no answer: "
                f"{_tail(child.stderr)}"
            )
        answer = json.loads(answer_file.read_text(encoding="utf-8"))
    if "error" in answer:
        raise _error(answer["error"]["kind"], answer["error"]["message"])
    return Rehearsal.from_json(answer["rehearsal"])


def _installed(package: str) -> bool:
    from importlib.util import find_spec

    return find_spec(package) is not None


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
    return RefusedConfig(f"the DeepSpeed engine stopped: {message}")
