"""GPUs, links and clusters: the tables hold together and every spelling finds its card."""

from __future__ import annotations

import pytest

from trimtab.cluster import DTYPES, Cluster, find_gpu, find_link, gpus, links, name_and_count
from trimtab.errors import NotFound, UsageError

GIB = 2**30


def test_every_gpu_row_is_whole_and_consistent() -> None:
    for name, gpu in gpus().items():
        assert gpu.name == name
        assert 0.9 * gpu.marketed_bytes < gpu.usable_bytes < gpu.marketed_bytes, name
        assert set(gpu.flops) <= set(DTYPES)
        assert gpu.flops["fp16"] >= gpu.flops["fp32"]
        assert gpu.bf16 == ("bf16" in gpu.flops)
        assert gpu.source
        assert gpu.usable_source
        assert gpu.intra_link.kind == gpu.host_link.kind == "intra"
        assert gpu.inter_link.kind == "inter"
        assert gpu.node.host_memory_bytes > 0
        assert gpu.node.source


def test_rates_are_dense_and_not_sparse() -> None:
    assert find_gpu("a100").flops["bf16"] == 312e12
    assert find_gpu("h100").flops["bf16"] == 989.4e12
    assert find_gpu("b200").flops["bf16"] == 2250e12
    assert find_gpu("l40s").flops["bf16"] < 400e12
    assert find_gpu("rtx4090").flops["bf16"] < 200e12


def test_cards_without_bf16_say_so() -> None:
    assert {name for name, gpu in gpus().items() if not gpu.bf16} == {"v100-16gb", "v100-32gb", "t4"}
    assert find_gpu("v100").matrix_flops("bf16") == find_gpu("v100").flops["fp32"]


def test_usable_capacity_is_what_the_driver_reports() -> None:
    assert find_gpu("h200").usable_bytes == pytest.approx(139.80 * GIB, abs=GIB // 100)
    assert find_gpu("a100-80gb").usable_bytes == pytest.approx(79.14 * GIB, abs=GIB // 100)


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("A100", "a100-80gb"),
        ("A100 80GB", "a100-80gb"),
        ("a100_40gb", "a100-40gb"),
        ("NVIDIA A100-SXM4-40GB", "a100-40gb"),
        ("NVIDIA H100 80GB HBM3", "h100-80gb"),
        ("Tesla V100-SXM2-32GB", "v100-32gb"),
        ("NVIDIA GeForce RTX 3090", "rtx3090"),
        ("4090", "rtx4090"),
        ("NVIDIA RTX A6000", "a6000"),
        ("Tesla T4", "t4"),
        ("NVIDIA H200", "h200"),
        ("AMD Instinct MI300X", "mi300x"),
    ],
)
def test_any_usual_spelling_finds_the_card(spelling: str, name: str) -> None:
    assert find_gpu(spelling).name == name


def test_an_unknown_card_offers_the_nearest() -> None:
    with pytest.raises(NotFound, match="Did you mean a100-80gb"):
        find_gpu("a100-85gb")
    with pytest.raises(NotFound, match="unknown link 'carrier-pigeon'"):
        find_link("carrier pigeon".replace(" ", "-"))


def test_network_rates_are_bytes_of_one_port_in_one_direction() -> None:
    assert find_link("InfiniBand HDR").bytes_per_second == 25e9
    assert find_link("ndr").bytes_per_second == 50e9
    assert find_link("100gbe").bytes_per_second == 12.5e9
    assert find_link("efa-400").bytes_per_second * 4 == 50e9
    assert all(link.latency_seconds > 0 and link.source for link in links().values())


def test_a_cluster_takes_what_nobody_states_from_the_reference_system() -> None:
    cluster = Cluster.of("a100-80gb", 8, 4)
    assert cluster.world_size == 32
    assert cluster.node_bytes_per_second == 8 * 25e9
    assert cluster.host_memory_bytes == 2048 * GIB
    assert any("infiniband-hdr between nodes" in text for text in cluster.assumptions)
    half = Cluster.of("a100-80gb", 4)
    assert half.host_memory_bytes == 1024 * GIB
    assert half.inter_ports == 4


def test_what_is_stated_is_not_assumed() -> None:
    cluster = Cluster.of(
        "h100", 8, 2, intra_link="nvlink4", inter_link="ethernet-100g", inter_ports=2,
        host_memory_bytes=10**12, cpu_cores=64, nvme_bytes=0,
    )  # fmt: skip
    assert cluster.assumptions == ()
    assert cluster.node_bytes_per_second == 25e9
    assert Cluster.of("h100", 1).assumptions == (
        "host memory 256 GiB a node",
        "14 CPU cores a node",
        "local NVMe 3.8 TB a node",
    )


def test_more_gpus_than_the_reference_system_has_bring_no_more_host() -> None:
    assert Cluster.of("a100-80gb", 16).host_memory_bytes == Cluster.of("a100-80gb", 8).host_memory_bytes


@pytest.mark.parametrize(("count", "nodes"), [(0, 1), (1, 0), (-1, 1)])
def test_an_empty_cluster_is_refused(count: int, nodes: int) -> None:
    with pytest.raises(UsageError, match="at least 1"):
        Cluster.of("t4", count, nodes)


@pytest.mark.parametrize(
    ("text", "name", "count"),
    [
        ("H100:8", "h100-80gb", 8),
        ("8xH100", "h100-80gb", 8),
        ("2 x A100 40GB", "a100-40gb", 2),
        ("t4", "t4", None),
    ],
)
def test_counts_of_gpus_are_read(text: str, name: str, count: int | None) -> None:
    assert name_and_count(text) == (name, count)


@pytest.mark.parametrize("text", ["8xH100:8", "H100:0"])
def test_a_count_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        name_and_count(text)


def test_a_count_and_a_flag_beside_it_have_to_agree() -> None:
    assert name_and_count("8xH100", 8) == ("h100-80gb", 8)
    assert name_and_count("H100", 4) == ("h100-80gb", 4)
    with pytest.raises(UsageError, match="--gpus-per-node 4: give one of them"):
        name_and_count("8xH100", 4)
