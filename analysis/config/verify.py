"""What `opo verify` is asked for."""

from collections.abc import Mapping
from dataclasses import field
from typing import Annotated, Any

from pydantic import Field
from pydantic.dataclasses import dataclass

from analysis.study.config import GROUP_SIZES, AtLeastFour
from analysis.study.config import load_config as load_study_config
from opo.config.read import read
from opo.config.schema import WandbConfig
from opo.errors import UserError
from opo.keys import LARGEST, STRICT, AtLeastTwo, Seed


@dataclass(config=STRICT)
class VerifyConfig:
    """How long the trainings are and how much is measured."""

    steps: AtLeastTwo = 30  # rollout batches of each training
    seeds: Annotated[list[Seed], Field(min_length=2)] = field(default_factory=lambda: [0, 1, 2])  # of the trainings
    prompts: Annotated[int, Field(ge=8, le=LARGEST)] = (
        24  # of the variance study, dealt to the seeds' checkpoints in turn
    )
    responses: AtLeastFour = 64  # to each
    group_sizes: list[AtLeastTwo] = field(default_factory=lambda: list(GROUP_SIZES))
    tracking: WandbConfig = field(default_factory=WandbConfig)
    jobs: Annotated[int, Field(ge=1, le=1024)] = 2  # processes of one thread each


def load_config(values: Mapping[str, Any]) -> VerifyConfig:
    """The typed config; raises UserError, one line, naming the first key that is wrong."""
    config = read(VerifyConfig, values)
    if len(set(config.seeds)) < len(config.seeds):
        raise UserError(
            f"seeds={config.seeds}: at least two different ones are needed, three for a verdict on training"
        )
    load_study_config(study_values(config, None))
    return config


def study_values(config: VerifyConfig, checkpoints: list[str] | None) -> dict[str, Any]:
    """The config of the variance study on these runs (none yet: null)."""
    return {
        "checkpoint": checkpoints,
        "prompts": config.prompts,
        "responses": config.responses,
        "group_sizes": config.group_sizes,
        "threads": 1,
    }
