"""What `opo track` is asked for."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic.dataclasses import dataclass

from opo.config.read import read, shown
from opo.errors import UserError
from opo.keys import STRICT

OF_A_RUN = ("config.yaml", "run.json", "metrics.jsonl")
OF_A_RESULT = ("result.json", "eval.json", "claims.json")  # any of these


@dataclass(config=STRICT)
class TrackConfig:
    """Which folder, and where its W&B record goes."""

    path: str = ""  # a run, a study, an evaluation or a verify folder
    mode: Literal["offline", "online"] = "offline"  # offline: below the folder, for `wandb sync`
    id: str | None = None  # of the W&B run; null: the folder's own
    project: str | None = None  # null: the run's
    entity: str | None = None  # null: the run's


def load_config(values: Mapping[str, Any]) -> TrackConfig:
    """The typed config; raises UserError, one line, naming the first key that is wrong."""
    config = read(TrackConfig, values)
    if not config.path:
        raise UserError("path: give a run folder, such as path=runs/default/opo-arithmetic-s0, or that of a study")
    path = Path(config.path)
    if not is_run(path) and not any(_is_file(path / name) for name in OF_A_RESULT):
        missing = next(name for name in OF_A_RUN if not _is_file(path / name))
        raise UserError(
            f"path={shown(config.path)}: not a run folder ({missing} is missing), and none of {', '.join(OF_A_RESULT)} is there"
        )
    return config


def is_run(path: Path) -> bool:
    """Whether the folder has the files of a run."""
    return all(_is_file(path / name) for name in OF_A_RUN)


def _is_file(file: Path) -> bool:
    """False too for what no file system takes as a name."""
    try:
        return file.is_file()
    except (OSError, ValueError):
        return False
