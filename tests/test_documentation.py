"""The documentation builds, and its example of a backend is one."""

from __future__ import annotations

import importlib
import subprocess
import sys
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


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    """A link that leads nowhere, a page that no menu lists and an API name that is not there are warnings."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, check=False, cwd=EXAMPLE.parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "run_sweep" in (tmp_path / "site" / "api" / "attention_bench" / "index.html").read_text()
