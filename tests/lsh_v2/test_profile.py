from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from attentions.flash import Flash
from lsh_v2 import LSHv2Model, create_lsh_v2_model
from lsh_v2 import profile as module
from lsh_v2.profile import PROFILES, main, profile_model, stretched

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
    assert sum(profile["shares_of_longest"].values()) == pytest.approx(1, abs=0.5)  # medians of single parts
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
    said = capsys.readouterr().out.split("\n")
    assert said[0].split() == ["8"]
    assert [line.split()[0] for line in said if line.startswith("attention_ms")] == ["attention_ms"]
    assert main([*shape, "--lengths", "100"]) == 2
    assert "max_seq_len=64" in capsys.readouterr().err
