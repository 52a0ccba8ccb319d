"""The trained model handed back as a Hugging Face folder, gathered from its shards."""

from __future__ import annotations

import secrets
import shutil
from pathlib import Path
from typing import Any

from trimtab.config import Config
from trimtab.train.ranks import Ranks


def export_model(engine: Any, tokenizer: Any, folder: Path, ranks: Ranks, *, config: Config) -> None:
    """Write the model to ``folder`` as ``from_pretrained`` loads it (LoRA: peft's adapter folder); all ranks
    call it.

    Weights that are spread, at stage 3 or by tensor parallelism, are gathered module by module onto rank 0's
    host memory.
    """
    module = engine.module
    weights = None
    if config.stage == 3:
        adapter = config.job.lora is not None
        weights = engine._zero3_consolidated_16bit_state_dict(exclude_frozen_parameters=adapter)
    elif config.tensor_parallel > 1:
        weights = engine._replace_module_consolidated_state_dict()
        firsts: dict[int, str] = {}  # tied weights come as copies, which would be written twice
        for name, parameter in module.named_parameters(remove_duplicate=False) if ranks.first else ():
            weights[name] = weights[firsts.setdefault(id(parameter), name)]
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
