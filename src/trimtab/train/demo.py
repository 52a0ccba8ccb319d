"""The demonstration: a small GPT learns the Python that came with this interpreter, on two CPU ranks or the
GPUs.
"""

from __future__ import annotations

import json
import sysconfig
from pathlib import Path
from typing import Any

from trimtab.errors import DataError, UsageError
from trimtab.train.folder import RunFolder
from trimtab.train.settings import Settings

PACKAGES = ("asyncio", "collections", "concurrent", "email", "html", "http", "importlib", "json", "logging",
            "multiprocessing", "unittest", "urllib", "xml")  # fmt: skip
"""Packages of the standard library whose source is read beside the single modules."""
STEPS = 280
VOCABULARY = 4096
SEQUENCE_LENGTH = 128
MODEL = {
    "model_type": "gpt2", "n_layer": 6, "n_embd": 256, "n_head": 4, "n_positions": SEQUENCE_LENGTH,
    "vocab_size": VOCABULARY, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
    "bos_token_id": 0,
    "eos_token_id": 0,
}  # fmt: skip
PROMPT = "def read_text(path):\n"


def demo_config(model: Path) -> dict[str, Any]:
    """The demo's configuration file, for the model config at ``model``."""
    return {
        "train_micro_batch_size_per_gpu": 4,
        "gradient_accumulation_steps": 1,
        "zero_optimization": {"stage": 2},
        # torch's own AdamW: DeepSpeed's fused one must be compiled, which needs the CUDA toolkit
        "optimizer": {
            "type": "AdamW",
            "params": {"lr": 1e-3, "betas": [0.9, 0.95], "weight_decay": 0.1, "torch_adam": True},
        },
        "scheduler": {
            "type": "WarmupCosineLR",
            "params": {"total_num_steps": STEPS, "warmup_num_steps": 30, "warmup_type": "linear"},
        },
        "gradient_clipping": 1.0,
        "trimtab": {"model": str(model), "task": "causal-lm", "sequence_length": SEQUENCE_LENGTH},
    }


def standard_library() -> tuple[str, ...]:
    """Sources of the standard library of this interpreter: globs of its modules and of some packages.

    Raises:
        DataError: this Python came without its sources.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    found = [str(root / "*.py")] if any(root.glob("*.py")) else []
    found += [str(root / name / "*.py") for name in PACKAGES if any((root / name).glob("*.py"))]
    if not found:
        raise DataError(
            f"{root}: this Python came without its standard library's sources; use `trimtab train --data`"
        )
    return tuple(found)


def demo_settings(run: Path, *, device: str, steps: int = STEPS) -> Settings:
    """The demo's settings; writes its configuration and model files beside the run's folder.

    The files lie in ``<run>-files`` so that the demo's run can be started again by `trimtab train`.

    Raises:
        UsageError: the folder holds a run that is no demo's, which a demo does not replace.
    """
    files = run.with_name(f"{run.name}-files")
    model, config = files / "gpt.json", files / "demo.json"
    folder = RunFolder(run)
    if folder.exists() and Path(Settings.load(folder.settings).config).parts[-2:] != config.parts[-2:]:
        raise UsageError(f"{run} holds another run, which a demo does not replace: give --run DIR")
    files.mkdir(parents=True, exist_ok=True)
    model.write_text(json.dumps(MODEL, indent=2) + "\n", encoding="utf-8")
    config.write_text(json.dumps(demo_config(model), indent=2) + "\n", encoding="utf-8")
    return Settings(
        config=str(config),
        data=standard_library(),
        run=str(run),
        steps=steps,
        device=device,
        prompt=PROMPT,
        keep=1,
        overwrite=True,
    )
