from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor

from lsh_v2.model.language_model import LSHv2Model
from lsh_v2.model.stream import ModelStream
from lsh_v2.pipeline import check as pipeline_check
from lsh_v2.pipeline.check import check, main
from lsh_v2.training.configuration import training_config

if TYPE_CHECKING:
    from lsh_v2.training import TrainingConfig

MODEL = {"d_model": 64, "n_heads": 2, "n_kv_heads": 1, "n_layers": 2, "weight_tied_layers": 1, "attention": "flash"}


def asked(**changes: Any) -> TrainingConfig:
    return training_config({"model_size": "90K", "model": MODEL, "seq_length": 64, "device": "cpu"} | changes)


def test_a_sound_model_has_nothing_wrong() -> None:
    found = check(asked())
    assert found["wrong"] == []
    assert found["parameters"] == pytest.approx(90_000, rel=0.03)
    assert 0 < found["decoding_error"] < 1e-4


def test_another_size_than_was_asked_for_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline_check, "parse_size", lambda _: 100_000)
    (problem,) = check(asked())["wrong"]
    assert "instead of 100000" in problem


def test_decoding_that_differs_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    extend = ModelStream.extend
    monkeypatch.setattr(ModelStream, "extend", lambda stream, ids: 1.01 * extend(stream, ids))
    (problem,) = check(asked())["wrong"]
    assert "decoding token by token differs from one pass by 0.01" in problem


def test_logits_that_are_no_numbers_are_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    def head(model: LSHv2Model, state: Tensor) -> Tensor:
        return torch.full((*state.shape[:2], model.config.vocab_size), torch.nan)

    monkeypatch.setattr(LSHv2Model, "head", head)
    assert any("not finite" in problem for problem in check(asked())["wrong"])


def test_the_command_writes_what_it_found_and_fails_where_something_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config, report = tmp_path / "train.yml", tmp_path / "new" / "report.json"
    config.write_text(json.dumps({"model_size": "90K", "model": MODEL, "seq_length": 64, "device": "cpu"}))
    arguments = [str(config), str(tmp_path / "out"), str(report)]
    assert main(arguments) == 0
    assert json.loads(report.read_text())["wrong"] == []
    monkeypatch.setattr(pipeline_check, "parse_size", lambda _: 100_000)
    assert main(arguments) == 1
    assert "wrong: " in capsys.readouterr().err
    config.write_text('{"seq_lenght": 64}')
    assert main(arguments) == 2
    assert "did you mean seq_length" in capsys.readouterr().err
