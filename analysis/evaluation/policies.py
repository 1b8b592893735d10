"""Which policies an evaluation compares: a name for each, and the pairs whose difference is asked for."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from opo.run.policies import EvaluatedPolicy, Weights


@dataclass(frozen=True)
class Measured:
    """One set of weights under its name in every table."""

    name: str
    run: str | None  # the folder of the run that made them
    step: int | None
    weights: Weights


def named(policies: Sequence[EvaluatedPolicy]) -> list[Measured]:
    """Every set of weights of these policies; of several runs each is named by its seed, where they differ in nothing else, or its folder."""
    every = [(policy, weights) for policy in policies for weights in policy.weights]
    configs = {str(weights.run_folder): weights.run for _, weights in every if weights.run}
    apart = len(configs) > 1
    by_seed = len({str({k: v for k, v in (run or {}).items() if k != "seed"}) for run in configs.values()}) == 1
    measured: list[Measured] = []
    for policy, weights in every:
        name, run = policy.label, str(weights.run_folder) if weights.run_folder else None
        if apart and weights.run is not None and weights.run_folder is not None:
            name += f", seed {weights.run['seed']}" if by_seed else f", {weights.run_folder.resolve().name}"
        if name in {other.name for other in measured}:
            name += f" ({weights.path})"
        measured.append(Measured(name, run, policy.step, weights))
    return measured


def pairs(measured: Sequence[Measured], tasks: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(policy, reference): each against the first of its own run, and against the policy of the same step of the first run.

    Weights without a run count as one run. Policies of different tasks answer different prompts and are not compared; `tasks` maps
    names to them.
    """
    return list(dict.fromkeys(_pairs(measured, tasks)))


def _pairs(measured: Sequence[Measured], tasks: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    first_run = measured[0].run
    for one in measured:
        same = [other for other in measured if tasks[other.name] == tasks[one.name]]
        own = next(other for other in same if other.run == one.run)
        there = next((other for other in same if other.run == first_run and other.step == one.step), None)
        for reference in (own, there if one.run != first_run else None):
            if reference is not None and reference is not one:
                yield one.name, reference.name
