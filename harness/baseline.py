"""What a run is compared with: one JSON file a machine, complete enough to repeat every test of a comparison.

Times are kept as one median a round, the unit that the bootstrap resamples; counts as one number a size.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from harness.config_errors import reason_of
from harness.config_source import dotted, shortened, show
from harness.machine import common_name
from harness.points import LARGEST, SMALLEST
from harness.rows import Case
from harness.samples import Series

# Counted, not timed: the same everywhere. Allocator bytes are so for one device and number of threads.
COUNTED = ("comparisons", "flops", "allocator_bytes")
BASELINE_SCHEMA = 1
MOST_CORES = 2**31 - 1

N = Annotated[int, Field(ge=1, le=2**53)]
Seconds = Annotated[float, Field(ge=SMALLEST, le=LARGEST)]
Count = Annotated[float, Field(ge=0, le=LARGEST)]


class BaselineError(ValueError):
    """A file or folder that cannot be compared; the message says which, why and what to do."""


class Frozen(BaseModel):
    """A part of a file whose every key is known."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class Record(Frozen):
    """One series: `times_s` n -> median seconds of each round, `counts` quantity -> n -> value."""

    case: Case
    times_s: dict[N, Annotated[list[Seconds], Field(min_length=1)]]
    counts: dict[str, dict[N, Count]]
    run: str
    commit: str

    @property
    def lengths(self) -> set[int]:
        """All n that it holds anything of."""
        return set(self.times_s).union(*self.counts.values())


class Baseline(Frozen):
    """All recorded series of a machine, by key of the series."""

    schema_version: Literal[1] = Field(BASELINE_SCHEMA, alias="schema")
    machine: str
    series: dict[str, Record]


class RunFacts(BaseModel):
    """What a comparison needs from `run.json`."""

    class Machine(BaseModel):
        """The machine as `harness.machine` describes it; older records do not say more than the first five."""

        name: str
        cpu: str = ""
        cores: int = Field(default=0, ge=0, le=MOST_CORES)
        memory_bytes: float = Field(default=0, ge=0, le=LARGEST, allow_inf_nan=False)
        gpu: str = ""
        architecture: str = ""

        @property
        def common_name(self) -> str:
            """The name that it shares with all machines whose processor is called the same; empty if unknown."""
            return common_name(self.gpu, self.cpu, self.cores, self.memory_bytes) if self.cpu else ""

    run: str
    commit: str = ""
    machine: Machine


def portable_key(case: Case) -> str:
    """Identity of a series without its number of threads."""
    return case.model_copy(update={"threads": 0}).digest()


def read_run_facts(folder: Path) -> RunFacts:
    """Run, commit and machine of a run folder. Raises BaselineError."""
    path = folder / "run.json"
    if not folder.is_dir():
        raise BaselineError(f"{folder}: there is no such folder; name one that a sweep has written")
    try:
        return RunFacts.model_validate(_read(path, "name a folder that a sweep has written"))
    except ValidationError as error:
        raise _malformed(path, error) from error


def load_baseline(path: Path) -> Baseline:
    """Raises BaselineError for a file that is missing, no JSON or of another form."""
    data = _read(path, "write one with --update")
    schema = data.get("schema") if isinstance(data, dict) else None
    if schema != BASELINE_SCHEMA:
        raise BaselineError(
            f"{path}: schema is {show(schema)}, this version reads {BASELINE_SCHEMA} only; "
            "write a new one with --update"
        )
    try:
        return Baseline.model_validate(data)
    except ValidationError as error:
        raise _malformed(path, error) from error


def save_baseline(path: Path, baseline: Baseline) -> None:
    """Write the file whole or not at all. Raises BaselineError where that is impossible."""
    text = json.dumps(baseline.model_dump(mode="json", by_alias=True), indent=1, sort_keys=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(text + "\n", encoding="utf-8")
        draft.replace(path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise BaselineError(f"{path}: cannot be written: {error.strerror}") from error


def record_series(series: Sequence[Series], facts: RunFacts, *, kept: Baseline | None = None) -> Baseline:
    """A baseline of all series with data; series of `kept` that this run did not measure stay.

    A series that it did measure is replaced whole, so that a record is of one run; `dropped` says what is lost by it.

    Raises BaselineError when no series has data and when `kept` belongs to another machine.
    """
    records = {
        one.key: Record(
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
        raise BaselineError(f"the baseline is of {theirs} and this run of {ours}: use another file")
    older = kept.series if kept is not None else {}
    return Baseline(schema=BASELINE_SCHEMA, machine=facts.machine.name, series={**older, **records})


def dropped(old: Record, new: Record) -> str:
    """What the older record of a series holds and the newer one lacks, in words; empty if nothing."""
    lost = old.lengths - new.lengths
    parts = [f"n={_listed(lost)}"] if lost else []
    held = {"times": (old.times_s, new.times_s)}
    held |= {title(name): (old.counts.get(name, {}), new.counts.get(name, {})) for name in COUNTED}
    for what, (before, after) in held.items():
        if gone := before.keys() - after.keys() - lost:
            parts.append(f"{what} at n={_listed(gone)}")
    return "; ".join(parts)


def title(name: str) -> str:
    """A counted quantity as a reader knows it."""
    return {"allocator_bytes": "allocator bytes", "flops": "FLOPs"}.get(name, name)


def round_times_s(series: Series) -> dict[int, list[float]]:
    """n -> median seconds of each round."""
    return {n: [float(np.median(samples)) for samples in rounds] for n, rounds in series.times().items()}


def counts_of(series: Series, name: str) -> dict[int, float]:
    """n -> value of a counted quantity, the median should rounds differ."""
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
        raise BaselineError(f"{path}: is not JSON ({error}); {remedy}") from error


def _malformed(path: Path, error: ValidationError) -> BaselineError:
    first = error.errors()[0]
    return BaselineError(f"{path}: {dotted(first['loc']) or 'the whole'}: {reason_of(first)}")
