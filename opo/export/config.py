"""What `opo export` is asked for."""

from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, Literal

from pydantic.dataclasses import dataclass

from opo.config.load import algorithm_config
from opo.config.load import load_config as load_run
from opo.config.read import read, shown
from opo.config.schema import (
    AlgoConfig,
    CheckpointConfig,
    EvaluateConfig,
    ModelConfig,
    OptimConfig,
    OwnReward,
    RewardConfig,
    RolloutConfig,
    RunConfig,
    TrackingConfig,
)
from opo.errors import UserError
from opo.export.verl import differences
from opo.keys import STRICT, Count, Seed
from opo.tasks import kind_of


@dataclass(config=STRICT)
class HfExport:
    """Which checkpoint, and where its folder is made."""

    what: Literal["hf"] = "hf"
    path: str = ""  # a run folder (its newest checkpoint), a checkpoint, or a folder of transformers
    into: str = "export"
    merge: bool = False  # adapters are added to the weights


@dataclass(config=STRICT)
class VerlExport:
    """The keys of a training that mean something to verl, and the machines it will run on."""

    algo: AlgoConfig
    task: Any
    model: ModelConfig
    rollout: RolloutConfig
    optim: OptimConfig
    reward: OwnReward
    evaluate: EvaluateConfig
    checkpoint: CheckpointConfig
    tracking: TrackingConfig
    what: Literal["verl"] = "verl"
    path: str = "export"  # the folder that is made
    gpus: Count = 8  # on each machine
    machines: Count = 1
    steps: Count = 80
    seed: Seed = 0
    study: str = "default"

    @property
    def run(self) -> RunConfig:
        """The training itself."""
        same = {field.name: getattr(self, field.name) for field in fields(RunConfig) if hasattr(self, field.name)}
        return RunConfig.of(**{**same, "reward": RewardConfig(self.reward.function, self.reward.weights)})


def load_config(values: Mapping[str, Any]) -> HfExport | VerlExport:
    """The typed config; raises UserError, one line, naming the first key that is wrong."""
    if values.get("what") == "hf":
        asked = read(HfExport, values)
        if not asked.path or not _exists(Path(asked.path)):
            raise UserError(f"path={shown(asked.path)}: no such folder; give a run folder or a checkpoint")
        refuse_used(asked.into, "into")
        if any(
            parent.name == "checkpoints" and (parent.parent / "run.json").exists()
            for parent in Path(asked.into).absolute().parents
        ):
            raise UserError(f"into={shown(asked.into)}: lies among the checkpoints of a run; give another folder")
        return asked
    parts = {
        "algo": algorithm_config(values.get("algo")),
        "task": read(kind_of(values.get("task")), values["task"], "task"),
    }
    asked = read(VerlExport, {**values, **parts})
    own = {"what", "path", "gpus", "machines"}
    rest = {f.name: {} for f in fields(RunConfig) if f.default is MISSING and f.name not in values}
    run = load_run({**{key: value for key, value in values.items() if key not in own}, **rest})
    for difference in differences(run, asked.gpus * asked.machines):
        raise UserError(difference)
    refuse_used(asked.path, "path")
    return asked


def refuse_used(path: str, key: str) -> None:
    """Raises UserError where the folder to be made exists and holds something: nothing is written over."""
    folder = Path(path)
    if not path or (_exists(folder) and (not folder.is_dir() or any(folder.iterdir()))):
        raise UserError(f"{key}={shown(path)}: must be a new or an empty folder; give another, or move that one away")


def _exists(path: Path) -> bool:
    """False too for what no file system takes as a name."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False
