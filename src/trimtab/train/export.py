"""The trained model handed back as a Hugging Face folder, gathered from its shards."""

from __future__ import annotations

import secrets
import shutil
from pathlib import Path
from typing import Any

from trimtab.train.ranks import Ranks


def export_model(
    engine: Any, tokenizer: Any, folder: Path, ranks: Ranks, *, stage: int, adapter: bool
) -> None:
    """Write the model to ``folder`` as ``from_pretrained`` loads it (LoRA: peft's adapter folder); all ranks
    call it.

    At stage 3 the weights are gathered module by module onto rank 0's host memory.
    """
    module = engine.module
    weights = None
    if stage == 3:
        weights = engine._zero3_consolidated_16bit_state_dict(exclude_frozen_parameters=adapter)
    if ranks.first:
        partial = folder.with_name(f"{folder.name}.tmp-{secrets.token_hex(4)}")
        arguments = {} if weights is None else {"state_dict": weights}
        cache = getattr(module.config, "use_cache", None)
        if cache is not None:
            module.config.use_cache = True  # it was off for training alone
        module.save_pretrained(str(partial), **arguments)
        if cache is not None:
            module.config.use_cache = cache
        tokenizer.save_pretrained(str(partial))
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    ranks.wait()
