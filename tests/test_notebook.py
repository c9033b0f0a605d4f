"""docs/colab.ipynb runs, and its stored outputs are those of its code."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).resolve().parents[1] / "docs" / "colab.ipynb"
MOST_BYTES = 10**6


def words(cell):
    """What a cell printed, without numbers, which other CPUs round otherwise; and how many pictures it shows."""
    outputs = cell.get("outputs", [])
    printed = "".join(output.get("text", "") for output in outputs)
    return re.findall(r"[A-Za-z_]+", printed), sum("data" in output for output in outputs)


def test_the_notebook_is_stored_with_its_outputs_and_small():
    notebook = nbformat.read(NOTEBOOK, 4)
    assert NOTEBOOK.stat().st_size < MOST_BYTES
    assert sum(words(cell)[1] for cell in notebook.cells) == 2
    assert not any(output.output_type == "error" for cell in notebook.cells for output in cell.get("outputs", []))


@pytest.mark.slow
def test_the_notebook_runs(tmp_path):
    stored, run = nbformat.read(NOTEBOOK, 4), nbformat.read(NOTEBOOK, 4)
    for cell in run.cells:
        cell.pop("outputs", None)
        if cell.cell_type == "code":
            cell.outputs = []
    NotebookClient(run, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert [words(cell) for cell in run.cells] == [words(cell) for cell in stored.cells]
