"""`opo evaluate`: what a policy can do on held-out prompts, from frozen responses, with intervals over prompts."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from analysis.evaluation.measures import MOST, Estimate, evaluate
from analysis.study.config import StudyRollout, VarianceConfig, Weights, stages
from analysis.study.run import reward_function
from opo.config.build import build
from opo.config.load import task_config
from opo.config.schema import ModelConfig
from opo.errors import UserError
from opo.model.load import load_policy, max_length, restore_model
from opo.rewards.runner import RewardRunner
from opo.rollout.base import Sampling
from opo.rollout.collect import Collector, stop_token_ids
from opo.rollout.hf import HfSampler
from opo.system.atomic import write_text
from opo.system.seeding import generator_for, rng_for
from opo.system.threads import use_machine
from opo.tasks import make_task
from opo.tasks.arithmetic import ArithmeticConfig


@dataclass
class OwnReward:
    """Whose reward is measured."""

    function: str | None = None  # module:name of a reward of one's own; null: the run's, else the task's


@dataclass
class EvaluateConfig:
    """One evaluation; checkpoint, model, task and sampling as in a variance study."""

    checkpoint: Any = None
    model: ModelConfig | None = None
    task: Any = None
    rollout: StudyRollout = field(default_factory=StudyRollout)
    prompts: int = 64
    responses: int = 16
    ks: list[int] = field(default_factory=lambda: [1, 4, 16])
    split: str = "eval"
    num_bootstrap: int = 2000
    reward: OwnReward = field(default_factory=OwnReward)
    reward_timeout_s: float = 10.0
    seed: int = 0
    device: str = "auto"
    threads: int = 2


def load_config(values: Mapping[str, Any]) -> EvaluateConfig:
    """The typed config; raises UserError naming the first key that is wrong."""
    task = values.get("task")
    if task is not None:
        task = task_config(task)
    config = build(EvaluateConfig, {**{k: v for k, v in values.items() if k != "task"}, "task": None})
    config.task = task
    if config.prompts < 2:
        raise UserError(f"prompts={config.prompts}: at least 2 are needed for an interval")
    if not 1 <= config.responses <= MOST:
        raise UserError(f"responses={config.responses}: must lie between 1 and {MOST}")
    if not config.ks or not all(1 <= k <= config.responses for k in config.ks):
        raise UserError(f"ks={config.ks}: each must lie between 1 and responses={config.responses}")
    if config.split not in ("train", "eval"):
        raise UserError(f"split={config.split}: choose one of train, eval")
    return config


def main(values: dict[str, Any], folder: Path) -> None:
    """Evaluate every policy that the checkpoint names; writes `eval.json`, prints a table."""
    config = load_config(values)
    use_machine(config.threads)
    study = VarianceConfig(checkpoint=config.checkpoint, model=config.model, rollout=config.rollout)
    results = []
    for stage in stages(study):
        weights = stage.weights[0]
        estimates = _evaluate(config, weights)
        results.append({"policy": stage.label, "weights": stage.paths[0], "step": stage.step})
        results[-1]["measures"] = {name: asdict(estimate) for name, estimate in estimates.items()}
        # what was computed is on disk before the next policy may fail
        content = {"seed": config.seed, "split": config.split, "prompts": config.prompts, "responses": config.responses}
        write_text(folder / "eval.json", json.dumps({**content, "policies": results}, indent=2) + "\n")
        Console().print(_table(stage.label, estimates))
    print(folder / "eval.json")


def _evaluate(config: EvaluateConfig, weights: Weights) -> dict[str, Estimate]:
    run = weights.run["rollout"] if weights.run else {}
    own = config.rollout
    sampling = Sampling(
        config.responses,
        own.max_new_tokens if own.max_new_tokens is not None else run.get("max_new_tokens", 48),
        own.temperature if own.temperature is not None else run.get("temperature", 1.0),
        own.top_p,
        own.top_k,
    )
    policy = load_policy(weights.model, sampling.temperature, config.device)
    if weights.folder is not None and weights.model.path != str(weights.folder):
        restore_model(policy, weights.folder)
    values = weights.run["task"] if weights.run else None
    own_task = task_config(values) if values else ArithmeticConfig()
    reward = reward_function(config.reward.function, weights)
    task = make_task(config.task if config.task is not None else own_task, reward)
    sampling = replace(sampling, stop_token_ids=stop_token_ids(policy.tokenizer, task.stop))
    sampler = HfSampler(own.max_sequences, policy.compute)
    sampler.load_weights(policy.model, 0)
    with RewardRunner(task, config.reward_timeout_s) as rewards:
        collector = Collector(task, policy.tokenizer, sampler, rewards, max_length(policy.model))
        generator = generator_for(config.seed, "evaluate")
        batch = collector.collect(0, config.prompts, sampling, generator, config.split)
    answers = batch.rollouts.answers
    assert answers is not None
    rng = rng_for(config.seed, "evaluate bootstrap")
    return evaluate(
        batch.rollouts.rewards_PG.numpy(), answers, batch.samples.response_ids, config.ks, rng, config.num_bootstrap
    )


def _table(title: str, estimates: Mapping[str, Estimate]) -> Table:
    table = Table("measure", "value", "95 % interval", "prompts", title=title, title_justify="left")
    for name, e in estimates.items():
        table.add_row(name, f"{e.value:.3f}", f"{e.low:.3f} to {e.high:.3f}", str(e.num_prompts))
    return table
