"""Every notebook runs from a fresh kernel in under a minute, and is committed in the form that readers and tools expect."""

import ast
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


def names(path: Path) -> str:
    return path.stem


def test_there_are_notebooks() -> None:
    assert {path.stem[:2] for path in NOTEBOOKS} >= {"01", "02", "03", "04", "05"}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=names)
def test_form(path: Path) -> None:
    """Stripped of output, with a kernel, a question first, one cell of parameters, and no function of more than five lines."""
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
    assert notebook.cells[0].cell_type == "markdown"
    assert "**Question.**" in notebook.cells[0].source
    tagged = [cell for cell in code if "parameters" in cell.metadata.get("tags", [])]
    assert tagged == code[:1], "the parameters are the first cell of code"
    assert code[-1].source.splitlines()[-1].startswith("print("), "the last cell prints the number and its interval"
    for cell in code:
        for node in ast.walk(ast.parse(cell.source)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert (node.end_lineno or 0) - node.lineno < 5, f"{node.name} belongs into analysis/"


@pytest.mark.timeout(290)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=names)
def test_runs(path: Path, tmp_path: Path) -> None:
    """It ends with a number in the middle of its interval (an end may be open)."""
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(
        notebook, timeout=280, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    printed = "".join(output.get("text", "") for output in notebook.cells[-1].outputs)
    number = r"(-?[\d.]+(?:e[-+]?\d+)?|None|-?inf)"
    found = re.search(rf"{number} \[{number}, {number}\]", printed)
    assert found, printed
    value, low, high = (None if part == "None" else float(part) for part in found.groups())
    assert value is None or ((low is None or low <= value) and (high is None or value <= high))
