"""What was measured, analysed once: rows are grouped, and each curve is fitted, for all who ask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from harness.results.series import Samples, Series, group_series
from harness.stats.scaling import fit_scaling

if TYPE_CHECKING:
    from harness.common.rows import Row
    from harness.stats.fit import Fit

TIME = "time_s"
MIN_SIZES = 3
DRAWS, MAX_TOTAL_DRAWS, MIN_DRAWS = 1000, 100_000, 200  # bootstrap draws: per fit, per run, minimum

_Frozen = tuple[tuple[int, tuple[tuple[float, ...], ...]], ...]


@dataclass(frozen=True)
class Analysis:
    """The rows of a run, one per case and round, with their series and fits; each is computed when first needed."""

    rows: Sequence[Row]
    _fits: dict[_Frozen, Fit] = field(default_factory=dict, init=False, repr=False, compare=False)

    @cached_property
    def series(self) -> list[Series]:
        """The rows grouped into curves over the sequence length."""
        return group_series(self.rows)

    @cached_property
    def draws(self) -> int:
        """Bootstrap draws of each fit; fewer than `DRAWS` if there are very many series."""
        return min(DRAWS, max(MIN_DRAWS, MAX_TOTAL_DRAWS // max(1, len(self.series))))

    def fit(self, series: Series, name: str) -> Fit | None:
        """Return the growth of "time_s" or another numeric field with n; None with fewer than three positive sizes.

        Equal samples are fitted once, which also holds for series with the same counts of comparisons and bytes.
        """
        samples: Samples = series.times() if name == TIME else series.quantity(name)
        positive = {n: rounds for n, rounds in samples.items() if min(map(min, rounds)) > 0}
        if len(positive) < MIN_SIZES:
            return None
        frozen = tuple((n, tuple(map(tuple, rounds))) for n, rounds in positive.items())
        if frozen not in self._fits:
            self._fits[frozen] = fit_scaling(positive, draws=self.draws)
        return self._fits[frozen]
