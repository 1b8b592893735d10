"""What `opo audit` is asked for."""

from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from pydantic.dataclasses import dataclass

from analysis.study.config import RewardColumns, files_of, names_of, steps_of
from opo.catalogue import catalogue
from opo.config.read import read
from opo.errors import UserError, near
from opo.keys import STRICT, Seed

BASELINES = ("none", "group_mean", "leave_one_out", "length_weighted", "length_weighted_loo", "group_standardized")


def weighing() -> list[str]:
    """Every estimator that weighs responses by rewards and lengths of one group."""
    known = [n for n, a in catalogue().items() if not (a.token_level or a.couples_prompts or a.needs)]
    return list(dict.fromkeys([*BASELINES, *known]))


@dataclass(config=STRICT)
class AuditConfig:
    """Which files, which columns are the reward, and which algorithms would weigh them."""

    rollouts: Any = None  # a .parquet or .jsonl, or a list of them
    reward: RewardColumns = field(default_factory=RewardColumns)
    step: Any = None  # of training: one, a list, or all
    estimators: list[str] | None = None  # null: all that need rewards and lengths alone
    tokenizer: str | None = None  # a folder or hub id that counts tokens; null: text is measured in characters
    num_bootstrap: Annotated[int, Field(ge=100, le=1_000_000)] = 2000
    seed: Seed = 0

    @property
    def files(self) -> list[Path]:
        return files_of(self.rollouts)

    @property
    def steps(self) -> list[int] | None:
        """As in a variance study."""
        return steps_of(self.step)


def load_config(values: Mapping[str, Any]) -> AuditConfig:
    """The typed config; raises UserError, one line, naming the first key that is wrong."""
    config = read(AuditConfig, values)
    if not config.files or "" in names_of(config.rollouts):
        raise UserError("rollouts: give a .parquet or .jsonl file of rollouts, as in opo audit rollouts=FILE")
    if len(set(config.files)) < len(config.files):
        raise UserError("rollouts: a file is named twice")
    if config.reward.column is not None and config.reward.columns is not None:
        raise UserError("reward.column and reward.columns: give one of them")
    steps = config.step if isinstance(config.step, list) else [config.step]
    if config.step is not None and config.step != "all" and not all(type(step) is int for step in steps):
        raise UserError(f"step={config.step}: a step of training, a list of steps, or all is needed")
    names = weighing()
    for name in config.estimators or []:
        if name not in names:
            raise UserError(
                f"estimators has {name}: it needs more than rewards and lengths{near(name, names)}; allowed are {', '.join(names)}"
            )
    from analysis.study.external.files import usable  # polars, which a wrong key does not need

    for name in names_of(config.rollouts):
        usable(name)
    return config
