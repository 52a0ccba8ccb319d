"""Why one configuration was chosen and each other was not, in sentences with both numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from trimtab.cluster import Cluster
from trimtab.estimate import Estimate
from trimtab.plan.contender import TIE, Contender, Loser
from trimtab.plan.costs import Bill
from trimtab.plan.rows import Rows
from trimtab.plan.search import Field
from trimtab.plan.wishes import Wishes
from trimtab.units import format_bytes, format_count, format_dollars, format_seconds

_PARTS = (
    ("compute_seconds", "compute"),
    ("communication_seconds", "communication"),
    ("offload_seconds", "copies to the host and its optimizer"),
    ("host_seconds", "the GPU waiting for the host"),
)


def summary(one: Contender) -> str:
    """A configuration in one line."""
    config = one.config
    words = [f"ZeRO-{config.stage}", f"micro batch {one.micro} × {one.accumulation}"]
    if one.family.is_partial:
        words.append(f"{config.job.recomputed_layers} layers recomputed")
    elif config.job.checkpoint_activations:
        words.append("recomputed")
    if config.tensor_parallel > 1:
        words.append(f"layers over {config.tensor_parallel} GPUs")
    if config.sequence_parallel > 1:
        words.append(f"samples over {config.sequence_parallel} GPUs")
    places = {"optimizer": config.offload_optimizer, "parameters": config.offload_param}
    words += [
        f"{what} on {'NVMe' if where == 'nvme' else 'CPU'}"
        for what, where in places.items()
        if where != "none"
    ]
    names = {
        "overlap-comm": "overlapped",
        "secondary-partition": "hpZ",
        "reduce-bucket": "small buckets",
    }
    words += [names[move.kind] for move in one.family.moves if move.kind in names]
    return ", ".join(words)


def machines(cluster: Cluster) -> str:
    """The cluster in a few words."""
    if cluster.nodes == 1:
        return f"{cluster.gpus_per_node} × {cluster.gpu.name}"
    return f"{cluster.nodes} × {cluster.gpus_per_node} × {cluster.gpu.name}"


def why_not_fits(loser: Loser) -> str:
    """What a configuration lacks."""
    short = loser.shortfall
    at = f"at micro batch {loser.contender.micro}"
    if short.close:
        return f"does not fit safely in {format_bytes(short.there)} of {short.where} {at}"
    return (
        f"does not fit: needs {format_bytes(short.needed)} of {format_bytes(short.there)} {short.where} {at}"
    )


def why_slower(one: Contender, chosen: Contender) -> str:
    """What a contender on the same cluster loses by."""
    ratio = one.step_seconds / chosen.step_seconds - 1
    if abs(ratio) <= TIE:
        if one.family.complexity > chosen.family.complexity:
            return f"as fast within {TIE:.0%}, and less simple".replace("%", " %")
        return f"as fast within {TIE:.0%}".replace("%", " %")
    if ratio < 0:
        if one.careful_seconds * (1 + TIE) >= chosen.careful_seconds:  # what they are ranked by
            return f"{-ratio:.0%} faster beside a quick host, and not beside a slow one".replace("%", " %")
        return f"{-ratio:.0%} faster by the arithmetic, refuted by the proof".replace("%", " %")
    grown = [
        (getattr(one.speed, key) - getattr(chosen.speed, key), name)
        for key, name in _PARTS
        if getattr(one.speed, key) > getattr(chosen.speed, key)
    ]
    more, name = max(grown, default=(0.0, "compute"))
    return f"{ratio:.0%} slower: {format_seconds(more)} more of {name} a step".replace("%", " %")


def why_other_cluster(one: Bill, chosen: Bill, wishes: Wishes) -> str:
    """What the best on another cluster loses by, under the wishes."""
    broken = one.broken(wishes)
    if broken:
        return broken[0]
    slower = one.seconds_per_token / chosen.seconds_per_token
    words = [_times(slower, "slower", "faster")]
    mine, theirs = one.usd_per_token, chosen.usd_per_token
    if mine is None:
        words.append("no price known")
    elif theirs:
        words.append(_times(mine / theirs, "dearer", "cheaper"))
    if one.cluster.world_size > chosen.cluster.world_size:
        words.append("more GPUs")
    return ", ".join(words)


def _times(ratio: float, more: str, less: str) -> str:
    if abs(ratio - 1) <= TIE:
        return f"not {more}"
    return (
        f"{ratio:.2g}× {more}"
        if ratio > 1.1
        else (f"{ratio - 1:.0%} {more}".replace("%", " %") if ratio > 1 else f"{1 / ratio:.2g}× {less}")
    )


def why(chosen: Bill, answer: Estimate, field: Field, shown: Rows, wishes: Wishes) -> tuple[str, ...]:
    """Why the chosen configuration is what it is, one sentence a decision."""
    return tuple(_why(chosen, answer, field, shown, wishes))


def _why(chosen: Bill, answer: Estimate, field: Field, shown: Rows, wishes: Wishes) -> Iterator[str]:
    one = chosen.contender
    fitting, losers = shown
    others = [other for other in fitting if other.family.name != one.family.name]
    yield from _sharding(one, others, losers)
    yield from _offload(one, others, losers)
    yield from _split(one, others, losers)
    yield from _recomputation(one, others, losers)
    yield _micro(one, field)
    yield _format(answer, wishes)
    yield _batch(one, wishes)
    yield f"learning rate {wishes.recipe.learning_rate:g}, {_schedule(one)}: {wishes.recipe.source}"
    spare = answer.capacity_bytes - answer.needed.expected
    yield (
        f"fits with {min(answer.fits_probability, 0.999):.1%} probability: needs "
        f"{format_bytes(answer.needed.expected)} of {format_bytes(answer.capacity_bytes)}, "
        f"{format_bytes(spare)} to spare"
    ).replace("%", " %")
    if chosen.usd is not None and chosen.seconds is not None and chosen.tokens is not None:
        yield (
            f"{format_count(chosen.tokens)} tokens take {format_seconds(chosen.seconds)} and cost "
            f"{format_dollars(chosen.usd)}"
        )


def _sharding(one: Contender, others: Sequence[Contender], losers: Sequence[Loser]) -> Iterator[str]:
    stage = one.config.stage
    lower = [other for other in others if _same_but(one, other, "stage") and other.config.stage < stage]
    if lower:
        best = min(lower, key=lambda other: other.step_seconds)
        yield f"ZeRO-{stage}: ZeRO-{best.config.stage} is {why_slower(best, one)}"
    elif stage:
        short = [lost for lost in losers if _same_but(one, lost.contender, "stage")]
        short = [lost for lost in short if lost.contender.config.stage < stage]
        if short:
            lost = max(short, key=lambda lost: lost.contender.config.stage)
            yield f"ZeRO-{stage}: ZeRO-{lost.contender.config.stage} {why_not_fits(lost)}"
    else:
        yield "ZeRO-0: everything fits on each GPU, and sharding would only add communication"


def _offload(one: Contender, others: Sequence[Contender], losers: Sequence[Loser]) -> Iterator[str]:
    if _offloads(one):
        kept = [lost for lost in losers if not _offloads(lost.contender)]
        bare = [other for other in others if not _offloads(other)]
        if bare:
            yield f"offload: without it the fastest is {why_slower(bare[0], one)}"
        elif kept:
            yield f"offload: without it the leanest {why_not_fits(kept[0])}"
        return
    moved = [other for other in others if _offloads(other)]
    if moved:
        yield f"nothing offloaded: the fastest that offloads is {why_slower(moved[0], one)}"


def _offloads(one: Contender) -> bool:
    return (one.config.offload_optimizer, one.config.offload_param) != ("none", "none")


def _split(one: Contender, others: Sequence[Contender], losers: Sequence[Loser]) -> Iterator[str]:
    if one.config.data_parallel_divisor == 1:
        shared = [other for other in others if other.config.data_parallel_divisor > 1]
        if shared:
            yield f"no GPUs share layers or samples: the fastest that do are {why_slower(shared[0], one)}"
        return
    layers, samples = one.config.tensor_parallel, one.config.sequence_parallel
    name = f"layers over {layers} GPUs (AutoTP)" if layers > 1 else f"samples over {samples} GPUs (Ulysses)"
    whole = [other for other in others if other.config.data_parallel_divisor == 1]
    if whole:
        yield f"{name}: the fastest whose GPUs share nothing is {why_slower(whole[0], one)}"
        return
    lost = next((each for each in losers if each.contender.config.data_parallel_divisor == 1), None)
    if lost is not None:
        yield f"{name}: the leanest whose GPUs share nothing {why_not_fits(lost)}"


def _recomputation(one: Contender, others: Sequence[Contender], losers: Sequence[Loser]) -> Iterator[str]:
    job = one.config.job
    against = {False: "keeping them", True: "recomputing them"}
    if one.family.is_partial:
        against = {False: "keeping all", True: "recomputing all"}
    elif not job.checkpoint_activations:
        del against[False]
    else:
        del against[True]
    said = []
    for amount, words in against.items():

        def rival(other: Contender, amount: bool = amount) -> bool:
            return _same_but(one, other, "recomputation") and other.config.job.recomputation is amount

        other = next((each for each in others if rival(each)), None)
        lost = next((each for each in losers if rival(each.contender)), None)
        if other is not None:
            said.append(f"{words} is {why_slower(other, one)}")
        elif lost is not None:
            said.append(f"{words} {why_not_fits(lost)}")
    if said:
        yield f"activations {job.activations}: {'; '.join(said)}"


def _same_but(one: Contender, other: Contender, what: str) -> bool:
    mine, theirs = one.config, other.config
    same = {
        "stage": mine.stage == theirs.stage,
        "recomputation": one.family.is_partial or mine.job.recomputation is theirs.job.recomputation,
        "offload": (mine.offload_optimizer, mine.offload_param)
        == (theirs.offload_optimizer, theirs.offload_param),
        "split": mine.data_parallel_divisor == theirs.data_parallel_divisor,
    }
    return all(equal for name, equal in same.items() if name != what)


def _micro(one: Contender, field: Field) -> str:
    shared = one.config.data_parallel_divisor
    count = one.cluster.world_size // shared
    groups = f"{count} group{'s' * (count > 1)} of {shared} GPUs"
    if shared == 1:
        groups = f"{one.cluster.world_size} GPUs"
    text = f"micro batch {one.micro} × {one.accumulation} accumulated × {groups}"
    if one.accumulation == 1:
        return f"{text}: the whole share of a GPU"
    if one.family.is_partial:
        return f"{text}: larger ones need more layers recomputed, or do not fit"
    beyond = field.beyond(one)
    if beyond is not None and beyond.contender.micro <= 2 * one.micro:
        return f"{text}: {beyond.contender.micro} {why_not_fits(beyond)}"
    return f"{text}: larger ones fit and are slower"


def _format(answer: Estimate, wishes: Wishes) -> str:
    gpu, form = answer.cluster.gpu, answer.config.precision
    if form == "bf16":
        return f"bf16: {gpu.name} has it, and it needs no loss scaling"
    if form == "fp16":
        return f"fp16 with dynamic loss scaling: {gpu.name} has no bf16 units"
    return f"fp32: {gpu.name} has no bf16 units, and {wishes.model.name} overflows in fp16"


def _batch(one: Contender, wishes: Wishes) -> str:
    batch = one.config.batch(one.cluster.world_size).train
    tokens = format_count(batch * wishes.tokens_per_sample)
    if wishes.global_batch is not None:
        return f"global batch {batch} samples, {tokens} tokens a step: as asked"
    recipe = wishes.recipe
    published = (
        f"{recipe.batch_samples} samples"
        if recipe.batch_samples
        else f"{format_count(recipe.batch_tokens or 0)} tokens"
    )
    return f"global batch {batch} samples, {tokens} tokens a step: the published {published}, divisible here"


def _schedule(one: Contender) -> str:
    scheduler = one.config.raw["scheduler"]
    params = scheduler["params"]
    warmup = params["warmup_num_steps"]
    ends = {
        "WarmupCosineLR": f"then a cosine to {params.get('cos_min_ratio', 0):.0%} of it",
        "WarmupDecayLR": "then a line to 0",
        "WarmupLR": "then constant",
    }
    rise = f"{warmup} steps of warm-up, " if warmup > 1 else "no warm-up, "
    return (rise + ends[scheduler["type"]]).replace("%", " %")
