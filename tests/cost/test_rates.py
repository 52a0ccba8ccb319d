"""Rates: curves, shares by shape, and whose measurements count."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from trimtab import load_config
from trimtab.cluster import Cluster
from trimtab.cost.rates import rates_of
from trimtab.cost.tables import Curve, made_of
from trimtab.estimate import estimate
from trimtab.probe.kept import write

Sheet = dict[str, Any]


def sheet(gpu: str = "NVIDIA H200", ranks: int = 4, share: float = 0.5) -> Sheet:
    """A probe's sheet in which every product reaches the same share of 989.4 TFLOP/s."""
    rows: list[dict[str, Any]] = []
    for m in (512, 2048, 8192):
        for k, n in ((1024, 4096), (4096, 4096), (4096, 11008)):
            for layout in ("nt", "nn", "tn"):
                seconds = 2 * m * k * n / 989.4e12 / share
                row = {"kind": "matrix", "precision": "bf16", "m": m, "k": k, "n": n, "layout": layout}
                rows.append({**row, "seconds": seconds})
    rows += [
        {"kind": "collective", "name": "all_reduce", "bytes": size, "group": "world", "ranks": ranks,
         "seconds": 1e-4 + size / 1e11}
        for size in (2**20, 2**26, 2**30)
    ]  # fmt: skip
    rows += [
        {"kind": "copy", "direction": way, "bytes": 2**30, "ranks": 1, "seconds": 0.03}
        for way in ("to device", "to host")
    ]
    machine = {"gpu": gpu, "world_size": ranks, "gpus_per_node": ranks}
    made = "2026-11-22T00:00:00+00:00"
    return {"schema_version": 1, "made": made, "machine": machine, "measurements": rows}


@given(some.lists(some.tuples(some.floats(1, 1e12), some.floats(1e-6, 10)), min_size=1, max_size=8))
def test_a_curve_never_falls(points: list[tuple[float, float]]) -> None:
    curve = Curve.of(points)
    seconds = [curve.at(size) for size in sorted((0.5, 3e3, 1e6, 1e9, 1e13, *curve.sizes))]
    assert seconds == pytest.approx(sorted(seconds), rel=1e-9)


def test_products_keep_the_share_that_was_measured_at_their_shape(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path))
    write(sheet(share=0.5), tmp_path / "probe" / "nvidia-h200-x4.json")
    seconds = rates_of(Cluster.of("h200", 4)).product("bf16", 4096, 4096, 8192)
    assert seconds == pytest.approx(2 * 4096 * 4096 * 8192 / 989.4e12 / 0.5, rel=0.01)


def test_the_largest_probe_of_this_card_counts_and_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path))
    write(sheet(ranks=1, share=0.9), tmp_path / "probe" / "nvidia-h200-x1.json")
    write(sheet(ranks=4, share=0.2), tmp_path / "probe" / "nvidia-h200-x4.json")
    config = load_config("llama_7b_single_node").with_values({"train_batch_size": None})
    slow = estimate(config, Cluster.of("h200", 4))
    assert any("this machine's probe (2026-11-22)" in text for text in slow.assumptions)
    other = estimate(config, Cluster.of("h100", 4))
    assert any("scaled by the datasheets" in text for text in other.assumptions)
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "empty"))
    shipped = estimate(config, Cluster.of("h200", 4))
    assert any("of a probed H200" in text for text in shipped.assumptions)
    assert slow.speed.step_seconds > shipped.speed.step_seconds * 2


def test_a_changed_sheet_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path))
    file, cluster = tmp_path / "probe" / "nvidia-h200-x4.json", Cluster.of("h200", 4)
    found = []
    for number, share in enumerate((0.4, 0.8)):
        write(sheet(share=share), file)
        os.utime(file, (number, number))
        found.append(rates_of(cluster).product("bf16", 8192, 4096, 4096))
    assert found[0] == pytest.approx(2 * found[1], rel=0.01)


def test_results_with_odd_rows_are_slow_and_the_slower_the_output() -> None:
    rates = rates_of(Cluster.of("h200"))
    even = rates.product("bf16", 16384, 768, 50304)
    assert rates.product("bf16", 16384, 768, 50257) > 4 * even  # the logits
    assert 2 * even < rates.product("bf16", 16384, 50257, 768) < 5 * even  # their gradient's product


def test_collectives_grow_with_ranks_and_a_network_slows_them() -> None:
    def seconds(nodes: int) -> float:
        cluster = Cluster.of("h200", 8, nodes, inter_link="ethernet-100g", inter_ports=1)
        return rates_of(cluster).collective("all_reduce", 2**30, cluster.world_size, nodes)

    assert seconds(1) < seconds(2) < seconds(8)
    cluster = Cluster.of("h200", 8)
    assert rates_of(cluster).collective("all_gather", 2**30, 1) == 0.0
    # ring: 2 (n - 1) / n bytes a link; the measured bus bandwidth of 1 GiB on four ranks is 354 GB/s
    four = rates_of(Cluster.of("h200", 4)).collective("all_reduce", 2**30, 4)
    assert 1.5 * 2**30 / four == pytest.approx(354e9, rel=0.01)


def test_the_hosts_memory_is_shared_by_the_ranks_of_a_node() -> None:
    rates = rates_of(Cluster.of("h200", 8))
    alone, together = rates.host_moving(1e10), rates.host_moving(1e10, 8)
    assert together == pytest.approx(8e10 / 170e9)
    assert alone < together


def test_the_shipped_tables_are_those_of_the_kept_measurements() -> None:
    root = Path(__file__).parents[2]
    kept = json.loads((root / "bench" / "data" / "probe_h200.json").read_text("utf-8"))
    shipped = json.loads((root / "src" / "trimtab" / "data" / "rates_h200.json").read_text("utf-8"))
    assert shipped == json.loads(json.dumps(made_of(kept))), "run scripts/add_rates.py"


def test_a_layer_is_read_along_its_tokens_and_level_beyond_them() -> None:
    rates = rates_of(Cluster.of("h200"))
    measured = rates.product("bf16", 16384, 4096, 11008)
    assert rates.product("bf16", 65536, 4096, 11008) == pytest.approx(4 * measured, rel=0.05)
    either_way = rates.product("bf16", 4096, 8192, 11008), rates.product("bf16", 11008, 8192, 4096)
    assert either_way[0] == pytest.approx(either_way[1], rel=0.1)


def test_what_a_probe_left_out_comes_from_the_shipped_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "empty"))
    shipped = rates_of(Cluster.of("h200", 4)).norm("native_layer_norm", 4096, 1024, 4096 * 1024 * 4)
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path))
    write(sheet(), tmp_path / "probe" / "nvidia-h200-x4.json")
    own = rates_of(Cluster.of("h200", 4))
    assert own.norm("native_layer_norm", 4096, 1024, 4096 * 1024 * 4) == shipped
    assert own.copy("to device", 2**30) == pytest.approx(0.03)
    assert own.copy("to host", 2**28, pinned=False) > 0.1


def test_a_small_copy_of_fresh_memory_takes_what_its_pages_take() -> None:
    rates = rates_of(Cluster.of("h200"))
    large, small = (rates.copy("to device", size, pinned=False) for size in (2**24, 2**20))
    assert small == pytest.approx(large / 16)
    assert rates.copy("to device", 8, pinned=False) == rates.copy("to device", 8) < 1e-5
