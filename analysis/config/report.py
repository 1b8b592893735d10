"""What `opo report` is asked for."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic.dataclasses import dataclass

from opo.config.read import read, shown
from opo.errors import UserError
from opo.keys import STRICT


@dataclass(config=STRICT)
class ReportConfig:
    """Which folder, and whether the same is published as a W&B report."""

    path: str = ""  # a verify folder, a variance study, or any folder with runs below it
    publish: Literal["wandb"] | None = None  # wandb: also as a report in W&B
    project: str = "opo"
    entity: str | None = None


def load_config(values: Mapping[str, Any]) -> ReportConfig:
    """The typed config; raises UserError, one line, naming the first key that is wrong."""
    config = read(ReportConfig, values)
    if not config.path:
        raise UserError("path: give a folder, such as path=runs/verify")
    if not is_folder(config.path):
        raise UserError(f"path={shown(config.path)}: no such folder")
    return config


def is_folder(path: str) -> bool:
    """False too for what no file system takes as a name."""
    try:
        return Path(path).is_dir()
    except (OSError, ValueError):
        return False
