"""Optimizer states and parameters on the host's memory or on NVMe, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trimtab.cluster import Cluster
from trimtab.config import Config
from trimtab.model import Model
from trimtab.moves.batch import stated_micro_batch
from trimtab.moves.move import Move, choice, moved, single
from trimtab.moves.writing import (
    data_parallel,
    global_batch,
    optimizer_runs_on_host,
    with_zero,
    without_unread,
    zero_block,
)
from trimtab.parameters import parameters

NVME_PATH = "/local_nvme"
"""Where the drive is taken to be mounted where the file names no folder."""
DEVICES = ("none", "cpu", "nvme")
PARAM_BUFFER_ELEMENTS = 100_000_000  # runtime/zero/offload_config.py:37
_TITLES = {"none": "on the GPU", "cpu": "in the host's memory", "nvme": "on NVMe"}


def offload_optimizer(device: str) -> Move:
    """Optimizer states, master weights and gradients on ``cpu``, ``nvme`` or (``none``) the GPU."""

    def refuses(config: Config, model: Model, cluster: Cluster) -> str | None:
        if device == "none":
            if "zenflow" in zero_block(config):
                return "zenflow needs the optimizer on the host"
            wide = config.precision == "bf16" and config.gradient_bytes != config.parameter_bytes
            if config.stage == 1 and wide:
                return "at stage 1 gradients summed in fp32 would stay whole on every GPU"
            if config.get("fp16.fp16_master_weights_and_grads"):
                return "fp16 master weights need the optimizer on the host (runtime/base_optimizer.py:520)"
            halves = config.get("bf16.bf16_master_weights_and_grads")
            if halves and not config.get("bf16.bf16_optimizer_states"):
                return "bf16 master weights need the optimizer on the host, or bf16_optimizer_states"
            return None
        if config.stage == 0:
            return "stage 0 does not offload: its first step fails (ops/adam/cpu_adam.py:148)"
        if device == "nvme":
            if config.stage < 3:
                return f"stage {config.stage} silently uses host memory instead (stage_1_and_2.py:220)"
            if not cluster.nvme_bytes:
                return "the nodes have no local NVMe"
            if "zenflow" in zero_block(config):
                return "zenflow needs the optimizer in the host's memory"
        elif config.get("bf16.bf16_optimizer_states") and not config.get(
            "bf16.bf16_master_weights_and_grads"
        ):
            return "bf16_optimizer_states needs bf16_master_weights_and_grads"
        if config.get("compile.deepcompile") and config.get("compile.offload_opt_states"):
            return "DeepCompile offloads the optimizer already (compile/init_z3.py:93)"
        halves = ("bf16.bf16_master_weights_and_grads", "fp16.fp16_master_weights_and_grads")
        if any(config.get(key) for key in halves) and config.optimizer_type not in ("adam", "adamw"):
            return "half-precision master weights on the host need Adam (runtime/base_optimizer.py:510)"
        return optimizer_runs_on_host(config)

    def apply(config: Config, cluster: Cluster) -> Config:
        if config.offload_optimizer == device:
            return config
        return with_zero(
            config, {"cpu_offload": None, "offload_optimizer": _block(config, "optimizer", device)}
        )

    return moved(
        "offload-optimizer",
        device,
        title=f"Optimizer {_TITLES[device]}",
        saves={
            "none": "host memory and the copies of every step",
            "cpu": "GPU memory: 12 bytes a parameter of fp32 states, and the gradients' shard",
            "nvme": "host memory too: the states stream through a few buffers",
        }[device],
        costs={
            "none": "GPU memory: 12 bytes a parameter over all ranks",
            "cpu": "16 to 20 bytes a parameter of host memory, and a step on the CPU's cores",
            "nvme": "reading and writing 24 bytes a parameter every step",
        }[device],
        needs={
            "none": "nothing",
            "cpu": "ZeRO stage 1 to 3, an optimizer with a CPU version",
            "nvme": "ZeRO stage 3, local NVMe, libaio",
        }[device],
        source="Ren et al. 2021 (ZeRO-Offload), Rajbhandari et al. 2021 (ZeRO-Infinity); "
        "runtime/zero/offload_config.py:55-113",
        refuses=refuses,
        apply=apply,
    )


def offload_param(device: str) -> Move:
    """The sharded parameters on ``cpu``, ``nvme`` or (``none``) the GPU."""

    def refuses(config: Config, model: Model, cluster: Cluster) -> str | None:
        if device == "none":
            return None
        if config.stage != 3:
            return (
                f"only stage 3 offloads parameters; stage {config.stage} ignores the block (engine.py:2773)"
            )
        if device == "nvme":
            if not cluster.nvme_bytes:
                return "the nodes have no local NVMe"
            largest = max(one.numel for one in parameters(model, config.job.task, config.job.lora))
            shard = -(-largest // max(1, cluster.world_size))
            buffer = config.get("zero_optimization.offload_param.buffer_size", PARAM_BUFFER_ELEMENTS)
            if shard > buffer:
                return (
                    f"the largest parameter's shard has {shard:,} elements, more than buffer_size {buffer:,} "
                    "(runtime/swap_tensor/partitioned_param_swapper.py:357)"
                )
        return None

    def apply(config: Config, cluster: Cluster) -> Config:
        if config.offload_param == device:
            return config
        changes: dict[str, Any] = {"cpu_offload_param": None}
        if device == "nvme":  # weights that are kept for the backward pass each hold one of a few buffers
            changes["stage3_max_reuse_distance"] = 0
        return with_zero(config, {**changes, "offload_param": _block(config, "param", device)})

    return moved(
        "offload-param",
        device,
        title=f"Parameters {_TITLES[device]}",
        saves={
            "none": "host memory, and two copies of all parameters in every micro step",
            "cpu": "GPU memory: 2 bytes a parameter over all ranks",
            "nvme": "host memory too: shards stream through pinned buffers, none is kept for a second use",
        }[device],
        costs={
            "none": "GPU memory: 2 bytes a parameter over all ranks",
            "cpu": "2 bytes a parameter of pinned host memory, copied twice in every micro step",
            "nvme": "two reads of all parameters in every micro step",
        }[device],
        needs={
            "none": "nothing",
            "cpu": "ZeRO stage 3",
            "nvme": "ZeRO stage 3, local NVMe, libaio",
        }[device],
        source="Rajbhandari et al. 2021 (ZeRO-Infinity), section 5; runtime/zero/offload_config.py:21-52",
        refuses=refuses,
        apply=apply,
    )


def _block(config: Config, what: str, device: str) -> dict[str, Any] | None:
    """The offload block for ``device``: what the file says of it stays as far as it still has a meaning."""
    if device == "none":
        return None
    block = zero_block(config).get(f"offload_{what}")
    kept = dict(block) if isinstance(block, Mapping) else {}
    other = config.get(
        f"zero_optimization.offload_{'param' if what == 'optimizer' else 'optimizer'}.nvme_path"
    )
    path = kept.pop("nvme_path", None) or other or NVME_PATH
    kept = {
        key: value for key, value in kept.items() if key not in ("device", "pipeline_read", "pipeline_write")
    }
    place = {"device": "nvme", "nvme_path": path} if device == "nvme" else {"device": device}
    if device == "nvme":
        kept.pop("super_offload", None)
    return {**place, "pin_memory": True, **kept}


def _one_micro_step(config: Config, cluster: Cluster) -> int:
    """Samples of all ranks in one micro step."""
    micro = stated_micro_batch(config, cluster) or 0
    return micro * data_parallel(config, cluster)


def super_offload() -> Move:
    """SuperOffload: the host's optimizer works while the backward pass still runs."""

    def refuses(config: Config, model: Model, cluster: Cluster) -> str | None:
        if config.stage != 3 or config.offload_optimizer != "cpu":
            return "SuperOffload needs ZeRO stage 3 with the optimizer on the host (runtime/engine.py:2749)"
        if cluster.gpu.vendor != "nvidia":
            return "SuperOffload is written for CUDA (superoffload_stage3.py:23)"
        if config.optimizer_type not in ("adam", "adamw"):
            return "SuperOffload runs Adam alone"
        return None

    return moved(
        "super-offload",
        None,
        title="SuperOffload",
        saves="waiting for the CPU's Adam, which starts on each bucket as it arrives",
        costs="a process of its own for the CPU's step; made for hosts behind a fast link such as GH200's",
        needs="ZeRO stage 3, the optimizer on the host, CUDA",
        source="Lian et al. 2025 (SuperOffload); runtime/superoffload/superoffload_stage3.py",
        counted=False,
        refuses=refuses,
        apply=lambda config, cluster: with_zero(
            config,
            {
                "offload_optimizer": {
                    **(zero_block(config).get("offload_optimizer") or {}),
                    "super_offload": True,
                }
            },
        ),
    )


def zenflow() -> Move:
    """ZenFlow: the most important gradients are stepped on the GPU, the rest later on the host."""

    def refuses(config: Config, model: Model, cluster: Cluster) -> str | None:
        if config.stage not in (1, 2, 3) or config.offload_optimizer != "cpu":
            return "ZenFlow needs ZeRO with the optimizer on the host (zenflow_stage_1_and_2.py:76)"
        if config.optimizer_type not in ("adam", "adamw") or config.optimizer_params.get("torch_adam"):
            return "ZenFlow has a CPU version of Adam alone (runtime/engine.py:2386)"
        if config.get("gradient_allreduce_op") == "sum":
            return 'gradient_allreduce_op "sum" is refused with ZenFlow (runtime/config.py:694)'
        if (global_batch(config, cluster) or 0) != _one_micro_step(config, cluster):
            return (
                "ZenFlow puts its own intervals in the place of accumulation (runtime/zenflow/engine.py:69)"
            )
        if config.get("zero_optimization.offload_optimizer.super_offload"):
            return "SuperOffload and ZenFlow both replace the step on the host"
        return None

    return moved(
        "zenflow",
        None,
        title="ZenFlow with the top tenth of the gradients",
        saves="stalls of the GPU while the host steps",
        costs="most parameters are updated later than the gradients say: another training",
        needs="ZeRO stage 1 to 3, the optimizer on the host",
        source="Lan et al. 2025 (ZenFlow); runtime/zenflow/zenflow_config.py:12-72",
        effect="training",
        counted=False,
        refuses=refuses,
        apply=lambda config, cluster: with_zero(without_unread(config), {"zenflow": {"topk_ratio": 0.1}}),
    )


KINDS = (
    choice("offload-optimizer", "Where the optimizer lives", offload_optimizer, DEVICES),
    choice("offload-param", "Where the sharded parameters live", offload_param, DEVICES),
    single("super-offload", "Overlap of the host's step", super_offload),
    single("zenflow", "Offload without stalls", zenflow),
)
