"""What `opo zoo` is asked for."""

import shlex
from collections.abc import Mapping
from dataclasses import field
from typing import Annotated, Any

from pydantic import Field
from pydantic.dataclasses import dataclass

from analysis.zoo.rows import OWN_REWARD, Row, all_rows, row_of
from opo.config.read import read
from opo.errors import UserError
from opo.keys import LARGEST, STRICT, AtLeastTwo, Count, Seed, ZeroOrMore


@dataclass(config=STRICT)
class ZooConfig:
    """Which algorithms, how long the trainings are and how much is measured."""

    algorithms: list[str] | None = (
        None  # "NAME", or "NAME key=value ..." with overrides of opo train; null: every one of conf/algo, and `combinations`
    )
    combinations: list[str] = field(default_factory=list)  # parts with other algorithms than their presets'
    overrides: list[str] = field(default_factory=list)  # of opo train, for every training: another model, task or rate
    seeds: Annotated[list[Seed], Field(min_length=1)] = field(default_factory=lambda: [0, 1, 2])
    tokens: Count = 40_000  # generated in each training; half of them to the policy in mid-training
    batches: Annotated[int, Field(ge=2, le=LARGEST)] = (
        16  # of prompts, that gradients are measured on: what intervals are over
    )
    prompts: AtLeastTwo = 8  # of a batch
    group_size: AtLeastTwo = 8  # responses to each
    replicates: AtLeastTwo = 4  # independent draws of each batch's responses
    memory_batches: ZeroOrMore = 6  # in mid-training: batches that critics, moments and histories are fitted on first
    seed: Seed = 0  # of what is measured
    jobs: Annotated[int, Field(ge=1, le=1024)] = 2  # processes of one thread each

    @property
    def rows(self) -> list[Row]:
        """The rows of the gallery that this command makes; with `algorithms` those alone."""
        every = [name for name in all_rows() if name not in OWN_REWARD]
        names = self.algorithms if self.algorithms is not None else [*every, *self.combinations]
        return [row_of(shlex.split(name)) for name in names]


def load_config(values: Mapping[str, Any]) -> ZooConfig:
    """The typed config; raises UserError, one line, naming the first key that is wrong."""
    config = read(ZooConfig, values)
    if not config.rows:
        raise UserError("algorithms=[]: at least one is needed, or null for all")
    names = [row.name for row in config.rows]
    if doubled := [name for name in names if names.count(name) > 1]:
        raise UserError(f"algorithms: {doubled[0]} is named twice")
    if len(set(config.seeds)) < len(config.seeds):
        raise UserError(f"seeds={config.seeds}: each may be given once")
    from opo.cli.compose import composed
    from opo.config.load import load_config as load_run_config

    asked = [row for row in config.rows if row.changes or config.algorithms is not None]
    for row in asked or config.rows[:1]:
        load_run_config(composed("train", row.training(config.overrides, config.seeds[0], config.tokens)))
    return config
