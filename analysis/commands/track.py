"""`opo track`: the W&B record of a run, a study, an evaluation or a verify folder made anew from what is on disk."""

from pathlib import Path
from typing import Any

from analysis.tracking.origin import command_of
from analysis.tracking.record import VERIFY, describe
from opo.config.schema import WandbConfig
from opo.config.track import TrackConfig, is_run, load_config
from opo.errors import StoppedRun
from opo.tracking.again import track_again
from opo.tracking.result import ResultTracker


def main(values: dict[str, Any], folder: Path) -> None:
    """Make the record, or those of a verify folder and the study in it, and say where they are."""
    asked = load_config(values)
    path = Path(asked.path)
    if is_run(path):
        count, run_id = track_again(asked)
        print(f"{count} steps of {path} as run {run_id} {_where(asked, path)}")
        return
    study = path / "variance"
    for result in [study, path] if (path / VERIFY).is_file() and study.is_dir() else [path]:
        print(f"{result} as run {_track(asked, result)} {_where(asked, result)}")


def _track(asked: TrackConfig, path: Path) -> str:
    """The id of the record. Raises StoppedRun where W&B fails."""
    own = {"notes": None, "tags": []} | (command_of(path).get("tracking") or {})
    tracking = WandbConfig(
        mode=asked.mode,
        project=asked.project or own.get("project") or "opo",
        entity=asked.entity or own.get("entity"),
        notes=own["notes"],
        tags=own["tags"],
    )
    with ResultTracker(path, tracking, asked.id) as tracker:
        if not tracker.works:
            raise StoppedRun(f"{path}: W&B could not be started")
        return tracker.write(describe(path))


def _where(asked: TrackConfig, path: Path) -> str:
    return f"in {path / 'wandb'}, for `wandb sync`" if asked.mode == "offline" else "in W&B"
