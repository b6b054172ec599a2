"""The documentation's example of a backend is one."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from attentions.contract.candidate import Candidate
from attentions.contract.checks import outcomes

EXAMPLE = Path(__file__).parents[1] / "docs" / "examples" / "my_window.py"


@pytest.mark.parametrize("causal", [True, False])
def test_the_example_backend_keeps_the_contract(causal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLE.parent))
    backend = importlib.import_module("my_window").SlidingWindow
    found = outcomes(Candidate(backend, {"causal": causal}))
    assert not {check: outcome for check, outcome in found.items() if outcome.startswith("FAILS")}
    assert sum(outcome == "holds" for outcome in found.values()) > 20
