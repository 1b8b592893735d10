"""The variance study: frozen responses of each policy, one pass of the model over them, then every estimator at every group size.

The model works once for each prompt and leaves a file (`analysis.study.pools`); all that follows is arithmetic on those files. So a study
that was interrupted goes on where it stopped, shards (`shard=0/4` .. `shard=3/4`, on any machines that share the folder) merge
exactly, and whichever process finds the last pool in place writes the result.
"""

from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from analysis.claims.files import write_ledgers
from analysis.study.config import Stage, VarianceConfig, Weights, stages
from analysis.study.external import ForeignPrompt, read_rollouts
from analysis.study.pools import Measurement, PoolFolder, PromptPool, measure_pool
from analysis.study.result import Study
from analysis.study.tables import analyse, meter_pools, write_figures
from analysis.variance.pool import Pool
from opo.config.build import build
from opo.errors import UserError
from opo.model.load import load_policy, max_length, restore_model
from opo.rewards.runner import RewardRunner
from opo.rollout.base import Sampling
from opo.rollout.collect import Collector, stop_token_ids
from opo.rollout.hf import HfSampler
from opo.system.pace import Pace
from opo.system.seeding import generator_for
from opo.system.threads import use_machine
from opo.tasks import TASKS, make_task
from opo.tasks.arithmetic import ArithmeticConfig


def run_study(config: VarianceConfig, folder: Path) -> Study | None:
    """Measure what is missing of this shard; where no pool is missing after that, write the result and return it."""
    waiting = measure(config, folder)
    if waiting:
        print(
            f"{folder}: this shard is done, {waiting} pools of others are missing; the last to finish writes the result"
        )
        return None
    return conclude(config, folder)


def measure(config: VarianceConfig, folder: Path) -> int:
    """Make this shard's missing pools; returns how many pools of all shards are missing after that."""
    use_machine(config.threads)
    foreign = read_rollouts(Path(config.rollouts)) if config.rollouts else None
    numbers, planned = prompt_numbers(config, foreign), stages(config)
    folders = {stage.name: PoolFolder(folder / "pools" / stage.name, setting_of(config, stage)) for stage in planned}
    which, count = config.shard_of
    pace = Pace(sum(len(pools.missing(numbers[which::count])) for pools in folders.values()))
    made = 0
    for stage in planned:
        for turn, weights in enumerate(stage.weights):
            mine = [n for i, n in enumerate(numbers) if i % len(stage.weights) == turn and i % count == which]
            for number, pool in _measure(config, weights, folders[stage.name].missing(mine), foreign):
                pool.save(folders[stage.name].file(number))
                made += 1
                if pace.due(made):
                    print(f"{stage.label}: pool {made}/{pace.total}  {pace.line(made, 'pool')}", flush=True)
    return sum(len(pools.missing(numbers)) for pools in folders.values())


def conclude(config: VarianceConfig, folder: Path) -> Study:
    """From pools to result.json, parquet, ledgers and figures."""
    foreign = read_rollouts(Path(config.rollouts)) if config.rollouts else None
    numbers, planned = prompt_numbers(config, foreign), stages(config)
    folders = {stage.name: PoolFolder(folder / "pools" / stage.name, setting_of(config, stage)) for stage in planned}
    study = analyse(config, planned, {name: pools.load(numbers) for name, pools in folders.items()})
    study.save(folder)
    write_figures(study, folder / "figures")
    write_ledgers(study, folder)
    return study


def load_pools(folder: Path | str, policy: str) -> list[Pool]:
    """The pools of one policy of a study, for what its tables do not hold: an estimator of one's own (`analysis.variance.compare.compare`),
    another group size, or how many prompts would resolve a difference (`analysis.variance.power.plan`). No model is needed.
    """
    path = Path(folder) / "pools" / policy
    files = sorted(path.glob("prompt-*.npz"))
    if not files:
        raise UserError(f"{path}: no pools here; `opo variance` makes them, one folder for each policy")
    return meter_pools([PromptPool.load(file) for file in files])


def prompt_numbers(config: VarianceConfig, foreign: list[ForeignPrompt] | None) -> list[int]:
    """Which prompts of the task's stream, or of the file, are studied."""
    if foreign is None:
        return list(range(config.first_prompt, config.first_prompt + config.prompts))
    least = 2 * max(config.group_sizes)
    for prompt in foreign:
        if len(prompt.responses) < least:
            raise UserError(
                f"rollouts={config.rollouts}: prompt_id {prompt.prompt_id} has {len(prompt.responses)} responses; "
                f"group_sizes up to {least // 2} need {least}"
            )
    if len(foreign) < 2:
        raise UserError(f"rollouts={config.rollouts}: has one prompt; the variance between prompts needs two")
    return list(range(len(foreign)))


def setting_of(config: VarianceConfig, stage: Stage) -> dict[str, Any]:
    """What the pools of a stage depend on; the estimators and group sizes are not among it."""
    keys = ("rollouts", "append_eos", "responses", "split", "token_responses", "seed")
    task, rollout = _task(config, stage.weights[0]), _sampling(config, stage.weights[0])
    models = [asdict(weights.model) for weights in stage.weights]
    return {key: getattr(config, key) for key in keys} | {
        "weights": stage.paths,
        "models": models,
        "task": None if config.rollouts else asdict(task),
        "max_new_tokens": rollout.max_new_tokens,
        "temperature": rollout.temperature,
    }


def _task(config: VarianceConfig, weights: Weights) -> Any:
    if config.task is not None:
        return config.task
    if weights.run is None:
        return ArithmeticConfig()
    values = weights.run["task"]
    return build(TASKS[values["name"]][0], values, "task")


def _sampling(config: VarianceConfig, weights: Weights) -> Sampling:
    """The study's own limits, else those of the run."""
    own, run = config.rollout, weights.run["rollout"] if weights.run else {}
    tokens = own.max_new_tokens if own.max_new_tokens is not None else run.get("max_new_tokens", 48)
    temperature = own.temperature if own.temperature is not None else run.get("temperature", 1.0)
    return Sampling(config.responses, tokens, temperature)


def _measure(
    config: VarianceConfig, weights: Weights, numbers: list[int], foreign: list[ForeignPrompt] | None
) -> Iterator[tuple[int, PromptPool]]:
    """Sample (or take from the file) and measure these prompts under one set of weights."""
    if not numbers:
        return
    sampling = _sampling(config, weights)
    model = replace(weights.model, compute="float32")  # scores are taken in full precision, however the run was trained
    policy = load_policy(model, sampling.temperature, config.device)
    if weights.folder is not None and weights.model.path != str(weights.folder):
        restore_model(policy, weights.folder)
    how = Measurement(config.memory_gib, config.token_responses)
    if foreign is not None:
        for number in numbers:
            prompt = foreign[number]
            rollouts = prompt.rollouts(policy.tokenizer, config.append_eos)
            texts, text = prompt.texts(policy.tokenizer), prompt.prompt_text(policy.tokenizer)
            yield number, measure_pool(policy, prompt.prompt_id, text, texts, rollouts, how)
        return
    task = make_task(_task(config, weights))
    policy = replace(policy, stop_token_ids=stop_token_ids(policy.tokenizer, task.stop))
    sampling = replace(sampling, stop_token_ids=policy.stop_token_ids)
    sampler = HfSampler(config.rollout.max_sequences)
    sampler.load_weights(policy.model, 0)
    with RewardRunner(task, config.reward_timeout_s) as rewards:
        collector = Collector(task, policy.tokenizer, sampler, rewards, max_length(policy.model))
        for number in numbers:
            batch = collector.collect(number, 1, sampling, generator_for(config.seed, "study", number), config.split)
            prompt = batch.prompts[0]
            yield number, measure_pool(policy, str(prompt.index), prompt.text, batch.responses[0], batch.rollouts, how)
