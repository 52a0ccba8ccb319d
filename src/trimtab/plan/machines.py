"""The clusters that a plan may choose from, and what they cost."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache

from trimtab.cluster import Cluster, Gpu, find_gpu, find_link, gpus, name_and_count
from trimtab.errors import NotFound, UsageError
from trimtab.plan.wishes import Wishes
from trimtab.prices import Price, price

ANY = "any"
MOST_GPUS = 64
"""GPUs that an open plan goes up to unless told otherwise."""
LARGEST_WORLD = 1024
"""GPUs up to which the nearest plan that fits is looked for."""


def clusters(
    gpu: str | Gpu | Iterable[str],
    gpus_per_node: int | None = None,
    nodes: int | None = None,
    max_gpus: int | None = None,
    link: str | None = None,
    host_memory_bytes: int | None = None,
) -> tuple[Cluster, ...]:
    """The clusters that the flags leave open, smallest first; ``gpu`` may be ``"any"`` or several names.

    Without counts: one GPU and doubling within a node, then whole nodes, up to ``max_gpus``.  ``link`` joins
    the nodes where there are several, else the GPUs of the one.

    Raises:
        NotFound: an unknown GPU; carries the nearest names.
        UsageError: counts that contradict each other.
    """
    if max_gpus is not None and max_gpus < 1:
        raise UsageError(f"at most {max_gpus} GPUs leave none to train on")
    if link is not None:
        find_link(link)
    if isinstance(gpu, str) and gpu != ANY and "," not in gpu:
        gpu, gpus_per_node = name_and_count(gpu, gpus_per_node)
    stated = (gpus_per_node or 1) * (nodes or 1)
    if max_gpus is not None and stated > max_gpus:
        raise UsageError(f"{stated} GPUs are asked for, and at most {max_gpus}; leave one of the two out")
    made = []
    for card in _cards(gpu):
        for per_node, machines in _counts(card, gpus_per_node, nodes, max_gpus):
            made.append(
                Cluster.of(
                    card,
                    per_node,
                    machines,
                    intra_link=link if machines == 1 < per_node else None,
                    inter_link=link if machines > 1 else None,
                    host_memory_bytes=host_memory_bytes,
                )
            )
    if not made:
        raise UsageError(f"no cluster has at most {max_gpus} GPUs in nodes of {gpus_per_node}")
    return tuple(sorted(made, key=lambda one: (one.world_size, one.gpu.name, one.nodes)))


def _cards(gpu: str | Gpu | Iterable[str]) -> tuple[Gpu, ...]:
    if isinstance(gpu, Gpu):
        return (gpu,)
    names = [part.strip() for part in gpu.strip(", ").split(",")] if isinstance(gpu, str) else list(gpu)
    if names == [ANY]:
        return tuple(gpus().values())
    return tuple({card.name: card for card in map(find_gpu, names)}.values())


def _counts(
    card: Gpu, per_node: int | None, nodes: int | None, max_gpus: int | None
) -> Iterator[tuple[int, int]]:
    if per_node is not None and max_gpus is None:
        yield per_node, nodes or 1
        return
    most = MOST_GPUS if max_gpus is None else max_gpus
    sizes = [per_node] if per_node else [size for size in (1, 2, 4, 8) if size <= card.node.gpus]
    if nodes is not None:
        yield from ((size, nodes) for size in sizes if size * nodes <= most)
        return
    yield from ((size, 1) for size in sizes if size <= most)
    machines = 2
    while sizes and sizes[-1] * machines <= most:
        yield sizes[-1], machines
        machines *= 2


def larger(cluster: Cluster) -> Iterator[Cluster]:
    """The same GPUs, doubled again and again: within a node as the reference system has it, then in nodes."""
    per_node, nodes = cluster.gpus_per_node, cluster.nodes
    while per_node * nodes * 2 <= LARGEST_WORLD:
        if nodes == 1 and per_node * 2 <= cluster.gpu.node.gpus:
            per_node *= 2
        else:
            nodes *= 2
        yield resized(cluster, per_node, nodes)


def smaller(cluster: Cluster) -> Cluster | None:
    """Half of the GPUs, or None where there is no half."""
    if cluster.nodes % 2 == 0:
        return resized(cluster, cluster.gpus_per_node, cluster.nodes // 2)
    if cluster.nodes == 1 and cluster.gpus_per_node % 2 == 0:
        return resized(cluster, cluster.gpus_per_node // 2, 1)
    return None


def resized(cluster: Cluster, per_node: int, nodes: int, gpu: Gpu | None = None) -> Cluster:
    """A cluster like ``cluster`` with other counts, or another card at the card's own reference system."""
    if gpu is not None:
        return Cluster.of(gpu, per_node, nodes)
    return Cluster.of(
        cluster.gpu,
        per_node,
        nodes,
        intra_link=cluster.intra_link,
        inter_link=cluster.inter_link,
        host_memory_bytes=cluster.host_memory_bytes if per_node == cluster.gpus_per_node else None,
    )


def bigger_cards(cluster: Cluster) -> tuple[Gpu, ...]:
    """Cards of the same vendor with more memory: the same card first, then the least more."""
    own = cluster.gpu
    found = [one for one in gpus().values() if one.vendor == own.vendor and _bigger(one, own)]
    return tuple(sorted(found, key=lambda one: (not _kin(one, own), one.usable_bytes, one.name)))


def _bigger(one: Gpu, own: Gpu) -> bool:
    """A quarter more memory at least, and no step back in speed, links or number formats."""
    return (
        one.usable_bytes >= own.usable_bytes * 1.25
        and one.matrix_flops("fp16") >= own.matrix_flops("fp16")
        and one.intra_link.bytes_per_second >= own.intra_link.bytes_per_second
        and (one.bf16 or not own.bf16)
    )


def _kin(one: Gpu, own: Gpu) -> bool:
    """Whether it is the same card with more memory, such as an A100's 80 GB."""
    return one.name.rpartition("-")[0] == own.name.rpartition("-")[0] != ""


@cache
def _price(gpu: Gpu, spot: bool, file: str | None) -> Price | None:
    try:
        return price(gpu, spot=spot, file=file)
    except NotFound:
        return None


def price_of(cluster: Cluster, wishes: Wishes) -> Price | None:
    """What a GPU hour costs, or None where nobody is known to rent it out."""
    return _price(cluster.gpu, wishes.spot, wishes.price_file)
