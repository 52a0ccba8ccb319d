"""One training run, from the first rank's hello to the closing report.  `run` is the whole story."""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trimtab.config import Config
from trimtab.errors import RunFailed, TrimtabError
from trimtab.train import saving
from trimtab.train.checkpoint import (
    check_resumable,
    digest_of,
    find_checkpoint,
    read_manifest,
)
from trimtab.train.data.order import micro_batches
from trimtab.train.engine import import_deepspeed, leave, settle
from trimtab.train.export import export_model
from trimtab.train.folder import RunFolder
from trimtab.train.metrics import Events, Progress, memory_peak_bytes
from trimtab.train.model import build_model
from trimtab.train.ranks import Ranks, StopSignals, join
from trimtab.train.report import closing_report
from trimtab.train.sampling import sample_text
from trimtab.train.sequences import loss_of_part, part_of, share_attention, weight_of_part
from trimtab.train.settings import Settings, as_mapping
from trimtab.train.setup import Setup, check_room, set_up, write_effective

EVALUATION_BATCHES = 50
"""Micro batches per rank of one look at the validation part, at most."""
NOT_FINITE_STEPS = 3
"""Steps in a row whose loss is no finite number before the run is ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a run ended."""

    exit_code: int
    step: int
    report: Mapping[str, Any] | None = None
    checkpoint: str | None = None


@dataclass(slots=True)
class Position:
    """Where a run stands."""

    step: int = 0
    samples: int = 0
    """Global samples taken, over all epochs and ranks."""
    tokens: int = 0
    loss: float | None = None


class ToldElsewhere(TrimtabError):
    """Rank 0 failed and says why; the other ranks only leave."""


def run(settings: Settings, *, prediction: Mapping[str, Any] | None = None) -> Outcome:
    """Train as ``settings`` say; every rank calls it, rank 0 speaks and writes.

    Raises:
        TrimtabError: on rank 0, what the user has to mend; elsewhere `ToldElsewhere`.
    """
    deepspeed = import_deepspeed(settings.device)
    ranks = join(settings.device, deepspeed)
    folder = RunFolder(Path(settings.run))
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(StopSignals())
        setup, checkpoint = _prepare(settings, folder, ranks, stack)
        events = Events(folder.events if ranks.first else None)
        engine, parameters, zero3 = _build(setup, settings, ranks, deepspeed)
        at = Position()
        if checkpoint is not None:
            at = _restore(engine, checkpoint, setup, settings, ranks)
            events.write("resume", step=at.step, checkpoint=str(checkpoint))
        events.write(
            "start", settings=as_mapping(settings), world_size=ranks.world, steps=setup.steps, step=at.step,
            notes=list(setup.notes), versions=_versions(), **parameters,
        )  # fmt: skip

        batches = micro_batches(
            setup.training, seed=settings.seed, start=at.samples, micro=setup.batch.micro,
            rank=setup.replica_of(ranks.rank), world=setup.batch.data_parallel, workers=settings.workers,
        )  # fmt: skip
        progress = stack.enter_context(Progress(total=setup.steps, start=at.step, shown=ranks.first))
        for note in setup.notes:
            progress.say(f"note: {note}")
        if checkpoint is not None:
            progress.say(f"continuing from {checkpoint} at step {at.step}")
        saved, signal, bad, first = checkpoint, 0, 0, at.step + 1
        while at.step < setup.steps and not signal:
            row, signal = _step(engine, batches, setup, ranks, stop, folder)
            if at.step + 1 == first:
                settle()
            at = Position(at.step + 1, at.samples + setup.batch.train, at.tokens + row["tokens"], row["loss"])
            row |= {
                "step": at.step,
                "tokens": at.tokens,
                "memory_peak_bytes": memory_peak_bytes(ranks.device),
            }
            events.write("step", **row)
            progress.step(row)
            bad = 0 if math.isfinite(row["loss"]) else bad + 1
            if bad == NOT_FINITE_STEPS:
                raise _not_finite(setup.config, at.step, saved)
            last = at.step == setup.steps or signal
            if settings.eval_every and at.step % settings.eval_every == 0 and not last:
                _evaluate(engine, setup, settings, ranks, events, at.step)
            if last or (settings.save_every and at.step % settings.save_every == 0):
                saved = _save(engine, setup, settings, ranks, folder, at)
                events.write("checkpoint", step=at.step, path=str(saved))
        if signal:
            events.write("stop", step=at.step, signal=signal, checkpoint=str(saved) if saved else None)
            leave(engine)
            return Outcome(exit_code=128 + signal, step=at.step, checkpoint=str(saved) if saved else None)

        _evaluate(engine, setup, settings, ranks, events, at.step)
        facts: dict[str, Any] = {"world_size": ranks.world, "checkpoint": str(saved), **parameters}
        if setup.config.job.task == "causal-lm" and setup.config.sequence_parallel == 1:
            facts["sample"] = _sample(engine, setup, settings)
        if settings.export:
            export_model(
                engine, setup.prepared.tokenizer, folder.model, ranks,
                config=setup.config,
            )  # fmt: skip
            facts["model"] = str(folder.model)
        report = closing_report(folder, facts=facts, prediction=prediction) if ranks.first else None
        events.write("end", step=at.step)
        leave(engine)
        del zero3
    return Outcome(exit_code=0, step=at.step, report=report, checkpoint=str(saved))


def _prepare(
    settings: Settings, folder: RunFolder, ranks: Ranks, stack: contextlib.ExitStack
) -> tuple[Setup, Path | None]:
    """Rank 0 opens the folder, prepares the data and chooses the checkpoint; the others then read what it
    left.
    """
    setup, chosen, failure = None, None, None
    if ranks.first:
        try:
            if settings.launched:
                chosen = None if settings.checkpoint is None else Path(settings.checkpoint)
                setup = set_up(settings, folder, world=ranks.world)
            else:
                stack.enter_context(folder.opened(resume=settings.resume, overwrite=settings.overwrite))
                stack.enter_context(folder.lock())
                with folder.replacing(settings.overwrite):
                    chosen, said = find_checkpoint(settings.resume, folder.checkpoints)
                    setup = set_up(settings, folder, world=ranks.world, resuming=chosen is not None)
                    check_room(setup, settings, folder)
                    write_effective(setup, folder)
                    settings.save(folder.settings)
                for line in said:
                    print(line, file=sys.stderr)  # noqa: T201
        except TrimtabError as error:
            failure = error
    told, chosen = ranks.same((None if failure is None else str(failure), chosen))
    if failure is not None:
        raise failure
    if told is not None:
        raise ToldElsewhere(told)
    if setup is None:
        setup = set_up(settings, folder, world=ranks.world)
    return setup, chosen


def _build(setup: Setup, settings: Settings, ranks: Ranks, deepspeed: Any) -> tuple[Any, dict[str, int], Any]:
    import torch

    torch.manual_seed(settings.seed)  # the same on every rank: the same weights everywhere
    built = build_model(setup.config, setup.hf, setup.build, device=settings.device)
    # from here on each rank its own dropout, but for those that compute parts of one and the same tensor
    torch.manual_seed(settings.seed + 1 + ranks.rank // setup.config.tensor_parallel)
    values = setup.config.deepspeed()
    values.setdefault("steps_per_print", 2**31)
    engine, _, _, _ = deepspeed.initialize(
        model=built.module,
        model_parameters=[p for p in built.module.parameters() if p.requires_grad],
        config=values,
        mpu=share_attention(
            built.module,
            setup.config.sequence_parallel,
            micro=setup.batch.micro,
            length=setup.config.job.sequence_length,
        ),
        dist_init_required=False,
    )
    return engine, {"parameters": built.parameters, "trainable": built.trainable}, built.zero3


def _step(
    engine: Any, batches: Any, setup: Setup, ranks: Ranks, stop: StopSignals, folder: RunFolder
) -> tuple[dict[str, Any], int]:
    """One optimizer step; its numbers over all ranks, and the signal that asks to stop (0: none)."""
    started = time.monotonic()
    total, tokens, weight = 0.0, 0, weight_of_part(setup.config)
    for _ in range(setup.batch.accumulation):
        batch = next(batches)
        tokens += (
            int(batch["attention_mask"].sum()) if "attention_mask" in batch else batch["input_ids"].numel()
        )
        loss = _loss(engine, batch, setup, ranks)
        engine.backward(loss * weight if weight != 1 else loss)
        engine.step()
        total += float(loss.detach())
    asked = stop.number or (_requested(folder) if ranks.first else 0)
    # a signal reaches ranks at different moments: the highest one that any rank has seen counts, on all of
    # them
    by_rank = [0.0] * ranks.world
    by_rank[ranks.rank] = float(asked)
    sums = ranks.add(total, tokens, *by_rank)
    seconds = time.monotonic() - started
    norm = engine.get_global_grad_norm()
    tokens = int(sums[1]) // setup.config.data_parallel_divisor  # each rank of a replica has counted its own
    row = {
        "loss": sums[0] / setup.batch.accumulation / ranks.world,
        "lr": engine.get_lr()[0],
        "grad_norm": None if norm is None else float(norm),
        "tokens": tokens,
        "tokens_per_second": tokens / seconds,
        "seconds": seconds,
    }
    return row, int(max(sums[2:]))


def _loss(engine: Any, batch: dict[str, Any], setup: Setup, ranks: Ranks) -> Any:
    """The loss of a micro batch, or of this rank's part of it."""
    batch = {name: values.to(ranks.device, non_blocking=True) for name, values in batch.items()}
    size = setup.config.sequence_parallel
    if size == 1:
        return engine(**batch).loss
    return loss_of_part(engine, part_of(batch, ranks.rank % size, size), size)


def _requested(folder: RunFolder) -> int:
    try:
        return int(folder.stop_request.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return 0


def _evaluate(engine: Any, setup: Setup, settings: Settings, ranks: Ranks, events: Events, step: int) -> None:
    """The mean loss over (some of) the validation part, as an event."""
    import torch

    micro, world = setup.batch.micro, setup.batch.data_parallel
    if not len(setup.validation):
        return
    count = max(1, min(EVALUATION_BATCHES, len(setup.validation) // (micro * world)))
    batches = micro_batches(
        setup.validation, seed=settings.seed, start=0, micro=micro,
        rank=setup.replica_of(ranks.rank), world=world,
    )  # fmt: skip
    engine.eval()
    total = 0.0
    with torch.no_grad():
        for _ in range(count):
            total += float(_loss(engine, next(batches), setup, ranks))
    engine.train()
    (total,) = ranks.add(total)
    events.write("evaluation", step=step, loss=total / count / ranks.world, samples=count * micro * world)


def _restore(engine: Any, checkpoint: Path, setup: Setup, settings: Settings, ranks: Ranks) -> Position:
    manifest = read_manifest(checkpoint)
    check_resumable(
        manifest, checkpoint, world=ranks.world, model=setup.model_digest,
        data=setup.data_digest, seed=settings.seed, split=setup.config.tensor_parallel,
    )  # fmt: skip
    saving.load(engine, checkpoint, ranks, frozen=setup.saves_frozen)
    return Position(manifest.step, manifest.samples, manifest.tokens)


def _save(
    engine: Any, setup: Setup, settings: Settings, ranks: Ranks, folder: RunFolder, at: Position
) -> Path:
    facts = {
        "step": at.step,
        "samples": at.samples,
        "tokens": at.tokens,
        "loss": None if at.loss is None else at.loss.hex(),
        "world_size": ranks.world,
        "stage": setup.config.stage,
        "tensor_parallel": setup.config.tensor_parallel,
        "seed": settings.seed,
        "model": setup.model_digest,
        "data": setup.data_digest,
        "config": digest_of(setup.config.raw),
        "versions": _versions(),
    }
    return saving.save(
        engine, folder.checkpoints, ranks, facts=facts, keep=settings.keep, frozen=setup.saves_frozen
    )


def _sample(engine: Any, setup: Setup, settings: Settings) -> str:
    prompt = settings.prompt
    if prompt is None:
        part = setup.validation if len(setup.validation) else setup.training
        prompt = setup.prepared.tokenizer.decode(part.make(0, 0)["input_ids"][:24], skip_special_tokens=True)
    return sample_text(
        engine, setup.prepared.tokenizer, prompt,
        tokens=settings.sample_tokens, limit=setup.config.job.sequence_length, seed=settings.seed,
    )  # fmt: skip


def _not_finite(config: Config, step: int, saved: Path | None) -> RunFailed:
    cure = "lower --learning-rate or lengthen --warmup-steps"
    if config.precision == "fp16":
        cure += ", or train in bf16 where the GPU has it (--set fp16.enabled=false --set bf16.enabled=true)"
    return RunFailed(
        f"the loss is no finite number since step {step - NOT_FINITE_STEPS + 1}: {cure}. "
        + (f"The last checkpoint is {saved}" if saved else "No checkpoint was saved before")
    )


def _versions() -> dict[str, str]:
    import deepspeed
    import torch
    import transformers

    return {
        "torch": torch.__version__,
        "deepspeed": deepspeed.__version__,
        "transformers": transformers.__version__,
    }
