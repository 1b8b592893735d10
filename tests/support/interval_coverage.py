"""How often the 95 % intervals of a variance study hold the truth, when every replicate draws fresh prompts.

Prompts are enumerable policies: a bank of them, one pool of 64 responses each, measured once. A replicate draws 24 or 48 from the bank
and multiplies all scores of a prompt by a factor of its own, exp(s N(0, 1)), which multiplies its moments by the factor's square; so the
truth is known for any s: that of the bank times E exp(2 s N) = exp(2 s^2). At s = 1 the largest of 24 factors is two fifths of their
sum on average.
"""

from collections.abc import Iterator
from dataclasses import fields

import numpy as np

from analysis.variance.compare import compare
from analysis.variance.exact import Population, softmax_bandit
from analysis.variance.intervals import (
    BIAS,
    COMPARISON,
    COSINE,
    RATIO,
    Array,
    Tails,
    mean_interval,
    product_of_means,
    ratio_misses,
    resample_counts,
)
from analysis.variance.moments import Moments

ESTIMATORS = (
    "leave_one_out",
    "none",
    "length_weighted",
    "length_weighted_loo",
    "score_norm_weighted",
    "group_standardized",
)
BIASED = ("length_weighted", "score_norm_weighted", "group_standardized")
POOL_SIZE, RESAMPLES = 64, 600

Ratio = tuple[str, str, Array, Array, Tails]  # estimator, kind of number, x and y (..., P) whose means have the ratio


def binary(rng: np.random.Generator) -> Population:
    """A bandit of six arms, of which one to five earn a reward, with long and short ones."""
    rewards = rng.permutation(np.arange(6) < rng.integers(1, 6)).astype(np.float64)
    return softmax_bandit(rng.normal(size=6), rewards, lengths=rng.integers(1, 12, 6))


def graded(rng: np.random.Generator) -> Population:
    """Twelve arms of rewards between 0 and 1 that fall with length, lengths log-normal."""
    lengths = np.ceil(np.exp(rng.normal(2.0, 0.7, 12)))
    rewards = np.clip(rng.beta(0.6, 0.6, 12) - 0.01 * lengths, 0.0, 1.0)
    return softmax_bandit(1.5 * rng.normal(size=12), rewards, lengths)


def hard(rng: np.random.Generator) -> Population:
    """One right arm of eight, whose probability is anything from 2 to 98 %: many groups are silent."""
    right = rng.beta(0.7, 0.7) * 0.96 + 0.02
    wrong = rng.dirichlet(np.ones(7)) * (1 - right)
    return softmax_bandit(np.log(np.r_[right, wrong] + 1e-6), np.r_[1.0, np.zeros(7)], rng.integers(1, 30, 8))


def signed(rng: np.random.Generator) -> Population:
    """Ten arms of rewards -1, 0 and 1, every third or so four times as long."""
    rewards = rng.choice([-1.0, 0.0, 1.0], size=10, p=[0.4, 0.3, 0.3])
    rewards[:2] = -1, 1
    return softmax_bandit(1.2 * rng.normal(size=10), rewards, 1 + rng.poisson(20, 10) * rng.choice([1, 4], 10))


def tail(rng: np.random.Generator) -> Population:
    """Sixteen arms whose probabilities fall as a power, any share of them right, wrong ones longer."""
    logits = -1.2 * np.log(np.arange(1, 17)) + 0.5 * rng.normal(size=16)
    rewards = (rng.random(16) < rng.beta(1, 1)).astype(np.float64)
    rewards[rng.integers(16)], rewards[rng.integers(16)] = 1, 0
    return softmax_bandit(logits, rewards, np.ceil(np.exp(rng.normal(3 + 0.3 * (1 - rewards), 0.4))))


def halves(rng: np.random.Generator) -> Population:
    """Held out: four to twenty arms of rewards 0, 1/2 and 1, geometric lengths; which arms are likely has nothing to do with either."""
    arms = int(rng.integers(4, 21))
    rewards = rng.choice([0.0, 0.5, 1.0], size=arms)
    rewards[:2] = 0, 1
    return softmax_bandit(np.log(rng.dirichlet(np.full(arms, 0.8)) + 1e-4), rewards, rng.geometric(0.08, arms))


POPULATIONS = {"binary": binary, "graded": graded, "hard": hard, "signed": signed, "tail": tail, "halves": halves}


def bank(size: int, group_size: int, seed: int = 0, population: str = "binary") -> dict[str, Moments]:
    """Estimated moments of every prompt of a bank, by estimator."""
    rng = np.random.default_rng(seed)
    pools = [POPULATIONS[population](rng).sample(POOL_SIZE, rng) for _ in range(size)]
    table = compare(pools, group_size, ESTIMATORS, rng, num_bootstrap=1)
    return {name: table[name].moments for name in ESTIMATORS}


def ratios(moments: dict[str, Moments], group_size: int) -> Iterator[Ratio]:
    """Every printed number that is a ratio of means, with the tails that its interval has."""
    base = moments["leave_one_out"]
    for name, m in moments.items():
        yield name, "relative_variance", m.trace, m.signal, RATIO
        yield name, "mse", m.trace + m.error, m.reference, RATIO
        yield name, "mse_rescaled", product_of_means(m.cross, m.cross, over=m.reference), m.second, RATIO
        if name in BIASED and not (group_size == 2 and name == "group_standardized"):  # there a multiple of the mean
            yield name, "bias", m.error, m.reference, BIAS
            yield name, "cosine", product_of_means(m.cross, m.cross, over=m.reference), m.signal, COSINE
        if name != "leave_one_out" and not (group_size == 2 and name in ("group_standardized", "length_weighted_loo")):
            denominator = product_of_means(base.trace, m.signal, over=base.signal)
            yield name, "ratio of relative variances", m.trace, denominator, COMPARISON
            yield name, "ratio of traces", m.trace, base.trace, COMPARISON


def factors(scale: float | str, rng: np.random.Generator, shape: tuple[int, int]) -> tuple[Array, float]:
    """Squared factors of the prompts' scores and their expectation: log-normal of that deviation, or of one of two other laws."""
    if scale == "gamma":  # squared factors with a coefficient of variation of 1.4
        return rng.gamma(0.5, 2.0, shape), 1.0
    if scale == "two":  # one prompt in eight has scores four times as large
        return np.where(rng.random(shape) < 1 / 8, 16.0, 1.0), 1 + 15 / 8
    return np.exp(2 * float(scale) * rng.normal(size=shape)), float(np.exp(2 * float(scale) ** 2))


def coverage(
    found: dict[str, Moments], group_size: int, prompts: int, scale: float | str, replicates: int, seed: int = 1
) -> dict[tuple[str, str], float]:
    """Share of replicates whose interval holds the truth, by estimator and kind of number."""
    both = misses(found, group_size, prompts, scale, replicates, seed)
    return {number: 1 - below - above for number, (below, above) in both.items()}


def misses(
    found: dict[str, Moments], group_size: int, prompts: int, scale: float | str, replicates: int, seed: int = 1
) -> dict[tuple[str, str], tuple[float, float]]:
    """Shares of replicates whose truth lies below the lower end and above the upper end."""
    rng = np.random.default_rng(seed)
    counts_BP = resample_counts(prompts, RESAMPLES, rng)
    size = len(found["none"].second)
    chosen_RP = rng.integers(0, size, (replicates, prompts))
    factor_RP, grown = factors(scale, rng, (replicates, prompts))
    drawn = {
        name: Moments(*(getattr(m, field.name)[chosen_RP] * factor_RP for field in fields(Moments)))
        for name, m in found.items()
    }
    missed: dict[tuple[str, str], tuple[float, float]] = {}
    whole = ratios(found, group_size)
    for (name, kind, x_RP, y_RP, tails), (*_, x_N, y_N, _) in zip(ratios(drawn, group_size), whole, strict=True):
        theta = float(x_N.mean() / y_N.mean())
        side_R = ratio_misses(x_RP, y_RP, counts_BP, theta, tails=tails)
        missed[name, kind] = float((side_R < 0).mean()), float((side_R > 0).mean())
    m, drawn_m = found["length_weighted"], drawn["length_weighted"]
    for kind, truth, values_RP in (
        ("trace_cov", m.trace.mean() * grown, drawn_m.trace),
        ("signal", m.signal.mean() * grown, drawn_m.signal),
    ):
        low_R, high_R = np.transpose(
            [mean_interval(*pair, counts_BP) for pair in zip(values_RP, drawn_m.second, strict=True)]
        )
        missed["length_weighted", kind] = float((truth < low_R).mean()), float((truth > high_R).mean())
    return missed
