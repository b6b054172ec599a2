"""Stages of an attention as cases of their own, and the table that they end in."""

from __future__ import annotations

import contextlib
import errno
import io
import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
import yaml
from torch import Tensor

from harness.config.model import Config
from harness.profile import main
from harness.report import write_report
from harness.report.tables.components import plain_slope
from harness.results.rows_file import ROWS, read_rows
from harness.runner.plan import component_cases, expand
from harness.subjects.base import Unsupported
from harness.subjects.component import SUBJECT, ComponentSubject, ComponentTrial
from harness.subjects.references import Store
from tests.harness.cases import a_row
from tests.harness.test_sweep import BASE

if TYPE_CHECKING:
    from harness.common.rows import Case

NAME = "tests.harness.backends:Staged"
CONFIG = BASE | {
    "backends": [{"name": NAME, "label": "staged"}, "tests.harness.backends:Right"],
    "lengths": [64, 128, 256],
}


def test_each_stage_is_a_case_beside_the_whole_and_others_are_left_out() -> None:
    planned = component_cases(expand(Config.model_validate(CONFIG)))
    first = [one.case for one in planned if one.case.n == 64]
    assert [(case.label, case.subject) for case in first] == [
        ("staged", "attention"),
        ("staged: scores", SUBJECT),
        ("staged: output", SUBJECT),
    ]
    assert first[1].settings == {"component": "scores"}
    assert len(planned) == 9


@pytest.mark.parametrize(
    ("answer", "wrong"),
    [
        (torch.ones(3), ""),
        ([(torch.ones(2), {"no": "tensor"}), torch.arange(3)], ""),
        ([torch.ones(2), [torch.tensor([1.0, math.nan])]], "NaN or infinite values"),
        ("text", "the stage returned no tensor"),
    ],
    ids=str,
)
def test_stage_is_wrong_where_its_tensors_are_not_finite_or_there_are_none(answer: Any, wrong: str) -> None:
    trial = ComponentTrial([lambda: answer] * 2, torch.device("cpu"), 1)
    assert trial.check(0, trial.call(0)).wrong == wrong


def test_plain_slope_is_pulled_down_by_a_floor() -> None:
    assert plain_slope({n: 3e-6 * n**1.5 for n in (64, 256, 1024)}) == pytest.approx(1.5)
    assert plain_slope({n: 1e-3 + 1e-6 * n for n in (64, 256, 1024)}) < 0.4
    assert math.isnan(plain_slope({64: 1.0}))


@pytest.fixture(scope="module")
def profiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the command, which took several children to make."""
    place = tmp_path_factory.mktemp("profiled")
    conf, folder = place / "conf.yml", place / "run"
    conf.write_text(yaml.safe_dump(CONFIG))
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert main([str(conf), "--out", str(folder)]) == 0
    assert f"report: {folder / 'report.html'}" in out.getvalue()
    return folder


def test_profile_reports_shares_and_claims_of_stages(profiled: Path) -> None:
    rows = read_rows(profiled)
    assert {(row.label, row.status) for row in rows} == {
        ("staged", "ok"), ("staged: scores", "ok"), ("staged: output", "ok"),
    }  # fmt: skip
    report = (profiled / "report.md").read_text()
    table = report[report.index("Stages of staged at 256 tokens") :].splitlines()
    scores, output = (next(line for line in table if line.startswith(f"| staged: {name} ")) for name in
                      ("scores", "output"))  # fmt: skip
    shares = [float(line.split("|")[2].strip().rstrip("%")) for line in (scores, output)]
    assert sum(shares) == pytest.approx(100, abs=0.2)
    assert scores.split("|")[3].strip() == "75.0%"
    assert scores.split("|")[7].strip() == "0.50"
    assert output.split("|")[3].strip() == "–"
    assert "Not timed" not in report


def test_a_stage_without_a_time_is_named_and_leaves_the_others_their_table(profiled: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(profiled, folder)
    untimed = {"status": "timeout", "reason": "too long", "time_s": None, "samples_s": None}
    rows = [row.model_copy(update=untimed if row.label == "staged: output" else {}) for row in read_rows(folder)]
    (folder / ROWS).write_text("".join(f"{row.model_dump_json(by_alias=True)}\n" for row in rows))
    report = write_report(folder)[1].read_text()
    table = report[report.index("Stages of staged at 256 tokens") :]
    assert "Not timed and not included in the shares: output." in table
    line = next(line for line in table.splitlines() if line.startswith("| staged: scores "))
    assert line.split("|")[2].strip() == "100.0%"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EBADF])
def test_profile_on_a_full_disk_says_so_and_other_errors_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    def fail(folder: Path, _: object) -> None:
        raise OSError(number, os.strerror(number), str(folder / "report.html"))

    monkeypatch.setattr("harness.runner.run.measure", lambda *_: True)
    monkeypatch.setattr("harness.results.rows_file.read_rows", lambda _: [a_row()])
    monkeypatch.setattr("harness.report.write_report", fail)
    conf, folder = tmp_path / "conf.yml", tmp_path / "run"
    conf.write_text(yaml.safe_dump(CONFIG))
    if number == errno.EBADF:
        with pytest.raises(OSError, match="Bad file descriptor"):
            main([str(conf), "--out", str(folder)])
        return
    assert main([str(conf), "--out", str(folder)]) == 2
    printed = capsys.readouterr().err
    assert "left out because they define no stages: tests.harness.backends:Right\n" in printed
    assert f"python -m harness.profile: {folder / 'report.html'} cannot be written: No space left on device" in printed


def test_profile_without_any_stage_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    conf = tmp_path / "conf.yml"
    conf.write_text(yaml.safe_dump(BASE))
    assert main([str(conf)]) == 2
    assert "no backend in this configuration defines stages" in capsys.readouterr().err


class Inputs(Store):
    """Ones, twos or threes by variant; what is learnt is kept nowhere."""

    def inputs(self, case: Case, variant: int) -> tuple[Tensor, ...]:
        return (torch.full((1, 2, case.n, 8), 1.0 + variant),) * 3

    def prepared(self, case: Case) -> None:
        return None

    def keep_prepared(self, case: Case, state: dict[str, Tensor], prepare_s: float) -> None:
        pass


@pytest.fixture
def grad_restored() -> Iterator[None]:
    """A child needs no gradients and turns them off for good."""
    with torch.enable_grad():
        yield


def component(backend: str, stage: str, n: int = 64) -> Case:
    case = expand(Config.model_validate(CONFIG))[0].case
    return case.model_copy(update={"backend": backend, "subject": SUBJECT, "settings": {"component": stage}, "n": n})


@pytest.mark.usefixtures("grad_restored")
def test_stage_is_of_an_attention_that_has_learnt_and_runs_on_both_sets_of_inputs() -> None:
    case = component("tests.harness.backends:Learning", "learnt")
    trial = ComponentSubject().setup(case, Inputs(Path()), "key")
    learnt = 3.0 * 2 * 64 * 8
    assert [float(trial.call(variant)) for variant in (0, 1)] == [learnt + 1, learnt + 2]


@pytest.mark.usefixtures("grad_restored")
def test_stage_of_what_cannot_run_is_unsupported_with_its_reason() -> None:
    case = component("tests.harness.backends:Learning", "learnt", n=128)
    with pytest.raises(Unsupported, match="it is too long"):
        ComponentSubject().setup(case, Inputs(Path()), "key")


@pytest.mark.parametrize("changed", [{"mode": "train"}, {"level": "layer"}, {"subject": "accuracy"}], ids=str)
def test_only_forward_cases_of_the_kernel_have_stages(changed: dict[str, str]) -> None:
    assert component_cases(expand(Config.model_validate(CONFIG | changed))) == []


@pytest.mark.usefixtures("grad_restored")
def test_unknown_stage_is_refused_with_those_that_there_are() -> None:
    """A configuration resumed after a stage was renamed."""
    with pytest.raises(Unsupported, match="no stage 'score' here; it has scores, output"):
        ComponentSubject().setup(component(NAME, "score"), Inputs(Path()), "key")


def test_stages_are_measured_in_as_many_rounds_as_the_whole() -> None:
    planned = component_cases(expand(Config.model_validate(CONFIG | {"rounds": 3})))
    assert {one.rounds for one in planned} == {3}
