"""Every notebook runs from a fresh kernel in under a minute, and is committed in the form that readers and tools expect."""

import ast
import re
import shutil
from pathlib import Path

import nbformat
import pytest
from IPython.core.interactiveshell import InteractiveShell
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def names(path: Path) -> str:
    return path.stem


def test_there_are_notebooks() -> None:
    assert {path.stem[:2] for path in NOTEBOOKS} >= {f"{number:02}" for number in range(1, 10)}


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
    """In the folder that JupyterLab starts in, without a warning; it ends with a number in the middle of its interval (an end may be open)."""
    shutil.copytree(FOLDER, tmp_path / "notebooks")
    (tmp_path / "pyproject.toml").touch()
    notebook = nbformat.read(path, as_version=4)
    where = {"metadata": {"path": str(tmp_path / "notebooks")}}
    NotebookClient(notebook, timeout=280, kernel_name="python3", resources=where).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert not [output.text for output in outputs if output.get("name") == "stderr"]
    assert {child.name for child in tmp_path.iterdir()} <= {"notebooks", "pyproject.toml", "runs"}
    printed = "".join(output.get("text", "") for output in notebook.cells[-1].outputs)
    assert printed.strip().endswith(")."), "one sentence, which says over what the interval is"
    number = r"(-?[\d.]+(?:e[-+]?\d+)?|open)"
    found = re.search(rf"{number} \[{number}, {number}\]", printed)
    assert found, printed
    value, low, high = (None if part == "open" else float(part) for part in found.groups())
    assert value is None or ((low is None or low <= value) and (high is None or value <= high))


def test_a_users_mistake_is_one_line_in_a_notebook(capsys: pytest.CaptureFixture[str]) -> None:
    InteractiveShell().run_cell("from analysis import notebook; notebook.study('no/such/study')")
    shown = capsys.readouterr().out.strip().splitlines()
    assert len(shown) == 1
    assert shown[0].startswith("no/such/study: not found in ")
