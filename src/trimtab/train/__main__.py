"""A rank of a training run: what ``deepspeed``, ``torchrun``, ``srun`` and ``trimtab train`` start.

deepspeed --num_gpus=8 train.py --deepspeed_config llama_7b_single_node --data corpus/
torchrun --nproc_per_node=8 -m trimtab.train --deepspeed_config my.json --data corpus.jsonl --steps 1000
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from trimtab.errors import RunFailed, TrimtabError
from trimtab.train.folder import RunFolder
from trimtab.train.settings import Settings

OPTIONS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("--data", {"nargs": "+", "help": "files, folders, globs, or a Hugging Face dataset's name"}),
    ("--from", {"dest": "pretrained", "help": "pretrained weights: a folder or a hub id"}),
    ("--tokenizer", {"help": "a tokenizer's folder or hub id (default: train one on the data)"}),
    ("--steps", {"type": int}),
    ("--epochs", {"type": float}),
    ("--tokens", {"type": int}),
    ("--resume", {"help": "auto, required, never, or a checkpoint's path"}),
    ("--overwrite", {"action": "store_true", "default": None}),
    ("--seed", {"type": int}),
    ("--save-every", {"type": int}),
    ("--keep", {"type": int}),
    ("--eval-every", {"type": int}),
    ("--validation", {"type": float}),
    ("--text-field", {}),
    ("--target-field", {}),
    ("--label-field", {}),
    ("--prefix", {}),
    ("--learning-rate", {"type": float}),
    ("--warmup-steps", {"type": int}),
    ("--set", {"dest": "changes", "action": "append", "metavar": "KEY=VALUE"}),
    ("--shrink", {"action": "store_true", "default": None}),
    ("--freeze", {"action": "append"}),
    ("--device", {"choices": ["auto", "cpu", "cuda"]}),
    ("--workers", {"type": int}),
    ("--prompt", {}),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one rank; the exit code: 0, 1 the run failed, 2 it could not start, 128+n ended by a signal."""
    rank = int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")))
    folder = None
    launched = False
    try:
        settings = _settings(arguments)
        folder, launched = RunFolder(Path(settings.run)), settings.launched
        from trimtab.train.loop import ToldElsewhere, run

        try:
            outcome = run(settings)
        except ToldElsewhere as told:
            return 0 if launched else told.exit_code
    except TrimtabError as error:
        if launched and folder is not None:
            _leave_word(folder, {"exit_code": error.exit_code, "error": str(error)})
            return 0
        if rank == 0:
            if isinstance(error, RunFailed):
                _remember(settings, "failed", str(error))
            print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return error.exit_code
    except Exception as error:
        if not _is_out_of_memory(error):
            raise
        text = _out_of_memory(error)
        if launched and folder is not None:
            _leave_word(folder, {"exit_code": 1, "error": text})
        else:
            if rank == 0:
                _remember(settings, "out of memory", text)
            print(f"error: {text}", file=sys.stderr)  # noqa: T201
        sys.stderr.flush()
        os._exit(1)  # the other ranks wait in a collective: the launcher ends them
    if rank == 0:
        word = {"exit_code": outcome.exit_code, "step": outcome.step, "checkpoint": outcome.checkpoint}
        if not launched:
            _remember(settings, "stopped" if outcome.exit_code else "ended")
        if launched:
            _leave_word(folder, word)
        elif outcome.report is not None:
            from trimtab.train.report import describe

            print(describe(outcome.report))  # noqa: T201
        elif outcome.exit_code:
            print(  # noqa: T201
                f"stopped at step {outcome.step}; saved {outcome.checkpoint}. Continue with --resume auto",
                file=sys.stderr,
            )
    exit_code = 0 if launched else outcome.exit_code
    if launched or int(os.environ.get("WORLD_SIZE", "1")) > 1:
        # all is written; taking the group down, gloo aborts where a peer was quicker
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(exit_code)
    _leave_group()
    return exit_code


def _settings(arguments: Sequence[str] | None) -> Settings:
    parser = argparse.ArgumentParser(
        prog="python -m trimtab.train",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--deepspeed_config", "--config", dest="config", help="a configuration's name or path"
    )
    parser.add_argument("--deepspeed", action="store_true", help="accepted, as by every DeepSpeed script")
    parser.add_argument("--local_rank", "--local-rank", type=int, help="given by the deepspeed launcher")
    parser.add_argument("--settings", help=argparse.SUPPRESS)
    parser.add_argument(  # torchrun takes a script's --run for its own --run-path, so there is a second name
        "--run-dir", "--run", dest="run", help="the run's folder (default: runs/CONFIG)"
    )
    for name, how in OPTIONS:
        parser.add_argument(name, **how)
    given = parser.parse_args(arguments)
    if given.local_rank is not None and given.local_rank >= 0:
        os.environ.setdefault("LOCAL_RANK", str(given.local_rank))
    if given.settings:
        return replace(Settings.load(Path(given.settings)), launched=True)
    if given.config is None or not given.data:
        parser.error("--deepspeed_config and --data are needed")
    names = {field.name for field in fields(Settings)}
    values: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in vars(given).items()
        if key in names and value is not None
    }
    values.setdefault("run", str(Path("runs") / Path(given.config).stem))
    if values.get("device", "auto") == "auto":
        values["device"] = _best_device()
    return Settings(**values)


def _best_device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _leave_word(folder: RunFolder, word: dict[str, Any]) -> None:
    folder.outcome.write_text(json.dumps(word) + "\n", encoding="utf-8")


def _remember(settings: Settings, outcome: str, error: str | None = None) -> None:
    """Put a run that a launcher of others started into the history; `trimtab train` does so itself."""
    from trimtab.train.entry import keep_run
    from trimtab.train.predict import prediction

    world = int(os.environ.get("WORLD_SIZE", "1"))
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", world))
    nodes = max(1, world // ranks)
    predicted = prediction(settings, ranks=ranks, nodes=nodes)
    keep_run(settings, ranks=ranks, nodes=nodes, outcome=outcome, error=error, prediction=predicted)


def _leave_group() -> None:
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()


def _is_out_of_memory(error: BaseException) -> bool:
    return type(error).__name__ == "OutOfMemoryError"


def _out_of_memory(error: BaseException) -> str:
    return (
        f"out of GPU memory: {str(error).splitlines()[0]} Halve train_micro_batch_size_per_gpu and double "
        "gradient_accumulation_steps, turn on trimtab.checkpoint_activations, or raise "
        "zero_optimization.stage "
        "(each with --set); `trimtab ladder` tells what each saves and costs"
    )


if __name__ == "__main__":
    sys.exit(main())
