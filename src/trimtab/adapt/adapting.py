"""`adapt`: demands first, then the search, and the nearest machines where nothing fits."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from trimtab.adapt.answer import Adaptation, Nearest, Step, missing
from trimtab.adapt.demands import demanded, solves
from trimtab.adapt.search import Path, Search
from trimtab.cluster import Cluster, gpus
from trimtab.config import Config
from trimtab.cost.need import SURE
from trimtab.errors import UsageError
from trimtab.model import Model, find_model
from trimtab.moves import differences
from trimtab.moves.writing import data_parallel, global_batch, with_micro_batch

MOST_NODES = 64
SURER = "it makes the fit a sure one"


def adapt(
    config: Config,
    cluster: Cluster,
    *,
    model: Model | None = None,
    home: Cluster | None = None,
    sure: float = SURE,
    fastest: bool = False,
    alternatives: bool = True,
) -> Adaptation:
    """``config`` made to fit ``cluster`` with the fewest moves.

    Args:
        home: the machines that it is made for; they settle the global batch of a file that does not state it.
        sure: how probable "fits" must be.
        fastest: then take the further moves that together save most time and still fit.
        alternatives: say which single further moves would save time.

    Raises:
        UsageError: no model is named.
        NotFound, UnknownArchitecture: the model is not known.
    """
    model = model or named_model(config)
    found = Search(model=model, cluster=cluster, sure=sure)
    notes: list[str] = []
    train = global_batch(config, home or cluster)
    if train is None:
        train = config.batch((home or cluster).world_size).train  # raises, and says what is wrong
    if home is None and config.get("train_batch_size") is None:
        notes.append(
            f"the file states no train_batch_size: {train} is what its other keys give on these machines"
        )
    forced = list(demanded(config, model, cluster, train))
    current = forced[-1][1] if forced else config
    if not solves(current, cluster):
        return _no_batch(config, cluster, home, train, notes)
    steps = _steps(found, config, forced)
    if not found.fits(current):
        path = found.fewest(current)
        if path is None:
            return _nothing_fits(found, config, current, home, steps, notes)
        steps += _steps(found, current, path)
        current = path[-1][1]
    quickest = found.quickest(current) if fastest else []
    if quickest:
        steps += _steps(found, current, quickest)
        current = quickest[-1][1]
    notes += _reminders(steps)
    faster = tuple(found.faster(current)) if alternatives and not fastest else ()
    return Adaptation(
        before=config,
        after=current,
        cluster=cluster,
        home=home,
        steps=tuple(steps),
        answer=found.answer(current),
        missing=None,
        nearest=(),
        faster=faster,
        notes=tuple(notes),
    )


def _reminders(steps: Iterable[Step]) -> Iterator[str]:
    """What the user has to do beside the file."""
    names = {step.move.name for step in steps}
    if names & {"offload-optimizer-nvme", "offload-param-nvme"}:
        yield "nvme_path must be a folder on a local drive of every node; DeepSpeed's async_io needs libaio"
    if "recomputation-on" in names:
        yield "`trimtab train` recomputes; your own script must call model.gradient_checkpointing_enable()"
    if any(step.move.kind == "sequence-parallel" for step in steps):
        yield "`trimtab train` cuts each sample for the GPUs that share it; your own script must do so too"


def named_model(config: Config) -> Model:
    """The model that a configuration names.

    Raises:
        UsageError: it names none.
        NotFound, UnknownArchitecture: the model is not known.
    """
    if config.job.model is None:
        raise UsageError(f'{config.name}: no model is named. Give --model NAME, or a "trimtab" block')
    return find_model(config.job.model)


def _steps(found: Search, config: Config, path: Path) -> list[Step]:
    """A path as steps, with the estimates before and after each."""
    steps = []
    for move, after, reason in path:
        before_answer = found.answer(config)
        answer = found.answer(after)
        steps.append(
            Step(
                move=move,
                reason=reason or (missing(before_answer, found.sure) if before_answer else None) or SURER,
                changes=differences(config.raw, after.raw),
                before=before_answer,
                after=answer,
            )
        )
        config = after
    return steps


def _no_batch(
    config: Config, cluster: Cluster, home: Cluster | None, train: int, notes: list[str]
) -> Adaptation:
    ranks = data_parallel(config, cluster)
    below = train // ranks * ranks
    near = " or ".join(str(size) for size in (below, below + ranks) if size)
    return Adaptation(
        before=config, after=None, cluster=cluster, home=home, steps=(), answer=None,
        missing=f"a global batch of {train} does not split over {ranks} ranks; {near} would, or "
        f"{max(n for n in range(1, ranks + 1) if train % n == 0)} ranks",
        nearest=(), faster=(), notes=tuple(notes),
    )  # fmt: skip


def _nothing_fits(
    found: Search, config: Config, current: Config, home: Cluster | None, steps: list[Step], notes: list[str]
) -> Adaptation:
    if config.optimizer_type is None:
        untried = "offload of the optimizer was" if config.stage else "ZeRO and offload were"
        notes.append(f"the file names no optimizer, so {untried} not tried: name the script's in the file")
    hardest = found.strongest(current)
    answer = found.answer(hardest)
    return Adaptation(
        before=config,
        after=None,
        cluster=found.cluster,
        home=home,
        steps=tuple(steps),
        answer=answer,
        missing=missing(answer, found.sure) if answer is not None else None,
        nearest=tuple(_nearest(found, hardest)),
        faster=(),
        notes=tuple(notes),
    )


def _nearest(found: Search, config: Config) -> Iterator[Nearest]:
    """The fewest nodes of these GPUs, and the smallest other card, on which the smallest form fits."""
    here = found.cluster
    train = global_batch(config, here)
    nodes = here.nodes * 2
    while nodes <= MOST_NODES:
        if hit := _on(found, config, replace(here, nodes=nodes), train):
            yield hit
            break
        nodes *= 2
    larger = sorted(
        (
            gpu
            for gpu in gpus().values()
            if gpu.usable_bytes > here.gpu.usable_bytes and gpu.vendor == here.gpu.vendor
        ),
        key=lambda gpu: gpu.usable_bytes,
    )
    for gpu in larger:
        host = max(here.host_memory_bytes, Cluster.of(gpu, here.gpus_per_node, here.nodes).host_memory_bytes)
        where = Cluster.of(
            gpu, here.gpus_per_node, here.nodes, inter_link=here.inter_link, host_memory_bytes=host
        )
        if hit := _on(found, config, where, train):
            yield hit
            break


def _on(found: Search, config: Config, cluster: Cluster, train: int | None) -> Nearest | None:
    if train is None or train % data_parallel(config, cluster):
        return None
    fitted = with_micro_batch(config, cluster, 1, train)
    there = Search(model=found.model, cluster=cluster, sure=found.sure)
    answer = there.answer(fitted) if there.fits(fitted) else None
    return Nearest(cluster=cluster, answer=answer) if answer is not None else None
