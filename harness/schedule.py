"""The order of cases within a round.

Cases are shuffled across backends and lengths, so that a machine that speeds up or slows down in the meantime tilts
no curve. In the first round one thing is kept: within a series lengths ascend, since a case is tried only if shorter
ones say that it fits. Each series keeps the places that the shuffle gave it and fills them from short to long.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from harness.forecast import series_key
from harness.rows import Case


def ascending(cases: Sequence[Case]) -> list[Case]:
    """The same cases, each series from short to long in the places that it has."""
    keys = [series_key(case) for case in cases]
    waiting: dict[str, list[Case]] = {}
    for key, case in sorted(zip(keys, cases, strict=True), key=lambda pair: -pair[1].n):
        waiting.setdefault(key, []).append(case)
    return [waiting[key].pop() for key in keys]


def affordable(cases: Sequence[Case], cost_s: Callable[[Case], float], left_s: float) -> list[Case]:
    """The cases, in their order, that fit into the time left if the cheap ones go first."""
    chosen: set[str] = set()
    for case in sorted(cases, key=cost_s):
        left_s -= cost_s(case)
        if left_s < 0:
            break
        chosen.add(case.digest())
    return [case for case in cases if case.digest() in chosen]
