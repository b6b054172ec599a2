"""Both memory channels find the bytes that are known, in a child as in a sweep."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from harness.measure import memory
from harness.runner.executor import Executor, Limits
from tests.harness.jobs import PeaksOfSoftmax

N = 2048
TWO_SCORE_MATRICES = 2 * N * N * 4


def test_both_channels_find_two_score_matrices_within_a_tenth(executor: Executor) -> None:
    outcome = executor.run(PeaksOfSoftmax(N), Limits(120.0))
    found = outcome.answer
    assert found is not None, outcome.reason
    assert found.resident == pytest.approx(TWO_SCORE_MATRICES, rel=0.1)
    assert found.allocated == pytest.approx(TWO_SCORE_MATRICES, rel=0.1)
    assert found.both == (pytest.approx(found.resident, rel=0.05), found.allocated)


def test_a_system_that_does_not_say_gives_no_resident_peak(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "CLEAR", tmp_path / "nothing" / "clear_refs")
    assert memory.resident_peak(lambda: "answer") == ("answer", None)


def test_a_limit_can_be_lifted_for_a_while() -> None:
    before = resource.getrlimit(resource.RLIMIT_AS)
    memory.limit(2**40)
    limited = resource.getrlimit(resource.RLIMIT_AS)
    try:
        with memory.unmeasured():
            assert resource.getrlimit(resource.RLIMIT_AS)[0] == before[1]
        assert resource.getrlimit(resource.RLIMIT_AS) == limited
        assert limited[0] > 2**40
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
