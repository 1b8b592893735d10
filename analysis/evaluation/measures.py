"""Evaluation of a policy on a set of prompts, from n responses to each: mean@k, pass@k, maj@k and diversity, with intervals.

Every measure is one number a prompt, unbiased where that exists, averaged over prompts; intervals are for fresh prompts
(`analysis.evaluation.intervals`; of what has no upper bound, such as lengths, `analysis.variance.intervals`).
Unscored responses (reward NaN) are left out of rewards and votes: a prompt whose scored responses are fewer than k is not in
the mean at k, and `Estimate.num_prompts` says how many were.
"""

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import comb

from analysis.config.evaluate import MAX_RESPONSES
from analysis.evaluation.diversity import distinct_n, repetition_n, self_bleu
from analysis.evaluation.intervals import Array, difference_interval, p_value, rate_interval
from analysis.variance.intervals import critical_values, holm, resample_counts, studentised_means

LEVEL = 0.95  # of the intervals
CORRECT = 0.99  # a reward from which a response counts as correct
UNBOUNDED = ("tokens",)  # measures that may exceed one, and never fall below zero


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

    An answer of None does not vote; ties are broken at random; a draw without any vote has reward 0. An answer's reward is the mean over the responses
    that gave it. A draw that holds i_a times answer a has probability prod_a C(n_a, i_a) / C(n, k). Draws are summed by the
    largest i_a = j and the number t of answers that reach it, adding one answer at a time to W[t, s], the weight of draws of s
    responses, and Q[t, s], the same times the summed rewards of those t answers; the result is sum_{j,t} Q_j[t, k] / t / C(n, k).
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
    """Every measure of a set of groups: name -> estimate. A measure that no prompt defines is absent; see `by_prompt`."""
    return estimates(by_prompt(rewards_PG, answers_PG, tokens_PG, ks), rng, num_bootstrap)


def by_prompt(
    rewards_PG: ArrayLike,
    answers_PG: Sequence[Sequence[Hashable | None]],
    tokens_PG: Sequence[Sequence[Sequence[Hashable]]],
    ks: Sequence[int],
) -> dict[str, Array]:
    """Every measure's value at each prompt, (P,), NaN where the prompt does not define it.

    `mean` (mean@k has the same expectation for every k), `pass@k` and `maj@k` for each k, `unscorable`, and of each group's
    token sequences `tokens`, `distinct_1`, `distinct_2`, `self_bleu_4`, `repetition_5`.
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
    nan = float("nan")
    measures = {"mean": [float(r.mean()) if len(r) else nan for r in rewards]}
    for k in ks:
        measures[f"pass@{k}"] = [
            pass_at_k(int((r >= CORRECT).sum()), len(r), k) if len(r) >= k else nan for r in rewards
        ]
    for k in ks:
        pairs = zip(answers, rewards, strict=True)
        measures[f"maj@{k}"] = [maj_at_k(a, r, k) if len(r) >= k else nan for a, r in pairs]
    measures["unscorable"] = [float(1 - scored.mean()) for scored in scored_PG]
    measures["tokens"] = [float(np.mean([len(response) for response in group])) for group in tokens_PG]
    for name, measure in DIVERSITY.items():
        values = (measure(group) for group in tokens_PG)
        measures[name] = [nan if value is None else value for value in values]
    return {name: np.array(values, dtype=np.float64) for name, values in measures.items()}


def estimates(values: Mapping[str, Array], rng: np.random.Generator, num_bootstrap: int = 2000) -> dict[str, Estimate]:
    """Mean and interval of each measure that some prompt defines."""
    known = {name: values_P[np.isfinite(values_P)] for name, values_P in values.items()}
    return {
        name: _estimate(x_P, name in UNBOUNDED, resample_counts(len(x_P), num_bootstrap, rng))
        for name, x_P in known.items()
        if len(x_P)
    }


@dataclass(frozen=True)
class Difference:
    """A measure of one policy minus that of another over the same prompts, its 95 % interval, and the p-value of no difference.

    `p_holm` holds for all differences of the evaluation together.
    """

    policy: str
    reference: str
    measure: str
    value: float
    low: float
    high: float
    p_value: float
    p_holm: float
    num_prompts: int


def differences(
    policies: Mapping[str, Mapping[str, Array]], pairs: Sequence[tuple[str, str]] | None = None
) -> list[Difference]:
    """`mean`, pass@k and maj@k of one policy minus those of another, paired by prompt; `policies` maps names to `by_prompt`.

    `pairs`: (policy, reference) each; every policy against the first otherwise. Prompts that either of two policies does not define
    are left out; measures outside [0, 1] are not compared.
    """
    names = list(policies)
    rows: list[Difference] = []
    for name, reference in [(name, names[0]) for name in names[1:]] if pairs is None else pairs:
        own, base = policies[name], policies[reference]
        for measure in (m for m in own if m == "mean" or m.startswith(("pass@", "maj@"))):
            both_P = np.isfinite(own[measure]) & np.isfinite(base[measure])
            x_P, y_P = own[measure][both_P], base[measure][both_P]
            if len(x_P) < 2 or min(x_P.min(), y_P.min()) < 0 or max(x_P.max(), y_P.max()) > 1:
                continue
            interval = partial(difference_interval, x_P, y_P)
            low, high = interval(LEVEL)
            value, p = float(x_P.mean() - y_P.mean()), p_value(interval)
            rows.append(Difference(name, reference, measure, value, low, high, p, p, len(x_P)))
    adjusted = holm([difference.p_value for difference in rows]).tolist()
    return [replace(difference, p_holm=p) for difference, p in zip(rows, adjusted, strict=True)]


DIVERSITY = {
    "distinct_1": partial(distinct_n, n=1),
    "distinct_2": partial(distinct_n, n=2),
    "self_bleu_4": partial(self_bleu, max_n=4),
    "repetition_5": partial(repetition_n, n=5),
}


def _estimate(x_P: Array, unbounded: bool, counts_BP: Array) -> Estimate:
    """Mean and interval: of rates Wilson's, else mean - t* se at either end with t* from resampled prompts."""
    mean, num_prompts = float(x_P.mean()), len(x_P)
    if not unbounded and x_P.min() >= 0 and x_P.max() <= 1:
        return Estimate(mean, *rate_interval(x_P), num_prompts)
    if num_prompts < 2:
        return Estimate(mean, -np.inf, np.inf, num_prompts)
    error = float(x_P.std(ddof=1)) / np.sqrt(num_prompts)
    t_low, t_high = critical_values(studentised_means(x_P, counts_BP), num_prompts, LEVEL) if error else (0.0, 0.0)
    low = mean - float(t_high) * error
    return Estimate(mean, max(low, 0.0) if unbounded else low, mean - float(t_low) * error, num_prompts)
