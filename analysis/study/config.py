"""What a variance study is asked for: the schema of `opo variance`, its rules."""

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from analysis.variance.estimators import known_names, resolve
from opo.algorithms import ALGORITHMS
from opo.config.build import build
from opo.config.schema import ModelConfig
from opo.errors import UserError, near
from opo.run.policies import evaluated_policies, listed
from opo.tasks import TASKS
from opo.tasks.base import SPLITS

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
NOT_IN_POOLS = ("greedy_rewards_P", "answers")  # what algorithms may need and a study does not keep
NOT_IN_NAME = ("shard", "threads", "device", "memory_gib", "reward_timeout_s", "hydra")


@dataclass
class StudyRollout:
    """How responses are sampled. Null: as the run of the checkpoint sampled (else 48 tokens at temperature 1)."""

    max_new_tokens: int | None = None
    temperature: float | None = None
    top_p: float = 1.0
    top_k: int = 0
    max_sequences: int = 256


@dataclass
class VarianceConfig:
    """One study: every estimator at every group size, on the same frozen responses of every policy."""

    checkpoint: Any = None  # a run folder, a checkpoint, a folder of transformers, or a list of these
    model: ModelConfig | None = None  # null: the run's own, else the built-in one
    task: Any = None  # null: the run's own, else arithmetic
    rollout: StudyRollout = field(default_factory=StudyRollout)
    rollouts: str | None = None  # a file of rollouts from elsewhere, in place of sampling
    append_eos: bool = True  # to responses of that file that are text
    estimators: list[str] = field(default_factory=lambda: list(ESTIMATORS))
    reference: str = "leave_one_out"
    group_sizes: list[int] = field(default_factory=lambda: list(GROUP_SIZES))
    prompts: int = 24
    responses: int = 64
    first_prompt: int = 0
    split: str = "eval"
    prompts_per_batch: int | None = None
    token_responses: int = 1
    num_bootstrap: int = 2000
    num_partitions: int = 20
    shard: str | None = None
    memory_gib: float = 4.0
    reward_timeout_s: float = 10.0
    seed: int = 0
    device: str = "auto"
    threads: int = 2

    @property
    def checkpoint_list(self) -> list[str]:
        return listed(self.checkpoint)

    @property
    def shard_of(self) -> tuple[int, int]:
        """(which, of how many)."""
        which, count = (int(part) for part in (self.shard or "0/1").split("/"))
        return which, count


def load_config(values: Mapping[str, Any]) -> VarianceConfig:
    """The typed config of a study; raises UserError, one line, naming the first key that is wrong."""
    values = dict(values)
    task = values.pop("task", None)
    values.pop("optim", None)  # a model's config may bring the learning rate and batch it is trained with
    rollout = dict(values.get("rollout") or {})
    values["rollout"] = {k: v for k, v in rollout.items() if k not in ("num_prompts", "group_size", "engine")}
    config = build(VarianceConfig, values)
    if task is not None:
        name = task.get("name") if isinstance(task, Mapping) else task
        if name not in TASKS:
            raise UserError(f"task={name}: unknown task{near(str(name), TASKS)}; choose one of {', '.join(TASKS)}")
        config.task = build(TASKS[name][0], task, "task")
    for complaint in _complaints(config):
        raise UserError(complaint)
    return config


def _complaints(config: VarianceConfig) -> Iterator[str]:
    rollout = config.rollout
    for key, value, neutral in (("top_p", rollout.top_p, 1), ("top_k", rollout.top_k, 0)):
        if value != neutral:
            yield f"rollout.{key}={value}: a variance study samples what it differentiates, so truncation is refused; allowed is {neutral}"
    if rollout.temperature is not None and not rollout.temperature > 0:
        yield f"rollout.temperature={rollout.temperature}: must be above 0"
    if rollout.max_new_tokens is not None and rollout.max_new_tokens < 1:
        yield f"rollout.max_new_tokens={rollout.max_new_tokens}: must be at least 1"
    for key, least in {
        "prompts": 2,
        "responses": 4,
        "first_prompt": 0,
        "token_responses": 1,
        "num_bootstrap": 100,
        "num_partitions": 1,
        "threads": 1,
    }.items():
        if getattr(config, key) < least:
            yield f"{key}={getattr(config, key)}: must be at least {least}"
    for key in ("memory_gib", "reward_timeout_s"):
        if not getattr(config, key) > 0:
            yield f"{key}={getattr(config, key)}: must be above 0"
    if config.split not in SPLITS:
        yield f"split={config.split}: choose one of {', '.join(SPLITS)}"
    if not config.group_sizes:
        yield "group_sizes=[]: give at least one group size"
    for size in config.group_sizes:
        if size < 2 or (config.rollouts is None and 2 * size > config.responses):
            yield f"group_sizes has {size}: allowed are 2 to responses / 2 = {config.responses // 2}, since a variance needs two groups a prompt"
    names = [
        name for name in known_names() if name not in ALGORITHMS or not {*ALGORITHMS[name].needs} & {*NOT_IN_POOLS}
    ]
    for name in [*config.estimators, config.reference]:
        if name in ALGORITHMS and ALGORITHMS[name].token_level:
            yield f"estimators has {name}: it weighs tokens, not responses; analysis.variance.token_level.compare_token_weights measures it"
        elif name in ALGORITHMS and name not in names:
            need = next(need for need in ALGORITHMS[name].needs if need in NOT_IN_POOLS)
            yield f"estimators has {name}: it needs {need}, which a study does not keep; analysis.variance.compare.compare takes it in its pools"
        elif name not in names:
            yield f"estimators has {name}: not one that weighs responses{near(name, names)}; allowed are {', '.join(names)}"
    if config.reference not in config.estimators:
        yield f"reference={config.reference}: must be one of the estimators, {', '.join(config.estimators)}"
    if len(set(config.estimators)) < len(config.estimators):
        yield "estimators names one twice"
    coupled = [
        estimator.name for estimator in resolve(list(dict.fromkeys(config.estimators))) if estimator.couples_prompts
    ]
    if coupled and config.prompts_per_batch is None:
        yield f"prompts_per_batch=null: {', '.join(coupled)} couples the prompts of a batch; say how many it has (2 to {config.prompts})"
    if config.prompts_per_batch is not None and not 2 <= config.prompts_per_batch <= config.prompts:
        yield f"prompts_per_batch={config.prompts_per_batch}: must lie between 2 and prompts={config.prompts}"
    if config.shard is not None:
        found = re.fullmatch(r"(\d+)/(\d+)", config.shard)
        if not found or int(found[1]) >= int(found[2]):
            yield f"shard={config.shard}: give WHICH/COUNT with WHICH from 0, such as 0/4"
    if config.rollouts is not None and not Path(config.rollouts).is_file():
        yield f"rollouts={config.rollouts}: no such file"
    if config.rollouts is not None and len(config.checkpoint_list) > 1:
        yield "checkpoint: rollouts from a file belong to one policy; give one checkpoint or a model"
    evaluated_policies(config.checkpoint, config.model)  # says itself what is wrong with a path or its weights


def study_name(overrides: Any) -> str:
    """A folder's name from the command line: every override that changes what is measured, paths by their last part."""
    kept = sorted(o for o in overrides if o.lstrip("+~").split("=")[0].split(".")[0] not in NOT_IN_NAME)
    short = [re.sub(r"[\w./~-]*/([\w.-]+)", r"\1", o) for o in kept]
    name = re.sub(r"[^\w.=,+-]+", "_", "-".join(short)) or "tiny"
    digest = hashlib.sha256("\n".join(kept).encode()).hexdigest()[:8]
    return f"{name[:100]}-{digest}" if kept else name


OmegaConf.register_new_resolver("study_name", study_name, replace=True)
