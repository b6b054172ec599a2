"""Rows are parsed once and curves fitted once, however many ask."""

from __future__ import annotations

import contextlib
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from attention_bench import run_sweep
from harness.config.model import Expectation
from harness.report.__main__ import main as report
from harness.results import rows_file
from harness.results.rows_file import read_rows
from harness.results.run_file import read_facts
from harness.stats import scaling
from harness.stats.analysis import DRAWS, MIN_DRAWS, Analysis
from harness.stats.expectations import judge_expectations
from harness.sweep import main as sweep
from tests.harness.planted import OCTAVES, row
from tests.harness.test_sweep import BASE, ROOT, backends

LENGTHS = (16, 32, 64, 128, 256, 512)
# Every expectation, with bounds that no fit can meet, so that each is judged.
EXPECT = {"time_exponent": [8.0, 9.0], "memory_exponent": [8.0, 9.0], "error": 1e9, "leak": 1e9}


@dataclass
class Counts:
    """What was parsed and fitted: lines of `rows.jsonl`, and the samples of each fit."""

    lines: Counter[str] = field(default_factory=Counter)
    samples: Counter[str] = field(default_factory=Counter)


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> Counts:
    found = Counts()
    parse, measure_points = rows_file._parse, scaling.measure_points

    def counted_parse(line: str, where: str) -> Any:
        found.lines[line] += 1
        return parse(line, where)

    def counted_points(samples: Mapping[int, Sequence[Sequence[float]]], **options: Any) -> Any:
        found.samples[str([(n, list(map(list, rounds))) for n, rounds in samples.items()])] += 1
        return measure_points(samples, **options)

    monkeypatch.setattr(rows_file, "_parse", counted_parse)
    monkeypatch.setattr(scaling, "measure_points", counted_points)
    return found


def fitted(folder: Path) -> set[str]:
    """The samples of everything that a report fits, by the series themselves."""
    every = [
        series.times() if name == "time_s" else series.quantity(name)
        for series in Analysis(read_rows(folder)).series
        for name in ("time_s", "peak_bytes", "allocator_bytes", "comparisons")
    ]
    positive = [{n: rounds for n, rounds in samples.items() if min(map(min, rounds)) > 0} for samples in every]
    return {str(list(samples.items())) for samples in positive if len(samples) >= 3}


def test_one_sweep_parses_each_row_once_and_fits_each_curve_once(folder: Path, counts: Counts) -> None:
    config = BASE | {"backends": backends("Right"), "lengths": list(LENGTHS), "expect": {"Right": EXPECT}}
    conf = folder.parent / "conf.yml"
    conf.write_text(yaml.safe_dump(config))
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as said:
        status = sweep([str(conf), "--out", str(folder)])
    assert set(counts.lines.values()) == {1}
    assert len(counts.lines) == len(LENGTHS)
    assert set(counts.samples.values()) == {1}
    assert counts.samples.keys() == fitted(folder)
    assert len(counts.samples) >= 3
    assert (status, "memory exponent" in said.getvalue()) == (1, True)
    counts.lines.clear()
    counts.samples.clear()
    with contextlib.redirect_stdout(io.StringIO()):
        assert report([str(folder), "--picture", str(folder / "time.svg")]) == 0
    assert (set(counts.lines.values()), set(counts.samples.values())) == ({1}, {1})


def test_a_sweep_from_python_parses_each_row_once(folder: Path, counts: Counts) -> None:
    run = run_sweep(BASE | {"lengths": [16, 32, 64]}, folder)
    assert len(run.series) == 1
    assert len(run.to_pandas()) == len(run.rows) == 3
    assert (set(counts.lines.values()), set(counts.samples.values())) == ({1}, {1})


def test_equal_samples_of_several_series_are_fitted_once(counts: Counts) -> None:
    rows = [row(n, label=label, allocator_bytes=n**2) for n in OCTAVES for label in ("one", "two")]
    analysis = Analysis(rows)
    first, second = (analysis.fit(series, "allocator_bytes") for series in analysis.series)
    assert first is second is not None
    assert list(counts.samples.values()) == [1]


def test_expectations_ask_for_the_fits_that_the_report_has_made(counts: Counts) -> None:
    analysis = Analysis([row(n, allocator_bytes=n**2) for n in OCTAVES])
    (series,) = analysis.series
    analysis.fit(series, "allocator_bytes")
    assert judge_expectations(analysis, {"planted": Expectation.model_validate({"memory_exponent": [0.9, 1.1]})})
    assert list(counts.samples.values()) == [1]


@pytest.mark.parametrize(("series", "draws"), [(1, DRAWS), (100, DRAWS), (200, DRAWS // 2), (5000, MIN_DRAWS)])
def test_very_many_series_share_the_draws(series: int, draws: int) -> None:
    assert Analysis([row(128, label=str(number)) for number in range(series)]).draws == draws


def test_published_runs_stay_readable() -> None:
    published = sorted((ROOT / "reports" / "published").glob(f"**/{rows_file.ROWS}"))
    assert published
    for folder in (path.parent for path in published):
        assert Analysis(read_rows(folder)).series
        assert read_facts(folder).run
