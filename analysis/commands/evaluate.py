"""`opo evaluate`: what a policy can do on held-out prompts, from frozen responses, with intervals over prompts."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from analysis.evaluation.measures import MOST, Estimate, evaluate
from analysis.study.config import StudyRollout
from opo.config.build import build
from opo.config.schema import ModelConfig, RewardConfig
from opo.errors import UserError
from opo.model.load import load_policy
from opo.parallel.world import World
from opo.rollout.collect import open_collector
from opo.run.policies import Weights, evaluated_policies
from opo.system.atomic import write_text
from opo.system.seeding import generator_for, rng_for
from opo.system.threads import use_machine
from opo.tasks import TASKS, make_task


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
    reward_timeout_s: float = 10.0
    seed: int = 0
    device: str = "auto"
    threads: int = 2


def load_config(values: Mapping[str, Any]) -> EvaluateConfig:
    """The typed config; raises UserError naming the first key that is wrong."""
    task = values.get("task")
    if task is not None:
        if not isinstance(task, Mapping) or task.get("name") not in TASKS:
            raise UserError(f"task={task}: choose one of {', '.join(TASKS)}")
        task = build(TASKS[task["name"]][0], task, "task")
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
    evaluated_policies(config.checkpoint, config.model)  # says itself what is wrong with a path or its weights
    return config


def main(values: dict[str, Any], folder: Path) -> None:
    """Evaluate every policy that the checkpoint names; writes `eval.json`, prints a table."""
    config = load_config(values)
    use_machine(config.threads)
    with World.join() as world:
        world.same(values)
        _main(config, folder, world)


def _main(config: EvaluateConfig, folder: Path, world: World) -> None:
    results = []
    for policy in evaluated_policies(config.checkpoint, config.model):
        for weights in policy.weights:
            seed = weights.run["seed"] if weights.run and len(policy.weights) > 1 else None
            label = policy.label if seed is None else f"{policy.label}, seed {seed}"
            estimates = _evaluate(config, weights, world)
            results.append({"policy": label, "weights": weights.path, "step": policy.step})
            results[-1]["measures"] = {name: asdict(estimate) for name, estimate in estimates.items()}
            # what was computed is on disk before the next policy may fail
            keys = ("seed", "split", "prompts", "responses")
            content = {key: getattr(config, key) for key in keys} | {"policies": results}
            if world.is_first:
                write_text(folder / "eval.json", json.dumps(content, indent=2) + "\n")
                Console().print(_table(label, estimates))
    world.say(str(folder / "eval.json"))


def _evaluate(config: EvaluateConfig, weights: Weights, world: World) -> dict[str, Estimate]:
    rollout, task = weights.rollout(config.rollout, config.responses), make_task(weights.task(config.task))
    policy = load_policy(weights.source, rollout.temperature, config.device, weights.adapters)
    policy = replace(policy, world=world)
    reward = RewardConfig(timeout_s=config.reward_timeout_s)
    with open_collector(policy, task, weights.source, rollout, reward) as collector:
        batch = collector.collect(0, config.prompts, generator_for(config.seed, "evaluate"), split=config.split)
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
