"""What is told of this machine, and what it is found to reach."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from harness import machine
from harness.executor import Executor, Limits


def test_the_name_is_a_slug_of_what_decides_speed() -> None:
    here = machine.describe("NVIDIA H200 (TM)")
    assert re.fullmatch(r"nvidia-h200-[a-z0-9-]+-\d+-cores-\d+-gb", here.name)
    assert machine.describe("").name == here.name.removeprefix("nvidia-h200-")
    assert here.cores >= 1
    assert here.memory_bytes > 2**28
    assert set(here.as_dict()) == {"name", "cpu", "cores", "memory_bytes", "gpu", "os"}


def test_versions_name_what_can_change_a_measurement_and_is_installed() -> None:
    found = machine.versions()
    assert {"python", "torch", "numpy"} <= set(found)
    assert all(found.values())


def test_where_git_knows_nothing_there_is_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert machine.commit() == ("", False)
    monkeypatch.setenv("PATH", "")
    assert machine.commit() == ("", False)


def test_ceilings_are_measured_in_a_child_within_their_budget(executor: Executor) -> None:
    arguments = {"device": "cpu", "dtypes": ["float32", "float64"], "threads": 1, "budget_s": 0.6}
    outcome = executor.run("harness.ceilings:measure_ceilings", arguments, Limits(60.0))
    assert outcome.status == "ok", outcome.reason
    flops_per_s = outcome.answer["flops_per_s"]
    assert flops_per_s["float32"] > flops_per_s["float64"] > 1e8
    assert outcome.answer["copy_bytes_per_s"] > 1e8
    assert outcome.answer["gpu"] == ""
