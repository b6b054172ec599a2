"""Where the figures of a training go."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lsh_v2.training import Trainer
from tests.lsh_v2.tiny_training import TINY, steps_of, tiny


def test_tracker_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name in ("wandb", "mlflow") else 1)
    with pytest.raises(ValueError, match="pip install wandb"):
        Trainer(tiny(tmp_path)).enable_wandb(project="lsh_v2")
    with pytest.raises(ValueError, match="pip install mlflow"):
        Trainer(tiny(tmp_path, trackers=["mlflow"]))


def test_trackers_share_one_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lsh_v2.training.trainer.require_installed", lambda _: None)
    trainer = Trainer(tiny(tmp_path))
    trainer.enable_wandb(project="one")
    trainer.enable_mlflow(project="one")
    with pytest.raises(ValueError, match="project='two' is not allowed: trackers already share 'one'"):
        trainer.enable_mlflow(project="two")


def test_every_step_and_held_out_loss_reaches_a_tracker(tmp_path: Path) -> None:
    """Weights & Biases in name alone, below accelerate's own tracker for it."""
    (tmp_path / "wandb-1.dist-info").mkdir()
    (tmp_path / "wandb-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: wandb\nVersion: 1\n")
    shutil.copy(Path(__file__).with_name("stand_in_wandb.py"), tmp_path / "wandb.py")
    code = (
        "from pathlib import Path; from tests.lsh_v2.training.test_trackers import Trainer, tiny\n"
        f"trainer = Trainer(tiny(Path({str(tmp_path / 'run')!r}), num_answers=0))\n"
        "trainer.enable_wandb(project='mine', entity='me')\n"
        "trainer.run()"
    )
    root = Path(__file__).parents[3]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join((str(tmp_path), str(root))),
        "TRACKED": str(tmp_path / "log"),
    }
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=200)
    (_, started), (_, config), *logged, (_, end) = map(json.loads, (tmp_path / "log").read_text().splitlines())
    assert started == {"project": "mine", "entity": "me"}
    assert (config["learning_rate"], config["task"]) == (TINY["learning_rate"], TINY["task"])
    assert end == "finished"
    steps = steps_of(tmp_path / "run")
    losses = [(step, values["loss"]) for step, values in logged if "loss" in values]
    assert losses == [(step["step"], step["loss"]) for step in steps]
    held_out = [(step, values["loss_eval"]) for step, values in logged if "loss_eval" in values]
    metrics = json.loads((tmp_path / "run" / "training_metrics.json").read_text())
    assert held_out == list(zip((5, 10), metrics["loss_eval"], strict=True))
