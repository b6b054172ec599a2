"""The order of cases within a round.

Cases are shuffled across backends and lengths, so that a machine that speeds up or slows down during a round does not
distort any curve. In the first round the lengths of a series still ascend, because a case is tried only if shorter ones
predict that it fits. Each series keeps the positions that the shuffle gave it and fills them from short to long.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from harness.runner.forecast import series_key

if TYPE_CHECKING:
    from harness.common.rows import Case


def ascending(cases: Sequence[Case]) -> list[Case]:
    """Return the same cases with each series sorted from short to long within its own positions."""
    keys = [series_key(case) for case in cases]
    waiting: dict[str, list[Case]] = {}
    for key, case in sorted(zip(keys, cases, strict=True), key=lambda pair: -pair[1].n):
        waiting.setdefault(key, []).append(case)
    return [waiting[key].pop() for key in keys]


def affordable(cases: Sequence[Case], cost_s: Callable[[Case], float], left_s: float) -> list[Case]:
    """Return the cases, in order, that fit into the time left if the cheapest are chosen first."""
    chosen: set[str] = set()
    for case in sorted(cases, key=cost_s):
        left_s -= cost_s(case)
        if left_s < 0:
            break
        chosen.add(case.digest())
    return [case for case in cases if case.digest() in chosen]
