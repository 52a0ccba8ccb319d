"""Starting a run from one command: everything checked here first, then the ranks, then the report."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trimtab.errors import RunFailed, TrimtabError
from trimtab.launch import Launch, choose_port, command, cores, environment, supervise
from trimtab.train.checkpoint import find_checkpoint
from trimtab.train.engine import choose_accelerator
from trimtab.train.folder import RunFolder
from trimtab.train.forms import check_gpu, check_world
from trimtab.train.settings import Settings
from trimtab.train.setup import Setup, check_room, set_up, write_effective

CPU_RANKS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a started run ended: its exit code, what to tell, and its report if it went to the end."""

    exit_code: int
    message: str = ""
    report: Mapping[str, Any] | None = None


def settle_device(device: str) -> str:
    """``cuda`` if "auto" was said and there is a GPU, else ``cpu``; a device that was named stays."""
    if device != "auto":
        return device
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def settle_ranks(ranks: int | None, *, device: str, launcher: str) -> int:
    """Ranks on this machine: those asked for, else every GPU, else two on a CPU that has two cores."""
    if ranks is not None:
        return ranks
    if launcher == "none":
        return 1
    if device == "cuda":
        import torch

        return max(1, torch.cuda.device_count())
    return min(CPU_RANKS, cores())


def start(
    settings: Settings,
    *,
    ranks: int | None = None,
    launcher: str = "torchrun",
    port: int | None = None,
    nodes: int = 1,
    hostfile: str | None = None,
    prediction: Mapping[str, Any] | None = None,
) -> Ended:
    """Check, prepare, start the ranks, wait for them.

    ``prediction`` (an estimate's JSON form) stands beside the measured figures in the report.

    Raises:
        TrimtabError: whatever the user has to mend before ranks start, or what a rank said had gone wrong.
    """
    choose_accelerator(settings.device)  # transformers imports DeepSpeed, which would look for one by itself
    count = settle_ranks(ranks, device=settings.device, launcher=launcher)
    launch = Launch(
        ranks=count,
        device=settings.device,
        launcher=launcher,
        port=choose_port(port),
        nodes=nodes,
        hostfile=hostfile,
    )
    folder = RunFolder(Path(settings.run).absolute())
    settings = replace(settings, run=str(folder.path), launched=True)
    with folder.opened(resume=settings.resume, overwrite=settings.overwrite), folder.lock():
        settings = _ready(settings, folder, launch)
        code = supervise(
            command(launch, "trimtab.train", ["--settings", str(folder.settings)]),
            environment(launch),
            ask_to_stop=lambda number: _ask(folder, number),
        )
        folder.stop_request.unlink(missing_ok=True)
        try:
            ended = _ended(folder, code)
        except TrimtabError as error:
            short = "out of GPU memory" in str(error)
            _remember(settings, launch, prediction, "out of memory" if short else "failed", str(error))
            raise
    if ended.report is not None and prediction is not None:
        from trimtab.train.report import beside

        report = dict(ended.report) | {"predicted": beside(prediction, ended.report)}
        folder.report.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        ended = replace(ended, report=report)
    _remember(settings, launch, prediction, "ended" if ended.report is not None else "stopped")
    return ended


def _remember(
    settings: Settings,
    launch: Launch,
    prediction: Mapping[str, Any] | None,
    outcome: str,
    error: str | None = None,
) -> None:
    """Put the run into the history."""
    from trimtab.train.entry import keep_run

    keep_run(
        settings, ranks=launch.ranks, nodes=launch.nodes, outcome=outcome, error=error, prediction=prediction
    )


def _ready(settings: Settings, folder: RunFolder, launch: Launch) -> Settings:
    """Settle and check all that can be before a rank exists; the settings that the ranks read."""
    with folder.replacing(settings.overwrite):
        checkpoint, said = find_checkpoint(settings.resume, folder.checkpoints)
        for line in said:
            print(line, file=sys.stderr)
        setup = set_up(settings, folder, world=launch.world_size, resuming=checkpoint is not None)
        if settings.device == "cuda":
            _check_gpus(setup, launch)
        check_room(setup, settings, folder)
        write_effective(setup, folder)
        settings = replace(settings, checkpoint=None if checkpoint is None else str(checkpoint))
        settings.save(folder.settings)
    return settings


def _check_gpus(setup: Setup, launch: Launch) -> None:
    import torch

    if launch.nodes > 1 or launch.hostfile:
        return
    check_world(setup.config, launch.ranks, torch.cuda.device_count())
    check_gpu(setup.config, torch.cuda.get_device_capability(0), torch.cuda.get_device_name(0))


def _ask(folder: RunFolder, number: int) -> None:
    folder.stop_request.write_text(str(number), encoding="utf-8")
    print("\nstopping after this step and saving; once more to stop at once", file=sys.stderr, flush=True)


def _ended(folder: RunFolder, code: int) -> Ended:
    """What became of the ranks: their own word if they left one, else the launcher's exit code."""
    try:
        word = json.loads(folder.outcome.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        if code in (130, 143):
            return Ended(
                exit_code=code, message="stopped at once: what was trained since the last checkpoint is lost"
            )
        raise RunFailed(
            f"a rank failed (the launcher ended with {code}); its last words are above. What was saved is in "
            f"{folder.checkpoints}: continue with --resume auto"
        ) from None
    folder.outcome.unlink(missing_ok=True)
    if word.get("error"):
        if word["exit_code"] == 1:
            raise RunFailed(word["error"])
        raise TrimtabError(word["error"])
    if word["exit_code"]:
        saved = f"saved {word['checkpoint']}" if word["checkpoint"] else "nothing was saved yet"
        return Ended(exit_code=word["exit_code"], message=f"stopped at step {word['step']}; {saved}")
    return Ended(exit_code=0, report=json.loads(folder.report.read_text(encoding="utf-8")))
