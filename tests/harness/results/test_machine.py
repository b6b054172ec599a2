"""What is told of this machine, and what it is found to reach."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from harness.measure.roofline import MeasureCeilings
from harness.results import machine
from harness.runner.executor import Executor, Limits


def test_the_name_is_a_slug_of_what_decides_speed() -> None:
    here = machine.describe("NVIDIA H200 (TM)")
    assert re.fullmatch(r"nvidia-h200-[a-z0-9-]+-\d+-cores-\d+-gb-[a-z0-9-]+-[0-9a-f]{6}", here.name)
    assert machine.describe("").name == here.name.removeprefix("nvidia-h200-")
    assert here.name.startswith(machine.common_name("NVIDIA H200", here.cpu, here.cores, here.memory_bytes))
    assert here.cores >= 1
    assert here.memory_bytes > 2**28
    known = {"name", "cpu", "cores", "memory_bytes", "gpu", "os"}
    assert set(here.model_dump()) == known | {"architecture", "model", "features", "caches", "cpu_capability"}


V3 = "cx16 lahf_lm popcnt sse4_1 sse4_2 ssse3 abm avx avx2 bmi1 bmi2 f16c fma movbe"
V4 = f"{V3} avx512f avx512bw avx512cd avx512dq avx512vl"


def told(
    monkeypatch: pytest.MonkeyPatch, folder: Path, *, flags: str = V4, model: int = 17, cache: str = "1024K"
) -> machine.Machine:
    """The machine that Linux would describe so."""
    lines = ["processor\t: 0", "vendor_id\t: AuthenticAMD", "cpu family\t: 25", f"model\t\t: {model}", "stepping\t: 1"]
    (folder / "cpuinfo").write_text(
        "\n".join([*lines, "model name\t: AMD EPYC", f"flags\t\t: {flags}", "", "processor: 1"])
    )
    for name, text in {"level": "2", "type": "Unified", "size": cache}.items():
        (folder / "cache" / "index0").mkdir(parents=True, exist_ok=True)
        (folder / "cache" / "index0" / name).write_text(f"{text}\n")
    monkeypatch.setattr(machine, "CPUINFO", folder / "cpuinfo")
    monkeypatch.setattr(machine, "CACHES", folder / "cache")
    monkeypatch.setattr(machine.platform, "machine", lambda: "x86_64")
    return machine.describe("")


def test_processors_of_one_name_have_machines_of_different_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = told(monkeypatch, tmp_path)
    assert (usual.cpu, usual.architecture, usual.caches) == ("AMD EPYC", "x86-64-v4", "L2 unified 1024K")
    assert usual.model == "vendor_id AuthenticAMD, cpu family 25, model 17, stepping 1"
    assert re.fullmatch(r"amd-epyc-\d+-cores-\d+-gb-x86-64-v4-[0-9a-f]{6}", usual.name)
    others = [
        told(monkeypatch, tmp_path, flags=V3),
        told(monkeypatch, tmp_path, flags=f"{V4} avx512_bf16"),
        told(monkeypatch, tmp_path, model=1),
        told(monkeypatch, tmp_path, cache="512K"),
    ]
    assert others[0].architecture == "x86-64-v3"
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: "DEFAULT")
    others.append(told(monkeypatch, tmp_path))
    assert len({usual.name, *(other.name for other in others)}) == 6
    monkeypatch.undo()


def test_what_does_not_decide_speed_is_not_in_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert told(monkeypatch, tmp_path).name == told(monkeypatch, tmp_path, flags=f"tsc {V4} constant_tsc").name


def test_a_run_goes_on_only_on_a_machine_that_is_told_to_be_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = told(monkeypatch, tmp_path)
    assert machine.why_other(here, here.name) == ""
    older = machine.common_name("", here.cpu, here.cores, here.memory_bytes)
    assert "does not say which AMD EPYC it was measured on" in machine.why_other(here, older)
    other = told(monkeypatch, tmp_path, flags=V3)
    assert machine.why_other(other, here.name) == f"was measured on {here.name}; this machine is {other.name}"


def test_a_system_that_tells_nothing_has_a_name_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "CPUINFO", tmp_path / "absent")
    monkeypatch.setattr(machine, "CACHES", tmp_path / "absent")
    here = machine.describe("")
    assert (here.model, here.features, here.caches) == ("", "", "")
    assert here.name


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
    outcome = executor.run(MeasureCeilings("cpu", ["float32", "float64"], threads=1, budget_s=0.6), Limits(60.0))
    reached = outcome.answer
    assert reached is not None, outcome.reason
    assert reached.flops_per_s["float32"] > reached.flops_per_s["float64"] > 1e8
    assert reached.copy_bytes_per_s > 1e8
    assert reached.gpu == ""
