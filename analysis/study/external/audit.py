"""What rewards and lengths alone say of rollouts from elsewhere: which groups are silent, and how each algorithm would weigh the responses.

Every number is of prompts with their own groups, as many responses as the file has; intervals are over prompts. With A_i the weight an
algorithm gives the score of response i (its loss's scale aside), n responses in all:

    silent            share of prompts whose weights are all zero
    effective_share   (sum |A|)^2 / (n sum A^2), the share of responses that an even weighting of the same energy would have
    energy            sum A^2 / n, over that of leave-one-out
    positive_share    sum over A > 0 of A^2, over sum A^2
    length_rank       rank correlation of A and length within prompts that are not silent
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import binomtest, spearmanr

from analysis.study.external.groups import Group
from analysis.study.external.record import RewardChoice, own_tokens
from analysis.variance.estimators import Estimator, Groups, resolve
from analysis.variance.intervals import (
    FEWEST,
    MEAN,
    Array,
    mean_interval,
    product_of_means,
    ratio_interval,
    resample_counts,
)
from opo.rounding import all_equal, levelled

UNIT = "leave_one_out"
Estimate = dict[str, float | None]


@dataclass(frozen=True)
class Answers:
    """The scored responses to one prompt."""

    name: str
    rewards: Array
    lengths: Array

    @property
    def silent(self) -> bool:
        """Whether all rewards are equal, up to rounding."""
        return bool(all_equal(self.rewards))


def answers(groups: Sequence[Group], choice: RewardChoice, count: Any) -> list[Answers]:
    """Prompts with two scored responses or more; `count` gives the length of a response."""
    found = []
    for group in groups:
        said = [r for r in group.records if r.response is not None]
        rows = [(choice.of(r), count(r) if r.produced is None else sum(own_tokens(r))) for r in said]
        rows = [(reward, length) for reward, length in rows if not math.isnan(reward)]
        if len(rows) > 1:
            rewards, lengths = np.array(rows, dtype=np.float64).T
            rewards = levelled(rewards).numpy()
            found.append(Answers(group.name, rewards, np.maximum(lengths, 1)))
    return found


def audit(
    prompts: Sequence[Answers], names: Sequence[str], num_bootstrap: int, rng: np.random.Generator
) -> dict[str, Any]:
    """The whole audit as plain values; what the data does not give is None."""
    counts_BP = resample_counts(len(prompts), num_bootstrap, rng)
    speaking = [p for p in prompts if not p.silent]
    ranks = [_rank(p.rewards, p.lengths) for p in speaking]
    best = [float(np.mean(p.rewards == p.rewards.max())) for p in speaking]
    weights = {e.name: [_weights(e, p) for p in prompts] for e in resolve(list(dict.fromkeys([UNIT, *names])))}
    unit_P = np.array([np.square(a).sum() for a in weights[UNIT]])
    return {
        "prompts": len(prompts),
        "responses": sum(len(p.rewards) for p in prompts),
        "group_sizes": sorted({len(p.rewards) for p in prompts}),
        "silent": _share(sum(p.silent for p in prompts), len(prompts)),
        "silent_at_most": _share(sum(p.silent and p.rewards[0] >= _top(prompts) for p in prompts), len(prompts)),
        "reward_mean": _mean(np.array([p.rewards.mean() for p in prompts]), counts_BP),
        "length_mean": _mean(np.array([p.lengths.mean() for p in prompts]), counts_BP),
        "share_best": _plain_mean(best, num_bootstrap, rng),
        "reward_length_rank": _plain_mean(ranks, num_bootstrap, rng),
        "algorithms": {
            name: _measures(weights[name], prompts, unit_P, counts_BP, rng) for name in dict.fromkeys(names)
        },
    }


def _measures(
    weights: list[Array], prompts: Sequence[Answers], unit_P: Array, counts_BP: Array, rng: np.random.Generator
) -> dict[str, Estimate]:
    n_P = np.array([len(a) for a in weights], dtype=np.float64)
    absolute_P = np.array([np.abs(a).sum() for a in weights])
    energy_P = np.array([np.square(a).sum() for a in weights])
    positive_P = np.array([np.square(a[a > 0]).sum() for a in weights])
    silent = int((energy_P <= 1e-24).sum())
    ranks = [_rank(a, p.lengths) for a, p, e in zip(weights, prompts, energy_P, strict=True) if e > 1e-24]
    found = {"silent": _share(silent, len(weights))}
    if silent < len(weights):
        found["effective_share"] = _ratio(product_of_means(absolute_P, absolute_P, over=n_P), energy_P, counts_BP)
        found["energy"] = _ratio(energy_P, unit_P, counts_BP)
        found["positive_share"] = _ratio(positive_P, energy_P, counts_BP)
        found["length_rank"] = _plain_mean(ranks, len(counts_BP), rng)
    return found


def _weights(estimator: Estimator, prompt: Answers) -> Array:
    one = Groups(prompt.rewards[None], np.round(prompt.lengths)[None], np.ones_like(prompt.rewards)[None])
    return np.zeros_like(prompt.rewards) if prompt.silent and estimator.name != "none" else estimator.weights(one)[0]


def _top(prompts: Sequence[Answers]) -> float:
    return max(float(p.rewards.max()) for p in prompts)


def _rank(x: Array, y: Array) -> float:
    """Spearman's correlation; zero where one of them is constant."""
    if all_equal(x) or all_equal(y):
        return 0.0
    result: Any = spearmanr(x, y)
    return float(result.statistic)


def _estimate(value: float, low: float, high: float, num_prompts: int) -> Estimate:
    few = num_prompts < FEWEST
    ends = [None if few or not math.isfinite(end) else float(end) for end in (low, high)]
    return {"value": float(value) if math.isfinite(value) else None, "low": ends[0], "high": ends[1]}


def _share(count: int, among: int) -> Estimate:
    """A proportion with Wilson's interval."""
    interval = binomtest(count, among).proportion_ci(method="wilson")
    return _estimate(count / among, interval.low, interval.high, among)


def _mean(values_P: Array, counts_BP: Array) -> Estimate:
    low, high = mean_interval(values_P, np.abs(values_P), counts_BP)
    return _estimate(values_P.mean(), low, high, len(values_P))


def _plain_mean(values: Sequence[float], num_bootstrap: int, rng: np.random.Generator) -> Estimate:
    """The mean of values of bounded scale, one a prompt."""
    if not values:
        return {"value": None, "low": None, "high": None}
    values_P = np.array(values)
    counts_BP = resample_counts(len(values_P), num_bootstrap, rng)
    low, high = ratio_interval(values_P, np.ones_like(values_P), counts_BP, nonnegative=False, tails=MEAN)
    return _estimate(values_P.mean(), max(low, -1.0), min(high, 1.0), len(values_P))


def _ratio(x_P: Array, y_P: Array, counts_BP: Array) -> Estimate:
    low, high = ratio_interval(x_P, y_P, counts_BP)
    mean = float(y_P.mean())
    return _estimate(float(x_P.mean()) / mean if mean > 0 else math.inf, low, high, len(x_P))
