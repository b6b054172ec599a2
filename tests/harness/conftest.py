"""Fixtures of the harness tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from harness.runner.executor import Executor


@pytest.fixture(scope="session")
def executor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Executor]:
    """One fork server for all tests: it takes seconds to start."""
    with Executor(tmp_path_factory.mktemp("executor")) as shared:
        yield shared


@pytest.fixture
def grad_mode() -> Iterator[None]:
    """Subjects decide for their whole process whether gradients are recorded; undo that."""
    before = torch.is_grad_enabled()
    yield
    torch.set_grad_enabled(before)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder for a run, not yet made."""
    return tmp_path / "run"
