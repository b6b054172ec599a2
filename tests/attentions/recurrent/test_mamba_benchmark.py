"""The command that prints Mamba's figures, at a tiny size."""

from __future__ import annotations

import importlib.util
import sys

import pytest
import torch

from benchmarks import mamba


@pytest.mark.parametrize("installed", [True, False])
def test_table_has_every_figure_and_says_where_mambapy_is_missing(
    installed: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if not installed:
        monkeypatch.setattr(mamba, "peer", lambda: None)
    elif importlib.util.find_spec("mambapy") is None:
        pytest.skip("mambapy is not installed")
    monkeypatch.setattr(sys, "argv", ["mamba", "--n", "1280", "--rounds", "1"])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    mamba.main()
    torch.set_num_threads(threads)
    lines = capsys.readouterr().out.splitlines()
    for what in (
        "MambaBlock against mambapy, forward, n = 1,280",
        "MambaBlock against mambapy, forward and backward, n = 320",
        "mamba2 against flash, forward",
        "mamba against flash, forward",
        "mamba, memory beyond inputs and output",
        "mamba2, memory beyond inputs and output",
        "mamba, 1 head, n = 20,480 against 1,280: time",
        "mamba2, 1 head, n = 20,480 against 1,280: memory",
        "mamba, one token after 1,280 against after 1,024",
        "mamba2, one token after 1,280 against after 1,024",
    ):
        (row,) = (line for line in lines if what in line)
        figure = row.split("│")[4].strip()
        assert figure.endswith(" x") or (figure == "mambapy is not installed" and not installed)
    assert any("mambapy is not installed" in line for line in lines) != installed
