"""The phantom run itself, in a process of its own: it changes torch for good.

Started as ``python -m trimtab.rehearse.engine_run ANSWER`` by `trimtab.rehearse.phantom`, with the request on
standard input; writes ``{"rehearsal": {...}}`` or ``{"error": {"kind", "message"}}`` to the file ANSWER.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from trimtab.cost.allocator import WORKSPACE_BYTES, CachingAllocator, Reading
from trimtab.cost.course import Replay
from trimtab.errors import UsageError
from trimtab.rehearse import corners, streams
from trimtab.rehearse.child import answer_with
from trimtab.rehearse.course import course
from trimtab.rehearse.replay import Request, record_of, smallest_capacity
from trimtab.rehearse.request import (
    PHASES,
    Collective,
    Copy,
    Moment,
    Operator,
    PhantomRequest,
    Phase,
    Rehearsal,
)
from trimtab.train.model import transformer_layers

CUBLAS_HANDLES = 2
"""The forward pass and the backward pass's thread have one each."""
ROOT = "(model)"


class Run:
    """One rehearsal: builds, initializes, steps, and keeps what was seen at each moment."""

    def __init__(self, request: PhantomRequest) -> None:
        from trimtab.rehearse.ledger import Ledger

        corners.make_device()
        self.request = request
        self.ledger = Ledger(all_true=not request.padding)
        streams.attach(self.ledger)
        self.moments: list[tuple[str, int, int, int, int, int]] = []
        self.phase_peaks: dict[str, tuple[int, int, str]] = {}
        self.measured_from = 0
        self.starts: list[int] = []
        """Of each step, the tick."""
        self.borders: list[tuple[str, int]] = []
        self.handovers: list[tuple[tuple[int, ...], ...]] = []
        self.loss: Any = None
        self.said: tuple[str, ...] = ()
        self.shared = int(request.deepspeed.get("sequence_parallel_size", 1))
        """Ranks that share the tokens of a sample."""

    def enter(self, phase: str) -> None:
        """Close the phase that runs, keeping its peak, and start another."""
        ledger = self.ledger
        self._keep_peak()
        ledger.phase = phase
        if ledger.timeline is not None:
            ledger.timeline.note("phase", PHASES.index(phase))
        self.borders.append((phase, ledger.clock))
        ledger.peak, ledger.peak_at = ledger.allocated, None

    def _keep_peak(self) -> None:
        ledger = self.ledger
        known = self.phase_peaks.get(ledger.phase)
        if known is None or ledger.peak > known[0]:
            made = ledger.peak_at
            at = made.born if made is not None else ledger.clock
            where = f"{made.module} {made.operator}".strip() if made is not None else ""
            self.phase_peaks[ledger.phase] = (ledger.peak, at, where)

    def mark(self, name: str) -> None:
        """Keep what is alive now as the moment ``name``."""
        ledger = self.ledger
        self._keep_peak()
        peak = max(peak for peak, _, _ in self.phase_peaks.values())
        self.moments.append((name, ledger.allocated, peak, ledger.host, ledger.pinned, ledger.clock))

    def go(self) -> Rehearsal:
        """Run the whole rehearsal under fake tensors."""
        import torch

        from trimtab.config import Config
        from trimtab.rehearse import accelerator, attention, build, calls, parts
        from trimtab.train.sequences import share_attention

        started, request, ledger = time.perf_counter(), self.request, self.ledger
        corners.open_world(request.rank, request.world_size, request.ranks_per_node)
        device = accelerator.PhantomAccelerator(
            ledger, gpu_memory_bytes=request.gpu_memory_bytes, gpus_per_node=request.ranks_per_node
        )
        deepspeed = accelerator.install(device)
        deepspeed.utils.logger.setLevel(logging.ERROR)
        corners.no_shared_memory_op()
        corners.ask_no_processor()
        corners.compile_nothing()
        corners.quiet_engine(lambda flag: ledger.remember(flag, [0.0]))
        config = Config.from_mapping(request.deepspeed)
        dtype = build.DTYPES[config.precision]
        if config.sequence_parallel > 1:
            corners.take_group_over()
        if config.tensor_parallel > 1:
            corners.split_layers(config.tensor_parallel)
        with (
            ledger,
            calls.torch_calls(self._tensor(torch.tensor), attention.of_card(request.compute_capability)),
        ):
            ledger.learn_references()
            model = build.model(request, deepspeed, dtype, config.stage)
            parts.label_model(ledger, model)
            if request.attention == "sdpa" and model.config._attn_implementation == "eager":
                self.said += (f"eager attention: transformers has no sdpa for {model.config.model_type}",)
            self._watch(model)
            self.mark("model")
            total = sum(_count(p) for p in model.parameters())
            trainable = sum(_count(p) for p in model.parameters() if p.requires_grad)
            self.enter("initialize")
            engine, *_ = deepspeed.initialize(
                model=model,
                model_parameters=[p for p in model.parameters() if p.requires_grad],
                config=build.engine_config(request),
                mpu=share_attention(
                    model, self.shared, micro=request.micro_batch, length=request.sequence_length
                ),
                dist_init_required=False,
            )
            if config.tensor_parallel > 1:
                corners.trust_samples(engine)
            corners.quiet_engine(lambda flag: ledger.remember(flag, [0.0]))
            parts.label_model(ledger, model)
            parts.label_engine(ledger, engine)
            if config.stage in (1, 2) and getattr(engine.optimizer, "cpu_offload", False):
                self._watch_handovers(engine.optimizer)
            self.mark("engine")
            init_peak = max(peak for peak, _, _ in self.phase_peaks.values())
            vocabulary = getattr(model.config.get_text_config(), "vocab_size", 1000)
            for step in range(request.steps):
                self._step(engine, model, vocabulary, measured=step == request.steps - 1)
            self.mark("end")
            head = _head_modules(model)
        wrapper = engine.optimizer
        return self._answer(
            head=head,
            parameters=total,
            trainable_parameters=trainable,
            recomputed=build.recomputed_share(model),
            init_peak_bytes=init_peak,
            optimizer=type(getattr(wrapper, "optimizer", wrapper)).__name__,
            engine_optimizer=type(wrapper).__name__,
            seconds=time.perf_counter() - started,
        )

    def _step(self, engine: Any, model: Any, vocabulary: int, *, measured: bool) -> None:
        from trimtab.rehearse import build, parts
        from trimtab.rehearse.timeline import Timeline

        request, ledger = self.request, self.ledger
        self.starts.append(ledger.clock)
        if measured:
            self.phase_peaks = {}
            ledger.phase = "forward"
            ledger.reset_peaks()
            self.measured_from = ledger.clock
            self.borders = []
            ledger.recording = request.record != "none"
            if request.record == "ordered":
                ledger.timeline = Timeline(ledger.stream)
        for micro in range(request.accumulation):
            last = measured and micro == request.accumulation - 1
            self.enter("forward")
            values = build.batch(request, vocabulary)
            # as in a training loop, the last loss and what its graph still holds live until the next one
            self.loss = loss = self._loss(engine, values)
            if last:
                self.mark("after_forward")
            self.enter("backward")
            engine.backward(self._weighted(loss))
            parts.label_model(ledger, model)
            parts.label_engine(ledger, engine)
            if last:
                self.mark("after_backward")
            self.enter("step")
            engine.step()
            del values
        parts.label_model(ledger, model)
        parts.label_engine(ledger, engine)
        ledger.module_of_node.clear()

    def _loss(self, engine: Any, values: Mapping[str, Any]) -> Any:
        from trimtab.train.sequences import loss_of_part

        if self.shared == 1:
            return engine(**values).loss
        return loss_of_part(engine, dict(values), self.shared)

    def _weighted(self, loss: Any) -> Any:
        from trimtab.config import Config
        from trimtab.train.sequences import weight_of_part

        weight = weight_of_part(Config.from_mapping(self.request.deepspeed))
        return loss * weight if weight != 1 else loss

    def _tensor(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """``torch.tensor`` for a device that only fake tensors know; reading the tensor gives its values."""
        import torch

        def tensor(
            data: Any, *, dtype: Any = None, device: Any = None, requires_grad: bool = False, **_: Any
        ) -> Any:
            made = original(data, dtype=dtype, device="cpu")
            place = torch.empty(0).device if device is None else torch.device(device)
            if place.type == corners.DEVICE:
                known = self.ledger.values_of(made)
                made = torch.empty(made.shape, dtype=made.dtype, device=corners.DEVICE)
                if known is not None:
                    self.ledger.remember(made, known)
            return made.requires_grad_(requires_grad) if requires_grad else made

        return tensor

    def _watch(self, model: Any) -> None:
        """Follow which module runs, and label gradients as they arrive."""
        from torch.nn.modules import module as modules

        from trimtab.rehearse import parts

        ledger = self.ledger
        names = {id(module): name or ROOT for name, module in model.named_modules()}
        checkpointed = {id(layer) for layer in transformer_layers(model) if layer.gradient_checkpointing}
        ledger.module_classes = {
            name or ROOT: type(module).__name__ for name, module in model.named_modules()
        }

        def before(module: Any, _: Any) -> None:
            name = names.get(id(module))
            if ledger.timeline is not None:
                ledger.timeline.note("module")
                if id(module) in checkpointed:
                    ledger.timeline.note("checkpoint")
            if name is not None:
                ledger.module_stack.append(name)

        def after(module: Any, *_: Any) -> None:
            if id(module) in names and ledger.module_stack:
                ledger.module_stack.pop()

        modules.register_module_forward_pre_hook(before)
        modules.register_module_forward_hook(after, always_call=True)

        def finished(parameter: Any) -> None:
            parts.label_gradient(ledger, parameter)
            if ledger.timeline is not None:
                ledger.timeline.note("gradient")

        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(finished)

    def _watch_handovers(self, optimizer: Any) -> None:
        """Note after each reduction which of its gradients every rank has handed to the host."""
        reduce = optimizer.reduce_ipg_grads

        def watched(*args: Any, **more: Any) -> None:
            timeline = self.ledger.timeline
            sizes: dict[int, list[int]] = {self.request.rank: []}
            for bucket in optimizer.ipg_buckets.values() if timeline is not None else ():
                for group, place, number in bucket.params:
                    whole = optimizer.bit16_groups[group][place].numel()
                    for rank in optimizer.param_to_partition_ids[group][number]:
                        rest = whole - optimizer.grad_start_offset[group][rank][number]
                        room = optimizer.grad_partition_insertion_offset[group][rank][number]
                        room = optimizer.partition_size[group] - room
                        sizes.setdefault(rank, []).append(int(min(rest, room)))
            reduce(*args, **more)
            if timeline is not None:
                timeline.note("handover", len(self.handovers))
                self.handovers.append(tuple(map(tuple, sizes.values())))

        optimizer.reduce_ipg_grads = watched

    @property
    def workspace_bytes(self) -> int:
        """The workspace of one cuBLAS handle."""
        return WORKSPACE_BYTES[self.request.compute_capability >= (9, 0)]

    def _replay(self, ticks: list[int]) -> tuple[list[Reading], int | None]:
        """The allocator's statistics at each of ``ticks``, and the smallest capacity if that is asked for."""
        from trimtab.rehearse.ledger import ALIVE

        requests = [
            Request(size=a.size, born=2 * a.born, died=2 * a.died, stream=a.stream)
            for a in self.ledger.allocations
            if not a.host
        ]
        requests += [
            Request(size=self.workspace_bytes, born=2 * tick + 3, died=2 * ALIVE, stream="compute")
            for phase, tick in self.ledger.first_product.items()
            if phase in ("forward", "backward")
        ]
        drops = [2 * tick + 1 for tick in self.ledger.cache_drops]
        reads = [2 * tick + 1 for tick in ticks]
        record = record_of(requests, reads, reset_at=2 * self.measured_from + 1, cache_drops=drops)
        readings = Replay(CachingAllocator()).run(record)
        if not self.request.find_capacity:
            return readings, None
        starts = [2 * tick + 1 for tick in self.starts[-2:]]
        record = record_of(requests, [*starts, reads[-1]], cache_drops=drops)
        capacity = smallest_capacity(record, max(reading.peak_allocated for reading in readings))
        return readings, capacity

    def _answer(self, *, head: set[str], **facts: Any) -> Rehearsal:
        from trimtab.rehearse.parts import Sorter, kept_by_module

        ledger = self.ledger
        sorter = Sorter(head)
        ticks = [at for *_, at in self.moments]
        readings, capacity = self._replay(ticks)
        moments = tuple(
            Moment(
                name=name,
                allocated_bytes=allocated,
                peak_bytes=peak,
                blocks_bytes=reading.allocated,
                peak_blocks_bytes=reading.peak_allocated,
                reserved_bytes=reading.reserved,
                peak_reserved_bytes=reading.peak_reserved,
                host_bytes=host,
                host_pinned_bytes=pinned,
                parts=sorter.parts(ledger.alive(at)),
            )
            for (name, allocated, peak, host, pinned, at), reading in zip(self.moments, readings, strict=True)
        )
        forward_end = next(at for name, *_, at in self.moments if name == "after_forward")
        return Rehearsal(
            moments=moments,
            phases=tuple(
                Phase(name=name, peak_bytes=peak, at=where, parts=sorter.parts(ledger.alive(at)))
                for name, (peak, at, where) in self.phase_peaks.items()
            ),
            course=course(
                ledger.allocations,
                sorter.part,
                first=self.measured_from,
                last=self.moments[-1][-1],
                borders=self.borders,
            ),
            workspace_bytes=CUBLAS_HANDLES * self.workspace_bytes,
            step_peak_bytes=max(peak for peak, _, _ in self.phase_peaks.values()),
            host_peak_bytes=ledger.host_peak,
            host_pinned_peak_bytes=ledger.pinned_peak,
            smallest_capacity_bytes=capacity,
            nvme_bytes=sum(ledger.files.values()),
            modules=kept_by_module(ledger, forward_end),
            operators=tuple(
                Operator(
                    name=str(func),
                    phase=phase,
                    module_class=class_name,
                    inputs=tuple((str(d).removeprefix("torch."), s) for d, s in inputs),
                    outputs=tuple((str(d).removeprefix("torch."), s) for d, s in outputs),
                    count=count,
                    view=bool(getattr(func, "is_view", False)),
                    host=host,
                    uneven=uneven,
                )
                for (
                    func,
                    phase,
                    class_name,
                    inputs,
                    outputs,
                    host,
                    uneven,
                ), count in ledger.operators.items()
            ),
            collectives=tuple(
                Collective(name=n, phase=p, bytes=b, group_size=g, stream=s, count=count)
                for (n, p, b, g, s), count in ledger.collectives.items()
            ),
            copies=tuple(
                Copy(direction=d, phase=p, bytes=b, pinned=pinned, stream=s, count=count)
                for (d, p, b, pinned, s), count in ledger.copies.items()
            ),
            order=tuple(ledger.timeline.entries if ledger.timeline else ()),
            streams=tuple(ledger.timeline.streams if ledger.timeline else ()),
            handovers=tuple(self.handovers),
            assumptions=(
                *self.said,
                "matrix kernels' workspace is cuBLAS's default, "
                f"{CUBLAS_HANDLES} handles of {self.workspace_bytes / 2**20:g} MiB",
                "fused attention takes FlashAttention-2's buffers",
                "sums over rows take the buffers of a card with 132 multiprocessors (H100, H200)",
            ),
            versions=corners.versions(),
            **facts,
        )


def _count(parameter: Any) -> int:
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def _head_modules(model: Any) -> set[str]:
    """The modules whose own allocations are logits and loss: the head, and the model class around it."""
    output = model.get_output_embeddings()
    names = {name or ROOT: module for name, module in model.named_modules()}
    head = {name for name, module in names.items() if module is output}
    around = {name for name, module in names.items() if "For" in type(module).__name__}
    return {ROOT} | head | around


def rehearse(text: Mapping[str, Any]) -> dict[str, Any]:
    """Run the request ``text``; the answer as JSON values."""
    request = PhantomRequest.from_json(text)
    if request.steps < 2:
        raise UsageError("a phantom rehearsal needs 2 steps: the first makes the optimizer's states")
    if request.find_capacity and request.steps < 3:
        raise UsageError("the smallest capacity needs 3 steps: the third shows what one leaves to the next")
    corners.probe()
    return Run(request).go().to_json()


if __name__ == "__main__":
    answer_with(lambda: rehearse(json.load(sys.stdin)), Path(sys.argv[1]))
