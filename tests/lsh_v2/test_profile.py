from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from attentions.flash import Flash
from harness.results.rows_file import read_rows
from lsh_v2 import LSHv2Model, create_lsh_v2_model
from lsh_v2 import profile as command
from lsh_v2.model import component_profile as module
from lsh_v2.model.component_profile import PROFILES, profile_model
from lsh_v2.profile import REPORT, main, stretched
from lsh_v2.profile_stages import report_stages
from lsh_v2.training.checkpoint import save
from tests.lsh_v2.small import no_room

SMALL: dict[str, Any] = {
    "vocab_size": 259,
    "target_params": "60K",
    "d_model": 32,
    "n_heads": 2,
    "n_kv_heads": 1,
    "n_layers": 2,
    "weight_tied_layers": 1,
    "max_seq_len": 64,
}


class Parted(Flash):
    """Names two parts, which note the shapes that they are given."""

    shapes: list[tuple[int, ...]] = []  # noqa: RUF012, a notebook of the test

    def components(self, q: Tensor, k: Tensor, v: Tensor) -> Mapping[str, Callable[[], object]]:
        self.shapes.append(tuple(q.shape))
        return {"hashing": lambda: q @ k.transpose(-1, -2), "bucket attention": v.sum}


@pytest.fixture
def model() -> LSHv2Model:
    return create_lsh_v2_model(attention="flash", **SMALL)


def test_parts_of_a_pass_add_up_to_it(model: LSHv2Model) -> None:
    with torch.no_grad():
        found = module._one_pass(model.eval(), torch.zeros(1, 32, dtype=torch.long))
    total = found.pop("total_ms")
    assert sum(found.values()) == pytest.approx(total)
    assert set(found) == {
        "embedding_ms",
        "in_projection_ms",
        "attention_ms",
        "out_projection_ms",
        "feed_forward_ms",
        "other_ms",
    }
    assert min(found.values()) > 0


def test_time_spent_in_a_part_is_counted_there(model: LSHv2Model) -> None:
    feed_forward = model.block(0).feed_forward
    plain = feed_forward.forward

    def slow(x: Tensor) -> Tensor:
        for _ in range(200):
            plain(x)
        return plain(x)

    feed_forward.forward = slow  # type: ignore[method-assign]
    with torch.no_grad():
        found = module._one_pass(model.eval(), torch.zeros(1, 64, dtype=torch.long))
    assert found["feed_forward_ms"] > 0.5 * found["total_ms"]


def test_the_file_has_a_row_for_each_length_and_its_figure_beside_it(model: LSHv2Model, tmp_path: Path) -> None:
    profile = profile_model(model, tmp_path, lengths=[8, 16, 32, 4096], repeats=2)
    assert json.loads((tmp_path / PROFILES).read_text()) == profile
    assert [row["seq_len"] for row in profile["lengths"]] == [8, 16, 32]
    last = profile["lengths"][-1]
    parts = set(last) - {"seq_len", "total_ms"}
    assert profile["shares_of_longest"] == {name: last[name] / last["total_ms"] for name in parts}
    assert set(profile["growth"]) >= {"attention_ms", "total_ms"}
    assert (tmp_path / PROFILES).with_suffix(".png").stat().st_size > 1_000


def test_parts_that_the_attention_names_are_timed_on_what_reaches_it(tmp_path: Path) -> None:
    Parted.shapes.clear()
    model = create_lsh_v2_model(attention=f"{__name__}:Parted", **SMALL)
    profile = profile_model(model, tmp_path, lengths=[16], repeats=2)
    assert {"hashing_ms", "bucket_attn_ms"} <= set(profile["lengths"][0])
    assert Parted.shapes == [(1, 2, 16, model.config.key_dim)]


def test_the_stages_of_lsh_v2_have_the_guides_names(tmp_path: Path) -> None:
    profile = profile_model(create_lsh_v2_model(attention="lsh_v2", **SMALL), tmp_path, lengths=[16], repeats=1)
    (row,) = profile["lengths"]
    assert min(row[name] for name in ("hashing_ms", "bucket_attn_ms", "global_ms")) > 0


def test_the_model_is_left_as_it_was(model: LSHv2Model, tmp_path: Path) -> None:
    model.train()
    profile_model(model, tmp_path, lengths=[8], repeats=1)
    assert model.training
    assert all(not part._forward_hooks and not part._forward_pre_hooks for part in model.modules())


def test_lengths_beyond_the_model_are_refused_when_none_is_left(model: LSHv2Model, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"lengths=\[128\] are not allowed: none is at most max_seq_len=64"):
        profile_model(model, tmp_path, lengths=[128])


def test_weights_can_be_stretched_over_more_tokens_than_they_were_made_for(model: LSHv2Model) -> None:
    ids = torch.arange(64)[None]
    longer = stretched(model.eval(), 128)
    assert torch.equal(longer(ids)["logits"], model(ids)["logits"])
    assert longer(torch.cat([ids, ids], 1))["logits"].shape[1] == 128
    assert stretched(model, 64) is model


def test_the_command_prints_a_table_and_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = [f"--set={name}={value}" for name, value in SMALL.items() if name != "target_params"]
    shape = ["--size", "60K", "--set=attention=flash", *settings, "--out", str(tmp_path), "--no-report"]
    assert main([*shape, "--lengths", "8"]) == 0
    output = capsys.readouterr().out.split("\n")
    assert output[0].split() == ["8"]
    assert [line.split()[0] for line in output if line.startswith("attention_ms")] == ["attention_ms"]
    assert main([*shape, "--lengths", "100"]) == 2
    assert "max_seq_len=64" in capsys.readouterr().err


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A trained run whose attention names two stages; the command times each part once."""
    monkeypatch.setattr(command, "profile_model", partial(profile_model, repeats=1))
    model = create_lsh_v2_model(attention=f"{__name__}:Parted", **SMALL)
    state = {"model": model.config.model_dump(mode="json")}
    save(tmp_path / "run" / "checkpoints", 1, model.state_dict(), {}, state)
    return tmp_path / "run"


def test_the_command_profiles_a_checkpoint_and_reports_on_its_attention_s_stages(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A report that lies there from before is replaced; the length may be beyond those of the training."""
    monkeypatch.setattr(command, "report_stages", partial(report_stages, total_s=1.0))
    (checkpoint / REPORT).mkdir()
    (checkpoint / REPORT / "rows.jsonl").write_text("of another run")
    assert main([str(checkpoint), "--out", str(checkpoint), "--lengths", "128"]) == 0
    (row,) = json.loads((checkpoint / PROFILES).read_text())["lengths"]
    assert row["seq_len"] == 128
    assert min(row[name] for name in ("hashing_ms", "bucket_attn_ms", "total_ms")) > 0
    measured = read_rows(checkpoint / REPORT)
    stages = ("Parted", "Parted: hashing", "Parted: bucket attention")
    assert {(row.label, row.n, row.status) for row in measured} == {(stage, 128, "ok") for stage in stages}
    assert {(row.heads, row.kv_heads, row.head_dim, row.value_dim) for row in measured} == {(2, 1, 24, 16)}
    report = checkpoint / REPORT / "report.html"
    assert capsys.readouterr().out.endswith(f"report: {report}\n")
    assert "Stages of Parted at 128 tokens" in report.read_text()


def test_how_the_report_ends_is_how_the_command_ends(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.profile.profile", lambda *_: 130)
    assert main([str(checkpoint), "--out", str(checkpoint), "--lengths", "8"]) == 130


def test_an_attention_without_stages_has_no_report_and_says_so(
    model: LSHv2Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report_stages(model.config, tmp_path / REPORT, lengths=[8]) == 0
    assert capsys.readouterr().out == "flash defines no stages, so there is no report on them\n"
    assert not (tmp_path / REPORT).exists()


def test_a_full_disk_leaves_the_earlier_profile(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [str(checkpoint), "--out", str(checkpoint), "--lengths", "8", "--no-report"]
    assert main(command) == 0
    before = (checkpoint / PROFILES).read_text()
    with no_room(100):
        assert main(command) == 1
    assert "cannot be written: File too large" in capsys.readouterr().err
    assert (checkpoint / PROFILES).read_text() == before


def test_a_checkpoint_that_is_damaged_or_absent_is_said(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (checkpoint / "checkpoints" / "step-00000001" / "model.safetensors").write_bytes(b"")
    assert main([str(checkpoint), "--no-report"]) == 2
    assert "step-00000001 is damaged" in capsys.readouterr().err
    assert main([str(checkpoint / "none"), "--no-report"]) == 2
    assert "there is no checkpoint in" in capsys.readouterr().err
