"""Peak memory of a job, by running it on the counting machine.

One rank's optimizer step: the model is built, the engine initialized, one step makes the optimizer's states,
and the next is measured, as `rehearse` and a GPU measure it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from trimtab.config import Config
from trimtab.cost.allocator import WORKSPACE_BYTES, Reading
from trimtab.cost.coordinator import Gathering, left_over, passed
from trimtab.cost.course import NOTE, RESET, Course, Steps, settling
from trimtab.cost.engine import AIO_ALIGNMENT, AIO_BYTES, Settings
from trimtab.cost.meter import PART, PARTS, AllocatingMeter, Meter, Recorder, RequestingMeter, Storage
from trimtab.cost.sharded_parameters import ShardedParameters
from trimtab.cost.tape import BACKWARD, FINISH, FORWARD, RELEASE, START, Numbers
from trimtab.cost.workload import Workload, recording_of, weights_for, workload_of
from trimtab.cost.wrappers import engine_for
from trimtab.errors import RefusedConfig, Uncounted
from trimtab.frozen import dataclass, fields, replace
from trimtab.model import Model
from trimtab.parameters import buffers, given_up

PHASES = ("init", "forward", "backward", "step")
RECORDED_MICROS = 3
"""Micro steps of a step that a whole replay has: those in the middle cut up the cache too."""
# fp32 copies of the gradients that a step in 16 bits makes at stage 0: the wrapper of DeepSpeed's Adam its
# flat one, LAMB and torch's Adam an update; FP16_UnfusedOptimizer around the others makes none itself
STEP_COPIES = {"lion": 0, "SGD": 0, "adagrad": 2, "Adafactor": 0}
# fp32 elements of state per parameter: torch.optim, deepspeed/ops
MOMENTS = {
    "adam": 2, "adamw": 2, "lamb": 2, "lion": 1, "adagrad": 1, "muon": 2, "SGD": 0, "RAdam": 2, "NAdam": 2,
    "Adamax": 2, "RMSprop": 1, "Adadelta": 2, "Adafactor": 1, "musgd": 0, "muadam": 2, "muadamw": 2,
}  # fmt: skip


TORCH_TEMPORARIES = {"adagrad": 2, "Adafactor": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile(Workload):
    """What one rank allocates, in bytes; peaks of forward, backward and step are taken once states exist."""

    built: int
    """After the model is built."""
    initialized: int
    """After ``deepspeed.initialize``."""
    live: dict[str, int]
    """After ``forward``, ``backward`` and ``step`` of the measured step."""
    phase_peaks: dict[str, int]
    peak: int
    """Over forward, backward and step."""
    peak_parts: dict[str, int]
    host_bytes: int
    """Of one rank, beside the process itself."""
    host_parts: dict[str, int]
    nvme_bytes: int
    readings: Mapping[str, Reading]
    """The caching allocator's statistics after each of `PHASES`, if asked for."""
    course: Course | None
    """Of every request; none of a quick replay."""
    unseen: int
    """How far the peak of what a quick replay's allocator served stays below ``peak``."""

    @property
    def allocated_peak(self) -> int:
        """Peak of ``memory_allocated``: ``peak``, cuBLAS's workspaces, and what blocks have too much."""
        return self.readings["step"].peak_allocated + self.unseen

    @property
    def reserved_peak(self) -> int:
        """Peak of ``memory_reserved`` on a card without limit: more than what is needed."""
        return self.readings["step"].peak_reserved + self.unseen

    def fits(self, capacity_bytes: int) -> bool:
        """Whether PyTorch's allocator serves every request of the job within ``capacity_bytes``.

        Needs a profile made with ``allocator=True``; the CUDA context and NCCL's buffers come on top.
        """
        assert self.course is not None, "profile(..., allocator=True) records what this replays"
        return capacity_bytes >= max(self.phase_peaks.values()) and self.course.fits(capacity_bytes)

    def passes(self, capacity_bytes: int) -> bool:
        """Whether `reserved_peak` is more than ``capacity_bytes``."""
        assert self.course is not None, "profile(..., allocator=True) records what this replays"
        return self.course.passes(capacity_bytes)


def settings_of(config: Config, world_size: int) -> Settings:
    """What of ``config`` decides memory, for a world of ``world_size`` ranks.

    Raises:
        Uncounted: the engine would allocate what nobody counts here.
    """
    batch = config.batch(world_size)
    _refuse(config, batch.accumulation)
    zero = config.zero
    name = config.optimizer_type or "adamw"
    momentum = config.optimizer_params.get("momentum")
    moments = 1 if name == "SGD" and momentum else MOMENTS.get(name, 2)
    if name == "lion" and config.offload_optimizer != "none":
        moments = 2  # DeepSpeedCPULion makes a second, and leaves it alone (ops/lion/cpu_lion.py:127)
    ranks = batch.data_parallel * config.sequence_parallel
    sequential = bool(zero("stage3_allgather_sequential"))
    return Settings(
        stage=config.stage,
        ranks=ranks,
        accumulation=batch.accumulation,
        precision=config.precision,
        gradient_type=config.gradient_type,
        communication_type=_communication_type(config),
        moments=moments,
        offload_optimizer=config.offload_optimizer,
        offload_param=config.offload_param,
        overlap_comm=bool(zero("overlap_comm")),
        # stages 1 and 2 force it with offload, stage_1_and_2.py:300
        contiguous_gradients=bool(zero("contiguous_gradients"))
        or (config.offload_optimizer != "none" and config.stage < 3),
        reduce_scatter=bool(zero("reduce_scatter")),
        reduce_bucket=int(zero("reduce_bucket_size")),
        gathering=Gathering(
            # one parameter at a time, runtime/engine.py:2742
            prefetch_bucket=1 if sequential else int(zero("stage3_prefetch_bucket_size")),
            persistence_threshold=int(zero("stage3_param_persistence_threshold")),
            model_persistence_threshold=int(zero("stage3_model_persistence_threshold")),
            max_live=int(zero("stage3_max_live_parameters")),
            max_reuse_distance=int(zero("stage3_max_reuse_distance")),
        ),
        sub_group=int(zero("sub_group_size")),
        hpz=int(zero("zero_hpz_partition_size")),
        pin_memory=bool(config.get("zero_optimization.offload_optimizer.pin_memory", True)),
        pin_parameters=bool(config.get("zero_optimization.offload_param.pin_memory", True)),
        step_copies=STEP_COPIES.get(name, 1),
        step_temporaries=_step_temporaries(config, name),
        multi_rank_buckets=bool(zero("use_multi_rank_bucket_allreduce")),
        round_robin=bool(zero("round_robin_gradients")),
        quantized_weights=bool(zero("zero_quantized_weights")),
        allgather_sequential=sequential,
        fetches_by_all_reduce=bool(zero("stage3_use_all_reduce_for_fetch_params")),
        offload_ratio=float(config.get("zero_optimization.offload_optimizer.ratio", 1.0)),
        master_type=_master_type(config),
        state_type="bf16" if config.get("bf16.bf16_optimizer_states", False) else "fp32",
        factored=name == "Adafactor",
        states_of_whole=name == "adagrad" and config.offload_optimizer == "none",
        swap_buffers=config.whole("zero_optimization.offload_optimizer.buffer_count", 4),
        parameter_buffers=config.whole("zero_optimization.offload_param.buffer_count", 5),
        parameter_buffer=config.whole("zero_optimization.offload_param.buffer_size", 100_000_000),
        # runtime/swap_tensor/optimizer_utils.py:152-154, with the defaults of constants.py
        least_swapped_bytes=max(AIO_BYTES, config.whole("aio.block_size", AIO_BYTES)),
        swap_alignment=AIO_ALIGNMENT * config.whole("aio.intra_op_parallelism", 1),
    )


def _refuse(config: Config, accumulation: int) -> None:
    if config.stage == 0 and config.offload_optimizer != "none":  # ops/adam/cpu_adam.py:148
        raise RefusedConfig(
            f"{config.name}: offload_optimizer at stage 0: the CPU optimizer gets parameters that are on the "
            "GPU, and its first step fails. Set zero_optimization.stage to 1"
        )
    leaves = config.zero("stage3_module_granularity_threshold") or config.get("zero_optimization.leaf_module")
    unmanaged = config.get("managed_gradient_accumulation") is False
    found = {
        "the Muon optimizer: take AdamW": config.optimizer_type == "muon",
        "torch_autocast: enable bf16 instead": config.get("torch_autocast.enabled", False),
        "stage 3's leaf modules: leave out leaf_module and stage3_module_granularity_threshold": leaves
        and config.stage == 3,
        "gradients that DeepSpeed does not manage: leave out managed_gradient_accumulation": unmanaged
        and accumulation > 1,
    }
    for what, there in found.items():
        if there:
            raise Uncounted(
                f"{config.name}: the arithmetic does not count {what}, or `trimtab rehearse` the job"
            )


def _master_type(config: Config) -> str:
    """fp32, unless the file keeps them in the model's type (base_optimizer.py:520)."""
    own = config.get(f"{config.precision}.{config.precision}_master_weights_and_grads", False)
    return config.precision if own else "fp32"


def _step_temporaries(config: Config, name: str) -> int:
    """torch's optimizers by lists, which compute in copies (torch/optim, ``_multi_tensor_*``)."""
    params = config.optimizer_params
    if name in ("adam", "adamw"):
        if not params.get("torch_adam"):
            return 0
        decays = name == "adam" and not params.get("adam_w_mode", True) and params.get("weight_decay")
        return 2 if decays else 1
    if name == "adagrad" and config.offload_optimizer != "none":
        return 0
    return TORCH_TEMPORARIES.get(name, 0) + (name == "SGD" and bool(params.get("weight_decay")))


def _communication_type(config: Config) -> str:
    """Gradients are reduced in their own type, with Ulysses in fp32, unless the file says else
    (runtime/engine.py:2182)."""
    apart = config.sequence_parallel > 1
    key = "seq_parallel_communication_data_type" if apart else "communication_data_type"
    return config.type_at(key, "fp32" if apart else config.precision)


def profile(
    config: Config,
    model: Model,
    world_size: int,
    *,
    allocator: bool = False,
    whole: bool = True,
    workspace_bytes: int = WORKSPACE_BYTES[True],
) -> Profile:
    """Run ``config`` on ``model`` as rank 0 of ``world_size`` and say what it allocates.

    Args:
        allocator: replay PyTorch's caching allocator too (``readings``, `Profile.fits`).
        whole: replay every request; else, of the middle of long stacks, only what outlives its layer.
        workspace_bytes: what cuBLAS takes in each of its two threads; only the allocator counts it.

    Raises:
        RefusedConfig: the batch does not solve for this world, or the first step would fail.
        UnknownArchitecture: the arithmetic does not know the model type.
    """
    meter = AllocatingMeter() if allocator else Meter()
    run = _Run(config, model, world_size, meter)
    run.all_steps(workspace_bytes)
    peak = max(run.peaks.values())
    engine = run.engine
    computed = workload_of(config, model, run.recording)
    found = Profile(
        **{one.name: getattr(computed, one.name) for one in fields(Workload)},
        built=run.built,
        initialized=run.initialized,
        live=run.live,
        phase_peaks={"init": run.init_peak, **run.peaks},
        peak=peak,
        peak_parts=dict(zip(PARTS, run.parts, strict=True)),
        host_bytes=engine.host.total,
        host_parts=dict(engine.host.parts),
        nvme_bytes=engine.nvme_bytes,
        readings=_by_phase(meter.readings) if isinstance(meter, AllocatingMeter) else {},
        course=None,
        unseen=max(0, peak - run.served_peak) if allocator else 0,
    )
    return replayed(found, config, model, world_size, workspace_bytes) if allocator and whole else found


def replayed(
    counted: Profile, config: Config, model: Model, world_size: int, workspace_bytes: int
) -> Profile:
    """The profile ``counted`` of the same job with every request replayed."""
    run = _Run(config, model, world_size, Recorder())
    run.all_steps(workspace_bytes)
    course = Course(run.record, max(counted.phase_peaks.values()))
    return replace(counted, readings=_Readings(course), course=course, unseen=0)


class _Readings(Mapping[str, Reading]):
    """Those of a course by phase, taken when somebody asks."""

    def __init__(self, course: Course) -> None:
        self._course = course

    def __getitem__(self, phase: str) -> Reading:
        return _by_phase(self._course.readings)[phase]

    def __iter__(self) -> Iterator[str]:
        return iter(PHASES)

    def __len__(self) -> int:
        return len(PHASES)


def _by_phase(readings: Sequence[Reading]) -> dict[str, Reading]:
    """Those after initialization and in the last micro step."""
    return dict(zip(PHASES, (readings[0], *readings[-3:]), strict=True))


class Offloaded(NamedTuple):
    """What one rank keeps outside its GPU, whatever the micro batch; in bytes."""

    host_bytes: int
    nvme_bytes: int


def offloaded(config: Config, model: Model, world_size: int) -> Offloaded:
    """What of `profile` an engine has as soon as it is initialized; raises as `profile` does."""
    if config.offload_optimizer == config.offload_param == "none":
        return Offloaded(0, 0)
    job, settings = config.job, settings_of(config, world_size)
    weights = weights_for(model, job.task, job.lora, settings.item, config.tensor_parallel)
    engine = engine_for(Meter(), weights, settings)
    engine.build(weights, given_up(model, job.task))
    engine.initialize()
    return Offloaded(engine.host.total, engine.nvme_bytes)


class _Run:
    """A job's engine from its start over a few steps of a recording."""

    def __init__(self, config: Config, model: Model, world_size: int, meter: Meter) -> None:
        job, settings = config.job, settings_of(config, world_size)
        self._whole = weights_for(model, job.task, job.lora, settings.item, 1)
        """The model as it is built."""
        self._given_up = given_up(model, job.task)
        self._buffer_bytes = [one.bytes for one in buffers(model, job.task)]
        own = weights_for(model, job.task, job.lora, settings.item, config.tensor_parallel)
        self.recording, self.meter = recording_of(config, model, world_size), meter
        self.engine = engine_for(meter, own, settings)
        self.record = Steps([])
        """Every request, where a `Recorder` listens."""
        self.peaks: dict[str, int] = {}
        self.served_peak = 0
        """Of what a quick replay's allocator served."""
        self.live: dict[str, int] = {}
        self._parts: list[int] = []
        self._peak_in: tuple[int, int] | None = None
        self._numbers: Numbers = {}
        self._steps = 0

    def all_steps(self, workspace_bytes: int) -> None:
        """The start, a first step and the one that is measured; where all is recorded, more of them."""
        engine, meter = self.engine, self.meter
        engine.build(self._whole, self._given_up)
        registered = [Storage(meter, one, PART["parameters"]) for one in self._buffer_bytes]
        self.built = meter.live
        if self._whole is not engine.weights:
            engine.split()
        engine.initialize()
        self.initialized, self.init_peak = meter.live, meter.peak
        meter.mark(NOTE)
        if isinstance(meter, Recorder):
            self._record_steps(meter, workspace_bytes)
            meter.record = []  # what ends from here on ends with the run
            return
        if isinstance(meter, AllocatingMeter):
            self._step(workspace_bytes)
            meter.mark(RESET)
        else:
            self._skip_first_step()
        if isinstance(engine, ShardedParameters):
            order = self.recording.order
            engine.learn(order)
            if engine.settings.accumulation > 1:  # the pass that decides what stays found little gathered
                known = order, engine.settings.gathering, engine.persistent
                left = left_over(order, engine.persistent, engine.untrained)
                engine.kept = passed(*known, left, untrained=engine.untrained).kept
        self._step(workspace_bytes)
        del registered

    @property
    def parts(self) -> list[int]:
        """Bytes by part at the highest peak so far."""
        if self._peak_in is None:
            return self._parts
        phase, moment = self._peak_in
        recorded_parts = self.recording.parts_at(phase, moment, uses=self.engine.hears_uses)
        return [one + more for one, more in zip(self._parts, recorded_parts, strict=True)]

    def _record_steps(self, meter: Recorder, workspace_bytes: int) -> None:
        """A first step, the one that is measured, a third, and what `settling` makes of them."""
        self._step(workspace_bytes)
        meter.mark(RESET)
        second = len(meter.record)
        self._step(workspace_bytes)
        third = len(meter.record)
        self._step(workspace_bytes)
        self.record = settling(meter.record, second, third)

    def _skip_first_step(self) -> None:
        """Leave all as a first step does: the optimizer's states are made."""
        self.engine.step()
        self.meter.live += sum(self.recording.parts_before(START))
        self._steps = 1

    def _step(self, workspace_bytes: int) -> None:
        """An optimizer step; the first one's peaks are not noted."""
        engine, meter = self.engine, self.meter
        recorded = isinstance(meter, Recorder)
        telling = RECORDED_MICROS if recorded else engine.telling_micros if self._steps else 1
        micros = min(engine.settings.accumulation, telling)
        left = engine.after_micro() if micros > 1 and not recorded else None
        for micro in range(micros):
            if micro and left is not None and engine.after_micro() == left:
                break  # it would go as the one before it
            engine.begin_micro(boundary=left is not None or micro == micros - 1)
            self._micro_step(0 if self._steps or micro else workspace_bytes)
            if micro < micros - 1:  # the engine's step then steps nothing
                meter.reset_peak()
                self._note("step", FINISH + 1, meter.now)
        meter.reset_peak()
        engine.step()
        self._note("step", FINISH + 1, meter.now)
        self._steps += 1

    def _micro_step(self, handle_bytes: int) -> None:
        meter, before = self.meter, dict(self._numbers)
        meter.workspace_bytes = handle_bytes
        self._play(START)
        meter.reset_peak()
        start = meter.now
        self._play(FORWARD)
        if self._steps or before:
            self._play(RELEASE, before)
        self._note("forward", FORWARD, start)
        meter.reset_peak()
        start = meter.now
        self._play(BACKWARD)
        self.engine.end_backward()
        self._note("backward", BACKWARD, start)
        self._play(FINISH)

    def _play(self, phase: int, numbers: Numbers | None = None) -> None:
        meter, numbers = self.meter, self._numbers if numbers is None else numbers
        if isinstance(meter, RequestingMeter):
            self.recording.play_to_allocate(phase, self.engine, meter, numbers, uses=self._steps > 0)
        else:
            self.recording.play(phase, self.engine)

    def _note(self, name: str, phase: int, start: int) -> None:
        meter = self.meter
        self.live[name] = meter.live
        if self._steps:
            if meter.peak > max(self.peaks.values(), default=0):
                self._parts = meter.peak_parts
                at = meter.peak_at
                self._peak_in = (phase, at - start if at >= 0 else at + start)
            self.peaks[name] = max(meter.peak, self.peaks.get(name, 0))
            if isinstance(meter, AllocatingMeter):
                self.served_peak = max(self.served_peak, meter.served_peak)
        if self._steps or name != "step":
            meter.mark(NOTE)
