"""What `opo plan train` is asked for."""

from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any, Literal

from pydantic.dataclasses import dataclass

from opo.config.load import algorithm_config, task_config
from opo.config.read import read
from opo.config.rules import OF_THE_MACHINE, RULES, enough_for_ranks
from opo.config.schema import RunConfig
from opo.errors import UserError
from opo.keys import STRICT, Count, Positive


@dataclass(config=STRICT)
class Where:
    """Where the work would run, and what is known of its speed."""

    ranks: Count = 1  # processes under torchrun, a device each
    device_gib: Positive | None = None  # memory of each device; null: what is found here
    prompt_tokens: Count | None = None  # of a prompt; null: as the task's first prompts are, where they are at hand
    teraflops: Positive | None = (
        None  # a second, that a rank really reaches: the time is then that of the model's arithmetic
    )
    measure: bool = False  # load the model and time two steps of a training, or the pools of a few prompts
    json: bool = False  # for machines, one object


@dataclass(config=STRICT)
class PlanTrain(Where, RunConfig):
    """A training, where it would run, and what is known of its speed."""

    planned: Literal["train"] = "train"
    response_tokens: Count | None = None  # of a mean response, for the time; null: rollout.max_new_tokens
    sampling_tokens_per_s: Positive | None = None  # of one rank; null: measured, or at best
    update_tokens_per_s: Positive | None = None  # of one rank

    @property
    def run(self) -> RunConfig:
        """The training itself."""
        return RunConfig(**{field.name: getattr(self, field.name) for field in fields(RunConfig)})


def load_config(values: Mapping[str, Any]) -> PlanTrain:
    """The typed config; raises UserError, one line, naming the first key that is wrong.

    The rules are those of a training, without the ones that look for files, engines and devices: it may be meant for another machine.
    """
    parts = {"algo": algorithm_config(values.get("algo")), "task": task_config(values.get("task"))}
    config = read(PlanTrain, {**values, **parts})
    for complaint in _complaints(config):
        raise UserError(complaint)
    return config


def _complaints(config: PlanTrain) -> Iterator[str]:
    for rule in RULES:
        if rule not in OF_THE_MACHINE:
            yield from rule(config)
    yield from enough_for_ranks(config, config.ranks)
    if (config.sampling_tokens_per_s is None) != (config.update_tokens_per_s is None):
        yield "sampling_tokens_per_s, update_tokens_per_s: a step samples and updates; give both or neither"
    yield from one_speed(
        sampling_tokens_per_s=config.sampling_tokens_per_s, teraflops=config.teraflops, measure=config.measure
    )


def one_speed(**ways: Any) -> Iterator[str]:
    """A plan takes its time from one source."""
    given = [key for key, value in ways.items() if value]
    if len(given) > 1:
        yield f"{', '.join(given)}: each says how fast a rank is; give one of them"
