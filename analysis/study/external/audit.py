"""What rewards and lengths alone say of rollouts from elsewhere: which groups are silent, and how each algorithm would weigh the responses.

Every number is of prompts with their own groups, as many responses as the file has; intervals are over prompts. With A_i the weight an
algorithm gives the score of response i (its loss's scale aside), n responses in all:

    silent            share of prompts whose weights are all zero
    effective_share   (sum |A|)^2 / (n sum A^2), the share of responses that an even weighting of the same energy would have
    energy            sum A^2 / n, over that of leave-one-out
    positive_share    sum over A > 0 of A^2, over sum A^2
    length_rank       rank correlation of A and length within prompts that are not silent
    by_order          whether the weights depend on the order of the responses in the file, looked for in `LOOKED_AT` prompts

An algorithm that takes no such rewards has `not_applicable` instead, the reason.
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
LOOKED_AT = 16
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
    unit = [_weights(resolve([UNIT])[0], p) for p in prompts]
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
            e.name: _measures(e, prompts, unit, counts_BP, rng) for e in resolve(list(dict.fromkeys(names)))
        },
    }


def _measures(
    estimator: Estimator, prompts: Sequence[Answers], unit: list[Array], counts_BP: Array, rng: np.random.Generator
) -> dict[str, Any]:
    speaking = [p for p in prompts if not p.silent]
    try:
        weights = [_weights(estimator, p) for p in prompts]
        by_order = any(_by_order(estimator, p) for p in speaking[:LOOKED_AT])
    except ValueError as error:
        return {"not_applicable": str(error)}
    largest_P = np.array([np.abs(a).max() for a in weights])
    silent, largest = int((largest_P == 0).sum()), largest_P.max() or 1.0
    # over the largest, so that squares are of a good size whatever the scale of the rewards
    weights, unit = [a / largest for a in weights], [a / largest for a in unit]
    n_P = np.array([len(a) for a in weights], dtype=np.float64)
    unit_P = np.array([np.square(a).sum() for a in unit])
    absolute_P = np.array([np.abs(a).sum() for a in weights])
    energy_P = np.array([np.square(a).sum() for a in weights])
    positive_P = np.array([np.square(a[a > 0]).sum() for a in weights])
    ranks = [_rank(_tied(a), p.lengths) for a, p in zip(weights, prompts, strict=True) if a.any()]
    found: dict[str, Any] = {"silent": _share(silent, len(weights)), "by_order": by_order}
    if silent < len(weights):
        found["effective_share"] = _ratio(product_of_means(absolute_P, absolute_P, over=n_P), energy_P, counts_BP)
        found["energy"] = _ratio(energy_P, unit_P, counts_BP)
        found["positive_share"] = _ratio(positive_P, energy_P, counts_BP)
        found["length_rank"] = _plain_mean(ranks, len(counts_BP), rng)
    return found


def _weights(estimator: Estimator, prompt: Answers) -> Array:
    """Raises ValueError naming the prompt whose rewards the algorithm does not take."""
    if prompt.silent and estimator.name != "none":
        return np.zeros_like(prompt.rewards)
    one = Groups(prompt.rewards[None], np.round(prompt.lengths)[None], np.ones_like(prompt.rewards)[None])
    try:
        weights = estimator.weights(one)[0]
    except ValueError as error:  # to the algorithm this is prompt 0 of a batch of one
        reason = str(error).removeprefix(f"{estimator.name}: ")
        raise ValueError(reason.replace("prompt 0 ", f"prompt {prompt.name} ")) from error
    if not np.isfinite(weights).all():
        raise ValueError(f"the weights of prompt {prompt.name} are not finite")
    return weights


def _by_order(estimator: Estimator, prompt: Answers) -> bool:
    turned = Answers(prompt.name, prompt.rewards[::-1].copy(), prompt.lengths[::-1].copy())
    a, b = _weights(estimator, prompt), _weights(estimator, turned)[::-1]
    return bool(np.abs(a - b).max() > 1e-9 * np.abs(a).max())


def _tied(weights: Array) -> Array:
    """Weights, those made equal that differ by rounding of the largest."""
    return levelled(weights - weights.min() + np.abs(weights).max()).numpy()


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
