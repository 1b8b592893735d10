"""`opo evaluate`: what a policy can do on held-out prompts, from frozen responses, with intervals over prompts."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from math import inf
from pathlib import Path
from typing import Any

from rich.table import Table

from analysis.config.evaluate import EvaluateConfig, load_config
from analysis.evaluation.intervals import Array
from analysis.evaluation.measures import Difference, Estimate, by_prompt, differences, estimates
from opo.config.schema import RewardConfig
from opo.model.load import load_policy
from opo.parallel.world import World
from opo.rollout.collect import open_collector
from opo.run.policies import Weights, evaluated_policies
from opo.system.atomic import write_text
from opo.system.seeding import generator_for, rng_for
from opo.system.terminal import PlainConsole
from opo.system.threads import use_machine
from opo.tasks import make_task


def main(values: dict[str, Any], folder: Path) -> None:
    """Evaluate every policy that the checkpoint names, and compare each with the first; writes `eval.json`, prints tables."""
    config = load_config(values)
    use_machine(config.threads)
    with World.join() as world:
        world.same(values)
        _main(config, folder, world)


def _main(config: EvaluateConfig, folder: Path, world: World) -> None:
    results: list[dict[str, Any]] = []
    measured: dict[str, dict[str, Array]] = {}
    compared: list[Difference] = []
    for policy in evaluated_policies(config.checkpoint, config.model):
        for weights in policy.weights:
            seed = weights.run["seed"] if weights.run and len(policy.weights) > 1 else None
            label = policy.label if seed is None else f"{policy.label}, seed {seed}"
            label = f"{label} ({weights.path})" if label in measured else label
            measured[label] = _measure(config, weights, world)
            found = estimates(measured[label], rng_for(config.seed, "evaluate bootstrap"), config.num_bootstrap)
            results.append({"policy": label, "weights": weights.path, "step": policy.step})
            results[-1]["measures"] = {name: _plain(estimate) for name, estimate in found.items()}
            # what was computed is on disk before the next policy may fail
            compared = differences(measured)
            keys = ("seed", "split", "prompts", "responses")
            content = {key: getattr(config, key) for key in keys} | {"policies": results}
            content |= {"differences": [_plain(difference) for difference in compared]}
            if world.is_first:
                write_text(folder / "eval.json", json.dumps(content, indent=2, allow_nan=False) + "\n")
                PlainConsole().print(_table(label, found))
    if compared and world.is_first:
        PlainConsole().print(_differences_table(compared))
    world.say(str(folder / "eval.json"))


def _plain(record: Estimate | Difference) -> dict[str, Any]:
    """The fields, null where a number is not known."""
    return {key: None if value in (inf, -inf) else value for key, value in asdict(record).items()}


def _measure(config: EvaluateConfig, weights: Weights, world: World) -> dict[str, Array]:
    """Every measure at every prompt; all policies are asked the same prompts."""
    rollout = weights.rollout(config.rollout, config.responses)
    task = make_task(weights.task(config.task), weights.reward_function(config.reward.function))
    policy = load_policy(weights.source, rollout.temperature, config.device, weights.adapters)
    policy = replace(policy, world=world)
    reward = RewardConfig(timeout_s=config.reward_timeout_s)
    with open_collector(policy, task, weights.source, rollout, reward) as collector:
        batch = collector.collect(0, config.prompts, generator_for(config.seed, "evaluate"), split=config.split)
    world.by_first(lambda: batch.refuse_failed_rewards(task))
    answers = batch.rollouts.answers
    assert answers is not None
    return by_prompt(batch.rollouts.rewards_PG.numpy(), answers, batch.samples.response_ids, config.ks)


def _table(title: str, estimates: Mapping[str, Estimate]) -> Table:
    table = Table("measure", "value", "95 % interval", "prompts", title=title, title_justify="left")
    for name, e in estimates.items():
        table.add_row(name, f"{e.value:.3f}", f"{e.low:.3f} to {e.high:.3f}", str(e.num_prompts))
    return table


def _differences_table(found: Sequence[Difference]) -> Table:
    """Each policy minus the first, over the same prompts."""
    title = f"minus {found[0].reference}, prompt by prompt; p corrected for all {len(found)} comparisons (Holm)"
    table = Table("policy", "measure", "difference", "95 % interval", "p", title=title, title_justify="left")
    for d in found:
        table.add_row(d.policy, d.measure, f"{d.value:+.3f}", f"{d.low:+.3f} to {d.high:+.3f}", f"{d.p_holm:.2g}")
    return table
