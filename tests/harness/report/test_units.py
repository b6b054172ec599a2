from __future__ import annotations

import pytest

from harness.report import units


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.01234, "0.0123"),
        (1.2345, "1.23"),
        (9.999, "10.0"),
        (123.4, "123"),
        (123456, "123000"),
        (-2.5, "-2.50"),
    ],
)
def test_digits_are_three_and_never_an_exponent(value: float, text: str) -> None:
    assert units.digits(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(3e-9, "3.00 ns"), (42e-6, "42.0 µs"), (1.3e-3, "1.30 ms"), (0.9999, "1.00 s"), (599, "599 s"), (750, "12.5 min")],
)
def test_a_duration_stands_in_the_largest_unit_that_leaves_one(seconds: float, text: str) -> None:
    assert units.duration(seconds) == text


@pytest.mark.parametrize(
    ("n", "text"), [(1, "1"), (1000, "1000"), (1024, "1K"), (1536, "1.5K"), (262144, "256K"), (2**20, "1M")]
)
def test_a_length_is_short_only_where_no_digit_is_lost(n: int, text: str) -> None:
    assert units.length(n) == text


def test_bytes_are_binary_and_counts_decimal() -> None:
    assert (units.size(812 * 2**20), units.count(33_558_528), units.rate(845_000), units.rate(12)) == (
        "812 MiB",
        "33.6 M",
        "845 k/s",
        "12.0 /s",
    )


def test_a_share_too_small_for_a_percentage_keeps_its_digits() -> None:
    assert [units.percent(share) for share in (0.123, 1.5, 3.1e-7, 0)] == ["12.3 %", "150 %", "3.1e-07", "0"]


def test_words_are_joined_as_in_a_sentence() -> None:
    assert [units.listed(words) for words in ([], ["a"], ["a", "b"], ["a", "b", "c"])] == [
        "",
        "a",
        "a and b",
        "a, b and c",
    ]


def test_a_tick_drops_the_zeros_that_a_table_keeps() -> None:
    assert [units.tick(value, units.duration) for value in (1e-3, 0.1, 15e-3)] == ["1 ms", "100 ms", "15 ms"]
    assert units.tick(0.001, units.percent) == "0.1 %"


def test_one_core_is_no_plural() -> None:
    assert [units.cores(number) for number in (1, 2)] == ["1 core", "2 cores"]
