"""Find what disqualifies a method: causality violations and wrong answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from attentions.base import ROUNDING
from harness.report.pieces import Headline
from harness.report.units import lengths, percent

if TYPE_CHECKING:
    from harness.report.sections import Curve, ReportSection

_ROUNDING = {str(dtype).removeprefix("torch."): error for dtype, error in ROUNDING.items()}


def leaks(curve: Curve) -> dict[int, float]:
    """Map n to `leak` where a causal method's past outputs changed with the future by more than rounding."""
    case = curve.series.case
    worst = curve.worst("leak") if case.causal else {}
    return {n: leak for n, leak in worst.items() if not leak <= _ROUNDING[case.dtype]}


def warnings(sections: Sequence[ReportSection]) -> list[Headline]:
    """Return one sentence per method that violates causality or gives wrong answers in any section."""
    found: dict[str, Headline] = {}
    for curve in (curve for section in sections for curve in section.curves):
        leaking = leaks(curve)
        if leaking and curve.label not in found:
            text = f"{curve.label} violates causality: earlier outputs change by up to {percent(max(leaking.values()))}"
            found[curve.label] = Headline(f"{text} when later tokens change.", "bad")
        wrong = sorted(n for n, (status, _) in curve.censored.items() if status == "wrong")
        if wrong:
            text = f"{curve.label} gives wrong results at {lengths(wrong)} and has no time there."
            found.setdefault(f"{curve.label} wrong", Headline(text, "bad"))
    return list(found.values())
