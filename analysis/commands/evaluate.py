"""`opo evaluate`: what a policy can do on held-out prompts, from frozen responses, with intervals over prompts."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import yaml
from rich import box
from rich.table import Table

from analysis.config.evaluate import EvaluateConfig, load_config
from analysis.evaluation.intervals import Array
from analysis.evaluation.measures import by_prompt, differences, estimates
from analysis.evaluation.policies import Measured, named, pairs
from analysis.evaluation.result import FILE, RESPONSES, Evaluation, plain
from analysis.evaluation.text import MEASURED, difference_rows, difference_title, measure_rows
from analysis.plots.evaluation import rates_against_k
from analysis.plots.style import save
from analysis.study.provenance import record_of
from analysis.tracking.record import record
from opo.config.schema import RewardConfig
from opo.model.load import load_policy
from opo.rollout.collect import open_collector
from opo.run.policies import evaluated_policies, refuse_damaged_weights
from opo.system.atomic import replacing, write_text
from opo.system.console import wide_console
from opo.system.seeding import generator_for, rng_for
from opo.system.threads import use_machine
from opo.system.world import World
from opo.tasks import make_task


def main(values: dict[str, Any], folder: Path) -> None:
    """Evaluate every policy that the checkpoint names, and compare them; writes `eval.json` and its like, prints tables.

    Until the last policy is done they are in the folder `unfinished`.
    """
    config = load_config(values)
    use_machine(config.threads)
    with World.join() as world:
        world.same(values)
        text, unfinished = yaml.safe_dump(values, sort_keys=False, allow_unicode=True), folder / "unfinished"
        found = _main(config, unfinished, world)
        if world.is_first:  # not before, so that what fails leaves the evaluation that was there
            for file in (RESPONSES, FILE):
                (unfinished / file).replace(folder / file)
            shutil.rmtree(unfinished)  # a killed process may have left a part of a file there
            write_text(folder / "config.yaml", text)
        world.say(f"{folder}/eval.json, responses.parquet and figures/ are written")
    if world.is_first:
        save(rates_against_k(found.policies), folder / "figures", "pass-at-k")
        record(folder, config.tracking)


def _main(config: EvaluateConfig, folder: Path, world: World) -> Evaluation:
    policies_asked = evaluated_policies(config.checkpoint, config.model)
    world.by_first(lambda: refuse_damaged_weights(policies_asked))
    measured = named(policies_asked)
    tasks = {one.name: one.weights.task(config.task) for one in measured}
    compared, settings = pairs(measured, tasks), _settings(config, tasks)
    values: dict[str, dict[str, Array]] = {}
    policies: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    result = Evaluation(settings, [], [])
    for one in measured:
        values[one.name], responses, record = _measure(config, one, world)
        settings["provenance"] += (
            [record] if record["model"] not in {r["model"] for r in settings["provenance"]} else []
        )
        rows += [{"policy": one.name, **row} for row in responses]
        found = estimates(values[one.name], rng_for(config.seed, "evaluate bootstrap"), config.num_bootstrap)
        policies.append({"policy": one.name, "run": one.run, "weights": one.weights.path, "step": one.step})
        policies[-1]["measures"] = {name: plain(estimate) for name, estimate in found.items()}
        known = differences(values, [pair for pair in compared if {*pair} <= values.keys()])
        result = Evaluation(settings, policies, [plain(difference) for difference in known])
        if world.is_first:  # what was computed is on disk before the next policy may fail
            folder.mkdir(parents=True, exist_ok=True)
            with replacing(folder / RESPONSES) as partial:
                pl.DataFrame(rows, infer_schema_length=None).write_parquet(partial)
            result.save(folder)
            wide_console().print(_table(one.name, MEASURED, measure_rows(policies[-1])))
    if result.differences and world.is_first:
        columns, shown = difference_rows(result)
        wide_console().print(_table(difference_title(result), columns, shown))
    return result


def _settings(config: EvaluateConfig, tasks: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: getattr(config, key) for key in ("seed", "split", "prompts", "responses")}
    return kept | {"tasks": [*dict.fromkeys(task.name for task in tasks.values())], "provenance": []}


def _measure(
    config: EvaluateConfig, one: Measured, world: World
) -> tuple[dict[str, Array], list[dict[str, Any]], dict[str, Any]]:
    """Every measure at every prompt, the responses, and with what they were made; all policies are asked the same prompts."""
    weights = one.weights
    rollout = weights.rollout(config.rollout, config.responses)
    task = make_task(weights.task(config.task), weights.reward_functions(config.reward))
    policy = load_policy(weights.source, rollout.temperature, config.device, weights.adapters)
    policy = replace(policy, world=world)
    reward = RewardConfig(timeout_s=config.reward_timeout_s)
    with open_collector(policy, task, weights.source, rollout, reward) as collector:
        batch = collector.collect(0, config.prompts, generator_for(config.seed, "evaluate"), split=config.split)
    world.by_first(lambda: batch.refuse_failed_rewards(task))
    answers = batch.rollouts.answers
    assert answers is not None
    rows = batch.rows(config.prompts * config.responses)
    found = by_prompt(batch.rollouts.rewards_PG.numpy(), answers, batch.samples.response_ids, config.ks)
    machine = {"device": config.device, "threads": config.threads, "seed": config.seed}
    return found, rows, record_of(machine, weights, policy, weights.task(config.task), rollout)


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for column in columns:
        table.add_column(column, justify="left" if column in ("measure", "policy", "minus") else "right")
    for row in rows:
        table.add_row(*row)
    return table
