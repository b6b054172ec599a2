"""The notebook runs from top to bottom and shows what it promises."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from attentions import BACKENDS

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def outputs() -> list[Any]:
    """What the cells showed, in order; a cell that fails raises here."""
    notebook = nbformat.read(ROOT / "notebook.ipynb", as_version=4)
    NotebookClient(notebook, timeout=240, kernel_name="python3", resources={"metadata": {"path": str(ROOT)}}).execute()
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def test_every_backend_is_compared(outputs: list[Any]) -> None:
    tables = [output.data["text/plain"] for output in outputs if output.output_type == "execute_result"]
    assert len(tables) == 4
    for name in BACKENDS:
        assert f"\n{name} " in tables[0], name
        assert f" {name} " in f" {tables[2]} ".replace("\n", " "), name


def test_both_figures_are_drawn_and_nothing_warns(outputs: list[Any]) -> None:
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
    assert not [output.text for output in outputs if output.output_type == "stream" and output.name == "stderr"]


def test_stored_notebook_holds_no_outputs() -> None:
    """Figures of one machine do not belong into the source."""
    notebook = nbformat.read(ROOT / "notebook.ipynb", as_version=4)
    assert all(not cell.outputs and cell.execution_count is None for cell in notebook.cells if cell.cell_type == "code")
