"""Prices: always with source and date, the user's own file first, a live service never in the way."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from trimtab.cluster import gpus
from trimtab.errors import NotFound, UnreadableFile
from trimtab.prices import price

UNPRICED = {"a100-pcie-40gb", "mi250"}


def test_every_card_but_the_unpriced_has_a_price_with_source_and_date() -> None:
    for name in gpus():
        if name in UNPRICED:
            with pytest.raises(NotFound, match="price file"):
                price(name)
            continue
        found = price(name)
        assert 0 < found.low <= found.usd_per_gpu_hour <= found.high
        assert found.source
        assert found.date


def test_spot_is_cheaper_than_on_demand_where_both_are_known() -> None:
    for name in gpus():
        try:
            spot, firm = price(name, spot=True), price(name)
        except NotFound:
            continue
        assert spot.spot
        assert spot.usd_per_gpu_hour < firm.usd_per_gpu_hour, name


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("p.json", '{"H100": 2.5}'),
        ("p.json", '[{"gpu": "h100", "usd_per_gpu_hour": 2.5}]'),
        ("p.json", '{"rows": [{"gpu": "h100-80gb", "usd_per_gpu_hour": 2.5}]}'),
        ("p.csv", "gpu,usd_per_gpu_hour\nh100,2.5\n"),
    ],
)
def test_the_users_own_file_comes_first(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    found = price("h100", file=path)
    assert found.usd_per_gpu_hour == 2.5
    assert found.source == str(path)
    assert len(found.date) == 10
    assert price("a100", file=path) == price("a100")


def test_columns_of_a_users_file_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    path.write_text("gpu,usd_per_gpu_hour,spot,date,source\nmi250,0.9,yes,2026-01-02,our contract\n")
    found = price("mi250", spot=True, file=path)
    assert (found.usd_per_gpu_hour, found.date, found.source) == (0.9, "2026-01-02", "our contract")
    with pytest.raises(NotFound):
        price("mi250", file=path)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "line 1"),
        ('"x"', "a price file is"),
        ("{}", "a price file is"),
        ('[{"gpu": "h100"}]', "row 1: lacks a column"),
        ('{"h100": "cheap"}', "not a price"),
        ('{"h100": -1}', "not a price"),
        ('{"z900": 1}', "unknown GPU 'z900'"),
    ],
)
def test_a_broken_price_file_says_where(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "p.json"
    path.write_text(text)
    with pytest.raises(UnreadableFile) as caught:
        price("h100", file=path)
    assert says in str(caught.value)
    with pytest.raises(UnreadableFile, match="cannot be read"):
        price("h100", file=tmp_path / "none.json")


def offer(name: str, memory: float, dollars: float, *, spot: bool = False, count: int = 1) -> SimpleNamespace:
    return SimpleNamespace(
        gpu_name=name, gpu_memory=memory, gpu_count=count, price=dollars, spot=spot,
        provider="p", location="l", instance_name="i",
    )  # fmt: skip


def test_live_offers_are_per_gpu_and_of_the_very_card(monkeypatch: pytest.MonkeyPatch) -> None:
    offers = [offer("A100", 80.0, 16.0, count=8), offer("A100", 40.0, 0.5), offer("Z9", 1.0, 0.1)]
    monkeypatch.setitem(sys.modules, "gpuhunt", SimpleNamespace(query=lambda **_: offers))
    found = price("a100-80gb", live=True)
    assert found.usd_per_gpu_hour == 2.0
    assert found.source == "gpuhunt: p l i"
    assert price("t4", live=True) == price("t4")


def test_a_live_service_in_trouble_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(**_: object) -> None:
        raise OSError("no network")

    monkeypatch.setitem(sys.modules, "gpuhunt", SimpleNamespace(query=broken))
    assert price("a100", live=True) == price("a100")
    monkeypatch.setitem(sys.modules, "gpuhunt", None)
    assert price("a100", live=True) == price("a100")


def test_shipped_rows_are_json_that_names_known_cards() -> None:
    path = Path(__file__).parents[1] / "src" / "trimtab" / "data" / "prices.json"
    rows = json.loads(path.read_text("utf-8"))["rows"]
    assert {row["gpu"] for row in rows} == set(gpus()) - UNPRICED
    assert all(row["provider_class"] in ("hyperscaler", "specialist", "marketplace") for row in rows)
