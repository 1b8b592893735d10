"""What `opo plan` is asked for: a training or a variance study."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from analysis.study.config import VarianceConfig, complaints, read_study
from opo.config.plan import PlanTrain, Where, one_speed
from opo.config.plan import load_config as load_training
from opo.config.read import shown
from opo.errors import UserError
from opo.keys import STRICT, Count, Positive

Ratio = Annotated[float, Field(gt=0, le=100)]
Power = Annotated[float, Field(ge=0.5, le=0.99)]


@dataclass(config=STRICT)
class PlanVariance(Where, VarianceConfig):
    """A variance study, where it would run, and the difference that it should resolve."""

    planned: Literal["variance"] = "variance"
    policies: Count = 1  # that are studied, each on all prompts: a run's start and its checkpoints
    seconds_per_prompt: Positive | None = None  # on one rank; null: measured, or at best
    pilot: str | None = None  # the folder of an earlier study: how many prompts resolve `ratio` there
    estimator: str = "length_weighted"  # compared with reference
    ratio: Ratio = 0.9  # the true ratio of their relative variances that an interval should tell from 1
    power: Power = 0.8  # the chance that it does

    @property
    def pilot_folder(self) -> Path:
        """The folder of the pilot, which may be named by its result.json too."""
        path = Path(str(self.pilot))
        return path.parent if path.name == "result.json" else path


def load_config(values: Mapping[str, Any]) -> PlanTrain | PlanVariance:
    """The typed config; raises UserError, one line, naming the first key that is wrong."""
    if values.get("planned") != "variance":
        return load_training(values)
    config = read_study(PlanVariance, values)
    for complaint in _complaints(config):
        raise UserError(complaint)
    return config


def _complaints(config: PlanVariance) -> Iterator[str]:
    if config.checkpoint is not None or config.rollouts is not None:
        yield "checkpoint, rollouts: a plan needs neither; name the model, and in policies how many of its checkpoints are studied"
    yield from complaints(config, here=False)
    if config.estimator not in config.estimators or config.estimator == config.reference:
        others = [name for name in config.estimators if name != config.reference]
        yield f"estimator={shown(config.estimator)}: must be one of the estimators besides the reference, {', '.join(others)}"
    if config.ratio == 1:
        yield "ratio=1.0: no number of prompts tells 1 from 1; give the ratio that matters, such as 0.9"
    if config.pilot is not None and not (config.pilot_folder / "result.json").is_file():
        yield f"pilot={shown(config.pilot)}: no variance study there (no result.json)"
    yield from one_speed(
        seconds_per_prompt=config.seconds_per_prompt, teraflops=config.teraflops, measure=config.measure
    )
