"""What other memory estimators say of jobs, in the environment where they are installed (see rivals.py).

Reads a JSON list of measured rows from standard input and writes a JSON object to standard output: the
versions, and for each row's id each tool's answer, ``{"bytes": n}`` or ``{"cannot": "what it has no word
for"}``.  Every tool gets all it can take.  This file runs in an environment of its own and imports nothing
of the project.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch
import transformers
from accelerate import init_empty_weights
from accelerate.commands.estimate import estimate_training_usage
from accelerate.utils import calculate_maximum_sizes
from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs
from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs
from ftuneai.core.memory import CUDA_OVERHEAD_FRACTION, MemoryEstimator
from ftuneai.core.models import (
    FineTuneMethod,
    LoRATarget,
    ModelSpec,
    OptimizerType,
    ShardingStrategy,
    TrainingConfig,
)
from llm_analysis.analysis import ActivationRecomputation, DSZeRO, LLMAnalysis
from llm_analysis.config import DtypeConfig, GPUConfig, ModelConfig, ParallelismConfig

GIB = 2**30
HEADS = {
    "causal": "AutoModelForCausalLM",
    "mlm": "AutoModelForMaskedLM",
    "cls": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "question-answering": "AutoModelForQuestionAnswering",
    "seq2seq": "AutoModelForSeq2SeqLM",
}
GATED = {"llama", "mistral", "qwen2", "qwen3", "gemma"}
"""Families with three matrices in the feed-forward part."""
LORA = {
    frozenset({"q_proj", "v_proj"}): LoRATarget.ATTENTION,
    frozenset({"q_proj", "k_proj", "v_proj", "o_proj"}): LoRATarget.ATTENTION_ALL,
    frozenset(
        {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    ): LoRATarget.ALL_LINEAR,
}


class Cannot(Exception):
    """The tool has no word for a part of the job."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A measured row, as the tools ask for it."""

    row: dict[str, Any]
    stage: int
    optimizer: str
    offload_optimizer: bool
    offload_param: bool
    wide: bool
    """fp32 throughout."""

    @classmethod
    def of(cls, row: dict[str, Any]) -> Job:
        """The job of a row of bench/data."""
        file = row["deepspeed_config"]
        zero = file.get("zero_optimization", {})
        return cls(
            row=row,
            stage=zero.get("stage", 0),
            optimizer=file["optimizer"]["type"].lower(),
            offload_optimizer="offload_optimizer" in zero,
            offload_param="offload_param" in zero,
            wide=not any(file.get(name, {}).get("enabled") for name in ("bf16", "fp16")),
        )

    @property
    def zero(self) -> dict[str, Any]:
        """The file's ``zero_optimization``."""
        found: dict[str, Any] = self.row["deepspeed_config"].get("zero_optimization", {})
        return found

    def without(self, *parts: str) -> None:
        """Raises `Cannot` if the job has one of ``parts``."""
        has = {
            "LoRA": bool(self.row.get("lora")),
            "offload": self.offload_optimizer or self.offload_param,
            "fp32": self.wide,
            "encoder with decoder": self.row["arch"] == "seq2seq",
            "optimizers other than Adam": self.optimizer not in ("adam", "adamw"),
            "Lion": self.optimizer == "lion",
            "ZeRO++": any(name.startswith(("zero_hpz", "zero_quantized")) for name in self.zero),
            "fused kernels": self.row.get("kernels") == "fused",
            "sharding over GPUs": self.stage > 0 and self.row["world"] > 1,
            "ZeRO stages 0 and 1": self.stage < 2,
            "parameters alone on the host": self.offload_param and not self.offload_optimizer,
        }
        for part in parts:
            if has[part]:
                raise Cannot(part)


@functools.cache
def _hf(text: str) -> Any:
    raw = json.loads(text)
    return transformers.AutoConfig.for_model(raw.pop("model_type"), **raw)


@functools.cache
def _sizes(text: str, arch: str) -> tuple[int, int]:
    """(accelerate's bytes of the fp32 model, DeepSpeed's largest layer in parameters)."""
    with init_empty_weights():
        model = getattr(transformers, HEADS[arch]).from_config(_hf(text), dtype=torch.float32)
    # the rule of deepspeed/runtime/zero/stage3.py model_to_params, which wants a model with storage
    layers = (sum(p.numel() for p in m.parameters(recurse=False)) for m in model.modules())
    return calculate_maximum_sizes(model)[0], max(layers)


def _shape(job: Job) -> dict[str, Any]:
    """Names and numbers of the model that the calculators ask for."""
    hf = _hf(json.dumps(job.row["hf"]))
    heads = hf.num_attention_heads
    return {
        "layers": hf.num_hidden_layers,
        "hidden": hf.hidden_size,
        "heads": heads,
        "kv": getattr(hf, "num_key_value_heads", None) or heads,
        "inner": next(
            (v for n in ("intermediate_size", "n_inner", "ffn_dim") if (v := getattr(hf, n, None))),
            4 * hf.hidden_size,
        ),
        "words": hf.vocab_size,
        "gated": hf.model_type in GATED,
        "rms": hasattr(hf, "rms_norm_eps"),
        "drops": any(
            getattr(hf, n, 0) for n in ("attn_pdrop", "attention_probs_dropout_prob", "attention_dropout")
        ),
    }


def deepspeed(job: Job) -> int:
    """DeepSpeed's own estimators: model states of ZeRO-2 and ZeRO-3, nothing else."""
    job.without("ZeRO stages 0 and 1", "LoRA", "fp32", "optimizers other than Adam", "ZeRO++")
    job.without("parameters alone on the host", "fused kernels")
    row = job.row
    if job.stage == 2:
        return estimate_zero2_model_states_mem_needs(
            row["parameters"], num_gpus_per_node=row["world"], cpu_offload=job.offload_optimizer
        )[1]
    return estimate_zero3_model_states_mem_needs(
        row["parameters"],
        _sizes(json.dumps(row["hf"]), row["arch"])[1],
        num_gpus_per_node=row["world"],
        cpu_offload=job.offload_optimizer,
        cpu_offload_params=job.offload_param,
    )[1]


def accelerate(job: Job) -> int:
    """``accelerate estimate-memory``: its column "Training using Adam"."""
    job.without("sharding over GPUs", "offload", "LoRA", "optimizers other than Adam", "fused kernels")
    size = _sizes(json.dumps(job.row["hf"]), job.row["arch"])[0]
    return int(max(estimate_training_usage(size, "float32" if job.wide else "float16").values()))


def llm_analysis(job: Job) -> int:
    """``LLMAnalysis.training``: weights, gradients, optimizer states and activations."""
    job.without("LoRA", "offload", "encoder with decoder", "fp32", "ZeRO++", "fused kernels")
    row, shape = job.row, _shape(job)
    # it knows two matrices in the feed-forward part and has a gated one as 1.5 times as wide: its LLaMA 2 7B
    # has ffn_embed_dim 16384 where the model has three of 11008
    inner = shape["inner"] * 3 // 2 if shape["gated"] else shape["inner"]
    analysis = LLMAnalysis(
        ModelConfig(
            name=row["id"],
            num_layers=shape["layers"],
            n_head=shape["heads"],
            hidden_dim=shape["hidden"],
            vocab_size=shape["words"],
            max_seq_len=row["seq"],
            num_key_value_heads=shape["kv"],
            ffn_embed_dim=inner,
            expansion_ratio=inner / shape["hidden"],
        ),
        # so large that it never refuses: what is asked is how much is needed
        GPUConfig("any", 1e9, 4800, 450, 1e-5, 989),
        DtypeConfig("w16a16e16", 16, 16, 16),
        ParallelismConfig(dp_size=row["world"]),
    )
    answer = analysis.training(
        batch_size_per_gpu=row["mbs"],
        gradient_accumulation_steps=row["gas"],
        seq_len=row["seq"],
        activation_recomputation=ActivationRecomputation.FULL
        if row["checkpointing"]
        else ActivationRecomputation.NONE,
        ds_zero=DSZeRO(job.stage),
        layernorm_dtype_bytes=4 if shape["rms"] else 2,
        other_op_bytes=8 if job.optimizer.startswith("adam") else 4,
        flash_attn=row["attention"] != "eager",
        softmax_dropout=row["attention"] == "eager" and shape["drops"],
        mlp_gated_linear_units=shape["gated"],
    )
    return int(answer["(weight+op_state+grad+act)_memory_per_gpu"])


def ftune(job: Job, overhead: bool) -> int:
    """ftune's memory estimate, with or without its fifth for context and fragmentation."""
    job.without("offload", "encoder with decoder", "fp32", "Lion", "ZeRO++", "fused kernels")
    row, shape, lora = job.row, _shape(job), job.row.get("lora")
    config = TrainingConfig(
        method=FineTuneMethod.LORA if lora else FineTuneMethod.FULL,
        batch_size=row["mbs"],
        seq_length=row["seq"],
        gradient_checkpointing=row["checkpointing"],
        optimizer=OptimizerType(job.optimizer),
        flash_attention=row["attention"] != "eager",
        sharding=ShardingStrategy(f"zero_{job.stage}" if job.stage else "none"),
        num_gpus=row["world"],
    )
    if lora:
        config.lora_rank, config.lora_target = lora["r"], LORA[frozenset(lora["target_modules"])]
    spec = ModelSpec(
        name=row["id"],
        parameters=row["parameters"],
        hidden_size=shape["hidden"],
        num_layers=shape["layers"],
        num_attention_heads=shape["heads"],
        num_kv_heads=shape["kv"],
        intermediate_size=shape["inner"],
        vocab_size=shape["words"],
        max_seq_length=row["seq"],
    )
    total = MemoryEstimator(spec, config).estimate().total_gb * GIB
    return int(total if overhead else total / (1 + CUDA_OVERHEAD_FRACTION))


def cookbook(job: Job, always_recomputed: bool = False, wide: bool = False) -> int:
    """EleutherAI's calculator, by its formula (EleutherAI/cookbook, calc/calc_transformer_mem.py at 069ae2e).

    https://github.com/EleutherAI/cookbook/blob/069ae2ef9f69f8fb3f1413272015ccb59f3d4a6c/calc/calc_transformer_mem.py
    The buffers are no larger than the model, which the calculator itself does not see to.  Its formula for
    recomputation, 34 bytes a token, layer and hidden unit, is the one for attention that keeps no scores:
    ``always_recomputed`` takes it for fused attention too, for which it has no other word.  ``wide`` leaves
    gradients in fp32, as the calculator does unless told.
    """
    job.without("LoRA", "offload", "encoder with decoder", "optimizers other than Adam", "ZeRO++")
    job.without("fused kernels")
    row, shape, stage, world = job.row, _shape(job), job.stage, job.row["world"]
    hidden, layers, low = shape["hidden"], shape["layers"], 4 if job.wide else 2
    params = (
        2 * shape["words"] * hidden
        + hidden * row["seq"]
        + 8 * hidden * layers
        + 2 * hidden
        + int(2 * (1 + shape["kv"] / shape["heads"]) * layers * hidden**2)
        + (3 if shape["gated"] else 2) * layers * hidden * shape["inner"]
    )
    wide = wide or job.row["deepspeed_config"].get("data_types", {}).get("grad_accum_dtype") == "fp32"
    model = params * low / (world if stage == 3 else 1)
    gradients = params * (4 if wide else low) / (world if stage >= 2 else 1)
    states = params * 12 / (world if stage >= 1 else 1)
    buffers = 0.0
    if stage >= 1 and world > 1:
        buffers += low * min(params, job.zero.get("allgather_bucket_size", 5e8))
    if stage == 3 and world > 1:
        buffers += low * min(params, job.zero.get("stage3_max_live_parameters", 1e9))
    unit = 16 * low + 2
    scores = (2 * low + 1) * shape["heads"] * row["seq"] / hidden
    fused = always_recomputed and row["attention"] != "eager"
    activations = row["seq"] * row["mbs"] * hidden * layers * unit
    if not (row["checkpointing"] or fused):
        activations += row["seq"] * row["mbs"] * hidden * layers * scores
    return int(model + gradients + states + buffers + activations)


TOOLS: dict[str, Callable[[Job], int]] = {
    "deepspeed": deepspeed,
    "accelerate": accelerate,
    "llm-analysis": llm_analysis,
    "cookbook": cookbook,
    "cookbook-wide": functools.partial(cookbook, wide=True),
    "cookbook-fused": functools.partial(cookbook, always_recomputed=True),
    "ftuneai": functools.partial(ftune, overhead=True),
    "ftuneai-tensors": functools.partial(ftune, overhead=False),
}


def main() -> int:
    """Ask every tool about every row."""
    logging.disable(logging.WARNING)
    rows = json.load(sys.stdin)
    answers: dict[str, dict[str, Any]] = {}
    with contextlib.redirect_stdout(sys.stderr):
        for row in rows:
            said = answers[row["id"]] = {}
            for name, tool in TOOLS.items():
                try:
                    said[name] = {"bytes": tool(Job.of(row))}
                except Cannot as part:
                    said[name] = {"cannot": str(part)}
    packages = ("deepspeed", "accelerate", "llm-analysis", "ftuneai", "transformers")
    json.dump({"versions": {name: version(name) for name in packages}, "answers": answers}, sys.stdout)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
