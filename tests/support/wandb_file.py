"""W&B's offline file in tests: its records, and the logged rows."""

from pathlib import Path
from typing import Any

from opo.tracking.offline_file import read_run, records

__all__ = ["history", "records"]


def history(file: Path) -> list[dict[str, Any]]:
    """The logged rows, nested keys dotted, without wandb's own (`_step`, `_timestamp`, `_runtime`)."""
    return read_run(file).rows
