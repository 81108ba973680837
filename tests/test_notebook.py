"""The notebook in docs/: a newcomer who runs it sees what it shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

import reftune

NOTEBOOK = Path(__file__).parents[1] / "docs/first_run.ipynb"


def cells_of(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def accuracies(notebook: Any) -> dict[str, int]:
    """Return the percentages that the notebook prints, by model."""
    [cell] = [cell for cell in cells_of(notebook) if "result.comparisons" in cell.source]
    lines = "".join(output.text for output in cell.outputs).splitlines()
    return {line.split()[0]: int(line.split()[1].rstrip("%")) for line in lines[:2]}


def test_what_is_stored_was_executed_in_order_and_is_small() -> None:
    notebook: Any = nbformat.read(NOTEBOOK, as_version=4)
    code = cells_of(notebook)
    assert [cell.execution_count for cell in code] == [*range(1, len(code) + 1)]
    assert not any(output.output_type == "error" for cell in code for output in cell.outputs)
    assert accuracies(notebook).keys() == {"sft", "reft"}
    assert NOTEBOOK.stat().st_size < 60_000


def test_the_notebook_runs_and_reft_learns_what_sft_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(reftune.__file__).parents[1]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook: Any = nbformat.read(NOTEBOOK, as_version=4)
    place = {"metadata": {"path": str(tmp_path)}}
    client: Any = NotebookClient(notebook, timeout=600, kernel_name="python3", resources=place)
    client.execute()
    found = accuracies(notebook)
    assert found["reft"] > found["sft"] + 10
    assert (tmp_path / "runs/first_run/report.html").exists()
