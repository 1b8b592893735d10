"""Runs that are tracked without being trained, and what W&B wrote of them."""

import json
import time
from collections.abc import Callable
from pathlib import Path

from opo.config.schema import RunConfig, to_dict
from opo.run.folder import RunFolder
from opo.run.metrics import METRICS
from opo.tasks.arithmetic import ArithmeticConfig
from opo.tracking import Tracker

COMPLETION = {"prompt_index": 4, "sample": 0, "prompt": "1+2=", "response": "3.", "reward": 1.0, "tokens": 2}


def make_config(mode: str = "off", study: str = "s") -> RunConfig:
    """Every group at its defaults."""
    config = RunConfig.of(ArithmeticConfig(), study=study)
    config.tracking.mode = mode  # pyright: ignore[reportAttributeAccessIssue]
    return config


def open_tracker(path: Path, mode: str = "off") -> Tracker:
    config = make_config(mode)
    return Tracker.open(RunFolder.open(path, to_dict(config)), config.tracking, config)


def log_steps(path: Path, mode: str, steps: range, **options: float) -> None:
    """Open the folder as a run that goes on from the step before these does, and log them."""
    config = make_config(mode)
    folder = RunFolder.open(path, to_dict(config))
    folder.truncate_metrics(steps.start - 1)
    with Tracker.open(folder, config.tracking, config, **options) as tracker:
        for step in steps:
            if step % 2:
                tracker.completions(step, [COMPLETION | {"prompt_index": step}, {"response": "?", "reward": None}])
            tracker.log(step, {"train/reward_mean": step / 7, "train/updates": step})


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def wandb_file(path: Path) -> Path:
    """The one offline record in a run folder."""
    (file,) = (path / "wandb").glob("offline-run-*/run-*.wandb")
    return file


def scalars(logged: list[dict]) -> list[dict]:
    return [{key: value for key, value in row.items() if key in METRICS} for row in logged]


def wait_for(condition: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)
