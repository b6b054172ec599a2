"""What goes wrong in training is said, and nothing written is lost: settings, checkpoints, disks, files."""

from __future__ import annotations

import errno
import os
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from harness.config.yaml_source import ConfigError
from lsh_v2.common.configuration import model_config
from lsh_v2.common.schemas import CheckpointState
from lsh_v2.model.language_model import LSHv2Model
from lsh_v2.train import main
from lsh_v2.training import CheckpointError, Trainer, load_model
from lsh_v2.training.checkpoint import checkpoints, prune, read_state, save
from tasks.jsonl import write_examples
from tests.lsh_v2.small import no_room
from tests.lsh_v2.tiny_training import TINY, Echo, steps_of, tiny


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"learning_rat": 1.0}, "learning_rat: this key is unknown; did you mean learning_rate"),
        ({"model": {"d_modle": 8}}, "model.d_modle: this key is unknown; did you mean d_model"),
        ({"batch_size": 0}, "batch_size: 0 is not allowed; it must be an integer of at least 1"),
        ({"trackers": ["wanb"]}, "tensorboard, wandb and mlflow"),
    ],
)
def test_mistakes_in_a_configuration_are_named(changes: dict, named: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=named):
        tiny(tmp_path, **changes)


def test_command_says_what_is_wrong_and_fails(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "bad.yml").write_text("batch_sise: 3\n")
    assert main([str(tmp_path / "bad.yml")]) == 2
    assert "did you mean batch_size" in capsys.readouterr().err
    assert main(["--set", "model.attention=flush", "--set", f"out={tmp_path}"]) == 2
    assert "did you mean flash" in capsys.readouterr().err


def test_command_on_a_full_disk_loses_nothing_that_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """It is full from step 6 on, whatever else is written."""

    def save_where_there_is_room(folder: Path, step: int, *rest: Any) -> Path:
        with no_room(4096) if step >= 6 else nullcontext():
            return save(folder, step, *rest)

    out, config = tmp_path / "run", tmp_path / "config.yml"
    config.write_text(yaml.safe_dump(TINY | {"num_answers": 0, "out": str(out)}))
    with monkeypatch.context() as full:
        full.setattr("lsh_v2.training.checkpoint.save", save_where_there_is_room)
        assert main([str(config)]) == 1
    assert "step 6 could not be written: " in capsys.readouterr().err
    assert [path.name for path in checkpoints(out / "checkpoints")] == ["step-00000004", "step-00000005"]
    assert main([str(config)]) == 0
    Trainer(tiny(tmp_path / "whole", num_answers=0)).run()
    assert steps_of(out) == steps_of(tmp_path / "whole")


def test_command_on_a_damaged_checkpoint_names_it_and_goes_on_without_it(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    config = tmp_path / "config.yml"
    config.write_text(yaml.safe_dump(TINY | {"num_answers": 0, "out": str(tmp_path / "run")}))
    assert main([str(config)]) == 0
    curve = steps_of(tmp_path / "run")
    (tmp_path / "run" / "training_metrics.json").unlink()  # as if killed before its end
    newest = tmp_path / "run" / "checkpoints" / "step-00000010"
    (newest / "optimizer.safetensors").write_bytes(b"no tensors")
    assert main([str(config)]) == 1
    assert "step-00000010 is damaged: optimizer.safetensors" in capsys.readouterr().err
    assert steps_of(tmp_path / "run") == curve
    shutil.rmtree(newest)
    assert main([str(config)]) == 0
    assert steps_of(tmp_path / "run") == curve


@pytest.mark.parametrize("key", ["train_file", "eval_file"])
def test_command_names_a_broken_line_before_it_trains(key: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    examples, config = tmp_path / "examples.jsonl", tmp_path / "config.yml"
    write_examples(examples, [Echo().example(i) for i in range(3)])
    examples.write_text(examples.read_text() + '{"prompt": "say')
    config.write_text(yaml.safe_dump(TINY | {key: str(examples), "out": str(tmp_path / "run")}))
    assert main([str(config)]) == 2
    assert "examples.jsonl line 4 is not valid JSON" in capsys.readouterr().err
    assert not (tmp_path / "run" / "steps.jsonl").exists()


def test_what_a_disk_refuses_is_a_sentence_and_other_errors_are_not_hidden(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def end(number: int) -> int:
        error = OSError(number, os.strerror(number), "steps.jsonl")
        monkeypatch.setattr(Trainer, "run", lambda _: (_ for _ in ()).throw(error))
        return main(["--set", f"out={tmp_path}", "--set", "device=cpu"])

    assert end(errno.ENOSPC) == 1
    assert "steps.jsonl cannot be written: No space left on device; checkpoints" in capsys.readouterr().err
    assert end(errno.ENOMEM) == 1
    assert "not enough memory" in capsys.readouterr().err
    with pytest.raises(OSError, match="Bad file descriptor"):
        end(errno.EBADF)


def write_checkpoint(folder: Path, step: int) -> Path:
    config = model_config(**TINY["model"], vocab_size=259, max_seq_len=64)
    state = {"model": config.model_dump(mode="json")}
    return save(folder, step, LSHv2Model(config).state_dict(), {"0.x": torch.ones(3)}, state)


@pytest.mark.parametrize("harm", ["flip", "cut", "empty", "missing", "state", "list", "no model"])
def test_damaged_checkpoint_is_named_with_the_one_that_is_left(harm: str, tmp_path: Path) -> None:
    write_checkpoint(tmp_path, 3)
    path = write_checkpoint(tmp_path, 5)
    weights = path / "model.safetensors"
    raw = bytearray(weights.read_bytes())
    if harm == "flip":
        raw[-100] ^= 1
        weights.write_bytes(raw)
    elif harm == "cut":
        weights.write_bytes(raw[: len(raw) // 2])
    elif harm == "empty":
        weights.write_bytes(b"")
    elif harm == "missing":
        weights.unlink()
    else:
        whole = (path / "state.json").read_text()
        torn = {"state": whole[: len(whole) // 2], "list": "[]", "no model": whole.replace('"model":', '"other":')}
        (path / "state.json").write_text(torn[harm])
    with pytest.raises(CheckpointError, match=r"step-00000005 is damaged.*continue from step-00000003"):
        read_state(path, CheckpointState)
    with pytest.raises(CheckpointError, match="damaged"):
        load_model(tmp_path)


def test_disk_that_is_full_costs_no_earlier_checkpoint(tmp_path: Path) -> None:
    earlier = write_checkpoint(tmp_path, 3)
    with no_room(4096), pytest.raises(CheckpointError, match=r"step 5 could not.*newest one is .*step-00000003"):
        write_checkpoint(tmp_path, 5)
    assert list(tmp_path.iterdir()) == [earlier]
    load_model(earlier)


def test_what_a_killed_write_left_is_no_checkpoint(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, 3)
    (tmp_path / ".writing-00000005").mkdir()
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000003"]
    prune(tmp_path, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000003"]
