"""`opo report`: one HTML page from what is on disk, and its W&B twin where asked for."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.report.page import write_report
from opo.config.build import build
from opo.errors import UserError


@dataclass
class ReportConfig:
    """Which folder, and whether the same is published as a W&B report."""

    path: str = ""
    publish: str | None = None  # or wandb
    project: str = "opo"
    entity: str | None = None


def load_config(values: Mapping[str, Any]) -> ReportConfig:
    """The typed config; raises UserError, one line, naming the first key that is wrong."""
    config = build(ReportConfig, values)
    if not config.path:
        raise UserError("path: give a folder, such as path=runs/verify")
    if not Path(config.path).is_dir():
        raise UserError(f"path={config.path}: no such folder")
    if config.publish not in (None, "wandb"):
        raise UserError(f"publish={config.publish}: allowed are null and wandb")
    return config


def main(values: dict[str, Any], folder: Path) -> None:
    """`opo report`: write report.html into the folder it is about, and publish it where asked to."""
    config = load_config(values)
    page = write_report(Path(config.path))
    print(page)
    if config.publish == "wandb":
        from analysis.report.wandb import publish  # an optional dependency

        print(publish(Path(config.path), config.project, config.entity))
