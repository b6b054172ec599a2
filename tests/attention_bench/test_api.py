"""The Python interface."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import attention_bench
from attention_bench import Run, run_sweep
from harness.config.yaml_source import ConfigError
from harness.results.run_dir import FolderError
from tests.harness.test_sweep import BASE

SMALL = BASE | {"backends": ["flash", "bit_sampling"], "lengths": [64, 128]}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run_sweep(SMALL, tmp_path_factory.mktemp("api") / "run")


def test_every_name_is_there() -> None:
    assert set(dir(attention_bench)) == set(attention_bench.__all__)
    for name in attention_bench.__all__:
        assert getattr(attention_bench, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'biuld'"):
        attention_bench.biuld  # noqa: B018


def test_a_backend_is_built_and_called() -> None:
    attention = attention_bench.build("simhash", heads=2, head_dim=8, bits=2)
    x = torch.randn(1, 2, 10, 8)
    assert attention(x, x, x).shape == x.shape


def test_a_sweep_gives_rows_series_and_a_report(run: Run) -> None:
    assert run.complete
    assert {(row.label, row.n, row.status) for row in run.rows} == {
        (label, n, "ok") for label in ("flash", "bit_sampling") for n in (64, 128)
    }
    assert {one.label for one in run.series} == {"flash", "bit_sampling"}
    assert "bit_sampling" in run.report.read_text()
    assert Run(run.folder).rows == run.rows


def test_a_run_is_a_frame(run: Run) -> None:
    frame = run.to_pandas()
    assert len(frame) == 4
    for row, (_, line) in zip(run.rows, frame.iterrows(), strict=True):
        assert (line["label"], line["n"], line["time_s"], line["samples_s"]) == (
            row.label,
            row.n,
            row.time_s,
            row.samples_s,
        )
        assert line["error"] == row.metrics["error"]


def test_mistakes_are_named(run: Run, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"rounds: 0 is not allowed"):
        run_sweep(SMALL, tmp_path / "run", overrides=["rounds=0"])
    with pytest.raises(FolderError, match="already holds a run"):
        run_sweep(SMALL, run.folder)
    with pytest.raises(ConfigError, match="cannot be read"):
        run_sweep(tmp_path / "absent.yml")
