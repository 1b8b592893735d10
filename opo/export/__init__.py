"""Hand-over to other tools: a training as a command of verl, a checkpoint as a folder for the hub."""

from pathlib import Path
from typing import Any

from opo.export.config import HfExport, load_config


def main(values: dict[str, Any], folder: Path) -> None:
    """`opo export verl` and `opo export hf`."""
    asked = load_config(values)
    if isinstance(asked, HfExport):
        from opo.export.hf import export_checkpoint  # torch: seconds that the other does without

        export_checkpoint(asked)
        return
    from opo.export.verl_files import export_training

    export_training(asked)
