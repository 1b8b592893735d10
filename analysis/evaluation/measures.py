"""Evaluation of a policy on a set of prompts, from n responses to each: mean@k, pass@k, maj@k and diversity, with intervals.

Every measure is one number per prompt, unbiased where that exists, averaged over prompts; intervals are for fresh
prompts (`stats`). Unscored responses (reward NaN) are left out of rewards and votes: a prompt whose scored responses
are fewer than k is not in the mean at k, and `Estimate.num_prompts` says how many were.
"""

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import comb

from analysis.evaluation.diversity import distinct_n, repetition_n, self_bleu
from analysis.variance.intervals import critical_values, resample_counts, studentised_means

LEVEL = 0.95  # of the intervals
CORRECT = 0.99  # a reward from which a response counts as correct
MAX_RESPONSES = 1000  # responses to a prompt, beyond which binomials leave float64


@dataclass(frozen=True)
class Estimate:
    """A mean over prompts and its 95 % interval for fresh prompts (all of the measure's range where there is one prompt)."""

    value: float
    low: float
    high: float
    num_prompts: int


def pass_at_k(num_correct: int, num_scored: int, k: int) -> float:
    """Probability that k of the n responses, drawn without replacement, include a correct one: 1 - C(n-c, k) / C(n, k).

    Unbiased for 1 - (1-p)^k, unlike the same with c/n for p (Chen et al. 2021, arXiv 2107.03374, equation 1).
    Raises ValueError where not 1 <= k <= n or not 0 <= c <= n.
    """
    _check(num_scored, k)
    if not 0 <= num_correct <= num_scored:
        raise ValueError(f"num_correct={num_correct}: allowed are 0 to num_scored={num_scored}")
    drawn = np.arange(k)
    return float(1 - np.prod(np.maximum(num_scored - num_correct - drawn, 0) / (num_scored - drawn)))


def maj_at_k(answers_N: Sequence[Hashable | None], rewards_N: ArrayLike, k: int) -> float:
    """Expected reward of the majority answer among k of the n responses drawn without replacement. Exact, hence unbiased.

    An answer of None does not vote; ties are broken at random; a draw without any vote has reward 0. An answer's reward
    is the mean over the responses that gave it. A draw that holds i_a times answer a has probability prod_a C(n_a, i_a)
    / C(n, k). Draws are summed by the largest i_a = j and the number t of answers that reach it, adding one answer at a
    time to W[t, s], the weight of draws of s responses, and Q[t, s], the same times the summed rewards of those t
    answers; the result is sum_{j,t} Q_j[t, k] / t / C(n, k).
    """
    rewards_N = np.asarray(rewards_N, dtype=np.float64)
    if len(answers_N) != len(rewards_N) or not np.isfinite(rewards_N).all():
        raise ValueError("maj@k needs one finite reward for every answer: leave unscored responses out")
    _check(len(answers_N), k)
    votes = Counter(answers_N)
    silent = votes.pop(None, 0)
    reward = {a: float(np.mean([r for b, r in zip(answers_N, rewards_N, strict=True) if b == a])) for a in votes}
    total = 0.0
    for most in range(1, min(k, max(votes.values(), default=0)) + 1):
        ties = min(k // most, len(votes))
        weight = np.zeros((ties + 1, k + 1))
        weight[0, : silent + 1] = comb(silent, np.arange(min(silent, k) + 1))
        summed = np.zeros_like(weight)
        for answer, count in votes.items():
            fewer = np.asarray(comb(count, np.arange(min(count, most - 1) + 1)))
            next_weight, next_summed = _convolve(weight, fewer), _convolve(summed, fewer)
            if count >= most:
                ways = float(comb(count, most))
                next_weight[1:, most:] += ways * weight[:-1, : k + 1 - most]
                next_summed[1:, most:] += ways * (summed + reward[answer] * weight)[:-1, : k + 1 - most]
            weight, summed = next_weight, next_summed
        total += float((summed[1:, k] / np.arange(1, ties + 1)).sum())
    return total / float(comb(len(answers_N), k))


def _convolve(rows: NDArray[np.float64], factor: NDArray[np.float64]) -> NDArray[np.float64]:
    """Each row times the polynomial `factor`, cut to the row's degree."""
    width = rows.shape[1]
    product = np.zeros_like(rows)
    for i, coefficient in enumerate(factor[:width]):
        product[:, i:] += coefficient * rows[:, : width - i]
    return product


def _check(num_scored: int, k: int) -> None:
    if not 1 <= k <= num_scored <= MAX_RESPONSES:
        raise ValueError(f"k={k} of {num_scored} scored responses: need 1 <= k <= responses <= {MAX_RESPONSES}")


def evaluate(
    rewards_PG: ArrayLike,
    answers_PG: Sequence[Sequence[Hashable | None]],
    tokens_PG: Sequence[Sequence[Sequence[Hashable]]],
    ks: Sequence[int],
    rng: np.random.Generator,
    num_bootstrap: int = 2000,
) -> dict[str, Estimate]:
    """Every measure of a set of groups: name -> estimate. A measure that no prompt defines is absent.

    `mean` (mean@k has the same expectation for every k), `pass@k` and `maj@k` for each k, `unscored`, and of each
    group's token sequences `tokens`, `distinct_1`, `distinct_2`, `self_bleu_4`, `repetition_5`.
    """
    rewards_PG = np.asarray(rewards_PG, dtype=np.float64)
    scored_PG = np.isfinite(rewards_PG)
    if not len(rewards_PG) == len(answers_PG) == len(tokens_PG):
        raise ValueError(
            f"{len(rewards_PG)} groups of rewards, {len(answers_PG)} of answers, {len(tokens_PG)} of responses"
        )
    rewards = [row[scored] for row, scored in zip(rewards_PG, scored_PG, strict=True)]
    answers = [
        [a for a, s in zip(row, scored, strict=True) if s] for row, scored in zip(answers_PG, scored_PG, strict=True)
    ]
    measures = {"mean": [float(r.mean()) for r in rewards if len(r)]}
    for k in ks:
        measures[f"pass@{k}"] = [pass_at_k(int((r >= CORRECT).sum()), len(r), k) for r in rewards if len(r) >= k]
    for k in ks:
        pairs = zip(answers, rewards, strict=True)
        measures[f"maj@{k}"] = [maj_at_k(a, r, k) for a, r in pairs if len(r) >= k]
    measures["unscorable"] = [float(1 - scored.mean()) for scored in scored_PG]
    measures["tokens"] = [float(np.mean([len(response) for response in group])) for group in tokens_PG]
    for name, measure in DIVERSITY.items():
        values = (measure(group) for group in tokens_PG)
        measures[name] = [value for value in values if value is not None]
    return {
        name: _estimate(values, name != "tokens", num_bootstrap, rng) for name, values in measures.items() if values
    }


DIVERSITY = {
    "distinct_1": partial(distinct_n, n=1),
    "distinct_2": partial(distinct_n, n=2),
    "self_bleu_4": partial(self_bleu, max_n=4),
    "repetition_5": partial(repetition_n, n=5),
}


def _estimate(values_P: list[float], is_rate: bool, num_bootstrap: int, rng: np.random.Generator) -> Estimate:
    """Mean and bootstrap-t interval, mean - t* se at either end, within the range that the measure has.

    Where every prompt has the same value nothing can be resampled; for a rate of 0 or 1 in all P prompts the other end
    is then 1 - 0.025^(1/P) away, beyond which so uniform a sample has less than that chance.
    """
    x_P, num_prompts = np.array(values_P), len(values_P)
    mean = float(x_P.mean())
    least, most = (min(0.0, x_P.min()), max(1.0, x_P.max())) if is_rate else (0.0, np.inf)
    if num_prompts > 1 and np.ptp(x_P) > 0:
        error = float(x_P.std(ddof=1)) / np.sqrt(num_prompts)
        counts_BP = resample_counts(num_prompts, num_bootstrap, rng)
        t_low, t_high = critical_values(studentised_means(x_P, counts_BP), num_prompts, LEVEL)
        low, high = mean - float(t_high) * error, mean - float(t_low) * error
    elif is_rate and mean in (0.0, 1.0):
        reach = 1 - ((1 - LEVEL) / 2) ** (1 / num_prompts)
        low, high = mean - reach, mean + reach
    else:
        low, high = (mean, mean) if num_prompts > 1 else (least, most)
    return Estimate(mean, max(low, float(least)), min(high, float(most)), num_prompts)
