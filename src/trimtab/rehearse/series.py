"""Many phantom rehearsals out of one process: torch and DeepSpeed are imported once, each run is a fork.

Importing takes longer than most runs.  The process that asks here must have one thread, and must not have
imported DeepSpeed before: it is for benchmarks and scripts, `trimtab.rehearse.phantom` for everything else.
"""

from __future__ import annotations

import gc
import importlib
import math
import os
import signal
import tempfile
import warnings
from functools import cache
from pathlib import Path

from trimtab.errors import need_packages
from trimtab.rehearse.child import answer_with, environment, read, too_slow
from trimtab.rehearse.request import PhantomRequest, Rehearsal

IMPORTED = (
    *("torch", "deepspeed", "transformers", "transformers.models.auto", "peft"),
    "deepspeed.runtime.zero.muon.muon_optimizer",  # the engine's own import, and half of torch with it
)


def rehearse_forked(request: PhantomRequest, *, timeout_seconds: float = 900) -> Rehearsal:
    """Run ``request`` in a fork of this process and return what it saw.

    Raises:
        TrimtabError: as `trimtab.rehearse.phantom.rehearse_phantom`.
    """
    _import_all()
    with tempfile.TemporaryDirectory(prefix="trimtab-rehearse-") as folder:
        answer_file, said = Path(folder) / "answer.json", Path(folder) / "said"
        child = os.fork()
        if child == 0:
            _run(request, answer_file, said, timeout_seconds)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGALRM:
            raise too_slow(timeout_seconds)
        text = said.read_text(encoding="utf-8", errors="replace") if said.exists() else ""
        return Rehearsal.from_json(read(answer_file, os.waitstatus_to_exitcode(status), text)["rehearsal"])


def _run(request: PhantomRequest, answer_file: Path, said: Path, timeout_seconds: float) -> None:
    try:
        signal.alarm(math.ceil(timeout_seconds))  # ends the process
        output = os.open(said, os.O_WRONLY | os.O_CREAT)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.chdir(said.parent)
        from trimtab.rehearse.engine_run import rehearse

        answer_with(lambda: rehearse(request.to_json()), answer_file)
    finally:  # whatever happens, no second copy of the caller goes on
        os._exit(1)


@cache
def _import_all() -> None:
    need_packages("a phantom rehearsal")
    os.environ.update(environment("cpu"))
    os.environ.pop("DS_PIN_MEMORY_BACKEND", None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the packages' own
        for name in IMPORTED:
            importlib.import_module(name)
    import deepspeed
    import torch
    import transformers

    from trimtab.rehearse import corners

    torch.set_num_threads(1)
    corners.probe()
    deepspeed.utils.logger.setLevel("ERROR")
    transformers.logging.set_verbosity_error()
    gc.collect()
    gc.freeze()  # the forks share these pages
