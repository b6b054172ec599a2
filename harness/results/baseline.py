"""The baseline that a run is compared with: one JSON file per machine with all the data that the comparison needs.

Times are stored as one median per round, the unit that the bootstrap resamples; counts as one number per size.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from harness.common.atomic_write import write_whole
from harness.common.rows import Case
from harness.common.text import shortened
from harness.config.errors import reason_of
from harness.config.yaml_source import dotted, show
from harness.results.points import LARGEST, SMALLEST

if TYPE_CHECKING:
    from harness.results.run_file import RunFacts
    from harness.results.series import Series

# Counted, not timed, so the same everywhere; allocator bytes only for the same device and number of threads.
COUNTED = ("comparisons", "flops", "allocator_bytes")
BASELINE_SCHEMA = 1

N = Annotated[int, Field(ge=1, le=2**53)]
Seconds = Annotated[float, Field(ge=SMALLEST, le=LARGEST)]
Count = Annotated[float, Field(ge=0, le=LARGEST)]


class BaselineError(ValueError):
    """A file or folder that cannot be compared; the message says which one, why, and what to do."""


class Frozen(BaseModel):
    """A part of the file that allows no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class RecordedSeries(Frozen):
    """One series: `times_s` maps n to the median seconds of each round, `counts` maps quantity to n to value."""

    case: Case
    times_s: dict[N, Annotated[list[Seconds], Field(min_length=1)]]
    counts: dict[str, dict[N, Count]]
    run: str
    commit: str

    @property
    def lengths(self) -> set[int]:
        """All n with any data."""
        return set(self.times_s).union(*self.counts.values())


class Baseline(Frozen):
    """All recorded series of a machine, by series key."""

    schema_version: Literal[1] = Field(BASELINE_SCHEMA, alias="schema")
    machine: str
    series: dict[str, RecordedSeries]


def portable_key(case: Case) -> str:
    """Return the identity of a series without its number of threads."""
    return case.model_copy(update={"threads": 0}).digest()


def load_baseline(path: Path) -> Baseline:
    """Read a baseline. Raises BaselineError if the file is missing, not JSON, or has another format."""
    data = _read(path, "write one with --update")
    schema = data.get("schema") if isinstance(data, dict) else None
    if schema != BASELINE_SCHEMA:
        raise BaselineError(
            f"{path}: schema is {show(schema)}, this version reads only {BASELINE_SCHEMA}; "
            "write a new one with --update"
        )
    try:
        return Baseline.model_validate(data)
    except ValidationError as error:
        raise _malformed(path, error) from error


def save_baseline(path: Path, baseline: Baseline) -> None:
    """Write the file atomically. Raises BaselineError if it cannot be written."""
    text = json.dumps(baseline.model_dump(mode="json", by_alias=True), indent=1, sort_keys=True)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, text + "\n")
    except OSError as error:
        raise BaselineError(f"{path}: cannot be written: {error.strerror}") from error


def record_series(series: Sequence[Series], facts: RunFacts, *, kept: Baseline | None = None) -> Baseline:
    """Return a baseline of all series with data, plus the series of `kept` that this run did not measure.

    A series that this run measured replaces the recorded one as a whole, so that each record comes from one run;
    `dropped` says what is lost that way. Raises BaselineError if no series has data or if `kept` belongs to another
    machine.
    """
    records = {
        one.key: RecordedSeries(
            case=one.case,
            times_s=round_times_s(one),
            counts={name: counts_of(one, name) for name in COUNTED},
            run=facts.run,
            commit=facts.commit,
        )
        for one in series
        if one.measured()
    }
    if not records:
        raise BaselineError(f"run {facts.run}: it has no measured case, so there is nothing to record")
    if kept is not None and kept.machine != facts.machine.name:
        theirs, ours = shortened(kept.machine), shortened(facts.machine.name)
        raise BaselineError(f"the baseline is from {theirs} and this run from {ours}: use another file")
    older = kept.series if kept is not None else {}
    return Baseline(schema=BASELINE_SCHEMA, machine=facts.machine.name, series={**older, **records})


def dropped(old: RecordedSeries, new: RecordedSeries) -> str:
    """Describe what the old record of a series has and the new one lacks; "" if nothing."""
    lost = old.lengths - new.lengths
    parts = [f"n={_listed(lost)}"] if lost else []
    held = {"times": (old.times_s, new.times_s)}
    held |= {title(name): (old.counts.get(name, {}), new.counts.get(name, {})) for name in COUNTED}
    for what, (before, after) in held.items():
        if gone := before.keys() - after.keys() - lost:
            parts.append(f"{what} at n={_listed(gone)}")
    return "; ".join(parts)


def title(name: str) -> str:
    """Return the display name of a counted quantity."""
    return {"allocator_bytes": "allocator bytes", "flops": "FLOPs"}.get(name, name)


def round_times_s(series: Series) -> dict[int, list[float]]:
    """Map n to the median seconds of each round."""
    return {n: [float(np.median(samples)) for samples in rounds] for n, rounds in series.times().items()}


def counts_of(series: Series, name: str) -> dict[int, float]:
    """Map n to the value of a counted quantity, the median if rounds differ."""
    return {n: float(np.median(rounds)) for n, rounds in series.quantity(name).items()}


def _listed(lengths: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(lengths)))


def _read(path: Path, remedy: str) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise BaselineError(f"{path}: there is no such file; {remedy}") from error
    except OSError as error:
        raise BaselineError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise BaselineError(f"{path}: is not valid JSON ({error}); {remedy}") from error


def _malformed(path: Path, error: ValidationError) -> BaselineError:
    first = error.errors()[0]
    return BaselineError(f"{path}: {dotted(first['loc']) or 'top level'}: {reason_of(first)}")
