"""What `opo runs` is asked for."""

from collections.abc import Mapping
from typing import Any

from pydantic.dataclasses import dataclass

from analysis.config.report import is_folder
from opo.config.read import read, shown
from opo.errors import UserError
from opo.keys import STRICT


@dataclass(config=STRICT)
class RunsConfig:
    """Which runs are listed, and for whom."""

    path: str = "runs"  # a study, a run, or any folder with runs below it
    rank: bool = False  # true (or --rank): the ranking of the finished runs too
    json: bool = False  # true (or --json): for machines, one object


def load_config(values: Mapping[str, Any]) -> RunsConfig:
    """The typed config; raises UserError, one line, naming the first key that is wrong."""
    config = read(RunsConfig, values)
    if not is_folder(config.path):
        raise UserError(f"path={shown(config.path)}: no such folder")
    return config
