"""What a job computes in a micro step, however the engine shards it: a recording, and its sums."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import groupby

from trimtab.config import Config
from trimtab.cost import heads
from trimtab.cost.machine import Machine, Weight
from trimtab.cost.meter import Work
from trimtab.cost.net import Net, weights_of
from trimtab.cost.tape import BACKWARD, FINISH, FORWARD, RELEASE, SHOWN, Recording, Tape
from trimtab.frozen import dataclass, replace
from trimtab.job import Job, Lora
from trimtab.model import Model
from trimtab.parameters import parameters, skeleton
from trimtab.parameters.lists import first_names
from trimtab.parameters.tensor_parallel import narrowed, portions, split_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What one rank computes, however the engine shards it; elements unless the name says else."""

    parameters: int
    trainable: int
    """Of the whole model."""
    own_parameters: int
    own_trainable: int
    """Of what this rank computes with: fewer where AutoTP splits the layers."""
    layers: int
    recomputed_layers: int
    """Layers whose activations are recomputed."""
    tensors: int
    """Parameter tensors."""
    trained: tuple[int, ...]
    """Elements of each tensor that trains, in the model's order."""
    linears: int
    """Calls of PyTorch's linear function in a forward pass."""
    work: Work
    """Operators of the last micro step by (phase, flops, bytes moved)."""
    stretches: tuple[Work, ...]
    """The same of each stack of alike layers, and between them, in the order in which they run."""
    uses: int
    """How often the engine's hooks see a module in a micro step; 0 where it has none."""
    kept_bytes: int
    """What the model keeps from its forward for its backward pass."""

    @property
    def trainable_tensors(self) -> int:
        """How many tensors train."""
        return len(self.trained)

    def fullest(self, ranks: int) -> int:
        """Tensors of the rank that has the most of them when all are cut into ``ranks`` equal stretches.

        As stages 1 and 2 flatten them (stage_1_and_2.py:463); a tensor counts wherever a part of it lies.
        """
        return _fullest(self.trained, ranks)


@lru_cache(maxsize=64)
def _fullest(sizes: tuple[int, ...], ranks: int) -> int:
    stretch = max(1, -(-sum(sizes) // ranks))
    counts: Counter[int] = Counter()
    start = 0
    for numel in sizes:
        counts.update(range(start // stretch, (start + max(1, numel) - 1) // stretch + 1))
        start += numel
    return max(counts.values(), default=0)


def workload(config: Config, model: Model, world_size: int) -> Workload:
    """What rank 0 of ``world_size`` computes in a micro step of ``config``; raises as `profile` does."""
    return workload_of(config, model, recording_of(config, model, world_size))


def workload_of(config: Config, model: Model, recording: Recording) -> Workload:
    """What ``recording``, a micro step of ``config``, computes."""
    job, item, split = config.job, config.parameter_bytes, config.tensor_parallel
    whole = weights_for(model, job.task, job.lora, item, 1)
    own = weights_for(model, job.task, job.lora, item, split)
    return Workload(
        parameters=sum(one.numel for one in whole),
        trainable=sum(one.numel for one in whole if one.trainable),
        own_parameters=sum(one.numel for one in own),
        own_trainable=sum(one.numel for one in own if one.trainable),
        layers=model.all_layers,
        recomputed_layers=job.recomputed_of(model.all_layers, model.name),
        tensors=len(own),
        trained=tuple(one.numel for one in own if one.trainable),
        linears=_linears(own, recording.work),
        work=recording.work,
        stretches=_stretches(recording),
        uses=len(recording.order.reach) - 1 if config.stage == 3 else 0,
        kept_bytes=sum(recording.parts_before(BACKWARD)),
    )


def _linears(weights: Sequence[Weight], work: Work) -> int:
    """Products of whole layers in the forward pass; where layers write theirs out, the head's alone.

    Those of a fused loss, which say nothing of what they move, are no layer's.
    """
    if any(weight.written_out for weight in weights):
        return 1
    products = (one for one in work if one.name == "product" and one.phase == "forward")
    whole = (one for one in products if one.shape[0] == 1 and one.moved)
    return sum(work[one] for one in whole)


@lru_cache(maxsize=256)
def _stretches(recording: Recording) -> tuple[Work, ...]:
    found = []
    for phase in (FORWARD, BACKWARD):
        for _, run in groupby(recording.reels[phase], key=lambda shown: _stack(recording, shown[0])):
            work = Work()
            for number, times in Counter(number for number, _, _ in run).items():
                for kernel, count in recording.sections[number].work.items():
                    work[kernel] += count * times
            if work:
                found.append(work)
    return tuple(found)


def _stack(recording: Recording, number: int) -> object:
    """The stack that a section is a layer of, if it is."""
    place = recording.sections[number].place
    return None if place is None else place[0]


def recording_of(config: Config, model: Model, world_size: int) -> Recording:
    """A micro step of ``config`` in a world of ``world_size``; raises as `recorded` does."""
    job, spread = config.job, config.sequence_parallel
    return recorded(
        model,
        replace(job, model=None, sequence_length=job.sequence_length // spread),
        config.batch(world_size).micro,
        config.parameter_bytes,
        sharded=config.stage == 3,
        own_linear=bool(config.zero("memory_efficient_linear")),
        fp16=config.precision == "fp16",
        size=config.tensor_parallel,
        spread=spread,
    )


@lru_cache(maxsize=16)
def weights_for(model: Model, task: str, lora: Lora | None, item: int, size: int) -> tuple[Weight, ...]:
    """The machine's weights in the order of ``named_parameters()``, ``item`` bytes an element.

    Of a model that AutoTP splits over ``size`` ranks those that the first rank holds.
    """
    found = portions(model, task, size) if size > 1 else parameters(model, task, lora)
    return weights_of(found, item, model.model_type)


@lru_cache(maxsize=256)
def recorded(
    model: Model,
    job: Job,
    batch: int,
    item: int,
    *,
    sharded: bool,
    fp16: bool,
    own_linear: bool = True,
    size: int = 1,
    spread: int = 1,
    shown: int = SHOWN,
) -> Recording:
    """A micro step of ``batch`` samples: whatever the engine, as long as ``sharded`` says if it is stage 3.

    ``own_linear``: whether that has a linear function of its own (``memory_efficient_linear``).

    ``size`` ranks share its layers by AutoTP, ``spread`` its tokens by Ulysses; ``job`` has those of one.

    Jobs that differ only in buckets, ranks, offload or stages 0 to 2 share it.

    Raises:
        UnknownArchitecture: the arithmetic does not know the model type.
    """
    fewest = _fewest_alike(model, job, shown)
    if job.recomputed_layers is not None and fewest < job.recomputed_layers:
        return recorded(
            model,
            replace(job, recomputed_layers=fewest),
            batch,
            item,
            sharded=sharded,
            own_linear=own_linear,
            fp16=fp16,
            size=size,
            spread=spread,
            shown=shown,
        ).moved(job.recomputed_layers - fewest)
    tape = Tape(shown=shown)
    machine = Machine(meter=tape, listener=tape, item=item, sharded=sharded, own_linear=own_linear, fp16=fp16)
    # peft trains a copy of what "modules_to_save" names, and the forward pass goes through it
    prefix = "base_model.model." if job.lora else ""
    weights = {
        weight.name.removeprefix(prefix).replace(".modules_to_save.default", ""): weight
        for weight in weights_for(model, job.task, job.lora, item, size)
    }
    ties = first_names(skeleton(model, job.task)).items()
    shared = {name: weights[first] for name, first in ties if first in weights}
    split = split_of(model, job.task, size) if size > 1 else None
    run = narrowed(model, size) if size > 1 else model
    net = Net(
        m=machine,
        model=run,
        job=job,
        batch=batch,
        weights={**shared, **weights},
        fp16=fp16,
        split=split,
        spread=spread,
    )
    tokens = batch * (job.sequence_length + 2 * (job.target_length or job.sequence_length))
    inputs = machine.tensor(tokens, 8)
    tape.turn_to_phase(FORWARD)
    loss = heads.loss(net)
    tape.turn_to_phase(BACKWARD)
    machine.backward(loss)
    del loss
    tape.turn_to_phase(FINISH)
    del inputs
    tape.turn_to_phase(RELEASE)
    machine.kept.clear()
    strides = {stack: _stride(stack[0], weights) for stack in tape.stacks}
    return Recording(tape, strides, tuple(weight.numel for weight in weights.values()))


def _fewest_alike(model: Model, job: Job, shown: int) -> int:
    """How many recomputed layers a tape needs to show all that it shows of the job's, at the least."""
    many, start = job.recomputed_layers or 0, 0
    for layers in (model.layers, model.decoder_layers):
        if shown <= many - start <= layers - shown and not (model.sliding_layers or model.unturned_layers):
            return start + shown
        start += layers
    return many


def _stride(path: str, weights: Mapping[str, Weight]) -> int:
    """How many parameters lie between a layer's and the next one's, in the stack at ``path``."""
    places = [
        next((one.index for name, one in weights.items() if name.startswith(f"{path}.{layer}.")), 0)
        for layer in (1, 2)
    ]
    return places[1] - places[0]
