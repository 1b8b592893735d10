"""`opo report`: one HTML page from what is on disk, and its W&B twin where asked for."""

from pathlib import Path
from typing import Any

from analysis.config.report import load_config
from analysis.report.page import write_report


def main(values: dict[str, Any], folder: Path) -> None:
    """`opo report`: write report.html into the folder it is about, and publish it where asked to."""
    config = load_config(values)
    page = write_report(Path(config.path))
    print(page)
    if config.publish == "wandb":
        from analysis.report.wandb import publish  # an optional dependency

        print(publish(Path(config.path), config.project, config.entity))
