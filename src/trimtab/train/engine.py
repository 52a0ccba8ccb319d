"""DeepSpeed, imported once and tamed: the accelerator chosen, nothing compiled on the CPU, quiet logs."""

from __future__ import annotations

import gc
import logging
import os
import sys
import warnings
from types import ModuleType
from typing import Any

from trimtab.errors import MissingExtra


def choose_accelerator(device: str) -> None:
    """Tell DeepSpeed which accelerator to use (``cpu`` or ``cuda``); must run before its first import."""
    os.environ["DS_ACCELERATOR"] = device
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # transformers and DeepSpeed ask the hub for nothing here; PyTorch's own CPU threads follow the ranks
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")


def import_deepspeed(device: str, *, verbose: bool = False) -> ModuleType:
    """The ``deepspeed`` module, ready for ``device``.

    On the CPU DeepSpeed compiles a shared-memory collective at ``init_distributed`` (comm/torch.py:207),
    which needs a compiler and, under a made-up process group, waits for peers that do not exist; it is left
    out, and gloo does the work.

    Raises:
        MissingExtra: DeepSpeed is not installed.
    """
    choose_accelerator(device)
    if not verbose:
        logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
        os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "error")
        # DeepSpeed 0.19.8 itself calls what torch has deprecated; none of it is the user's to mend
        warnings.filterwarnings("ignore", module=r"(deepspeed|torch)\..*")
    try:
        import deepspeed
    except ImportError as error:
        raise MissingExtra("deepspeed", "train", "training") from error
    if not verbose:
        logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    if device == "cpu":
        # `import deepspeed.comm.torch as x` would give the real torch: the package's name is shadowed
        sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None  # type: ignore[attr-defined]
    return deepspeed


def settle() -> None:
    """Hide what stands after the first step from Python's garbage collector, until `leave`.

    Model, engine, optimizer and all imported modules stay to the end. Looking through them for garbage is
    what the collector's oldest generation does, a quarter of a second each time, in a step that then lasts
    so much longer.
    """
    gc.collect()
    gc.freeze()


def leave(engine: Any) -> None:
    """Give back what an engine holds, so that this process can build another."""
    from deepspeed.utils import groups

    gc.unfreeze()
    engine.destroy()
    # hpZ's group outlives its engine, and the next zero.Init refuses to make it again (utils/groups.py:938)
    groups._ZERO_PARAM_INTRA_PARALLEL_GROUP = None
