"""For `opo track`: the W&B record of a run made anew from metrics.jsonl, config.yaml, run.json and rollouts/."""

import math
from collections import Counter
from pathlib import Path
from typing import Any

from opo.config.track import TrackConfig
from opo.errors import StoppedRun, UserError
from opo.run.folder import CERTIFICATE, RunFolder
from opo.run.metrics import read_rows
from opo.system.records import read_json
from opo.tracking import CLEAN, FAILED, run_tags, start_mirror


def track_again(asked: TrackConfig) -> tuple[int, str]:
    """Repeat a whole run folder to W&B by the mirror that follows a training; returns the number of steps and the run's id.

    Offline, a record of that id in the folder is replaced. Online, rows that the server has are kept and the others are sent. The
    record ends as failed where the run has no DONE. Raises UserError for a damaged folder or one that is being trained in,
    StoppedRun where W&B fails.
    """
    with RunFolder.existing(Path(asked.path)) as folder:
        count = _count_steps(folder.path / "metrics.jsonl")
        _refuse_damaged_tables(folder.path)
        setup = _setup(folder, asked)
        try:
            mirror = start_mirror(setup)
        except OSError as error:
            raise StoppedRun(f"{folder.path}: W&B could not be started ({error})") from error
        ending = CLEAN if (folder.path / "DONE").exists() else FAILED
        if not mirror.finish(ending, math.inf):  # the mirror itself limits how long W&B may take
            raise StoppedRun(f"{folder.path}: W&B failed ({mirror.kill()})")
        return count, setup["id"]


def _count_steps(file: Path) -> int:
    """How many steps metrics.jsonl holds. Raises UserError for a damaged line and for a step that stands twice."""
    steps = Counter(row["train/step"] for row in read_rows(file))
    for step, times in steps.items():
        if times > 1:
            raise UserError(f"{file}: holds step {step} {times} times; W&B takes each once")
    if not steps:
        raise UserError(f"{file}: holds no step; nothing to track")
    return len(steps)


def _refuse_damaged_tables(folder: Path) -> None:
    """Raise UserError that names the first table of completions, or the certificate, which cannot be read."""
    import pyarrow as pa
    import pyarrow.parquet as pq  # as the mirror reads it

    for file in sorted((folder / "rollouts").glob("step-*.parquet")):
        try:
            pq.read_table(file)
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"{file}: damaged, it holds no readable table; restore it from a copy") from error
    if (folder / CERTIFICATE).exists():
        read_json(folder / CERTIFICATE)


def _setup(folder: RunFolder, asked: TrackConfig) -> dict[str, Any]:
    """What the mirror is told; the run's own config says what was not asked for."""
    config = folder.config
    groups = {key: config.get(key) or {} for key in ("algo", "task", "model", "tracking")}
    if not all(isinstance(group, dict) for group in groups.values()) or not isinstance(config.get("study", ""), str):
        raise UserError(f"{folder.path / 'config.yaml'}: is not the config of a run; restore it from a copy")
    return {
        "folder": str(folder.path.resolve()),
        "mode": asked.mode,
        "project": asked.project or groups["tracking"].get("project") or "opo",
        "entity": asked.entity or groups["tracking"].get("entity"),
        "id": asked.id or folder.wandb_id,
        "name": folder.path.resolve().name,
        "group": config.get("study"),
        "tags": [*run_tags(groups), *(groups["tracking"].get("tags") or [])],
        "notes": groups["tracking"].get("notes"),
        "again": True,
    }
