"""`opo evaluate`: what a policy can do on held-out prompts, from frozen responses, with intervals over prompts."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from analysis.config.evaluate import EvaluateConfig, load_config
from analysis.evaluation.measures import Estimate, evaluate
from opo.config.schema import RewardConfig
from opo.model.load import load_policy
from opo.rollout.collect import open_collector
from opo.run.policies import Weights, evaluated_policies
from opo.system.atomic import write_text
from opo.system.seeding import generator_for, rng_for
from opo.system.threads import use_machine
from opo.tasks import make_task


def main(values: dict[str, Any], folder: Path) -> None:
    """Evaluate every policy that the checkpoint names; writes `eval.json`, prints a table."""
    config = load_config(values)
    use_machine(config.threads)
    results = []
    for policy in evaluated_policies(config.checkpoint, config.model):
        for weights in policy.weights:
            seed = weights.run["seed"] if weights.run and len(policy.weights) > 1 else None
            label = policy.label if seed is None else f"{policy.label}, seed {seed}"
            estimates = _evaluate(config, weights)
            results.append({"policy": label, "weights": weights.path, "step": policy.step})
            results[-1]["measures"] = {name: asdict(estimate) for name, estimate in estimates.items()}
            # what was computed is on disk before the next policy may fail
            keys = ("seed", "split", "prompts", "responses")
            content = {key: getattr(config, key) for key in keys} | {"policies": results}
            write_text(folder / "eval.json", json.dumps(content, indent=2) + "\n")
            Console().print(_table(label, estimates))
    print(folder / "eval.json")


def _evaluate(config: EvaluateConfig, weights: Weights) -> dict[str, Estimate]:
    rollout = weights.rollout(config.rollout, config.responses)
    task = make_task(weights.task(config.task), weights.reward_function(config.reward.function))
    policy = load_policy(weights.source, rollout.temperature, config.device, weights.adapters)
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
