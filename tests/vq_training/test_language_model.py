"""The section `vq` as a language model: what is trained, with which rate, and what becomes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from harness._conduct import Request
from harness.results.rows_file import read_rows
from harness.sweep import main
from transformer_vq.nn.config_spec import TransformerConfig
from vq_training.language_model import LanguageModel, TrainingTrial, grid, sinusoids

SMALL: dict[str, Any] = {
    "d_model": 32,
    "n_head": 2,
    "n_code": 8,
    "block_len": 16,
    "sequence_len": 64,
    "global_batch_size": 4,
    "steps": 30,
    "lr": 3e-3,
}
CPU = torch.device("cpu")


def trained(**changes: Any) -> TrainingTrial:
    return TrainingTrial(TransformerConfig(**SMALL | changes), CPU, seed=0)


def test_the_loss_falls_by_learning_and_only_by_learning() -> None:
    trial = trained()
    found = trial.check(0, trial.call(0))
    assert found.wrong == ""
    assert found.metrics["loss_after"] < found.metrics["loss_before"] - 0.5
    assert len(trial.losses) == 30
    still = trained(lr=1e-12, steps=3)
    assert still.check(0, still.call(0)).metrics["loss_after"] == pytest.approx(still.loss_before, rel=1e-2)


def test_each_key_of_the_loop_counts() -> None:
    base = trained(steps=3)
    for change in ({"lr": 1e-4}, {"steps": 4}, {"sequence_len": 48}, {"global_batch_size": 2}, {"c_beta": 1.0}):
        assert trained(**{"steps": 3} | change).loss_after != base.loss_after
    assert base.tokens == 4 * 64
    assert trained(steps=3).losses == base.losses


def test_training_that_goes_wrong_is_said() -> None:
    trial = trained(steps=2)
    trial.loss_after = trial.loss_before
    assert "the held-out loss rose from" in trial.check(0, torch.tensor(1.0)).wrong
    assert "the loss is not finite" in trial.check(0, torch.tensor(torch.nan)).wrong


def test_no_position_sees_what_it_predicts() -> None:
    model = LanguageModel(TransformerConfig(**SMALL)).eval()
    ids = torch.randint(256, (1, 64), generator=torch.Generator().manual_seed(0))
    other = ids.clone()
    other[:, 40:] += 1
    before, after = (model(x % 256)[0] for x in (ids, other))
    torch.testing.assert_close(before[:, :40], after[:, :40])
    assert not torch.equal(before[:, 40:], after[:, 40:])


@pytest.mark.parametrize("width", [2, 7, 8])
def test_positions_have_any_width_and_differ(width: int) -> None:
    found = sinusoids(50, width)
    assert found.shape == (50, width)
    assert len(found.unique(dim=0)) == 50


def test_the_grid_names_the_section_itself() -> None:
    assert grid(SMALL)["backends"][0]["section"] == SMALL
    assert "section" in Request.__dataclass_fields__


def test_the_command_trains_and_reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])
    overrides = [part for key, value in SMALL.items() for part in ("--set", f"vq.{key}={value}")]
    out = tmp_path / "run"
    patient = ["--set", "budget.case_s=3600"]  # a busy machine is no fault
    assert main(["conf.yml", "--section", "vq", *overrides, *patient, "--out", str(out)]) == 0
    (row,) = read_rows(out)
    assert (row.status, row.n, row.batch, row.reason) == ("ok", 64, 4, "")
    assert row.metrics["loss_after"] < row.metrics["loss_before"] - 0.5
    assert row.settings["section"]["lr"] == 3e-3
    assert "--section vq" in (out / "report.md").read_text()
