"""A module that a configuration names may do what it likes when it is imported or built: its cases say so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from harness.config.model import Config
from harness.config.yaml_source import ConfigError
from harness.runner.external import SweepPlan, make_plan

if TYPE_CHECKING:
    from harness.runner.executor import Executor

HEAD = "import ctypes, os, signal, sys, time, torch\nfrom attentions import Attention\n"
CLASS = """
class One(Attention):
    def __init__(self, *args, **settings):
        {fault}
        super().__init__(*args, **settings)
    def forward(self, q, k, v, *, first=None):
        return v
def make(case, variant):
    raise NotImplementedError
"""
ENDS = {
    "os._exit(0)": ("crash", "exited with code 0 without an answer"),
    "os._exit(3)": ("crash", "exited with code 3"),
    "os.kill(os.getpid(), signal.SIGSEGV)": ("crash", "killed by SIGSEGV"),
    "os.abort()": ("crash", "killed by SIGABRT"),
    "sys.exit('enough')": ("crash", "SystemExit: enough"),
    "raise KeyboardInterrupt": ("crash", "KeyboardInterrupt"),
    "raise BaseException('odd')": ("crash", "BaseException: odd"),
    "raise GeneratorExit": ("crash", "GeneratorExit"),
    "os.kill(os.getppid(), signal.SIGKILL); time.sleep(60)": ("crash", "the process that started it was terminated"),
}
HANGS = {
    "sleeping": "time.sleep(600)",
    "spinning, deaf to signals": "[signal.signal(n, signal.SIG_IGN) for n in (1, 2, 15)]\nwhile True: pass",
    "holding Python's lock": "ctypes.PyDLL(None).sleep(600)",
}


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], str]:
    """Write a module whose import, or whose class's construction, has a fault; returns its name."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def module(where: str, fault: str) -> str:
        name = f"outsider{len(list(tmp_path.iterdir()))}"
        at_import = f"{fault}\n" if where == "import" else ""
        inside = "\n        ".join((fault if where == "construction" else "pass").split("\n"))
        (tmp_path / f"{name}.py").write_text(HEAD + at_import + CLASS.format(fault=inside))
        return name

    return module


def config(case_s: float = 120.0, **changes: Any) -> Config:
    given: dict[str, Any] = {
        "backends": ["vanilla"],
        "lengths": [16],
        "batch": 1,
        "heads": 2,
        "head_dim": 8,
        "causal": True,
        "subject": "attention",
        "level": "kernel",
        "mode": "forward",
        "inputs": "gaussian",
        "dtype": "float32",
        "device": "cpu",
        "threads": 1,
        "rounds": 1,
        "budget": {"case_s": case_s, "memory_gb": 2, "total_s": 300},
        "seed": 0,
        "executor": "local",
    }
    return Config.model_validate(given | changes)


def outcomes(plan: SweepPlan) -> dict[str, tuple[str, str]]:
    found = {one.case.label: plan.fault(one.case) for one in plan.planned}
    return {label: (fault.status, fault.reason) if fault else ("", "") for label, fault in found.items()}


@pytest.mark.parametrize("where", ["import", "construction"])
@pytest.mark.parametrize(("fault", "output"), ENDS.items(), ids=list(ENDS))
def test_a_backend_that_ends_its_process_has_that_as_its_outcome_and_others_are_planned(
    executor: Executor, write: Callable[[str, str], str], where: str, fault: str, output: tuple[str, str]
) -> None:
    module = write(where, fault)
    plan = make_plan(config(backends=["vanilla", f"{module}:One"]), executor)
    found = outcomes(plan)
    assert found["vanilla"] == ("", "")
    assert found["One"][0] == output[0]
    assert found["One"][1].startswith(f"{module}: ")
    assert output[1] in found["One"][1]
    assert plan.classes[f"{module}:One"].module == module
    assert not plan.classes[f"{module}:One"].learns


@pytest.mark.parametrize("where", ["import", "construction"])
@pytest.mark.parametrize("fault", HANGS.values(), ids=list(HANGS))
def test_one_that_hangs_costs_the_limit_of_a_case(
    executor: Executor, write: Callable[[str, str], str], where: str, fault: str
) -> None:
    plan = make_plan(config(case_s=1.0, backends=["vanilla", f"{write(where, fault)}:One"]), executor)
    assert [(label, status) for label, (status, _) in outcomes(plan).items()] == [("vanilla", ""), ("One", "timeout")]


def test_one_that_takes_all_memory_has_a_limit(executor: Executor, write: Callable[[str, str], str]) -> None:
    module = write("import", "held = [torch.ones(2**26) for _ in range(10_000)]")
    with pytest.raises(ConfigError, match="cannot be imported"):  # which Python says in an ordinary exception
        make_plan(config(backends=[f"{module}:One"]), executor)


@pytest.mark.parametrize(("key", "name"), [("subject", "One"), ("inputs", "make")])
def test_subjects_and_inputs_are_looked_at_too(
    executor: Executor, write: Callable[[str, str], str], key: str, name: str
) -> None:
    path = f"{write('import', 'os._exit(5)')}:{name}"
    given: dict[str, Any] = {key: ["attention" if key == "subject" else "gaussian", path]}
    plan = make_plan(config(**given), executor)
    assert [getattr(one.case, key) == path for one in plan.planned] == [False, True]
    assert [plan.fault(one.case) is not None for one in plan.planned] == [False, True]


@pytest.mark.parametrize(
    ("where", "fault", "message"),
    [
        ("import", "raise RuntimeError('not today')", "cannot be imported: RuntimeError: not today"),
        ("import", "import no_such_thing", "No module named 'no_such_thing'"),
        ("construction", "raise ValueError('two heads at most')", "cannot be built: two heads at most"),
    ],
)
def test_what_python_says_in_an_ordinary_exception_is_a_mistake_in_the_configuration(
    executor: Executor, write: Callable[[str, str], str], where: str, fault: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        make_plan(config(backends=[f"{write(where, fault)}:One"]), executor)


def test_a_sound_outsider_is_planned_as_one_of_the_project_s_own(executor: Executor) -> None:
    names = ["tests.harness.backends:Right", "tests.harness.backends:Calibrated"]
    plan = make_plan(config(backends=["vanilla", *names]), executor)
    assert outcomes(plan) == dict.fromkeys(("vanilla", "Right", "Calibrated"), ("", ""))
    assert plan.classes[names[0]].declared["claimed_time"] == "n^2"
    assert [plan.classes[name].learns for name in names] == [False, True]


def test_nothing_is_started_for_a_configuration_without_outsiders(executor: Executor) -> None:
    plan = make_plan(config(), None)  # type: ignore[arg-type]
    assert outcomes(plan) == {"vanilla": ("", "")}


def test_what_a_subject_reads_is_part_of_its_plan(
    executor: Executor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    weights = tmp_path / "weights"
    (tmp_path / "reader.py").write_text(
        f"class Reads:\n    def content(self):\n        return open({str(weights)!r}).read()\nclass Silent: pass\n"
    )
    weights.write_text("one")
    plan = make_plan(config(subject=["reader:Reads", "reader:Silent"]), executor)
    assert plan.contents == {"reader:Reads": "one", "reader:Silent": ""}
    weights.write_text("two")
    assert make_plan(config(subject=["reader:Reads"]), executor).contents == {"reader:Reads": "two"}
