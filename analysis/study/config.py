"""The config of a variance study: the schema of `opo variance`, its rules."""

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from omegaconf import OmegaConf
from pydantic import Field
from pydantic.dataclasses import dataclass

from analysis.variance.names import couples_prompts, known_names
from opo.accounts import accounts
from opo.catalogue import catalogue
from opo.config.load import task_config
from opo.config.read import read, shown
from opo.config.rules import usable_device
from opo.config.schema import ModelConfig, OwnReward, WandbConfig
from opo.errors import UserError, near
from opo.keys import (
    LARGEST,
    STRICT,
    AtLeastTwo,
    Count,
    Device,
    Positive,
    Seed,
    Share,
    Split,
    Temperature,
    Threads,
    ZeroOrMore,
)
from opo.run.policies import evaluated_policies, listed

if TYPE_CHECKING:
    from analysis.study.external import RewardChoice

ESTIMATORS = (
    "none",
    "group_mean",
    "leave_one_out",
    "length_weighted",
    "length_weighted_loo",
    "score_norm_weighted",
    "score_norm_weighted_loo",
    "logit_energy_weighted",
    "logit_energy_weighted_loo",
    "group_standardized",
)
GROUP_SIZES = (2, 4, 8, 16)
AtLeastFour = Annotated[int, Field(ge=4, le=LARGEST)]
Resamples = Annotated[int, Field(ge=100, le=1_000_000)]
NOT_IN_POOLS = (
    "greedy_rewards_P",
    "reference_rewards_P",
    "answers",
)  # what algorithms may need and a study does not keep
NOT_IN_NAME = ("shard", "threads", "device", "memory_gib", "reward_timeout_s", "tracking", "hydra")

Config = TypeVar("Config", bound="VarianceConfig")


@dataclass(config=STRICT)
class StudyRollout:
    """How responses are sampled. Null: as the run of the checkpoint sampled (else 48 tokens at temperature 1)."""

    max_new_tokens: Count | None = None
    temperature: Temperature | None = None
    top_p: Share = 1.0  # a study that weighs what it samples refuses other values
    top_k: ZeroOrMore = 0  # likewise
    max_sequences: Count = 256  # responses sampled at once


@dataclass(config=STRICT)
class RewardColumns(OwnReward):
    """Which columns of rollouts from elsewhere are the reward (neither: the format's own), or whose reward scores what is sampled."""

    column: str | None = None
    columns: dict[str, float] | None = None  # name -> weight, summed

    @property
    def choice(self) -> "RewardChoice":
        from analysis.study.external import RewardChoice  # with the readers of all formats

        return RewardChoice(self.column, self.columns)


@dataclass(config=STRICT)
class VarianceConfig:
    """One study: every estimator at every group size, on the same frozen responses of every policy."""

    checkpoint: Any = None  # a run folder, a checkpoint, a folder of transformers, or a list of these
    model: ModelConfig | None = None  # null: the run's own, else the built-in one
    task: Any = None  # null: the run's own, else arithmetic
    rollout: StudyRollout = field(default_factory=StudyRollout)
    rollouts: Any = None  # a file of rollouts from elsewhere, or a list of files, in place of sampling
    append_eos: bool = True  # to responses of these files that are text, have no end and were not cut
    reward: RewardColumns = field(default_factory=RewardColumns)
    step: Any = None  # of training, of these files: one, a list, or all
    estimators: Annotated[list[str], Field(min_length=1)] = field(default_factory=lambda: list(ESTIMATORS))
    reference: str = "leave_one_out"  # what the others are compared with
    group_sizes: Annotated[list[AtLeastTwo], Field(min_length=1)] = field(default_factory=lambda: list(GROUP_SIZES))
    prompts: AtLeastTwo | None = None  # null: 24, or all of a file
    responses: AtLeastFour | None = None  # null: 64, or all of a file
    first_prompt: ZeroOrMore = 0  # in the task's stream, or the file
    split: Split | None = None  # null: eval
    prompts_per_batch: AtLeastTwo | None = None  # for estimators that couple the prompts of a batch
    token_responses: Count = 1  # responses of each prompt that are also measured token by token
    num_bootstrap: Resamples = 2000
    num_partitions: Count = 20  # random cuts of a pool into disjoint groups
    shard: str | None = None  # WHICH/COUNT, such as 0/4: measure this part of the prompts
    memory_gib: Positive = 4.0  # about what one pass may take beyond the model
    reward_timeout_s: Positive = 10.0
    tracking: WandbConfig = field(default_factory=WandbConfig)
    seed: Seed = 0
    device: Device = "auto"
    threads: Threads = 2  # of torch, on the CPU

    @property
    def checkpoint_list(self) -> list[str]:
        return listed(self.checkpoint)

    @property
    def rollout_files(self) -> list[Path]:
        return files_of(self.rollouts)

    @property
    def steps(self) -> list[int] | None:
        """Steps to take from the files; none given: there must be one; empty: all."""
        return steps_of(self.step)

    @property
    def num_prompts(self) -> int:
        """How many prompts of a task are studied."""
        return 24 if self.prompts is None else self.prompts

    @property
    def num_responses(self) -> int:
        """How many responses to each are sampled."""
        return 64 if self.responses is None else self.responses

    @property
    def shard_of(self) -> tuple[int, int]:
        """(which, of how many)."""
        which, count = (int(part) for part in (self.shard or "0/1").split("/"))
        return which, count


def load_config(values: Mapping[str, Any]) -> VarianceConfig:
    """The typed config of a study; raises UserError, one line, naming the first key that is wrong."""
    config = read_study(VarianceConfig, values)
    for complaint in complaints(config):
        raise UserError(complaint)
    return config


def read_study(kind: type[Config], values: Mapping[str, Any]) -> Config:
    """Its keys one by one, without what they must satisfy together."""
    values = dict(values)
    task = values.pop("task", None)
    config = read(kind, sampling_alone(values))
    config.task = None if task is None else task_config(task)
    return config


def sampling_alone(values: Mapping[str, Any]) -> dict[str, Any]:
    """Without what a model's config may bring for its training: the optimizer and the size of a rollout batch."""
    values = {key: value for key, value in values.items() if key != "optim"}
    rollout = values.get("rollout", {})
    if isinstance(rollout, Mapping):
        values["rollout"] = {k: v for k, v in rollout.items() if k not in ("num_prompts", "group_size", "engine")}
    return values


def complaints(config: VarianceConfig, here: bool = True) -> Iterator[str]:
    """What its keys must satisfy together; with `here`, what the study needs on this machine is looked for too."""
    rollout = config.rollout
    for key, value, neutral in (("top_p", rollout.top_p, 1), ("top_k", rollout.top_k, 0)):
        if value != neutral:
            yield f"rollout.{key}={value}: a variance study samples what it differentiates, so truncation is refused; allowed is {neutral}"
    for size in config.group_sizes:
        if config.rollouts is None and 2 * size > config.num_responses:
            yield f"group_sizes has {size}: allowed are 2 to responses / 2 = {config.num_responses // 2}, since a variance needs two groups a prompt"
    yield from _about_estimators(config)
    known = config.prompts if config.rollouts else config.num_prompts
    if config.prompts_per_batch is not None and not 2 <= config.prompts_per_batch <= (
        known or config.prompts_per_batch
    ):
        yield f"prompts_per_batch={config.prompts_per_batch}: must lie between 2 and prompts={known}"
    if config.shard is not None:
        match = re.fullmatch(r"(\d+)/(\d+)", config.shard)
        if not match or int(match[1]) >= int(match[2]):
            yield f"shard={config.shard}: give WHICH/COUNT with WHICH from 0, such as 0/4"
    yield from _about_rollouts(config)
    if not here:
        return
    yield from usable_device(config)
    evaluated_policies(config.checkpoint, config.model)  # says itself what is wrong with a path or its weights


def _about_rollouts(config: VarianceConfig) -> Iterator[str]:
    """What goes with rollouts from elsewhere, and what needs them."""
    if config.rollouts is None:
        for key, given in {
            "step": config.step,
            "reward.column": config.reward.column,
            "reward.columns": config.reward.columns,
        }.items():
            if given is not None:
                yield f"{key}={given}: it chooses among the rows or columns of rollouts=FILE, and there are none"
        return
    from analysis.study.external.files import usable  # polars, which a wrong key does not need

    files = [usable(name) for name in names_of(config.rollouts)]
    if len(set(files)) < len(files) or not files:
        yield f"rollouts={config.rollouts}: give one file or several different ones"
    if config.model is None and not config.checkpoint_list:
        yield (
            f"model: rollouts={files[0]} was sampled by a model that has to be named, as in model=FOLDER or checkpoint=RUN; "
            f"what rewards and lengths alone say needs none: opo audit rollouts={files[0]}"
        )
    if len(config.checkpoint_list) > 1:
        yield "checkpoint: rollouts from a file belong to one policy; give one checkpoint or a model"
    if config.task is not None:
        yield "task: rollouts from a file bring their own prompts and rewards; leave task out"
    if config.reward.function is not None:
        yield "reward.function: rollouts from a file bring their own rewards; choose among them with reward.column"
    if config.split is not None:
        yield f"split={config.split}: rollouts from a file have no splits; leave split out"
    if config.reward.column is not None and config.reward.columns is not None:
        yield "reward.column and reward.columns: give one of them"
    steps = config.step if isinstance(config.step, list) else [config.step]
    if config.step is not None and config.step != "all" and not all(type(step) is int for step in steps):
        yield f"step={config.step}: a step of training, a list of steps, or all is needed"


def _about_estimators(config: VarianceConfig) -> Iterator[str]:
    """Each is known, weighs responses and has what it needs; prompts are coupled in batches of a given size."""
    algorithms = catalogue()
    presets = {name: account for name, account in accounts().items() if name not in algorithms}
    names = [
        name for name in known_names() if name not in algorithms or not {*algorithms[name].needs} & {*NOT_IN_POOLS}
    ]
    for name in [*config.estimators, config.reference]:
        if name in algorithms and algorithms[name].token_level:
            yield f"estimators has {name}: it weighs tokens, not responses; opo zoo 'algorithms=[{name}]' measures it"
        elif name in algorithms and name not in names:
            need = next(need for need in algorithms[name].needs if need in NOT_IN_POOLS)
            yield f"estimators has {name}: it needs {need}, which a study does not keep; opo zoo 'algorithms=[{name}]' measures it"
        elif name in presets:
            yield f"estimators has {name}: it is {presets[name].base} with parts or settings; opo zoo 'algorithms=[{name}]' measures it"
        elif name not in names:
            yield f"estimators has {shown(name)}: not one that weighs responses{near(name, names)}; allowed are {', '.join(names)}"
    if config.reference not in config.estimators:
        yield f"reference={config.reference}: must be one of the estimators, {', '.join(config.estimators)}"
    if len(set(config.estimators)) < len(config.estimators):
        yield "estimators names one twice"
    coupled = [name for name in dict.fromkeys(config.estimators) if couples_prompts(name)]
    if coupled and config.prompts_per_batch is None:
        yield f"prompts_per_batch=null: {', '.join(coupled)} couples the prompts of a batch; say how many it has (2 to {config.num_prompts})"


def study_name(overrides: Any) -> str:
    """A folder's name from the command line: every override that changes what is measured, paths by their last part."""
    kept = sorted(o for o in overrides if o.lstrip("+~").split("=")[0].split(".")[0] not in NOT_IN_NAME)
    short = [re.sub(r"[\w./~-]*/([\w.-]+)", r"\1", o) for o in kept]
    name = re.sub(r"[^\w.=,+-]+", "_", "-".join(short)) or "tiny"
    digest = hashlib.sha256("\n".join(kept).encode()).hexdigest()[:8]
    return f"{name[:100]}-{digest}" if kept else name


OmegaConf.register_new_resolver("study_name", study_name, replace=True)


def names_of(rollouts: Any) -> list[str]:
    """The files that `rollouts=` names as they were written, a path would lose the slashes of an address: one, a list, or none."""
    given = rollouts if isinstance(rollouts, list) else [rollouts]
    return [str(item) for item in given if item is not None]


def files_of(rollouts: Any) -> list[Path]:
    """Those files."""
    return [Path(name) for name in names_of(rollouts)]


def steps_of(step: Any) -> list[int] | None:
    """The steps that `step=` names; none given: None; all: an empty list."""
    if step is None:
        return None
    return [] if step == "all" else list(step) if isinstance(step, list) else [step]
