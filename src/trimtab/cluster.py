"""GPUs, links and clusters as values; the figures and their sources stand in ``data/gpus.json``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from types import MappingProxyType
from typing import Any

from trimtab.errors import NotFound, UsageError
from trimtab.folders import read_shipped
from trimtab.frozen import dataclass, field

DTYPES = ("bf16", "fp16", "tf32", "fp32", "fp8", "int8")


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """One way for bytes to move: ``bytes_per_second`` of one port in one direction, as the vendor states it.

    For an intra-node link the port is all of a GPU's; for a network ``ports_per_node`` says how many a node
    of eight GPUs usually has.  ``latency_seconds`` is one hop of a collective's ring.
    """

    name: str
    kind: str
    bytes_per_second: float
    latency_seconds: float
    ports_per_node: int | None = None
    source: str = field(default="", repr=False, compare=False)
    assumed: bool = field(default=False, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """The host around the GPUs in a reference system: ``gpus`` of them, memory, cores and local NVMe."""

    gpus: int
    host_memory_bytes: int
    cpu_cores: int
    nvme_bytes: int
    source: str = field(default="", repr=False, compare=False)
    assumed: bool = field(default=False, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One device as PyTorch sees it.

    ``marketed_bytes`` is what is sold, ``usable_bytes`` what the driver lets PyTorch have
    (``usable_assumed`` where no public report of this very card was found).  ``flops`` are dense
    operations a second by type, absent where the card has no such unit.
    """

    name: str
    vendor: str
    architecture: str
    compute_capability: str
    marketed_bytes: int
    usable_bytes: int
    usable_source: str = field(repr=False, compare=False)
    usable_assumed: bool = field(compare=False)
    memory_bytes_per_second: float
    flops: Mapping[str, float] = field(hash=False)
    bf16: bool
    intra_link: Link
    host_link: Link
    inter_link: Link
    tdp_watts: int
    node: Node
    source: str = field(repr=False, compare=False)
    note: str = field(default="", repr=False, compare=False)

    def matrix_flops(self, dtype: str) -> float:
        """Dense matrix operations a second in ``dtype``; fp32's rate where the card has no unit for it."""
        return self.flops.get(dtype) or self.flops["fp32"]


MOST_GPUS = 1_000_000
"""More than anyone has: past it a number is a slip, and would take long to count."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """``nodes`` hosts of ``gpus_per_node`` GPUs each, with what joins them.

    ``inter_ports`` network ports a node; ``nvme_bytes`` 0 means no local NVMe.  ``assumptions`` says in words
    what nobody stated and was taken from the GPU's reference system.
    """

    gpu: Gpu
    gpus_per_node: int
    nodes: int
    intra_link: Link
    inter_link: Link
    inter_ports: int
    host_memory_bytes: int
    cpu_cores: int
    nvme_bytes: int
    nvme_read_bytes_per_second: float
    nvme_write_bytes_per_second: float
    assumptions: tuple[str, ...] = field(default=(), compare=False)

    @property
    def world_size(self) -> int:
        """GPUs in all."""
        return self.gpus_per_node * self.nodes

    @property
    def node_bytes_per_second(self) -> float:
        """What all of a node's network ports carry in one direction."""
        return self.inter_link.bytes_per_second * self.inter_ports

    @classmethod
    def of(
        cls,
        gpu: Gpu | str,
        gpus_per_node: int = 1,
        nodes: int = 1,
        *,
        intra_link: Link | str | None = None,
        inter_link: Link | str | None = None,
        inter_ports: int | None = None,
        host_memory_bytes: int | None = None,
        cpu_cores: int | None = None,
        nvme_bytes: int | None = None,
        nvme_read_bytes_per_second: float | None = None,
        nvme_write_bytes_per_second: float | None = None,
    ) -> Cluster:
        """A cluster of which only the GPU need be named: the rest comes from the GPU's reference system.

        A share of the reference system's host goes with each GPU.  Raises UsageError for counts below one and
        NotFound for unknown names.

        >>> Cluster.of("h100", 8, 4).world_size
        32
        """
        card = find_gpu(gpu) if isinstance(gpu, str) else gpu
        for what, count in (("GPUs per node", gpus_per_node), ("nodes", nodes)):
            if count < 1:
                raise UsageError(f"{count} {what}: a cluster needs at least 1.")
        if gpus_per_node * nodes > MOST_GPUS:
            raise UsageError(f"{gpus_per_node * nodes} GPUs: at most {MOST_GPUS} are counted.")
        assumed: list[str] = []
        if intra_link is None and gpus_per_node > 1:
            assumed.append(f"{card.intra_link.name} between the GPUs of a node")
        if inter_link is None and nodes > 1:
            assumed.append(f"{card.inter_link.name} between nodes")
        network = _as_link(inter_link, card.inter_link)
        if inter_ports is None:
            inter_ports = max(1, (network.ports_per_node or 1) * min(gpus_per_node, 8) // 8)
            if nodes > 1:
                assumed.append(f"{inter_ports} network port{'s' * (inter_ports > 1)} a node")
        share = min(1.0, gpus_per_node / card.node.gpus)
        if host_memory_bytes is None:
            host_memory_bytes = int(card.node.host_memory_bytes * share)
            assumed.append(f"host memory {host_memory_bytes / 2**30:.0f} GiB a node")
        if cpu_cores is None:
            cpu_cores = max(1, int(card.node.cpu_cores * share))
            assumed.append(f"{cpu_cores} CPU cores a node")
        if nvme_bytes is None:
            nvme_bytes = int(card.node.nvme_bytes * share)
            assumed.append(f"local NVMe {nvme_bytes / 1e12:.1f} TB a node" if nvme_bytes else "no local NVMe")
        return cls(
            gpu=card,
            gpus_per_node=gpus_per_node,
            nodes=nodes,
            intra_link=_as_link(intra_link, card.intra_link),
            inter_link=network,
            inter_ports=inter_ports,
            host_memory_bytes=host_memory_bytes,
            cpu_cores=cpu_cores,
            nvme_bytes=nvme_bytes,
            nvme_read_bytes_per_second=nvme_read_bytes_per_second or NVME_READ_BYTES_PER_SECOND,
            nvme_write_bytes_per_second=nvme_write_bytes_per_second or NVME_WRITE_BYTES_PER_SECOND,
            assumptions=tuple(assumed),
        )


# One data-centre drive, sequential: Samsung PM1733 3.84 TB brief (7,000 and 3,800 MB/s).
NVME_READ_BYTES_PER_SECOND = 7.0e9
NVME_WRITE_BYTES_PER_SECOND = 3.8e9


_MAKERS = ("nvidia", "amd", "tesla", "geforce")


def _as_link(given: Link | str | None, default: Link) -> Link:
    return default if given is None else find_link(given) if isinstance(given, str) else given


def _key(name: str) -> str:
    """A name with the spelling taken out: case, blanks, dashes and the maker's name do not matter."""
    text = "".join(letter for letter in name.lower() if letter not in "_-./" and not letter.isspace())
    rest = text
    while True:
        bare = next((rest.removeprefix(maker) for maker in _MAKERS if rest.startswith(maker)), rest)
        if bare == rest:
            return rest or text
        rest = bare


@cache
def _table() -> Mapping[str, Any]:
    return MappingProxyType(read_shipped("gpus.json"))


@cache
def links() -> Mapping[str, Link]:
    """Every known link by name."""
    rows = ({key: value for key, value in row.items() if key != "aliases"} for row in _table()["links"])
    return MappingProxyType({row["name"]: Link(**row) for row in rows})


@cache
def gpus() -> Mapping[str, Gpu]:
    """Every known GPU by its canonical name."""
    known = {}
    for row in _table()["gpus"]:
        values = {key: value for key, value in row.items() if key != "aliases"}
        for key in ("intra_link", "host_link", "inter_link"):
            values[key] = links()[values[key]]
        values["node"] = Node(**values["node"])
        values["flops"] = MappingProxyType({key: rate for key, rate in row["flops"].items() if rate})
        known[row["name"]] = Gpu(**values)
    return MappingProxyType(known)


@cache
def _spellings(kind: str) -> Mapping[str, str]:
    names = {_key(row["name"]): row["name"] for row in _table()[kind]}
    for row in _table()[kind]:
        for alias in row["aliases"]:
            names.setdefault(_key(alias), row["name"])
    return names


def gpu_name(name: str) -> str | None:
    """The canonical name of a GPU in any usual spelling; None if nobody knows it."""
    return _spellings("gpus").get(_key(name))


def find_gpu(name: str) -> Gpu:
    """The GPU called ``name`` in any usual spelling; raises NotFound with the nearest names.

    >>> find_gpu("NVIDIA A100 80GB").name, find_gpu("H100").name
    ('a100-80gb', 'h100-80gb')
    """
    canonical = gpu_name(name)
    if canonical is None:
        raise NotFound("GPU", name, gpus(), cure=f"Known: {', '.join(gpus())}.")
    return gpus()[canonical]


def find_link(name: str) -> Link:
    """The link called ``name``; raises NotFound with the nearest names.

    >>> find_link("InfiniBand HDR").bytes_per_second
    25000000000
    """
    canonical = _spellings("links").get(_key(name))
    if canonical is None:
        raise NotFound("link", name, links(), cure=f"Known: {', '.join(links())}.")
    return links()[canonical]


def name_and_count(text: str, gpus_per_node: int | None = None) -> tuple[str, int | None]:
    """A GPU's canonical name and its number in a node, as ``"H100:8"``, ``"8xH100"`` or a flag say.

    Raises:
        NotFound: nobody knows the GPU.
        UsageError: the text and ``gpus_per_node`` contradict each other, or a count below 1.

    >>> name_and_count("H100:8"), name_and_count("A100", 4), name_and_count("t4")
    (('h100-80gb', 8), ('a100-80gb', 4), ('t4', None))
    """
    match = re.fullmatch(r"\s*(?:(\d+)\s*[x×*]\s*)?([^:]+?)\s*(?::\s*(\d+))?\s*", text)
    if not match:
        return find_gpu(text).name, gpus_per_node
    if match[1] and match[3]:
        raise UsageError(f"'{text}' names no GPUs; write for example H100:8.")
    said = match[1] or match[3]
    count = int(said) if said else gpus_per_node
    if count is not None and count < 1:
        raise UsageError(f"'{text}' asks for {count} GPUs; a cluster needs at least 1.")
    if gpus_per_node is not None and count != gpus_per_node:
        raise UsageError(
            f"'{text}' has {count} GPUs a node and --gpus-per-node {gpus_per_node}: give one of them."
        )
    return find_gpu(match[2]).name, count
