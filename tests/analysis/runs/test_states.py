"""`opo runs`: what each run's files say, whatever state they are in."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock
from studies import write_run

from analysis.runs.states import run_states


def test_every_state_is_told(tmp_path: Path) -> None:
    for seed, name in enumerate(["done", "failed", "running", "stopped", "damaged"]):
        write_run(tmp_path / name, "opo", seed, 0.01, steps=5, done=name == "done")
    (tmp_path / "failed" / "FAILED").write_text("ValueError: no luck\n")
    (tmp_path / "damaged" / "config.yaml").write_text("")
    lock = FileLock(tmp_path / "running" / ".lock")
    with lock:
        states = {state.run: state for state in run_states(tmp_path)}
    assert {name: state.state for name, state in states.items()} == {name: name for name in states}
    assert states["failed"].why == "ValueError: no luck"
    assert "config.yaml: damaged" in states["damaged"].why
    assert (states["stopped"].step, states["stopped"].steps) == (5, 5)


@pytest.mark.parametrize("name", ["metrics.jsonl", "DONE"])
def test_what_should_be_a_file_is_named(name: str, tmp_path: Path) -> None:
    write_run(tmp_path / "one", "opo", 0, 0.01, steps=5, done=True)
    (tmp_path / "one" / name).unlink()
    (tmp_path / "one" / name).symlink_to(name)
    (state,) = run_states(tmp_path)
    assert (state.state, state.why.partition("/one/")[2]) == (
        "damaged",
        f"{name}: damaged, it is a link to nothing, or no plain file; restore it from a copy",
    )


def test_the_command_prints_a_table_and_json(tmp_path: Path) -> None:
    write_run(tmp_path / "study[bold]" / "one", "opo", 0, 0.01, steps=3)
    command = [sys.executable, "-m", "opo", "runs", f"path={tmp_path}"]
    table = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "1 done" in table
    assert "study[bold]/one" in table
    printed = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True).stdout
    (run,) = json.loads(printed)["runs"]
    assert (run["state"], run["step"], run["steps"]) == ("done", 3, 3)
