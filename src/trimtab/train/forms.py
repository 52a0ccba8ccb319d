"""The forms that a configuration takes for the machine at hand: its CPU form, and its batch on another world.

Each change is said: nothing is swapped in silence.
"""

from __future__ import annotations

import shutil
import sysconfig
from pathlib import Path
from typing import Any

from trimtab.config import Config
from trimtab.errors import RefusedConfig, Unsupported

LAMB_ONLY = ("max_coeff", "min_coeff", "eps_inside_sqrt", "bias_correction")
CUDA_ONLY_ZERO_KEYS = (
    "zero_quantized_weights",
    "zero_quantized_gradients",
    "zero_quantized_nontrainable_weights",
)
BF16_CAPABILITY = (8, 0)
"""The first CUDA compute capability with bf16 arithmetic (Ampere)."""


def cpu_form(config: Config, *, compilers: bool | None = None) -> tuple[Config, tuple[str, ...]]:
    """The nearest form of ``config`` that runs on a CPU with gloo, and what was changed and why.

    ``compilers`` says whether DeepSpeed can compile its CPU operators here; None looks for g++, ninja and
    Python's headers.
    """
    can_compile = compilers_present() if compilers is None else compilers
    changes: dict[str, Any] = {}
    notes: list[str] = []

    def change(key: str, value: Any, why: str) -> None:
        changes[key] = value
        notes.append(f"on the CPU: {why}")

    offloaded = config.offload_optimizer != "none"
    kind = config.optimizer_type
    if kind in ("adam", "adamw") and not config.get("optimizer.params.torch_adam", False):
        if not offloaded:
            change("optimizer.params.torch_adam", True, "torch.optim.AdamW instead of the fused CUDA AdamW")
        elif not can_compile:
            change(
                "optimizer.params.torch_adam",
                True,
                "torch.optim.AdamW instead of DeepSpeedCPUAdam, which must be compiled (g++ and ninja)",
            )
    elif kind == "lamb" or (kind == "lion" and not (offloaded and can_compile)):
        change("optimizer.type", "AdamW", f"AdamW instead of {kind.capitalize()}, which has no CPU form here")
        changes["optimizer.params.torch_adam"] = True
        for key in LAMB_ONLY:
            if key in config.optimizer_params:
                changes[f"optimizer.params.{key}"] = None
    if config.precision == "fp16" and not cpu_has_fp16():
        change("fp16", None, "bf16 instead of fp16, which this CPU does not compute with")
        changes["bf16.enabled"] = True
    for block in ("offload_optimizer", "offload_param"):
        where = f"zero_optimization.{block}"
        if config.get(f"{where}.device") == "nvme":
            change(f"{where}.device", "cpu", f"{block} to memory instead of NVMe")
            changes[f"{where}.nvme_path"] = None
        if config.get(f"{where}.device", "none") != "none" and config.get(f"{where}.pin_memory", True):
            change(f"{where}.pin_memory", False, f"{block} without pinned memory, which only a GPU needs")
    if config.get("zero_optimization.offload_optimizer.super_offload"):
        change("zero_optimization.offload_optimizer.super_offload", None, "no SuperOffload, which needs CUDA")
    for key in CUDA_ONLY_ZERO_KEYS:
        if config.zero(key):
            change(f"zero_optimization.{key}", None, f"no {key}, whose quantizer is a CUDA operator")
    if config.get("compile.deepcompile"):
        change("compile", None, "no DeepCompile")
    if config.job.kernels == "fused":
        change("trimtab.kernels", "plain", "plain kernels instead of fused ones, which are CUDA's")
    if config.job.attention == "flash":
        change("trimtab.attention", "sdpa", "sdpa attention instead of flash-attn, which is CUDA's")
    return config.with_values(changes), tuple(notes)


def compilers_present() -> bool:
    """Whether DeepSpeed could compile a CPU operator here: a C++ compiler, ninja and Python's headers."""
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    return bool(shutil.which("g++") and shutil.which("ninja") and header.is_file())


def cpu_has_fp16() -> bool:
    """Whether this CPU computes in fp16, by DeepSpeed's own test (accelerator/cpu_accelerator.py:228-233)."""
    try:
        import torch

        return bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())
    except (ImportError, AttributeError, RuntimeError):
        return False


def check_gpu(config: Config, capability: tuple[int, int], name: str) -> None:
    """Refuse bf16 on a GPU without bf16 arithmetic.

    Raises:
        Unsupported: ``capability`` is below Ampere's; names the cure.
    """
    if config.precision == "bf16" and capability < BF16_CAPABILITY:
        raise Unsupported(
            f"{config.name} trains in bf16, which {name} (compute capability "
            f"{capability[0]}.{capability[1]}) does "
            "not compute with: it needs 8.0 or newer. Use fp16: --set bf16.enabled=false --set "
            "fp16.enabled=true"
        )


def check_world(config: Config, ranks: int, available: int) -> None:
    """Refuse more ranks than there are GPUs.

    Raises:
        RefusedConfig: ``ranks`` is above ``available``.
    """
    if ranks > available:
        raise RefusedConfig(
            f"--ranks {ranks}, but this machine has {available} GPUs; {config.name} was not started"
        )
