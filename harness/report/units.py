"""Format numbers for readers: three significant digits with a unit. Rounding happens only here."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence

Formatter = Callable[[float], str]

_TIMES = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns"))
_BYTES = ((2.0**40, "TiB"), (2.0**30, "GiB"), (2.0**20, "MiB"), (2.0**10, "KiB"), (1.0, "B"))
_COUNTS = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))
_MINUTES_FROM_S = 600.0
_PERCENT_FROM = 1e-4
_LEAST_PLAIN, _MOST_PLAIN = 1e-6, 1e12
_LONGEST_NAME = 40


def digits(value: float) -> str:
    """Format three significant digits: 0.0123, 1.23, 12.3, 123, 1230; very small or large values get an exponent."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    if not _LEAST_PLAIN <= abs(value) < _MOST_PLAIN:
        return f"{value:.2e}"
    rounded = float(f"{value:.3g}")
    places = max(0, 2 - math.floor(math.log10(abs(rounded))))
    return f"{rounded:.{places}f}"


def _scaled(value: float, scales: Sequence[tuple[float, str]]) -> str:
    """Format `value` in the largest unit that leaves at least one, taking rounding up to the next unit into account."""
    for size, unit in scales:
        if float(f"{abs(value):.3g}") >= size:
            return f"{digits(value / size)} {unit}".rstrip()
    size, unit = scales[-1]
    return f"{digits(value / size)} {unit}".rstrip()


def duration(seconds: float) -> str:
    """Format seconds as 1.30 ms, 4.20 s or, from ten minutes, 12.5 min."""
    return f"{digits(seconds / 60)} min" if seconds >= _MINUTES_FROM_S else _scaled(seconds, _TIMES)


def size(count: float) -> str:
    """Format bytes as 812 MiB."""
    return _scaled(count, _BYTES)


def count(value: float) -> str:
    """Format a count as 33.6 M."""
    return _scaled(value, _COUNTS)


def rate(per_s: float) -> str:
    """Format tokens per second as 845 k/s."""
    text = count(per_s)
    return f"{text}/s" if text[-1].isalpha() else f"{text} /s"


def length(n: int) -> str:
    """Format tokens as 128, 1K, 1.5K or 1M (binary), or in full if that would lose digits."""
    if n >= 2**20 and n % 2**20 == 0:
        return f"{n // 2**20}M"
    if n >= 2**10 and n % 2**9 == 0:
        return f"{n / 2**10:g}K" if n % 2**10 else f"{n // 2**10}K"
    return str(n)


def short(label: str) -> str:
    """Shorten a label where space is tight: one line, with the middle left out if it is very long."""
    plain = " ".join(label.split())
    half = _LONGEST_NAME // 2
    return plain if len(plain) <= _LONGEST_NAME else f"{plain[:half]}…{plain[1 - half :]}"


def lengths(ns: Sequence[int]) -> str:
    """Format several lengths in words: "1K", "1K and 2K", "1K, 2K and 4K"."""
    return listed([length(n) for n in ns])


def listed(words: Sequence[str], last: str = "and") -> str:
    """Join words as in a sentence: "a, b and c"."""
    return f" {last} ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def percent(share: float) -> str:
    """Format a share as 12.3 %, or as 3.1e-07 if a percentage would be all zeros."""
    if share == 0 or not math.isfinite(share):
        return f"{share:g}"
    return f"{digits(100 * share)} %" if abs(share) >= _PERCENT_FROM else f"{share:.1e}"


def rough(share: float) -> str:
    """Format a share for a sentence, with two digits: 13 %."""
    return f"{float(f'{100 * share:.2g}'):g} %"


def small(share: float) -> str:
    """Format a share, with "<0.01 %" for very small ones."""
    return "<0.01 %" if abs(share) < _PERCENT_FROM else percent(share)


def times(ratio: float) -> str:
    """Format a ratio as 6.1×: two digits, because a third is not reproducible."""
    return f"{ratio:.0f}×" if ratio >= 10 else f"{ratio:.1f}×" if ratio >= 1 else f"{ratio:.2g}×"


def interval(low: float, high: float, places: int = 2) -> str:
    """Format an interval of exponents as 1.98 to 2.01."""
    return f"{low:.{places}f} to {high:.{places}f}"


def tick(value: float, formatter: Formatter) -> str:
    """Format a round number for an axis: 10 ms where a table would say 10.0 ms."""
    return re.sub(r"\.?0+(?= |$)", "", text) if "." in (text := formatter(value)) else text


def cores(number: int) -> str:
    """Return "1 core", "2 cores"."""
    return f"{number} core{'' if number == 1 else 's'}"
