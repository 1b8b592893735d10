"""The variance study: frozen responses of each policy, one pass of the model over them, then every estimator at every group size.

The model works once for each prompt and leaves a file (`analysis.study.pools`); all that follows is arithmetic on those files. So a study
that was interrupted resumes where it stopped, shards (`shard=0/4` .. `shard=3/4`, on any machines that share the folder) merge
exactly, and whichever process finds the last pool in place writes the result.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from analysis.study.config import VarianceConfig
from analysis.study.external.imported import Imported
from analysis.study.inputs import contents
from analysis.study.pools import Measurement, PoolFolder, PromptPool, measure_pool
from analysis.study.provenance import note_measurement, records
from analysis.study.result import Study
from analysis.study.tables import analyse, meter_pools
from analysis.variance.pool import Pool
from opo.config.schema import RewardConfig
from opo.errors import UserError
from opo.model.load import load_policy
from opo.model.policy import Policy
from opo.rollout.collect import open_collector
from opo.run.policies import EvaluatedPolicy, Weights, evaluated_policies, refuse_damaged_weights
from opo.system.pace import Pace
from opo.system.seeding import generator_for
from opo.system.threads import use_machine
from opo.system.world import World
from opo.tasks import make_task


def run_study(
    config: VarianceConfig, folder: Path, world: World | None = None, started: Callable[[], None] = lambda: None
) -> Study | None:
    """Measure what is missing of this shard; where no pool is missing after that, write the result and return it.

    `started` is called on the first rank when nothing is left to be refused before the first model is loaded.
    """
    world = world or World()
    external = Imported.of(config) if config.rollouts else None
    if external is not None:
        config = external.bounded(config)
    waiting = measure(config, folder, external, world, started)
    if waiting:
        world.say(
            f"{folder}: this shard is done, {waiting} pools of others are missing; the last to finish writes the result"
        )
        return None
    return world.by_first(lambda: conclude(config, folder, external))


def measure(
    config: VarianceConfig,
    folder: Path,
    external: Imported | None = None,
    world: World | None = None,
    started: Callable[[], None] = lambda: None,
) -> int:
    """Make this shard's missing pools, each rank its part of them; returns how many pools of all shards are missing after that."""
    use_machine(config.threads)
    world = world or World()
    numbers, planned = prompt_numbers(config, external), evaluated_policies(config.checkpoint, config.model)
    folders = {
        evaluated.name: PoolFolder(folder / "pools" / evaluated.name, setting_of(config, evaluated))
        for evaluated in planned
    }
    world.by_first(lambda: refuse_damaged_weights(planned))
    for pools in folders.values():
        pools.start()
    world.by_first(started)
    which, count = config.shard_of
    pace = Pace(sum(len(pools.missing(world.mine(numbers[which::count]))) for pools in folders.values()))
    made = 0
    for evaluated in planned:
        for turn, weights in enumerate(evaluated.weights):
            dealt = [n for i, n in enumerate(numbers) if i % len(evaluated.weights) == turn and i % count == which]
            mine = folders[evaluated.name].missing(world.mine(dealt))
            note = partial(note_measurement, config, weights, folder=folder, rank=world.rank)
            for number, pool in _measure(config, weights, mine, external, note):
                folders[evaluated.name].save(number, pool)
                made += 1
                if pace.due(made):
                    world.say(f"{evaluated.label}: pool {made}/{pace.total}  {pace.line(made, 'pool')}")
    world.wait()
    return sum(len(pools.missing(numbers)) for pools in folders.values())


def conclude(config: VarianceConfig, folder: Path, external: Imported | None = None) -> Study:
    """From pools to result.json and parquet."""
    numbers, planned = prompt_numbers(config, external), evaluated_policies(config.checkpoint, config.model)
    folders = {
        evaluated.name: PoolFolder(folder / "pools" / evaluated.name, setting_of(config, evaluated))
        for evaluated in planned
    }
    pools_of = {name: pools.load(numbers) for name, pools in folders.items()}
    study = replace(analyse(config, planned, pools_of), provenance=records(folder))
    if external is not None:
        temperature = planned[0].weights[0].rollout(config.rollout, config.num_responses).temperature
        study = replace(study, imported=external.told(pools_of[planned[0].name], temperature))
    study.save(folder)
    return study


def load_pools(folder: Path | str, policy: str) -> list[Pool]:
    """The pools of one policy of a study, for questions that its tables do not answer: an estimator of your own (`analysis.variance.compare.compare`),
    another group size, or how many prompts would resolve a difference (`analysis.variance.power.plan`). No model is needed.
    """
    path = Path(folder) / "pools" / policy
    files = sorted(path.glob("prompt-*.npz"))
    if not files:
        raise UserError(f"{path}: no pools here; `opo variance` makes them, one folder for each policy")
    return meter_pools([PromptPool.load(file) for file in files])


def prompt_numbers(config: VarianceConfig, external: Imported | None) -> list[int]:
    """Which prompts of the task's stream, or of the file, are studied."""
    if external is not None:
        return external.numbers(config)
    return list(range(config.first_prompt, config.first_prompt + config.num_prompts))


def setting_of(config: VarianceConfig, evaluated: EvaluatedPolicy) -> dict[str, Any]:
    """What the pools of a stage depend on; the estimators and group sizes are not among it."""
    keys = ("append_eos", "steps", "token_responses", "seed") if config.rollouts else ("token_responses", "seed")
    task = evaluated.weights[0].task(config.task)
    rollout = evaluated.weights[0].rollout(config.rollout, config.num_responses)
    models = [asdict(weights.model) for weights in evaluated.weights]
    return (
        {key: getattr(config, key) for key in keys}
        | {
            "weights": evaluated.paths,
            "models": models,
            "task": None if config.rollouts else asdict(task),
            "max_new_tokens": rollout.max_new_tokens,
            "temperature": rollout.temperature,
            "projection": 2,  # of gradients (`analysis.variance.between_prompts.project`): another draw may not be mixed with it
            "reward": asdict(config.reward),
            "responses": config.responses if config.rollouts else config.num_responses,
            "split": config.split or "eval",
            "content": contents(config, evaluated),
        }
    )


def _measure(
    config: VarianceConfig,
    weights: Weights,
    numbers: list[int],
    external: Imported | None,
    note: Callable[[Policy], None],
) -> Iterator[tuple[int, PromptPool]]:
    """Sample (or take from the file) and measure these prompts under one set of weights."""
    if not numbers:
        return
    # scores are taken in full precision, however the run was trained
    model = replace(weights.source, compute="float32")
    rollout = weights.rollout(config.rollout, config.num_responses)
    policy = load_policy(model, rollout.temperature, config.device, weights.adapters)
    note(policy)
    measurement = Measurement(config.memory_gib, config.token_responses, config.seed)
    later = replace(measurement, verify=False)
    if external is not None:
        for number in numbers:
            prompt = external.prompts[number]
            yield (
                number,
                measure_pool(policy, prompt.prompt_id, prompt.text, prompt.texts, prompt.rollouts(), measurement),
            )
            measurement = later
        return
    task, reward = (
        make_task(weights.task(config.task), weights.reward_functions(config.reward)),
        RewardConfig(timeout_s=config.reward_timeout_s),
    )
    with open_collector(policy, task, model, rollout, reward) as collector:
        for number in numbers:
            number_rng = generator_for(config.seed, "study", number)
            batch = collector.collect(number, 1, number_rng, split=config.split or "eval")
            prompt = batch.prompts[0]
            yield (
                number,
                measure_pool(policy, str(prompt.index), prompt.text, batch.responses[0], batch.rollouts, measurement),
            )
            measurement = later
