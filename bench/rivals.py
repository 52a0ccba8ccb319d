"""Other tools' predictions of peak GPU memory on the measured jobs, beside this one's.

    python bench/rivals.py --output bench/data/rivals.jsonl     every tool on every measured job
    python bench/rivals.py --summary                            the table of docs/rivals.md

Each tool is asked through its own code: DeepSpeed's estimators and accelerate's from those packages, ftune
(PyPI ``ftuneai`` 0.4.1) and llm-analysis (PyPI ``llm-analysis`` 0.2.2) wherever they can be imported.
EleutherAI's calculator is a script without a package, so its formula stands here.  A tool is asked only what
it has an input for; what it has none for, such as buckets or attention, it does not hear.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from measured_cases import Case, chosen, drawn
from trimtab.config import Config
from trimtab.cost.memory import profile
from trimtab.model import Model
from trimtab.parameters import parameters

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "bench" / "data"
GIB = 2**30
TASKS = {"causal": "causal-lm", "cls": "sequence-classification", "mlm": "masked-lm", "seq2seq": "seq2seq-lm"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One measured job: what ran, and the peak of ``memory_allocated`` in bytes."""

    id: str
    config: Config
    model: Model
    world: int
    measured: float

    @property
    def micro(self) -> int:
        """Samples of a micro step of one rank."""
        return self.config.batch(self.world).micro

    @property
    def whole(self) -> int:
        """Elements of all parameters, adapters left out."""
        return sum(one.numel for one in parameters(self.model, self.config.job.task))


def jobs() -> Iterator[Job]:
    """Every measured job that ran to its end."""
    cases = {case["id"]: case for case in (*chosen(), *drawn(24))}
    for row in _rows("h200_memory.jsonl"):
        case = cases[row["id"]]
        yield Job(
            id=row["id"],
            config=Config.from_mapping(case["config"]),
            model=Model.from_hf(case["hf"], row["id"]),
            world=case["world"],
            measured=row["gib"]["end"]["peak_alloc"] * GIB,
        )
    for row in (*_rows("h200_cases.jsonl"), *_rows("grid_x1.jsonl")):
        if row["ok"]:
            yield Job(
                id=row["id"],
                config=configured(row),
                model=Model.from_hf(row["hf"], row["id"]),
                world=row["world"],
                measured=row["gib"]["end"]["peak_alloc"] * GIB,
            )


def _rows(name: str) -> list[Case]:
    return [json.loads(line) for line in (DATA / name).read_text("utf-8").splitlines()]


def configured(row: Case) -> Config:
    """The configuration and job of a row that carries them."""
    block: Case = {
        "task": TASKS[row["arch"]],
        "sequence_length": row["seq"],
        "attention": row["attention"],
        "checkpoint_activations": row["checkpointing"],
    }
    if row["arch"] == "seq2seq":
        block["target_length"] = row["tgt"]
    if row["lora"]:
        names = ("r", "lora_alpha", "lora_dropout", "target_modules")
        block["lora"] = {key: row["lora"][key] for key in names if key in row["lora"]}
    raw = {
        **row["deepspeed_config"],
        "train_micro_batch_size_per_gpu": row["mbs"],
        "gradient_accumulation_steps": row["gas"],
        "trimtab": block,
    }
    return Config.from_mapping({key: value for key, value in raw.items() if key != "train_batch_size"})


# -- the tools: bytes, or None for a job that a tool has no words for ---------------------------------


def trimtab(job: Job) -> float | None:
    """What ``trimtab estimate`` prints as the peak."""
    found = profile(job.config, job.model, job.world, allocator=True, whole=False)
    return found.allocated_peak


def deepspeed_estimator(job: Job) -> float | None:
    """``estimate_zero{2,3}_model_states_mem_needs``: model states of 16-bit training with Adam."""
    from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs
    from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs

    config = job.config
    if config.precision == "fp32" or config.job.lora or not _is_adam(config):
        return None
    offload = config.offload_optimizer != "none"
    if config.stage == 2:
        return float(estimate_zero2_model_states_mem_needs(job.whole, job.world, 1, offload)[1])
    if config.stage != 3:
        return None
    found = estimate_zero3_model_states_mem_needs(
        job.whole, _largest_layer(job), job.world, 1, offload, config.offload_param != "none"
    )
    return float(found[1])


def accelerate_estimator(job: Job) -> float | None:
    """``accelerate estimate-memory``, its column "Training using Adam": one device, no sharding."""
    from accelerate.commands.estimate import estimate_training_usage

    if job.config.job.lora:
        return None
    kinds = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
    return float(max(estimate_training_usage(4 * job.whole, kinds[job.config.precision]).values()))


def cookbook(job: Job) -> float | None:
    """EleutherAI's calculator: the training formula of cookbook/calc/calc_transformer_mem.py, 069ae2e."""
    config, model = job.config, job.model
    if model.kind != "causal" or config.job.lora or _offloads(config):
        return None
    layers, hidden, length = model.layers, model.hidden_size, config.job.sequence_length
    ratio, linears = model.kv_heads / model.heads, 3 if model.gated_mlp else 2
    total = (
        2 * model.vocab_size * hidden
        + hidden * length
        + 8 * hidden * layers
        + 2 * hidden
        + int(2 * (1 + ratio) * layers * hidden * hidden)
        + linears * layers * hidden * model.intermediate_size
    )
    width = 4 if config.precision == "fp32" else 2
    ranks = job.world
    weights = total * width / (ranks if config.stage == 3 else 1)
    gradients = total * 4 / (ranks if config.stage >= 2 else 1)
    optimizer = total * 12 / (ranks if config.stage >= 1 else 1)
    communication = 0.0
    if config.stage >= 1 and ranks > 1:
        communication += int(config.get("zero_optimization.allgather_bucket_size", 5e8)) * width
    if config.stage == 3 and ranks > 1:
        communication += int(config.zero("stage3_max_live_parameters")) * width
    per_token = 16 * 2 + 2
    if not config.job.checkpoint_activations:
        per_token += (2 * 2 + 1) * model.heads * length / hidden
    activations = length * job.micro * hidden * layers * per_token
    return weights + gradients + optimizer + communication + activations


def ftune(job: Job) -> float | None:
    """ftune's ``MemoryEstimator``; its total holds 15 % of overhead."""
    from ftuneai.core.memory import MemoryEstimator
    from ftuneai.core.models import (
        FineTuneMethod,
        LoRATarget,
        ModelSpec,
        OptimizerType,
        Quantization,
        ShardingStrategy,
        TrainingConfig,
    )  # fmt: skip

    config, model = job.config, job.model
    if model.kind != "causal" or _offloads(config) or not _is_adam(config) or config.precision == "fp32":
        return None
    sharding = {2: "zero_2", 3: "zero_3"}.get(config.stage if job.world > 1 else 0)
    if sharding is None and config.stage and job.world > 1:
        return None
    lora = config.job.lora
    spec = ModelSpec(
        name=job.id, parameters=job.whole, hidden_size=model.hidden_size, num_layers=model.layers,
        num_attention_heads=model.heads, num_kv_heads=model.kv_heads, vocab_size=model.vocab_size,
        intermediate_size=model.intermediate_size, max_seq_length=max(1, model.max_positions),
    )  # fmt: skip
    asked = TrainingConfig(
        model=job.id,
        method=FineTuneMethod("lora" if lora else "full"),
        quantization=Quantization("none"),
        batch_size=job.micro,
        seq_length=config.job.sequence_length,
        gradient_checkpointing=config.job.checkpoint_activations,
        optimizer=OptimizerType("adamw"),
        lora_rank=lora.r if lora else 16,
        lora_alpha=lora.lora_alpha if lora else 32,
        lora_target=LoRATarget("all_linear" if lora and len(lora.target_modules or ()) > 4 else "attention"),
        flash_attention=config.job.attention != "eager",
        sharding=ShardingStrategy(sharding or "none"),
        num_gpus=job.world if sharding else 1,
    )
    found = MemoryEstimator(spec, asked).estimate()
    return float(found.total_gb) * 1e9


def llm_analysis(job: Job) -> float | None:
    """llm-analysis' ``LLMAnalysis.training``: weights, optimizer states, gradients and activations."""
    from llm_analysis.analysis import ActivationRecomputation, DSZeRO, LLMAnalysis
    from llm_analysis.config import (
        GPUConfig,
        ModelConfig,
        ParallelismConfig,
        get_dtype_config_by_name,
    )  # fmt: skip

    config, model = job.config, job.model
    if model.kind != "causal" or config.job.lora or _offloads(config) or config.precision == "fp32":
        return None
    if not _is_adam(config):
        return None
    logging.disable(logging.CRITICAL)
    shape = ModelConfig(
        name=job.id, num_layers=model.layers, n_head=model.heads, hidden_dim=model.hidden_size,
        vocab_size=model.vocab_size, max_seq_len=max(model.max_positions, config.job.sequence_length),
        num_key_value_heads=model.kv_heads, ffn_embed_dim=model.intermediate_size,
        expansion_ratio=model.intermediate_size / model.hidden_size, model_type=model.model_type,
    )  # fmt: skip
    card = GPUConfig(
        name="h200", mem_per_GPU_in_GB=10_000, hbm_bandwidth_in_GB_per_sec=4800,
        intra_node_bandwidth_in_GB_per_sec=450, intra_node_min_message_latency=8e-6,
        peak_fp16_TFLOPS=989, peak_i8_TFLOPS=1979, peak_i4_TFLOPS=1979,
    )  # fmt: skip
    analysis = LLMAnalysis(
        shape, card, get_dtype_config_by_name("w16a16e16"), ParallelismConfig(dp_size=job.world)
    )
    stages = [DSZeRO.NONE, DSZeRO.STAGE_1, DSZeRO.STAGE_2, DSZeRO.STAGE_3]
    depth = (ActivationRecomputation.NONE, ActivationRecomputation.FULL)[config.job.checkpoint_activations]
    found = analysis.training(
        batch_size_per_gpu=job.micro, gradient_accumulation_steps=config.batch(job.world).accumulation,
        seq_len=config.job.sequence_length, activation_recomputation=depth, ds_zero=stages[config.stage],
        flash_attn=config.job.attention != "eager", mlp_gated_linear_units=model.gated_mlp,
    )  # fmt: skip
    return float(found["(weight+op_state+grad+act)_memory_per_gpu"])


def _offloads(config: Config) -> bool:
    return config.offload_optimizer != "none" or config.offload_param != "none"


def _is_adam(config: Config) -> bool:
    return config.optimizer_type in ("adam", "adamw", None)


def _largest_layer(job: Job) -> int:
    sizes: dict[str, int] = {}
    for one in parameters(job.model, job.config.job.task):
        sizes[one.module] = sizes.get(one.module, 0) + one.numel
    return max(sizes.values())


TOOLS: dict[str, Callable[[Job], float | None]] = {
    "trimtab estimate": trimtab,
    "DeepSpeed estimators": deepspeed_estimator,
    "accelerate estimate-memory": accelerate_estimator,
    "EleutherAI calculator": cookbook,
    "ftune": ftune,
    "llm-analysis": llm_analysis,
}


def run(output: Path) -> None:
    """Asks every tool that is installed about every job."""
    with output.open("w", encoding="utf-8") as file:
        for job in jobs():
            answers: dict[str, float | None] = {}
            for name, tool in TOOLS.items():
                try:
                    with contextlib.redirect_stdout(io.StringIO()):
                        answers[name] = tool(job)
                except ImportError as error:
                    sys.exit(f"{name}: {error}. Install ftuneai and llm-analysis, or put them on PYTHONPATH")
                except (AssertionError, ValueError, ZeroDivisionError):  # it refuses the job
                    answers[name] = None
            row = {"id": job.id, "measured": round(job.measured)}
            row["predicted"] = {name: found and round(found) for name, found in answers.items()}
            file.write(json.dumps(row) + "\n")


def summary(source: Path) -> str:
    """Per tool: the jobs that it can answer, and its errors on them."""
    rows = [json.loads(line) for line in source.read_text("utf-8").splitlines()]
    lines = [
        f"| tool | answers, of {len(rows)} jobs | median error | largest | too low by 1 % and more |",
        "|---|---|---|---|---|",
    ]
    for name in TOOLS:
        errors = [
            row["predicted"][name] / row["measured"] - 1
            for row in rows
            if row["predicted"].get(name) is not None
        ]
        if not errors:
            continue
        low = sum(error < -0.01 for error in errors) / len(errors)
        lines.append(
            f"| {name} | {len(errors)} | {_percent(statistics.median(map(abs, errors)))} | "
            f"{_percent(max(errors, key=abs), '+')} | {low:.0%} |"
        )
    return "\n".join(lines)


def _percent(share: float, sign: str = "") -> str:
    percent = 100 * share
    return f"{percent:{sign}.2f} %" if abs(percent) < 10 else f"{percent:{sign}.0f} %"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--summary", action="store_true")
    given = parser.parse_args()
    if given.output:
        run(given.output)
    print(summary(given.output or DATA / "rivals.jsonl"))


if __name__ == "__main__":
    main()
