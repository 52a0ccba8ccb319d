"""Why one configuration was chosen and each other was not, in sentences with both numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from trimtab.estimate import Estimate
from trimtab.plan.candidates import Family
from trimtab.plan.costs import Bill
from trimtab.plan.search import TIE, Contender, Field, Loser
from trimtab.plan.wishes import Wishes
from trimtab.units import format_bytes, format_count, format_dollars, format_seconds

_PARTS = (
    ("compute_seconds", "compute"),
    ("communication_seconds", "communication"),
    ("offload_seconds", "copies to the host and its optimizer"),
)


def summary(family: Family, micro: int, accumulation: int) -> str:
    """A configuration in one line."""
    config = family.config
    words = [f"ZeRO-{config.stage}", f"micro batch {micro} × {accumulation}"]
    if config.job.checkpoint_activations:
        words.append("recomputed")
    places = {"optimizer": config.offload_optimizer, "parameters": config.offload_param}
    words += [f"{what} on {'NVMe' if where == 'nvme' else 'CPU'}" for what, where in places.items() if where != "none"]
    names = {
        "overlap-comm": "overlapped",
        "secondary-partition": "hpZ",
        "reduce-bucket": "small buckets",
    }
    words += [names[move.kind] for move in family.moves if move.kind in names]
    return ", ".join(words)


def machines(one: Contender | Loser) -> str:
    """The cluster in a few words."""
    cluster = one.cluster
    if cluster.nodes == 1:
        return f"{cluster.gpus_per_node} × {cluster.gpu.name}"
    return f"{cluster.nodes} × {cluster.gpus_per_node} × {cluster.gpu.name}"


def why_not_fits(loser: Loser) -> str:
    """What a configuration lacks."""
    short = loser.shortfall
    at = f"at micro batch {loser.micro}"
    if short.needed <= short.there:
        return (
            f"does not fit safely: {format_bytes(short.needed)} of {format_bytes(short.there)} {short.where} "
            f"{at}, before fragmentation"
        )
    return f"does not fit: needs {format_bytes(short.needed)} of {format_bytes(short.there)} {short.where} {at}"


def why_slower(one: Contender, chosen: Contender) -> str:
    """What a contender on the same cluster loses by."""
    ratio = one.step_seconds / chosen.step_seconds - 1
    if abs(ratio) <= TIE:
        if one.family.complexity > chosen.family.complexity:
            return "as fast within 1 %, and less simple"
        return "as fast within 1 %, and leaves less memory free"
    if ratio < 0:
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
    slower = one.contender.seconds_per_token / chosen.contender.seconds_per_token
    words = [_times(slower, "slower", "faster")]
    mine, theirs = one.usd_per_token, chosen.usd_per_token
    if mine is None:
        words.append("no price known")
    elif theirs:
        words.append(_times(mine / theirs, "dearer", "cheaper"))
    if one.contender.cluster.world_size > chosen.contender.cluster.world_size:
        words.append("more GPUs")
    return ", ".join(words)


def _times(ratio: float, more: str, less: str) -> str:
    if abs(ratio - 1) <= TIE:
        return f"not {more}"
    return f"{ratio:.2g}× {more}" if ratio > 1.1 else (
        f"{ratio - 1:.0%} {more}".replace("%", " %") if ratio > 1 else f"{1 / ratio:.2g}× {less}"
    )


def why(chosen: Bill, answer: Estimate, field: Field, wishes: Wishes) -> tuple[str, ...]:
    """Why the chosen configuration is what it is, one sentence a decision."""
    return tuple(_why(chosen, answer, field, wishes))


def _why(chosen: Bill, answer: Estimate, field: Field, wishes: Wishes) -> Iterator[str]:
    one = chosen.contender
    contenders = [other for other in field.contenders() if other is not one]
    yield from _sharding(one, contenders, field.losers)
    yield from _recomputation(one, contenders, field.losers)
    yield _micro(one, field)
    yield _format(answer, wishes)
    yield _batch(one, wishes)
    recipe = wishes.recipe
    lr = f"{recipe.learning_rate:g}"
    yield f"learning rate {lr}, {_schedule(one)}: {recipe.source}"
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


def _sharding(one: Contender, contenders: Sequence[Contender], losers: Sequence[Loser]) -> Iterator[str]:
    config = one.config
    stage = config.stage
    bare = [other for other in contenders if _same_but(one, other, "stage") and other.config.stage < stage]
    if bare:
        best = min(bare, key=lambda other: other.step_seconds)
        yield f"ZeRO-{stage}: ZeRO-{best.config.stage} is {why_slower(best, one)}"
    elif stage:
        lower = [
            lost for lost in losers if _same_but(one, lost, "stage") and lost.family.config.stage == stage - 1
        ]
        if lower:
            lost = min(lower, key=lambda other: other.shortfall.needed)
            yield f"ZeRO-{stage}: ZeRO-{stage - 1} {why_not_fits(lost)}"
    else:
        yield "ZeRO-0: everything fits on each GPU, and sharding would only add communication"
    if config.offload_optimizer != "none" or config.offload_param != "none":
        kept = [lost for lost in losers if lost.family.config.offload_optimizer == "none"]
        kept = [lost for lost in kept if lost.family.config.offload_param == "none"]
        if kept:
            least = min(kept, key=lambda other: other.shortfall.needed)
            yield f"offload: without it the leanest {why_not_fits(least)}"
    elif any(other.config.offload_optimizer != "none" for other in contenders):
        fastest = min(
            (other for other in contenders if other.config.offload_optimizer != "none"),
            key=lambda other: other.step_seconds,
        )
        yield f"nothing offloaded: the fastest with the optimizer on the CPU is {why_slower(fastest, one)}"


def _recomputation(one: Contender, contenders: Sequence[Contender], losers: Sequence[Loser]) -> Iterator[str]:
    on = one.config.job.checkpoint_activations
    other = [each for each in contenders if _same_but(one, each, "recomputation")]
    other = [each for each in other if each.config.job.checkpoint_activations != on]
    name = "activations recomputed" if on else "activations kept"
    against = "keeping them" if on else "recomputing them"
    if other:
        best = min(other, key=lambda each: each.step_seconds)
        yield f"{name}: {against} is {why_slower(best, one)}"
        return
    lost = [each for each in losers if _same_but(one, each, "recomputation")]
    lost = [each for each in lost if each.family.config.job.checkpoint_activations != on]
    if lost:
        yield f"{name}: {against} {why_not_fits(lost[0])}"


def _same_but(one: Contender, other: Contender | Loser, what: str) -> bool:
    mine, theirs = one.family.config, other.family.config
    same = {
        "stage": mine.stage == theirs.stage,
        "recomputation": mine.job.checkpoint_activations == theirs.job.checkpoint_activations,
        "offload": (mine.offload_optimizer, mine.offload_param)
        == (theirs.offload_optimizer, theirs.offload_param),
    }
    return all(equal for name, equal in same.items() if name != what)


def _micro(one: Contender, field: Field) -> str:
    sizes = [other for other in field.every if other.family.name == one.family.name]
    larger = [other for other in sizes if other.micro > one.micro]
    text = f"micro batch {one.micro} × {one.accumulation} accumulated × {one.cluster.world_size} GPUs"
    if larger:
        best = min(larger, key=lambda other: other.step_seconds)
        gain = 1 - best.step_seconds / one.step_seconds
        if gain <= TIE:
            return f"{text}: larger ones fit and are no faster"
    beyond = [lost for lost in field.losers if lost.family.config.stage == one.config.stage]
    beyond = [lost for lost in beyond if _same_but(one, lost, "") and lost.micro > one.micro]
    if beyond:
        return f"{text}: {beyond[0].micro} {why_not_fits(beyond[0])}"
    return f"{text}: the whole share of a GPU" if one.accumulation == 1 else text


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
