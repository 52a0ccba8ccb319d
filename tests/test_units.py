"""Numbers with units, in and out."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.errors import UsageError
from trimtab.units import (
    GB,
    GIB,
    format_bytes,
    format_count,
    format_dollars,
    format_seconds,
    parse_bytes,
    parse_count,
    parse_duration,
)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("80GB", 80 * GB),
        ("16 GiB", 16 * GIB),
        ("512", 512),
        ("1.5kb", 1500),
        (" 2 MiB ", 2 * 2**20),
        ("1e3B", 1000),
    ],
)
def test_sizes_are_read_with_decimal_and_binary_units(text: str, count: int) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize(
    ("text", "count"),
    [("1T", 10**12), ("300B", 300 * 10**9), ("2e9", 2 * 10**9), ("12.8k", 12_800), (".5M", 500_000)],
)
def test_counts_are_read(text: str, count: int) -> None:
    assert parse_count(text) == count


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90.0), ("12h", 43_200.0), ("7d", 604_800.0), ("1.5 min", 90.0), ("2w", 1_209_600.0)],
)
def test_durations_are_read(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "GB", "80 GBs", "-5GB", "1,000", "nan", "inf", "0x10", "1 2", "8٠GB"])
def test_what_is_no_size_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(UsageError, match="is not a size such as 80GB or 40GiB"):
        parse_bytes(text)


def test_a_duration_and_a_count_need_their_own_units() -> None:
    with pytest.raises(UsageError, match="is not a duration"):
        parse_duration("7")
    with pytest.raises(UsageError, match="is not a count"):
        parse_count("7 GiB")


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (40 * GB, "37.3 GiB"),
        (-2 * GIB, "-2.0 GiB"),
        (1000 * GIB, "1000 GiB"),
    ],
)
def test_bytes_are_printed_in_binary_units(count: int, text: str) -> None:
    assert format_bytes(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0 ms"),
        (0.34, "340 ms"),
        (1.934, "1.93 s"),
        (150, "2 min 30 s"),
        (7500, "2 h 05 min"),
        (5e6, "57.9 days"),
        (math.inf, "unknown"),
        (math.nan, "unknown"),
    ],
)
def test_durations_are_printed(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


def test_counts_and_dollars_are_printed() -> None:
    assert [format_count(count) for count in (999, 12_800, 6_738_415_616, 1e12)] == [
        "999",
        "12.8k",
        "6.74B",
        "1T",
    ]
    assert [format_dollars(amount) for amount in (0.271, 99.994, 1480.4)] == ["$0.27", "$99.99", "$1,480"]


@given(st.integers(min_value=0, max_value=2**60))
def test_printed_bytes_can_be_read_back_within_their_rounding(count: int) -> None:
    assert parse_bytes(format_bytes(count)) == pytest.approx(count, rel=0.06, abs=1)


@given(st.text(max_size=12))
def test_any_text_is_read_or_refused(text: str) -> None:
    for parse in (parse_bytes, parse_count, parse_duration):
        try:
            amount = parse(text)
        except UsageError:
            continue
        assert amount >= 0


@pytest.mark.parametrize("text", ["1e400", "1e308T"])
def test_a_number_beyond_all_counting_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="more than can be counted"):
        parse_count(text)
