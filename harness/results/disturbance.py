"""Detect whether other programs were running during a run, which makes times longer and affects nothing else."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from harness.common.rows import Row

BUSY = 0.1  # share of the cores' time; clock ticks alone can account for a few hundredths of a short case
OFTEN = 0.1  # share of cases from which the whole run counts as disturbed


def is_busy(row: Row) -> bool:
    """Return whether other programs used the cores while a case was timed."""
    return any(share > BUSY for share in others_share([row]))


def busy_cases(rows: Sequence[Row]) -> str:
    """Say how many timed cases were disturbed and at which lengths, however few; "" if none."""
    timed, busy = [row for row in rows if others_share([row])], [row for row in rows if is_busy(row)]
    if not busy:
        return ""
    lengths = ", ".join(map(str, sorted({row.n for row in busy})))
    return (
        f"other programs took more than {_rough(BUSY)} of CPU time in {len(busy)} of {len(timed)} timed cases, "
        f"at n={lengths}"
    )


def others_share(rows: Sequence[Row]) -> list[float]:
    """Return, for each timed case, the share of the cores' time that other programs used meanwhile."""
    shares = [row.others_share for row in rows if row.time_s is not None and row.others_share is not None]
    return [share for share in shares if math.isfinite(share)]


def disturbance(rows: Sequence[Row]) -> str:
    """Return a warning for the reader if other programs disturbed the run; otherwise ""."""
    shares = others_share(rows)
    busy = sum(share > BUSY for share in shares)
    if not shares or busy <= OFTEN * len(shares):
        return ""
    return (
        f"Other programs took more than {_rough(BUSY)} of CPU time in {busy} of {len(shares)} timed cases "
        f"(median {_rough(statistics.median(shares))}): the machine was busy."
    )


def _rough(share: float) -> str:
    return f"{float(f'{100 * share:.2g}'):g} %"
