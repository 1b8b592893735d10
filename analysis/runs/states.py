"""Where each run of a folder stands, also while runs go on and where files are damaged."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from analysis.runs.load import run_folders
from opo.errors import UserError
from opo.run.folder import FAILED, steps_done
from opo.run.hold import is_held
from opo.run.metrics import read_rows
from opo.system.records import read_yaml

State = Literal["done", "running", "failed", "stopped", "damaged"]


@dataclass(frozen=True)
class RunState:
    """One run: `stopped` is one that was killed or interrupted and goes on with the same command."""

    run: str  # its folder below the one that was asked about
    state: State
    step: int
    steps: int | None
    reward: float | None  # of the last step
    seconds: float  # of all steps
    why: str = ""  # it failed or is damaged
    folder: str = ""


def run_states(path: Path) -> list[RunState]:
    """Every run at or below `path`, by name. Raises UserError where there is none."""
    folders = sorted(run_folders(path))
    if not folders:
        raise UserError(f"{path}: no run is here (a folder with config.yaml and run.json)")
    return [
        replace(
            _state(folder, str(folder.relative_to(path)) if folder != path else path.resolve().name), folder=str(folder)
        )
        for folder in folders
    ]


def _state(folder: Path, name: str) -> RunState:
    try:
        steps = read_yaml(folder / "config.yaml").get("steps")
        rows, done = list(read_rows(folder / "metrics.jsonl")), steps_done(folder)
    except UserError as error:
        return RunState(name, "damaged", 0, None, None, 0.0, str(error))
    last = rows[-1] if rows else {}
    why = (folder / FAILED).read_text(errors="replace").strip() if (folder / FAILED).is_file() else ""
    state: State = "stopped"
    if done is not None:
        state, why = "done", ""
    elif is_held(folder):
        state, why = "running", ""
    elif why:
        state = "failed"
    seconds = sum(row.get("time/step_s", 0.0) for row in rows)
    return RunState(name, state, int(last.get("train/step", 0)), steps, last.get("train/reward_mean"), seconds, why)
