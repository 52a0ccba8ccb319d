"""Numbers with units, read and printed in one place.

Inside, bytes, seconds, tokens and dollars are plain numbers in base units; only this module turns text
into them and them into text.  GB is 1e9 bytes and GiB is 2**30 bytes, always.
"""

from __future__ import annotations

import math
import re

from trimtab.errors import UsageError

KIB, MIB, GIB, TIB = 2**10, 2**20, 2**30, 2**40
KB, MB, GB, TB = 10**3, 10**6, 10**9, 10**12

_BYTES = {
    "": 1, "b": 1,
    "k": KB, "kb": KB, "m": MB, "mb": MB, "g": GB, "gb": GB, "t": TB, "tb": TB,
    "kib": KIB, "mib": MIB, "gib": GIB, "tib": TIB,
}  # fmt: skip
_COUNTS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "g": 10**9, "t": 10**12}
_SECONDS = {"s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_NUMBER_AND_UNIT = r"\s*([0-9]*\.?[0-9]+(?:e[+-]?[0-9]+)?)\s*([a-z]*)\s*"


def parse_bytes(text: str) -> int:
    """Bytes in ``text`` such as ``"80GB"``, ``"16 GiB"``, ``"512"``.

    >>> parse_bytes("80GB"), parse_bytes("1 GiB")
    (80000000000, 1073741824)
    """
    return round(_parse(text, _BYTES, "a size such as 80GB or 40GiB"))


def parse_count(text: str) -> int:
    """A plain count in ``text`` such as ``"1T"``, ``"300B"``, ``"2e9"``, ``"512"``.

    >>> parse_count("1T"), parse_count("2.5k")
    (1000000000000, 2500)
    """
    return round(_parse(text, _COUNTS, "a count such as 300B or 1T"))


def parse_duration(text: str) -> float:
    """Seconds in ``text`` such as ``"90s"``, ``"12h"``, ``"7d"``.

    >>> parse_duration("7d")
    604800.0
    """
    return float(_parse(text, _SECONDS, "a duration such as 12h or 7d"))


def _parse(text: str, units: dict[str, int], wanted: str) -> float:
    match = re.fullmatch(_NUMBER_AND_UNIT, text, re.IGNORECASE)
    unit = match[2].lower() if match else ""
    if not match or unit not in units:
        raise UsageError(f"'{text}' is not {wanted}")
    value = float(match[1]) * units[unit]
    if not math.isfinite(value):
        raise UsageError(f"'{text}' is more than can be counted; give {wanted}")
    return value


def format_bytes(count: float) -> str:
    """Bytes for a reader, in binary units: ``"37.3 GiB"``.

    >>> format_bytes(40 * 10**9), format_bytes(512)
    ('37.3 GiB', '512 B')
    """
    for unit, size in (("TiB", TIB), ("GiB", GIB), ("MiB", MIB), ("KiB", KIB)):
        if abs(count) >= size:
            value = count / size
            return f"{value:.0f} {unit}" if abs(value) >= 1000 else f"{value:.1f} {unit}"
    return f"{count:.0f} B"


def format_count(count: float) -> str:
    """A count for a reader: ``"6.74B"``, ``"12.8k"``.

    >>> format_count(6_738_415_616), format_count(999_885_952), format_count(12_800), format_count(999)
    ('6.74B', '1B', '12.8k', '999')
    """
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(count) >= 0.9995 * size:  # what three digits round up to it
            return f"{count / size:.3g}{unit}"
    return f"{count:.4g}"


def format_seconds(seconds: float) -> str:
    """A duration for a reader: ``"340 ms"``, ``"1.93 s"``, ``"2 h 05 min"``, ``"57.9 days"``.

    >>> format_seconds(0.34), format_seconds(7500), format_seconds(5e6)
    ('340 ms', '2 h 05 min', '57.9 days')
    """
    if not math.isfinite(seconds):
        return "unknown"
    if seconds < 0.9995:
        return f"{seconds * 1000:.3g} ms"
    if seconds < 100:
        return f"{seconds:.3g} s"
    if seconds < 3600:
        return f"{int(seconds // 60)} min {int(seconds % 60):02d} s"
    if seconds < 2 * 86400:
        minutes = round(seconds / 60)
        return f"{minutes // 60} h {minutes % 60:02d} min"
    days = seconds / 86400
    return f"{days:.3g} days" if days < 999.5 else f"{days:,.0f} days"


def format_dollars(amount: float) -> str:
    """Dollars for a reader: ``"$0.27"``, ``"$1,480"``.

    >>> format_dollars(0.271), format_dollars(1480.4)
    ('$0.27', '$1,480')
    """
    return f"${amount:,.2f}" if abs(amount) < 100 else f"${amount:,.0f}"
