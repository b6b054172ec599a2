"""Whether other programs were at work while a run was measured, which makes times longer and nothing else."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from harness.rows import Row

BUSY = 0.1  # share of the cores' time; the system's ticks alone make a few hundredths of a short case
OFTEN = 0.1  # share of the cases from which the whole run is spoken of


def is_busy(row: Row) -> bool:
    """Whether other programs took part of the cores while a case was timed."""
    return any(share > BUSY for share in others_share([row]))


def busy_cases(rows: Sequence[Row]) -> str:
    """How many timed cases were disturbed and at which lengths, however few they are; empty if none was."""
    timed, busy = [row for row in rows if others_share([row])], [row for row in rows if is_busy(row)]
    if not busy:
        return ""
    where = ", ".join(map(str, sorted({row.n for row in busy})))
    return (
        f"other programs took more than {_rough(BUSY)} of the cores' time in {len(busy)} of {len(timed)} timed cases, "
        f"at n={where}"
    )


def others_share(rows: Sequence[Row]) -> list[float]:
    """Of each timed case, the share of the cores' time that other programs took meanwhile."""
    shares = [row.others_share for row in rows if row.time_s is not None and row.others_share is not None]
    return [share for share in shares if math.isfinite(share)]


def disturbance(rows: Sequence[Row]) -> str:
    """What a reader must know first if other programs took part of the machine; else empty."""
    shares = others_share(rows)
    busy = sum(share > BUSY for share in shares)
    if not shares or busy <= OFTEN * len(shares):
        return ""
    return (
        f"Other programs took more than {_rough(BUSY)} of the cores' time in {busy} of {len(shares)} timed cases, "
        f"in the median {_rough(statistics.median(shares))}: these are times of a busy machine."
    )


def _rough(share: float) -> str:
    return f"{float(f'{100 * share:.2g}'):g} %"
