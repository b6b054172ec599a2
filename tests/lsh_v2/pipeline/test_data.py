"""The data phase writes what the training reads, no row of it other than the training would have made itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lsh_v2.pipeline.data import main
from lsh_v2.pipeline.phases import Layout, phases_of
from lsh_v2.training.configuration import training_config
from lsh_v2.training.data import TokenRows, task_of
from tasks.byte_tokenizer import ByteTokenizer
from tasks.jsonl import read_examples
from tests.lsh_v2.tiny_training import TINY

LONG = {"task": "tasks.synthetic:computational_reasoning", "task_settings": {"quick": True}, "seq_length": 600}


@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("evaluation", [True, False])
def test_rows_from_the_files_are_the_rows_without_them(pack: bool, evaluation: bool, tmp_path: Path) -> None:
    raw: dict[str, Any] = TINY | LONG | {"pack": pack, "num_answers": 0, "out": str(tmp_path / "run")}
    (tmp_path / "train.yml").write_text(yaml.safe_dump(raw))
    files = [str(tmp_path / name) for name in ("train.jsonl", "eval.jsonl")]
    assert main([str(tmp_path / "train.yml"), raw["out"], *files]) == 0
    with_files = training_config(raw | {"train_file": files[0], "eval_file": files[1]})
    count = raw["num_eval_sequences" if evaluation else "num_train_sequences"]
    made, read = (
        TokenRows(
            task_of(config, evaluation=evaluation),
            ByteTokenizer(),
            count=count,
            length=600,
            pack=pack,
            learn="answer",
        )
        for config in (training_config(raw), with_files)
    )
    for row in range(count):
        assert all(torch.equal(x, y) for x, y in zip(made[row], read[row], strict=True))
    written = len(list(read_examples(Path(files[evaluation]))))
    assert written == count if not pack else written >= 2 * count


def test_the_training_reads_what_the_data_phase_writes(tmp_path: Path) -> None:
    data, training = (
        next(one for one in phases_of(Layout(tmp_path, quick=True), training=True, benchmark=False) if one.name == name)
        for name in ("data", "training")
    )
    train, held_out = data.makes
    assert {f"train_file={train}", f"eval_file={held_out}"} <= set(training.command)
    assert set(data.makes) <= set(training.reads)


def test_what_cannot_be_is_said(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "train.yml").write_text(yaml.safe_dump(TINY | {"task": "tests.nothing:Echo"}))
    assert main([str(tmp_path / "train.yml"), str(tmp_path / "run"), str(tmp_path / "a"), str(tmp_path / "b")]) == 2
    assert "'tests.nothing:Echo' cannot be imported" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()
