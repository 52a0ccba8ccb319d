"""The real engine on the CPU as rank 0 of a fake world, for configurations that must build or must not.

Left out is what only a GPU or a compiler has: DeepSpeed's fused and CPU optimizers (Adam is torch's here),
Lamb, Lion and Muon, quantized communication, NVMe with a path, ZenFlow and SuperOffload that would build.
"""

from __future__ import annotations

import contextlib
import copy
import gc
import logging
import os
import random
import sys
from collections.abc import Iterator
from typing import Any

Config = dict[str, Any]
WORLD = 8


LTD: Config = {
    "enabled": True,
    "total_layer_num": 2,
    "random_ltd_layer_num": 1,
    "random_ltd_schedule": {
        "min_value": 16,
        "max_value": 64,
        "schedule_type": "fixed_linear",
        "schedule_config": {"require_steps": 10, "seq_per_step": 8},
    },
}


def base(chance: random.Random) -> Config:
    """A small configuration that builds, of any stage and format."""
    stage = chance.choice((0, 1, 2, 3))
    config: Config = {
        "train_micro_batch_size_per_gpu": chance.choice((1, 2)),
        "zero_optimization": {"stage": stage},
        "optimizer": {"type": chance.choice(("AdamW", "Adam")), "params": {"lr": 1e-3, "torch_adam": True}},
    }
    if chance.random() < 0.6:
        config["bf16"] = {"enabled": True}
    if chance.random() < 0.3:
        config["gradient_accumulation_steps"] = chance.choice((1, 4))
    return config


def changes() -> dict[str, tuple[Any, ...]]:
    """Dotted paths with the values that they may get; None removes the key."""
    return {
        "optimizer.type": ("SGD", "sgd", "Adafactor", "RAdam", "OneBitAdam", "OneBitLamb", "Adamw",
        "AdamX", None, 5),
        "optimizer.params.lr": (1e-4, None),
        "optimizer.params.learning_rate": (1e-3,),
        "optimizer.params.max_grad_norm": (1.0,),
        "optimizer.params.amsgrad": (True, False),
        "optimizer.params.scale_parameter": (True,),
        "optimizer.params.freeze_step": (10,),
        "optimizer": (None, {"params": {"lr": 1e-3}}, {"type": "SGD", "params": {"lr": 0.1}}),
        "zero_allow_untested_optimizer": (True, False),
        "scheduler": (
            {"type": "WarmupLR"},
            {"type": "WarmupLR", "params": {}},
            {"type": "WarmupLR", "params": {"warmup_steps": 10}},
            {"type": "WarmupLR", "params": {"warmup_num_steps": 0}},
            {"type": "WarmupLR", "params": {"warmup_num_steps": 10.0}},
            {"type": "WarmupDecayLR", "params": {"warmup_num_steps": 10}},
            {"type": "WarmupDecayLR", "params": {"total_num_steps": "100"}},
            {"type": "WarmupDecayLR", "params": {"total_num_steps": 100, "warmup_num_steps": 10}},
            {"type": "WarmupCosineLR", "params": {"total_num_steps": 100}},
            {"type": "inverse_sqrt", "params": {}},
            {"type": "StepLR", "params": {}},
            {"type": "StepLR", "params": {"step_size": 10}},
            {"type": "CosineAnnealingLR", "params": {"T_max": 10}},
            {"type": "LambdaLR", "params": {}},
            {"type": "OneCycle", "params": {"cycle_min_lr": 1e-5, "cycle_max_lr": 1e-3}},
            {"type": "OneCycle", "params": {"cycle_min_lr": 1e-5}},
            {"type": "LRRangeTest", "params": {"lr_range_test_step_size": 0}},
            {"params": {"warmup_num_steps": 10}},
        ),
        "zero_optimization.stage": (0, 1, 2, 3),
        "zero_optimization.overlap_comm": (True, False),
        "zero_optimization.reduce_scatter": (True, False),
        "zero_optimization.contiguous_gradients": (True, False),
        "zero_optimization.legacy_stage1": (True, False),
        "zero_optimization.allgather_bucket_size": (1000, 1001),
        "zero_optimization.compute_grad_norm": (True, False),
        "zero_optimization.offload_optimizer": (
            {"device": "cpu"}, {"device": "none"}, {"device": "nvme"}, {"device": "cpu", "ratio": 0.5},
        ),
        "zero_optimization.offload_param": ({"device": "cpu"}, {"device": "none"}, {"device": "nvme"}),
        "zero_optimization.zero_hpz_partition_size": (1, 2, 3, 8),
        "zero_optimization.round_robin_gradients": (True,),
        "prescale_gradients": (True, False),
        "gradient_predivide_factor": (2.0, 1.0),
        "gradient_clipping": (0.0, 1.0),
        "gradient_allreduce_op": ("sum", "mean"),
        "managed_gradient_accumulation": (True, False),
        "communication_data_type": ("fp32", "bf16", "none"),
        "bf16": ({"enabled": True}, {"enabled": True, "bf16_master_weights_and_grads": True},
                 {"enabled": True, "bf16_master_weights_and_grads": True, "bf16_optimizer_states": True},
                 {"enabled": True, "bf16_optimizer_states": True}),
        "data_types.grad_accum_dtype": ("fp32", "bf16", "fp16", "float"),
        "data_types.param_dtype": ("fp32", "bf16"),
        "log_level": ("info", "loud"),
        "train_batch_size": (8, 16, 7),
        "torch_autocast": (
            {"enabled": True, "dtype": "bfloat16"},
            {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": ["Linear"]},
            {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": ["torch.nn.Linear"]},
        ),
        "sequence_parallel_size": (1, 2, 3, 16),
        "data_efficiency.data_routing.random_ltd": (
            {"enabled": False}, {"enabled": True}, LTD, {**LTD, "layer_token_lr_schedule": {"enabled": True}},
            {**LTD, "random_ltd_schedule": {"min_value": 16}},
        ),
        "expert_parallel": (
            {"enabled": True}, {"enabled": True, "autoep_size": 4}, {"enabled": True, "autoep_size": 3},
            {"enabled": False, "autoep_size": 3, "score_func": "x"},
            {"enabled": True, "expert_tensor_parallel_size": 2}, {"enabled": True, "preset_model": "x"},
            {"enabled": True, "gate_up_impl": "fused", "use_grouped_mm": False},
            {"enabled": True, "comm_backend": "deepep"}, {"enabled": True, "row_weighting_impl": "fused"},
        ),
        "optimizer.params.foreach": (True, False),
        "optimizer.params.fused": (True,),
        "optimizer.params.bias_correction": (True,),
        "optimizer.params.nesterov": (True,),
        "scheduler.params.warmup_max_lr": ("1e-3", 1e-3),
        "scheduler.params.last_batch_iteration": (-1,),
        "gradient_cliping": (1.0,),
        "amp": ({"enabled": False},),
    }  # fmt: skip


def configurations(count: int, *, seed: int) -> Iterator[Config]:
    """``count`` small configurations with one to three changes each."""
    chance = random.Random(seed)
    table = changes()
    for _ in range(count):
        config = base(chance)
        for path in chance.sample(list(table), chance.choice((1, 1, 2, 2, 3))):
            set_value(config, path, chance.choice(table[path]))
        yield config


def set_value(config: Config, path: str, value: Any) -> None:
    *above, last = path.split(".")
    place: Any = config
    for part in above:
        if not isinstance(place.get(part), dict):
            place[part] = {}
        place = place[part]
    if value is None:
        place.pop(last, None)
    else:
        place[last] = copy.deepcopy(value)


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Without what DeepSpeed prints and logs, whatever level a configuration asks for."""
    log = logging.getLogger("DeepSpeed")
    handlers, log.handlers = log.handlers, [logging.NullHandler()]
    with (
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        try:
            yield
        finally:
            log.handlers = handlers
            log.setLevel(logging.CRITICAL)


class Builder:
    """``deepspeed.initialize`` on a model of two layers, as rank 0 of a fake world of eight."""

    def __init__(self) -> None:
        os.environ |= {"DS_ACCELERATOR": "cpu", "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": str(WORLD),
                       "LOCAL_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511"}  # fmt: skip
        import deepspeed
        import torch
        from torch.testing._internal.distributed.fake_pg import FakeStore

        logging.getLogger("DeepSpeed").setLevel(logging.CRITICAL)
        # the shared-memory op would wait for seven peers; the name leads to torch, so not by `import`
        sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None  # type: ignore[attr-defined]
        torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=WORLD)
        self.deepspeed, self.torch = deepspeed, torch

    def refusal(self, config: Config) -> str | None:
        """The error with which the engine is not built; None where it is."""
        torch = self.torch
        model = torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
        engine = None
        try:
            with silent():
                engine = self.deepspeed.initialize(
                    model=model,
                    model_parameters=list(model.parameters()),
                    config=copy.deepcopy(config),
                    dist_init_required=False,
                )[0]
        except Exception as error:  # noqa: BLE001 - whatever the engine raises is its verdict
            return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        finally:
            if engine is not None:
                engine.destroy()
            del engine, model
            gc.collect()
        return None
