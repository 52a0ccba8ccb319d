"""What a GPU hour costs: the user's own price list, live offers, or a dated table that is shipped.

Rental prices of one card differ several times over between providers and change by the month, so a price is
never shown without its source and date.  The shipped rows stand in ``data/prices.json``.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

from trimtab.cluster import Gpu, find_gpu
from trimtab.errors import NotFound, UnreadableFile
from trimtab.folders import read_shipped
from trimtab.frozen import dataclass, field

if TYPE_CHECKING:
    from pathlib import Path

_SHAPE = (
    'an object such as {"a100-80gb": 1.9}, or rows (JSON list or CSV) with "gpu", "usd_per_gpu_hour" and, '
    'if wanted, "spot", "date", "source"'
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """Dollars for one GPU for one hour, where that was read, and when (an ISO date, its beginning, or
    "undated").

    ``low`` and ``high`` span the same card's rows in the same table; ``usd_per_gpu_hour`` is their median.
    """

    usd_per_gpu_hour: float
    source: str
    date: str
    spot: bool = False
    low: float = field(default=0.0, compare=False)
    high: float = field(default=0.0, compare=False)


class _Row(NamedTuple):
    gpu: str
    usd: float
    spot: bool
    date: str
    source: str


def price(gpu: Gpu | str, *, spot: bool = False, file: str | Path | None = None, live: bool = False) -> Price:
    """The price of a GPU hour: from ``file`` if it names the card, else live if asked, else as shipped.

    ``live`` asks gpuhunt for today's offers if that package is installed (it needs the network); any trouble
    with it falls back to the shipped table.  Raises NotFound where no row prices the card, and
    UnreadableFile for a broken price file.

    >>> price("h100").source
    'lambda.ai/pricing as read in September 2026'
    """
    card = find_gpu(gpu) if isinstance(gpu, str) else gpu
    tables = [_read(file)] if file is not None else []
    if live:
        tables.append(_live(card, spot))
    tables.append(_shipped())
    for rows in tables:
        found = sorted(
            (row for row in rows if row.gpu == card.name and row.spot == spot), key=lambda row: row.usd
        )
        if found:
            chosen = found[(len(found) - 1) // 2]
            return Price(
                usd_per_gpu_hour=chosen.usd,
                source=chosen.source,
                date=chosen.date,
                spot=spot,
                low=found[0].usd,
                high=found[-1].usd,
            )
    raise NotFound(
        "spot price" if spot else "price",
        card.name,
        (),
        cure=f"No row prices it; give your own price file: {_SHAPE}.",
    )


@cache
def _shipped() -> tuple[_Row, ...]:
    rows = read_shipped("prices.json")["rows"]
    return tuple(
        _Row(
            gpu=row["gpu"],
            usd=row["usd_per_gpu_hour"],
            spot=row["spot"],
            date=row["date"],
            source=row["source"],
        )
        for row in rows
    )


def _read(file: str | Path) -> tuple[_Row, ...]:
    """A user's price list, JSON or CSV."""
    import csv  # the shipped table needs none of these
    from datetime import date
    from pathlib import Path

    path = Path(file)
    try:
        text = path.read_text("utf-8")
        today = date.fromtimestamp(path.stat().st_mtime).isoformat()
    except OSError as error:
        raise UnreadableFile(f"{path}: the price file cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise UnreadableFile(f"{path}: the price file is not UTF-8 text.") from None
    if path.suffix.lower() == ".csv":
        records: Any = list(csv.DictReader(io.StringIO(text)))
    else:
        try:
            records = json.loads(text)
        except json.JSONDecodeError as error:
            raise UnreadableFile(f"{path}: line {error.lineno}, column {error.colno}: {error.msg}.") from None
    if isinstance(records, Mapping):
        records = records.get(
            "rows", [{"gpu": name, "usd_per_gpu_hour": usd} for name, usd in records.items()]
        )
    if not isinstance(records, Sequence) or isinstance(records, str) or not records:
        raise UnreadableFile(f"{path}: a price file is {_SHAPE}.")
    return tuple(
        _row(record, f"{path}, row {number}", today) for number, record in enumerate(records, start=1)
    )


def _row(record: Any, where: str, today: str) -> _Row:
    if not isinstance(record, Mapping) or "gpu" not in record or "usd_per_gpu_hour" not in record:
        raise UnreadableFile(f"{where}: lacks a column. A price file is {_SHAPE}.")
    try:
        usd = float(record["usd_per_gpu_hour"])
    except (TypeError, ValueError):
        usd = -1.0
    if not 0 <= usd < float("inf"):
        raise UnreadableFile(f'{where}: "usd_per_gpu_hour" is {record["usd_per_gpu_hour"]!r}, not a price.')
    try:
        gpu = find_gpu(str(record["gpu"])).name
    except NotFound as error:
        raise UnreadableFile(f"{where}: {error}") from None
    return _Row(
        gpu=gpu,
        usd=usd,
        spot=str(record.get("spot") or "").strip().lower() in ("1", "true", "yes", "spot"),
        date=str(record.get("date") or today),
        source=str(record.get("source") or where.partition(", row")[0]),
    )


def _live(card: Gpu, spot: bool) -> tuple[_Row, ...]:
    """Today's offers by gpuhunt; none where it is missing, offline or changed."""
    from datetime import datetime, timezone

    try:
        offers = import_module("gpuhunt").query(spot=spot, min_gpu_count=1)
        today = datetime.now(timezone.utc).date().isoformat()
        return tuple(
            _Row(
                gpu=card.name,
                usd=float(offer.price) / offer.gpu_count,
                spot=bool(offer.spot),
                date=today,
                source=f"gpuhunt: {offer.provider} {offer.location} {offer.instance_name}",
            )
            for offer in offers
            if _same_card(offer, card)
        )
    except Exception:  # noqa: BLE001 - a price service must never stop an estimate
        return ()


def _same_card(offer: Any, card: Gpu) -> bool:
    """Whether an offer's GPU name and GB are this card's (gpuhunt writes "A100" and 80.0)."""
    if not offer.gpu_name or not offer.gpu_count:
        return False
    for name in (f"{offer.gpu_name}-{round(offer.gpu_memory or 0)}gb", str(offer.gpu_name)):
        try:
            return find_gpu(name) == card
        except NotFound:
            continue
    return False
