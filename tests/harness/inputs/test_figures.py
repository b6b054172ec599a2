"""How uneven attention is on each kind, and that the documentation says so."""

from __future__ import annotations

import math
from pathlib import Path
from statistics import mean

import pytest
import torch

from harness.inputs import Inputs, diagnose, make_inputs
from harness.inputs.__main__ import lines, main
from tests.harness.input_cases import one_head

README = Path(__file__).parents[3] / "harness" / "inputs" / "README.md"


def test_equal_scores_have_the_entropy_of_a_uniform_draw() -> None:
    k = torch.randn(1, 1, 300, 8)
    found = diagnose(Inputs(torch.zeros(1, 1, 300, 8), k, k), causal=False)
    assert found.entropy_nats == pytest.approx((math.log(300),))
    assert found.uniform_nats == pytest.approx(math.log(300))
    assert found.top_mass == pytest.approx((0.01,))


def test_one_heavy_key_has_no_entropy_and_all_mass() -> None:
    k = torch.zeros(1, 1, 300, 8)
    k[:, :, 0] = 1000.0
    found = diagnose(Inputs(torch.ones(1, 1, 300, 8), k, k), causal=True)
    assert found.entropy_nats == pytest.approx((0.0,), abs=1e-9)
    assert found.top_mass == pytest.approx((1.0,))


def test_causal_rows_see_no_later_key() -> None:
    k = torch.zeros(1, 1, 300, 8)
    k[:, :, 299] = 1000.0  # seen by the last row alone
    found = diagnose(Inputs(torch.ones(1, 1, 300, 8), k, k), causal=True, rows=150)
    at = torch.arange(150, 299) + 1.0
    assert found.entropy_nats[0] == pytest.approx(at.log().sum().item() / 150, rel=1e-6)


def test_figures_are_the_same_every_time() -> None:
    inputs = make_inputs(one_head("planted", n=512), 0)
    assert diagnose(inputs, causal=True, rows=16) == diagnose(inputs, causal=True, rows=16)


def test_sharp_heads_of_text_are_more_uneven_than_diffuse_ones_and_both_than_gaussian() -> None:
    text = diagnose(make_inputs(one_head("text", n=4096, heads=4, kv_heads=4), 0), causal=True)
    flat = diagnose(make_inputs(one_head("gaussian", n=4096), 0), causal=True)
    assert max(text.entropy_nats[::2]) + 1 < min(text.entropy_nats[1::2])
    assert max(text.entropy_nats[1::2]) + 1 < min(flat.entropy_nats)
    assert mean(text.top_mass[::2]) > 0.8
    assert 0.4 < mean(text.top_mass[1::2]) < 0.7
    assert mean(flat.top_mass) < 0.12


def test_grouped_query_heads_are_sharp_and_diffuse_by_turns() -> None:
    text = diagnose(make_inputs(one_head("text", n=2048, heads=4, kv_heads=2), 0), causal=True)
    assert max(text.entropy_nats[::2]) < min(text.entropy_nats[1::2])


@pytest.mark.parametrize(
    ("inputs", "tolerance"),
    [("gaussian", 0.02), ("planted", 0.02), ("text", 0.6)],  # the library's source differs from Python to Python
    ids=["gaussian", "planted", "text"],
)
def test_the_documented_figures_are_the_measured_ones(inputs: str, tolerance: float) -> None:
    documented = [row for row in table(README.read_text().splitlines()) if row[0] == inputs and row[2] == "1024"]
    measured = table(list(lines(inputs, 1024)))
    assert len(documented) == len(measured) > 0
    for output, found in zip(documented, measured, strict=True):
        assert output[:3] == found[:3]
        assert float(output[3]) == pytest.approx(float(found[3]), abs=tolerance)
        assert float(output[5]) == pytest.approx(float(found[5]), abs=tolerance / 4)


def test_the_command_prints_the_documented_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--lengths", "64", "--inputs", "gaussian", "text"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] in README.read_text()
    assert [row[:3] for row in table(printed[2:])] == [
        ["gaussian", "all", "64"],
        ["text", "sharp", "64"],
        ["text", "diffuse", "64"],
    ]


def test_the_command_refuses_unknown_inputs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--inputs", "txt"]) == 2
    assert "did you mean text" in capsys.readouterr().err


def table(text: list[str]) -> list[list[str]]:
    """Cells of the lines of a Markdown table."""
    return [[cell.strip() for cell in line.strip("| ").split("|")] for line in text if line.startswith("|")]
