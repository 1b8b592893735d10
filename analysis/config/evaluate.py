"""What `opo evaluate` is asked for."""

from collections.abc import Mapping
from dataclasses import field
from typing import Annotated, Any

from pydantic import Field
from pydantic.dataclasses import dataclass

from analysis.study.config import Resamples, StudyRollout, sampling_alone
from opo.config.load import task_config
from opo.config.read import read
from opo.config.rules import usable_device
from opo.config.schema import ModelConfig, OwnReward, WandbConfig
from opo.errors import UserError
from opo.keys import STRICT, AtLeastTwo, Count, Device, Positive, Seed, Split, Threads
from opo.run.policies import evaluated_policies

MAX_RESPONSES = 1000  # responses to a prompt, beyond which binomials leave float64


@dataclass(config=STRICT)
class EvaluateConfig:
    """One evaluation; checkpoint, model, task and sampling as in a variance study."""

    checkpoint: Any = None  # a run folder, a checkpoint, a folder of transformers, or a list of these
    model: ModelConfig | None = None  # null: the run's own, else the built-in one
    task: Any = None  # null: the run's own, else arithmetic
    rollout: StudyRollout = field(default_factory=StudyRollout)
    prompts: AtLeastTwo = 64  # the unit of replication: intervals are over prompts
    responses: Annotated[int, Field(ge=1, le=MAX_RESPONSES)] = 16  # to each
    ks: Annotated[list[Count], Field(min_length=1)] = field(default_factory=lambda: [1, 4, 16])  # of pass@k and maj@k
    split: Split = "eval"
    num_bootstrap: Resamples = 2000
    reward: OwnReward = field(default_factory=OwnReward)  # null: the run's, else the task's
    reward_timeout_s: Positive = 10.0
    tracking: WandbConfig = field(default_factory=WandbConfig)
    seed: Seed = 0
    device: Device = "auto"
    threads: Threads = 2  # of torch, on the CPU


def load_config(values: Mapping[str, Any]) -> EvaluateConfig:
    """The typed config; raises UserError naming the first key that is wrong."""
    values = dict(values)
    task = values.pop("task", None)
    config = read(EvaluateConfig, sampling_alone(values))
    config.task = None if task is None else task_config(task)
    if max(config.ks) > config.responses:
        raise UserError(f"ks={config.ks}: each must lie between 1 and responses={config.responses}")
    for complaint in usable_device(config):
        raise UserError(complaint)
    evaluated_policies(config.checkpoint, config.model)  # says itself what is wrong with a path or its weights
    return config
