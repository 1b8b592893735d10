"""Entry points of this package's own commands."""

from pathlib import Path
from typing import Any

from opo.config.load import load_config


def train(config: dict[str, Any], folder: Path) -> None:
    """`opo train`: one run in its folder."""
    from opo.train.loop import train as run  # seconds of imports that a refused config should not cost

    run(load_config(config), folder)
