"""The shape of the code: no import circle, shallow imports, one meaning for each class name."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.structure import ROOT, Shape, shape

DEEPEST = 12  # modules on a chain of imports


@pytest.fixture(scope="module")
def found() -> Shape:
    return shape()


def test_no_modules_import_each_other_in_a_circle(found: Shape) -> None:
    assert not found.circles


def test_import_chains_are_short(found: Shape) -> None:
    assert len(found.longest_chain) <= DEEPEST, " > ".join(found.longest_chain)


def test_a_class_name_has_one_meaning(found: Shape) -> None:
    assert not found.duplicate_classes


def test_rooms_import_downwards_only() -> None:
    """The contracts stand in pyproject.toml, under tool.importlinter."""
    code = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True, no_logo=True))"
    done = subprocess.run([sys.executable, "-c", code], check=False, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
