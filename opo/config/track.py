"""What `opo track` is asked for."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic.dataclasses import dataclass

from opo.config.read import read, shown
from opo.errors import UserError
from opo.keys import STRICT


@dataclass(config=STRICT)
class TrackConfig:
    """Which run folder, and where its W&B record goes."""

    path: str = ""  # a run folder
    mode: Literal["offline", "online"] = "offline"  # offline: below the folder, for `wandb sync`
    id: str | None = None  # of the W&B run; null: the folder's own
    project: str | None = None  # null: the run's
    entity: str | None = None  # null: the run's


def load_config(values: Mapping[str, Any]) -> TrackConfig:
    """The typed config; raises UserError, one line, naming the first key that is wrong."""
    config = read(TrackConfig, values)
    if not config.path:
        raise UserError("path: give a run folder, such as path=runs/default/opo-arithmetic-s0")
    for name in ("config.yaml", "run.json", "metrics.jsonl"):
        if not _is_file(Path(config.path, name)):
            raise UserError(f"path={shown(config.path)}: not a run folder ({name} is missing)")
    return config


def _is_file(file: Path) -> bool:
    """False too for what no file system takes as a name."""
    try:
        return file.is_file()
    except (OSError, ValueError):
        return False
