"""Under autocast everything answers as without it, forward and backward, and no process dies of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import preloaded
from tests.attentions.autocast_cases import CASES

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("name", CASES)
def test_autocast_works(name: str) -> None:
    done = preloaded.run("-m", "tests.attentions.autocast_cases", name, cwd=ROOT)
    assert done.returncode == 0, done.stderr.strip()[-2000:]
