"""Peak memory of a job, by running it on the counting machine.

One rank's optimizer step: the model is built, the engine initialized, one step makes the optimizer's states,
and the next is measured, as `rehearse` and a GPU measure it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from trimtab.config import Config
from trimtab.cost import heads
from trimtab.cost.allocator import NOTE, RESET, WORKSPACE_BYTES, OutOfMemory, Reading, replay
from trimtab.cost.engine import Engine, Settings
from trimtab.cost.machine import PARTS, Machine, Meter, Storage
from trimtab.cost.net import Net, weights_of
from trimtab.cost.wrappers import engine_for
from trimtab.model import Model
from trimtab.parameters import buffers, parameters

PHASES = ("init", "forward", "backward", "step")
# fp32 elements of state per parameter: torch.optim, deepspeed/ops
MOMENTS = {
    "adam": 2, "adamw": 2, "lamb": 2, "lion": 1, "adagrad": 1, "muon": 2, "SGD": 0, "RAdam": 2, "NAdam": 2,
    "Adamax": 2, "RMSprop": 1, "Adadelta": 2, "Adafactor": 1, "musgd": 0, "muadam": 2, "muadamw": 2,
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """What one rank allocates, in bytes; peaks of forward, backward and step are taken once states exist."""

    parameters: int
    trainable: int
    tensors: int
    """Parameter tensors, and how many of them train."""
    trainable_tensors: int
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
    work: Counter[tuple[str, int, int]]
    """Operators of the last micro step by (phase, flops, bytes moved)."""
    readings: dict[str, Reading] = field(default_factory=dict)
    """The caching allocator's statistics after each of `PHASES`, if asked for."""
    record: Sequence[int] = field(default=(), repr=False, compare=False)
    """Every request to the allocator, for `fits`."""

    @property
    def allocated_peak(self) -> int:
        """Peak of ``memory_allocated``: ``peak``, cuBLAS's workspaces, and what blocks have too much."""
        return self.readings["step"].peak_allocated

    @property
    def reserved_peak(self) -> int:
        """Peak of ``memory_reserved`` on a card without limit: more than what is needed."""
        return self.readings["step"].peak_reserved

    def fits(self, capacity_bytes: int) -> bool:
        """Whether PyTorch's allocator serves every request of the job within ``capacity_bytes``.

        Needs a profile made with ``allocator=True``; the CUDA context and NCCL's buffers come on top.
        """
        assert self.record, "profile(..., allocator=True) records what this replays"
        try:
            replay(self.record, capacity_bytes)
        except OutOfMemory:
            return False
        return True


def settings_of(config: Config, world_size: int) -> Settings:
    """What of ``config`` decides memory, for a world of ``world_size`` ranks."""
    batch = config.batch(world_size)
    zero = config.zero
    name = config.optimizer_type or "adamw"
    moments = MOMENTS.get(name, 2)
    if name == "SGD" and config.optimizer_params.get("momentum"):
        moments = 1
    ranks = batch.data_parallel * int(config.get("sequence_parallel_size", 1))
    return Settings(
        stage=config.stage,
        ranks=ranks,
        accumulation=batch.accumulation,
        item=config.parameter_bytes,
        gradient_item=config.gradient_bytes,
        moments=moments,
        offload_optimizer=config.offload_optimizer,
        offload_param=config.offload_param,
        overlap_comm=bool(zero("overlap_comm")),
        contiguous_gradients=bool(zero("contiguous_gradients")) or config.offload_optimizer != "none",
        reduce_scatter=bool(zero("reduce_scatter")),
        reduce_bucket=int(zero("reduce_bucket_size")),
        prefetch_bucket=int(zero("stage3_prefetch_bucket_size")),
        persistence_threshold=int(zero("stage3_param_persistence_threshold")),
        model_persistence_threshold=int(zero("stage3_model_persistence_threshold")),
        max_live=int(zero("stage3_max_live_parameters")),
        max_reuse_distance=int(zero("stage3_max_reuse_distance")),
        sub_group=int(zero("sub_group_size")),
        hpz=int(zero("zero_hpz_partition_size")),
        precision=config.precision,
        pin_memory=bool(config.get("zero_optimization.offload_optimizer.pin_memory", True)),
    )


def profile(
    config: Config,
    model: Model,
    world_size: int,
    *,
    allocator: bool = False,
    workspace_bytes: int = WORKSPACE_BYTES[True],
) -> Profile:
    """Run ``config`` on ``model`` as rank 0 of ``world_size`` and say what it allocates.

    Args:
        allocator: replay PyTorch's caching allocator too (``readings``, `Profile.fits`).
        workspace_bytes: what cuBLAS takes in each of its two threads; only the allocator counts it.

    Raises:
        RefusedConfig: the batch does not solve for this world.
        UnknownArchitecture: the arithmetic does not know the model type.
    """
    settings = settings_of(config, world_size)
    job = config.job
    listing = parameters(model, job.task, job.lora)
    prefix = "base_model.model." if job.lora else ""
    weights = weights_of(listing, settings.item, conv1d=model.model_type == "gpt2")
    meter = Meter([] if allocator else None)
    engine = engine_for(meter, list(weights.values()), settings)
    engine.build()
    buffer_bytes = [Storage(meter, one.bytes, 0) for one in buffers(model, job.task)]
    built = meter.live
    engine.initialize()
    initialized, init_peak = meter.live, meter.peak
    meter.mark(NOTE)
    # peft trains a copy of what "modules_to_save" names, and the forward pass goes through it
    table = {
        name.removeprefix(prefix).replace(".modules_to_save.default", ""): weight
        for name, weight in weights.items()
    }
    machine = Machine(meter=meter, listener=engine, item=settings.item, sharded=settings.stage == 3)
    net = Net(
        m=machine,
        model=model,
        job=job,
        batch=config.batch(world_size).micro,
        weights=table,
        fp16=config.precision == "fp16",
    )
    peaks: dict[str, int] = {}
    live: dict[str, int] = {}
    parts: list[int] = []
    # a third step finds the cache as the second has cut it up, and may no longer fit where that did
    for step in range(3 if allocator else 2):
        measured = step > 0
        micros = min(settings.accumulation, 2)
        if step == 1:
            meter.mark(RESET)
        for micro in range(micros):
            machine.work.clear()
            engine.begin_micro(boundary=micro == micros - 1)
            handles = 0 if measured or micro else workspace_bytes
            _micro_step(net, engine, live, peaks if measured else {}, parts if measured else [], handles)
        meter.reset_peak()
        engine.step()
        live["step"] = meter.live
        if measured:
            _note(meter, "step", peaks, parts)
            meter.mark(NOTE)
    record = meter.record or ()
    readings = replay(record)
    meter.record = None
    del buffer_bytes
    return Profile(
        parameters=sum(one.numel for one in listing),
        trainable=sum(one.numel for one in listing if one.trainable),
        tensors=len(listing),
        trainable_tensors=sum(one.trainable for one in listing),
        built=built,
        initialized=initialized,
        live=live,
        phase_peaks={"init": init_peak, **peaks},
        peak=max(peaks.values()),
        peak_parts=dict(zip(PARTS, parts, strict=True)),
        host_bytes=engine.host.total,
        host_parts=dict(engine.host.parts),
        nvme_bytes=engine.nvme_bytes,
        work=machine.work,
        readings={"init": readings[0], **dict(zip(PHASES[1:], readings[-3:], strict=True))} if record else {},
        record=record,
    )


def _micro_step(
    net: Net, engine: Engine, live: dict[str, int], peaks: dict[str, int], parts: list[int], handle_bytes: int
) -> None:
    meter = net.m.meter
    tokens = net.batch * (net.job.sequence_length + 2 * (net.job.target_length or net.job.sequence_length))
    inputs = net.m.tensor(tokens, 8)
    meter.reset_peak()
    meter.request(handle_bytes)
    loss = heads.loss(net)
    net.m.kept.clear()  # the name that held the last loss holds this one now
    live["forward"] = meter.live
    _note(meter, "forward", peaks, parts)
    meter.mark(NOTE)
    meter.reset_peak()
    meter.request(handle_bytes)
    net.m.backward(loss)
    del loss
    engine.end_backward()
    live["backward"] = meter.live
    _note(meter, "backward", peaks, parts)
    meter.mark(NOTE)
    del inputs


def _note(meter: Meter, phase: str, peaks: dict[str, int], parts: list[int]) -> None:
    if meter.peak > max(peaks.values(), default=0):
        parts[:] = meter.peak_parts
    peaks[phase] = max(meter.peak, peaks.get(phase, 0))
