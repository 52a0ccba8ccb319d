"""A probe's sheet for a reader: the rates that matter, beside what the vendor states."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from trimtab.cluster import Gpu, find_gpu
from trimtab.errors import NotFound

Row = Mapping[str, Any]
_UNITS = {"TFLOP/s": 1e12, "GB/s": 1e9, "G elements/s": 1e9}


def probe_text(sheet: Mapping[str, Any], kept: Sequence[Path]) -> RenderableType:
    """The machine, its best rates, and where the whole sheet was written."""
    machine = sheet["machine"]
    measured = [row for row in sheet["measurements"] if row["seconds"]]
    skipped = sorted({row["kind"] for row in sheet["measurements"] if row["seconds"] is None})
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for title in ("measured", "", "of the vendor's"):
        table.add_column(title, justify="right" if title == "" else "left")
    for name, value, share in _lines(measured, _card(machine["gpu"])):
        table.add_row(name, value, share)
    blocks: list[RenderableType] = [
        Text(f"{machine['world_size']} × {machine['gpu'] or machine['processor']}", style="bold"),
        Text(f"{machine['cores']} cores; {versions}"),
        Text(),
        table,
        Text(),
        Text(f"{len(measured)} measurements in {sheet['seconds']:.0f} s"),
    ]
    blocks += [
        Text(f"failed: {failure['part']}: {failure['error']}", style="yellow")
        for failure in sheet["failures"]
    ]
    if skipped:
        blocks.append(Text(f"some of these could not be measured: {', '.join(skipped)}", style="yellow"))
    blocks += [Text(f"written to {file}") for file in kept]
    return Group(*blocks)


def _card(name: str | None) -> Gpu | None:
    try:
        return find_gpu(name) if name else None
    except NotFound:
        return None


def _lines(rows: Sequence[Row], card: Gpu | None) -> list[tuple[str, str, str]]:
    lines: list[tuple[str, str, str]] = []

    def line(
        title: str, kind: str, rate: Callable[[Row], float], unit: str, vendor: float | None, **only: Any
    ) -> None:
        rates = [rate(row) for row in rows if row["kind"] == kind and only.items() <= row.items()]
        if rates:
            best = max(rates)
            share = f"{best / vendor:.0%}".replace("%", " %") if vendor else ""
            lines.append((title, f"{best / _UNITS[unit]:,.4g} {unit}", share))

    flops: Mapping[str, float] = card.flops if card else {}
    memory = card.memory_bytes_per_second if card else None
    pinned = card.host_link.bytes_per_second if card else None
    between = card.intra_link.bytes_per_second if card else None
    for dtype in ("bf16", "fp16", "tf32", "fp32"):
        line(f"{dtype} product, best", "matrix", _flops, "TFLOP/s", flops.get(dtype), precision=dtype)
    line("bf16 product, sustained", "sustained matrix", _flops, "TFLOP/s", flops.get("bf16"))
    line("copy on the device", "element-wise", _bytes, "GB/s", memory, name="clone", cache="cold")
    for direction in ("to device", "to host"):
        line(f"pinned copy {direction}", "copy", _bytes, "GB/s", pinned, direction=direction, ranks=1)
    line("host Adam, best", "host adam", _elements, "G elements/s", None)
    for direction in ("write", "read"):
        line(f"disk {direction}", "disk", _bytes, "GB/s", None, direction=direction)
    for name in ("all_reduce", "all_gather", "reduce_scatter"):
        line(f"{name}, bus bandwidth", "collective", _bus, "GB/s", between, name=name, group="world")
    for row in rows:
        if row["kind"] == "issue" and row["name"] in ("add", "mul backward", "module with two hooks"):
            lines.append((f"host: {row['name']}", f"{row['seconds'] * 1e6:.3g} µs", ""))
    return lines


def _flops(row: Row) -> float:
    return float(2 * row["m"] * row["k"] * row["n"] / row["seconds"])


def _bytes(row: Row) -> float:
    return float(row["bytes"] / row["seconds"])


def _elements(row: Row) -> float:
    return float(row["elements"] / row["seconds"])


def _bus(row: Row) -> float:
    """Bytes a second of one rank's link, as NCCL's own tests count them."""
    twice = 2 if row["name"] == "all_reduce" else 1
    return float(twice * row["bytes"] * (row["ranks"] - 1) / row["ranks"] / row["seconds"])
