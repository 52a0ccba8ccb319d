"""Whether a job fits, how fast it runs and what it costs, by arithmetic: no torch, well under a second.

Memory is counted, not fitted: `trimtab.cost.memory` runs the model and the engine on tensors that have only
a size.  What no tensor shows is added from measurements, each with its source beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from trimtab.cluster import Cluster
from trimtab.config import Config
from trimtab.cost.memory import MOMENTS, Profile
from trimtab.cost.need import Need, outside_allocator
from trimtab.cost.need import needed as needed_memory
from trimtab.cost.speed import Speed, step_speed
from trimtab.errors import NotFound, UnknownArchitecture, Unsupported, UsageError
from trimtab.frozen import dataclass, replace
from trimtab.job import LIGER
from trimtab.model import Model, find_model
from trimtab.parameters import parameters, tasks_of
from trimtab.parameters.parallel import check_parallel
from trimtab.units import GIB

if TYPE_CHECKING:
    from trimtab.corrections import Correction
    from trimtab.cost.run import WholeRun
    from trimtab.prices import Price

# the process itself, Python and its libraries: 1.7 to 1.9 GiB resident in measured cases without offload, and
# 0.34 GiB more with NCCL between real ranks (bench/data/real_worlds.jsonl)
PROCESS_BYTES = int(1.8 * GIB)
NCCL_PROCESS_BYTES = int(0.34 * GIB)
PROCESS_SPREAD_BYTES = int(0.4 * GIB)
# the counted peak is off by 0.3 % at most over the measured jobs; these bounds hold the phantom's peak of
# 99 % of more than a thousand jobs drawn at random (docs/accuracy.md)
PEAK_LOW, PEAK_HIGH = 0.975, 1.04


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """A figure with its bounds; the truth lies inside in at least 95 % of measured cases."""

    low: float
    expected: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """The answer about one job on one cluster; bytes, seconds and dollars."""

    config: Config
    model: Model
    cluster: Cluster
    profile: Profile
    peak_allocated: Range
    """Of PyTorch's allocator over forward, backward and step, once the optimizer's states exist."""
    needed: Range
    """The smallest card: allocator, fragmentation, CUDA context, NCCL; start included."""
    capacity_bytes: int
    host_bytes_per_node: Range
    nvme_bytes_per_node: int
    speed: Speed
    price: Price | None
    fits: bool
    fits_probability: float
    assumptions: tuple[str, ...]
    warnings: tuple[str, ...] = ()
    """Why the run would not be what was counted: it would end, or compute something else."""
    run: WholeRun | None = None
    """The whole run, if a number of tokens was asked for."""
    method: str = "arithmetic"
    corrections: tuple[Correction, ...] = ()
    """What measurements of this job, or of one like it, changed in it."""

    @property
    def slack_bytes(self) -> int:
        """cuBLAS's workspaces, and what the allocator's blocks hold beyond the tensors in them."""
        return self.profile.allocated_peak - self.profile.peak

    @property
    def tokens_per_second_per_gpu(self) -> float:
        """Tokens of the encoder or decoder-only input a second and GPU."""
        return self.speed.tokens_per_step / self._gpu_seconds

    @property
    def samples_per_second_per_gpu(self) -> float:
        """Samples a second and GPU."""
        return self.speed.samples_per_step / self._gpu_seconds

    @property
    def _gpu_seconds(self) -> float:
        """Of one step, on all GPUs that share a replica."""
        return self.speed.step_seconds * self.config.data_parallel_divisor

    @property
    def mfu(self) -> float:
        """Model FLOPs utilization: the model's own operations over what the card could do in that time."""
        return mfu_of(self.speed, self.config, self.cluster)

    @property
    def usd_per_hour(self) -> float | None:
        """Dollars for the whole cluster and one hour."""
        return None if self.price is None else self.price.usd_per_gpu_hour * self.cluster.world_size

    @property
    def usd_per_billion_tokens(self) -> float | None:
        """Dollars for a billion tokens."""
        if self.usd_per_hour is None:
            return None
        per_second = self.tokens_per_second_per_gpu * self.cluster.world_size
        return self.usd_per_hour / 3600 * 1e9 / per_second


def estimate(
    config: Config,
    cluster: Cluster,
    *,
    model: Model | None = None,
    tokens: int | None = None,
    memory: tuple[Profile, Need] | None = None,
) -> Estimate:
    """Memory, time and money of ``config`` on ``cluster``; of a whole run if ``tokens`` says how long it is.

    ``memory`` is what `trimtab.cost.need.needed` says of it, where that is known already.

    Raises:
        UsageError: no model is named, or the job contradicts itself.
        NotFound: the model's name is unknown.
        RefusedConfig: DeepSpeed would refuse the configuration.
        UnknownArchitecture: the arithmetic does not know the model type, or Liger does not.
        Unsupported: pipeline stages, which are not counted; a model that AutoTP or Ulysses does not train.
    """
    if model is None:
        if config.job.model is None:
            raise UsageError(
                f"{config.name}: no model is named. Give --model NAME (a catalogue name, a Hub id or "
                'a config.json), or a "trimtab" block with "model"'
            )
        model = find_model(config.job.model)
    _refuse_other_heads(config, model)
    _refuse_other_engines(config, model)
    counted, need = memory or needed_memory(config, model, cluster)
    peak = counted.allocated_peak
    outside = outside_allocator(cluster.world_size, config.stage)
    needed = Range(low=need.low + outside, expected=need.expected + outside, high=need.high + outside)
    capacity = cluster.gpu.usable_bytes
    host = _host(counted, cluster)
    probability = need.probability_within(capacity - outside)
    if host.expected > cluster.host_memory_bytes:
        probability = 0.0
    nvme = counted.nvme_bytes * cluster.gpus_per_node
    if nvme and nvme > cluster.nvme_bytes:
        probability = 0.0
    speed = step_speed(config, counted, cluster)
    answer = Estimate(
        config=config,
        model=model,
        cluster=cluster,
        profile=counted,
        peak_allocated=Range(low=peak * PEAK_LOW, expected=peak, high=peak * PEAK_HIGH),
        needed=needed,
        capacity_bytes=capacity,
        host_bytes_per_node=host,
        nvme_bytes_per_node=nvme,
        speed=speed,
        price=_price(cluster),
        fits=probability >= 0.5,
        fits_probability=probability,
        assumptions=_assumptions(config, cluster, speed.source),
        warnings=_warnings(config, model, cluster, host, nvme),
    )
    return answer if tokens is None else with_run(answer, tokens)


def with_run(answer: Estimate, tokens: int) -> Estimate:
    """The same answer with the whole run of ``tokens`` in it."""
    from trimtab.cost.run import NOTICE_SECONDS, whole_run

    if tokens < 1:
        raise UsageError(f"{tokens} tokens: a run needs at least 1")
    cluster, config = answer.cluster, answer.config
    replicas = cluster.world_size // config.data_parallel_divisor
    run = whole_run(
        tokens,
        tokens_per_second=answer.tokens_per_second_per_gpu * cluster.world_size,
        tokens_per_step=answer.speed.tokens_per_step * replicas,
        gpus=cluster.world_size,
        checkpoint_bytes=checkpoint_bytes(config, answer.profile),
        write_bytes_per_second=cluster.nvme_write_bytes_per_second * cluster.nodes,
        read_bytes_per_second=cluster.nvme_read_bytes_per_second * cluster.nodes,
        usd_per_hour=answer.usd_per_hour,
    )
    said = (
        "interruptions at the rate of Llama 3's 16,384 H100s; checkpoints at "
        f"{cluster.nvme_write_bytes_per_second / 1e9:.1f} GB/s a node, {NOTICE_SECONDS / 60:.0f} min until "
        "a hang is noticed"
    )
    return replace(answer, run=run, assumptions=(*answer.assumptions, said))


def checkpoint_bytes(config: Config, counted: Profile) -> int:
    """Bytes of one checkpoint, all ranks together: weights, fp32 masters and the optimizer's states."""
    states = MOMENTS.get(config.optimizer_type or "adamw", 2)
    master = config.stage > 0 or config.precision != "fp32"
    return counted.parameters * config.parameter_bytes + counted.trainable * 4 * (master + states)


def _refuse_other_heads(config: Config, model: Model) -> None:
    task, tasks = config.job.task, tasks_of(model)
    if task not in tasks:
        raise UsageError(f"{model.name} has no head for {task}; it has {', '.join(tasks)}. Give --task")
    answers = [one for one in parameters(model, task) if one.name == "qa_outputs.weight"]
    if answers and answers[0].shape[0] != 2:
        raise UsageError(
            f"{model.name}: question answering has 2 labels, an answer's start and end, and the model has "
            f"{answers[0].shape[0]}. Set its num_labels to 2"
        )


def _refuse_other_engines(config: Config, model: Model) -> None:
    """What the arithmetic would answer without having counted it."""
    check_parallel(config, model)
    stages = config.job.pipeline_stages
    if stages > 1:
        raise Unsupported(
            f"{config.name}: the arithmetic does not count pipeline stages (trimtab.pipeline_stages), here "
            f"{stages}. Set it to 1, or measure the job on its GPUs"
        )
    if config.job.kernels == "fused" and model.model_type not in LIGER:
        raise UnknownArchitecture(
            f"{model.name}: Liger has no fused kernels for {model.model_type}. Use --kernels plain"
        )


def _host(counted: Profile, cluster: Cluster) -> Range:
    ranks = cluster.gpus_per_node
    process = PROCESS_BYTES + (NCCL_PROCESS_BYTES if cluster.world_size > 1 else 0)
    expected = ranks * (counted.host_bytes + process)
    spread = ranks * PROCESS_SPREAD_BYTES
    return Range(low=expected * 0.98 - spread, expected=expected, high=expected * 1.05 + spread)


def _price(cluster: Cluster) -> Price | None:
    from trimtab.prices import price

    try:
        return price(cluster.gpu)
    except NotFound:
        return None


def _assumptions(config: Config, cluster: Cluster, source: str) -> tuple[str, ...]:
    job = config.job
    said = [
        f"{job.kernels} kernels, {job.attention} attention, activations {job.activations}",
        "batches without padding masks",
        f"memory counted tensor by tensor; step time by a closed form, {source}",
    ]
    if config.tensor_parallel > 1:
        said.append(f"layers over {config.tensor_parallel} neighbouring GPUs, which are fed the same samples")
    if config.sequence_parallel > 1:
        said.append(f"every sample's tokens over {config.sequence_parallel} neighbouring GPUs")
    if config.stage == 3 and config.zero("zero_quantized_gradients"):
        said.append("zero_quantized_gradients: the quantized copies of collectives are not counted")
    return (*said, *(f"assumed: {text}" for text in cluster.assumptions))


def _warnings(
    config: Config, model: Model, cluster: Cluster, host: Range, nvme_bytes: int
) -> tuple[str, ...]:
    said = warnings_of_any(config, model.hf, cluster, host, nvme_bytes)
    longest, tokens = model.longest_sequence, config.job.sequence_length
    if longest is None or longest >= tokens:
        return said
    return (
        f"{model.name} has {longest} positions, fewer than {tokens} tokens a sample: the run would end "
        "at its first batch",
        *said,
    )


def warnings_of_any(
    config: Config, hf: Mapping[str, object], cluster: Cluster, host: Range, nvme_bytes: int
) -> tuple[str, ...]:
    """Why the run would not be what was counted, also of a model that only a rehearsal knows."""
    said = []
    if config.precision == "bf16" and not cluster.gpu.bf16:
        said.append(f"{cluster.gpu.name} has no bf16 arithmetic: the run needs fp16 instead")
    if hf.get("quantization_config"):
        said.append(f"the model's quantization_config is left out: its weights count as {config.precision}")
    if config.optimizer_type is not None and config.optimizer_type not in MOMENTS:
        said.append(f"{config.optimizer_type} is not known: it counts with two states a parameter, as Adam")
    if host.expected > cluster.host_memory_bytes:
        said.append(
            f"host memory short: {host.expected / GIB:.0f} GiB wanted of "
            f"{cluster.host_memory_bytes / GIB:.0f} GiB"
        )
    if nvme_bytes > cluster.nvme_bytes:
        said.append(
            f"NVMe short: {nvme_bytes / GIB:.0f} GiB wanted of {cluster.nvme_bytes / GIB:.0f} GiB a node"
        )
    return tuple(said)


def to_json(answer: Estimate) -> Mapping[str, object]:
    """The answer in base units, under the keys that other tools rely on."""
    counted, speed = answer.profile, answer.speed
    parts = [{"name": name, "bytes": size} for name, size in counted.peak_parts.items() if size]
    rest = [{"name": "workspace, slack", "bytes": answer.slack_bytes}]
    price_of = answer.price
    return {
        "schema_version": 1,
        "config": answer.config.name,
        "model": answer.model.name,
        "fits": answer.fits,
        "fits_probability": answer.fits_probability,
        "method": answer.method,
        "assumptions": list(answer.assumptions),
        "warnings": list(answer.warnings),
        "corrections": [
            {
                "what": one.what,
                "factor": one.factor,
                "offset": one.offset,
                "uncorrected": one.uncorrected,
                "corrected": one.corrected,
                "from": one.source,
            }
            for one in answer.corrections
        ],
        "parameters": {"total": counted.parameters, "trainable": counted.trainable},
        "gpu": {
            "name": answer.cluster.gpu.name,
            "gpus_per_node": answer.cluster.gpus_per_node,
            "nodes": answer.cluster.nodes,
            "capacity_bytes": answer.capacity_bytes,
            "peak_allocated_bytes": _range(answer.peak_allocated),
            "needed_bytes": _range(answer.needed),
            "parts": parts + rest,
            "phases": [_phase_to_json(answer, name) for name in counted.phase_peaks],
        },
        "host": {
            "bytes_per_node": _range(answer.host_bytes_per_node),
            "capacity_bytes_per_node": answer.cluster.host_memory_bytes,
            "parts_per_rank": [{"name": name, "bytes": size} for name, size in counted.host_parts.items()],
        },
        "nvme": {"bytes_per_node": answer.nvme_bytes_per_node},
        "speed": speed_to_json(speed, answer.config, answer.cluster),
        "cost": {
            "usd_per_hour": answer.usd_per_hour,
            "usd_per_billion_tokens": answer.usd_per_billion_tokens,
            "price_source": price_of.source if price_of else None,
            "price_date": price_of.date if price_of else None,
        },
        "run": None if answer.run is None else _run(answer.run),
    }


def speed_to_json(speed: Speed, config: Config, cluster: Cluster) -> dict[str, object]:
    """A step's time and its parts, and what follows from it, in base units."""
    seconds = speed.step_seconds
    return {
        "step_seconds": {"low": speed.low_seconds, "expected": seconds, "high": speed.high_seconds},
        "compute_seconds": speed.compute_seconds,
        "communication_seconds": speed.communication_seconds,
        "offload_seconds": speed.offload_seconds,
        "host_seconds": speed.host_seconds,
        "parts": [{"name": name, "seconds": part} for name, part in speed.parts],
        "tokens_per_second_per_gpu": speed.tokens_per_step / seconds,
        "samples_per_second_per_gpu": speed.samples_per_step / seconds,
        "mfu": mfu_of(speed, config, cluster),
    }


def mfu_of(speed: Speed, config: Config, cluster: Cluster) -> float:
    """Model FLOPs utilization: the model's own operations over what the card could do in that time."""
    dtype = config.precision if config.precision in ("bf16", "fp16") else "tf32"
    return speed.model_flops / speed.step_seconds / cluster.gpu.matrix_flops(dtype)


def _run(run: WholeRun) -> dict[str, object]:
    return {
        "tokens": run.tokens,
        "steps": run.steps,
        "seconds": run.seconds,
        "training_seconds": run.training_seconds,
        "usd": run.usd,
        "expected_interruptions": run.interruptions,
        "seconds_between_interruptions": run.seconds_between_interruptions,
        "checkpoint_bytes": run.checkpoint_bytes,
        "checkpoint_save_seconds": run.save_seconds,
        "checkpoint_interval_seconds": run.checkpoint_interval_seconds,
        "restart_seconds": run.restart_seconds,
        "effective_ratio": run.effective_ratio,
    }


def _phase_to_json(answer: Estimate, name: str) -> dict[str, object]:
    """The peak of a phase and what is alive at its end; workspaces come with the first product."""
    counted, slack = answer.profile, answer.slack_bytes if name != "init" else 0
    end = counted.initialized if name == "init" else counted.live[name]
    return {
        "name": name,
        "peak_allocated_bytes": counted.phase_peaks[name] + slack,
        "end_allocated_bytes": end + slack,
    }


def _range(value: Range) -> dict[str, int]:
    return {"low": round(value.low), "expected": round(value.expected), "high": round(value.high)}
