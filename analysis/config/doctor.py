"""What `opo doctor` is asked for."""

from collections.abc import Mapping
from dataclasses import field
from typing import Annotated, Any

from pydantic import Field
from pydantic.dataclasses import dataclass

from analysis.study.config import AtLeastFour
from opo.config.load import task_config
from opo.config.model_source import unreachable
from opo.config.read import read
from opo.config.rules import usable_device
from opo.config.schema import ModelConfig, OptimConfig, RewardConfig, RolloutConfig
from opo.errors import UserError
from opo.keys import STRICT, Count, Device, Seed, Threads

Parameters = Annotated[float, Field(ge=0, le=1e15)]


@dataclass(config=STRICT)
class DoctorConfig:
    """Which model, sampled how, and how many responses the checks look at."""

    model: ModelConfig = field(default_factory=ModelConfig)
    task: Any = None
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    prompts: Count = 2
    responses: AtLeastFour = 8  # to each
    float64_limit: Parameters = 5e8  # parameters above which no float64 copy is made to compare with
    seed: Seed = 0
    device: Device = "auto"
    threads: Threads = 2  # of torch, on the CPU


def load_config(values: Mapping[str, Any]) -> DoctorConfig:
    """The typed config; raises UserError, one line, naming the first key that is wrong."""
    values = dict(values)
    task = task_config(values.pop("task", None))
    config = read(DoctorConfig, values | {"task": task})
    if config.rollout.top_p != 1 or config.rollout.top_k != 0:
        raise UserError(
            "rollout.top_p, rollout.top_k: truncated sampling cannot agree with the trainer; allowed are 1 and 0"
        )
    found = unreachable(config.model.path, "model.path") if config.model.path else ()
    for complaint in [*found, *usable_device(config)]:
        raise UserError(complaint)
    return config
