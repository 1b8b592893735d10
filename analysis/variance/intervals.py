"""Intervals over prompts that hold at two dozen prompts, and tests with Holm's correction.

The unit is a prompt: x_p is one prompt's unbiased moment, and what is reported is a function of means over prompts. A
percentile bootstrap is too short here (it covers 87-93 %), because a mean over few prompts that differ in scale is
skewed. So every interval inverts a studentised test, whose critical values come from resampled prompts:

    t*_b = (mean_b(x) - mean(x)) / se_b(x)         for B resamples of the P prompts,

Resampling underestimates the tails at P = 24: the rare prompt that would make them is not in the sample. `Tails` says by how
much quantiles of t* are moved outwards for it, one rule for each kind of number (a ratio, a comparison of two estimators, a
cosine), found by the simulation below and held fixed. The mean of one moment is worse: where scales are log-normal a few
prompts are the mean, two dozen often hold none of them, and no resampling of those knows. There a share of the t* comes from
log-normal prompts instead (`mean_interval`), as large as the sample's scales make likely.

What that covers is in README.md beside this file, from `tests/benchmarks/bench_coverage.py`. Fewer than `FEWEST` prompts give
no interval. Resamples are passed as counts, one matrix for all measures and estimators, so comparisons are paired. Sources:
Efron 1979 (bootstrap-t); Fieller 1954 (ratios); Zhou and Gao 1997 (means of log-normal samples); Krishnamoorthy and Mathew
2003 (the deviation unknown); Buckland, Burnham and Augustin 1997 (weights of models); Holm 1979.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit
from scipy.stats import t as student

Array = NDArray[np.float64]

FEWEST = 8  # prompts; fewer give a point and no interval
_ROUNDING = 1e-12
_LONGEST = 2.0  # times its own length: as much as a tail is lengthened


@dataclass(frozen=True)
class Tails:
    """From quantiles of t* to critical values: outwards, towards what the sample has not seen.

    A share of the way to Student's where those are wider; the longer tail lengthened by its ratio to the shorter one, to the
    power `lean`, since a tail that shows in two dozen prompts is longer still; then each by a share of its own at 24
    prompts, which falls as 1 / sqrt(P).
    """

    towards_student: float = 0.25
    lean: float = 0.0
    low: float = 0.0
    high: float = 0.0
    high_as_student: bool = False  # the upper one at least Student's


MEAN = Tails()
RATIO = Tails(low=0.07, high=0.12)
BIAS = Tails(low=0.13)
COMPARISON = Tails(
    towards_student=0.75, lean=0.25, high=0.2
)  # of two estimators, whose paired difference a rare prompt may reverse
COSINE = Tails(high=0.4, high_as_student=True)  # prompts whose mean estimate points elsewhere are rare


def resample_counts(num_prompts: int, num_bootstrap: int, rng: np.random.Generator) -> Array:
    """How often each prompt occurs in each resample, (B, P) float64, rows summing to P."""
    return rng.multinomial(num_prompts, np.full(num_prompts, 1 / num_prompts), size=num_bootstrap).astype(np.float64)


def ratio_interval(
    numerator_P: Array,
    denominator_P: Array,
    counts_BP: Array,
    level: float = 0.95,
    *,
    nonnegative: bool = True,
    tails: Tails = RATIO,
) -> tuple[float, float]:
    """Interval for theta = E[x] / E[y] over fresh prompts: all theta with q_low <= t(theta) <= q_high (Fieller's set).

    t(theta) is the studentised mean of x - theta y, so the denominator's noise is in it, and the upper end is inf where
    the denominator is not clearly above zero. A denominator of ones gives the interval of a plain mean of values of
    bounded scale (of others see `mean_interval`). `nonnegative` says that theta cannot be below zero.
    """
    num_prompts = len(numerator_P)
    floor = 0.0 if nonnegative else -np.inf
    mean_x, mean_y = numerator_P.mean(), denominator_P.mean()
    constant = proportionality(numerator_P, denominator_P) if num_prompts > 1 and denominator_P.any() else None
    if constant is not None:
        return max(floor, constant), max(floor, constant)
    if num_prompts < FEWEST or not denominator_P.any():
        return floor, np.inf
    theta = mean_x / mean_y if mean_y > 0 else np.inf
    residual_P = _residual(numerator_P, denominator_P)
    q_low, q_high = critical_values(studentised_means(residual_P, counts_BP), num_prompts, level, tails)
    low = _fieller_end(numerator_P, denominator_P, q_high, theta, upward=False)
    high = _fieller_end(numerator_P, denominator_P, q_low, theta, upward=True)
    return float(max(floor, low)), float(max(floor, high))


def ratio_misses(
    numerator_RP: Array,
    denominator_RP: Array,
    counts_BP: Array,
    theta: float,
    level: float = 0.95,
    tails: Tails = RATIO,
) -> NDArray[np.intp]:
    """Where theta lies for the interval of each of R samples, (R,): -1 below, 0 within, 1 above; for simulations.

    It is the test that `ratio_interval` inverts.
    """
    num_prompts = numerator_RP.shape[-1]
    t_RB = studentised_means(_residual(numerator_RP, denominator_RP), counts_BP)
    low_R, high_R = critical_values(t_RB, num_prompts, level, tails)
    t_R = _studentised(numerator_RP - theta * denominator_RP)
    return (t_R < low_R).astype(np.intp) - (t_R > high_R)


def mean_interval(values_P: Array, scale_P: Array, counts_BP: Array, level: float = 0.95) -> tuple[float, float]:
    """Interval for E[x] over fresh prompts, where x_p is a prompt's scale c_p >= 0 times something of bounded scale.

    [mean - q_high se, mean - q_low se], with critical values of t* of which a share w comes from log-normal prompts and
    the rest from resampled ones. w = L / (L + L'), with L and L' the greatest likelihoods of the scales c_p > 0 if they
    are log-normal and if they are normal, so w is near 0 where prompts are alike and near 1 where scales spread. The
    centre stays the mean and w touches only the critical values, which all tend to the normal ones as P grows: the
    interval is right for many prompts of any finite variance, and for few prompts of log-normal scale.
    """
    num_prompts, mean = len(values_P), float(values_P.mean())
    error = float(values_P.std(ddof=1)) / np.sqrt(num_prompts) if num_prompts > 1 else np.inf
    if error <= _ROUNDING * abs(mean):
        return mean, mean
    if num_prompts < FEWEST:
        return -np.inf, np.inf
    t_B = studentised_means(values_P, counts_BP)
    log_P = np.log(scale_P[scale_P > _ROUNDING * scale_P.max()])
    from_lognormal = round(_lognormal_weight(log_P) * len(t_B))
    if from_lognormal:
        deviation, positive = float(log_P.std(ddof=1)), len(log_P) / num_prompts
        t_B[:from_lognormal] = lognormal_t(deviation, positive, num_prompts, len(log_P) - 1, len(t_B))[:from_lognormal]
    q_low, q_high = critical_values(t_B, num_prompts, level)
    # log-normal samples of a huge deviation have all their means below the expectation; the estimate stays inside
    return mean - max(float(q_high), 0.0) * error, mean - float(q_low) * error


def lognormal_t(deviation: float, positive: float, num_prompts: int, degrees: int, num_samples: int) -> Array:
    """Studentised means t* = (mean - E) / se of samples of exp(sigma N) at a share `positive` of prompts, 0 at others, (B,).

    Each sample has its own sigma = deviation sqrt(degrees / chi^2), what a deviation of so many degrees of freedom says
    of the true one. The draws are the same for all data, like the nodes of a quadrature.
    """
    normal_BP, uniform_BP, chi2_B = _draws(num_prompts, degrees, num_samples)
    sigma_B = deviation * np.sqrt(degrees / chi2_B)
    log_BP = np.where(uniform_BP < positive, sigma_B[:, None] * normal_BP, -np.inf)
    # t* does not depend on the unit: the largest value of a sample, or e^0 where it is less
    unit_B = log_BP.max(1).clip(0)
    value_BP = np.exp(log_BP - unit_B[:, None])
    expected_B = positive * np.exp(np.minimum(sigma_B**2 / 2 - unit_B, 500.0))
    mean_B, error_B = value_BP.mean(1), value_BP.std(1, ddof=1) / np.sqrt(num_prompts)
    return _divide(mean_B - expected_B, error_B, 1.0)


def if_enough(interval: tuple[float, float], num_prompts: int) -> tuple[float, float]:
    """What is printed of an interval: (-inf, inf), that is none, from fewer prompts than `FEWEST`, unless it is known exactly."""
    return interval if num_prompts >= FEWEST or interval[0] == interval[1] else (-np.inf, np.inf)


def ratio_p_value(
    numerator_P: Array, denominator_P: Array, counts_BP: Array, theta: float = 1.0, tails: Tails = RATIO
) -> float:
    """Two-sided p-value of E[x] / E[y] = theta: the least alpha whose set leaves theta out, at least 2 / (B + 1)."""
    num_prompts, alpha_A = len(numerator_P), np.arange(2, len(counts_BP) + 1, 2) / (len(counts_BP) + 1)
    constant = proportionality(numerator_P, denominator_P) if num_prompts > 1 and denominator_P.any() else None
    if constant is not None:
        return 1.0 if abs(constant - theta) <= _ROUNDING else float(alpha_A[0])
    if num_prompts < FEWEST or not denominator_P.any():
        return 1.0
    t = float(_studentised(numerator_P - theta * denominator_P))
    t_B = studentised_means(_residual(numerator_P, denominator_P), counts_BP)
    low_A, high_A = critical_values(t_B, num_prompts, 1 - alpha_A, tails)
    return float(alpha_A[(low_A <= t) & (t <= high_A)].max(initial=alpha_A[0]))


def product_of_means(*values_P: Array, over: Array | None = None) -> Array:
    """Pseudo-values, one a prompt, (..., P): their mean is the product of the means, their spread its spread to first order.

    With m = prod_k m_k / m_o the product of the means over the mean of `over`, prompt p has the value
    m + sum_k (m / m_k) (x_kp - m_k) - (m / m_o) (x_op - m_o), which is m plus its influence on it. A ratio of products of
    means is a ratio of means of these; the fewer noisy factors its denominator has, the shorter its interval.
    """
    means = [values.mean(-1, keepdims=True) for values in values_P]
    scale = 1.0 if over is None else 1 / over.mean(-1, keepdims=True)
    product = np.prod(means, axis=0) * scale
    product_P = product + np.zeros_like(values_P[0])
    for k, values in enumerate(values_P):
        others = np.prod(means[:k] + means[k + 1 :], axis=0) if len(means) > 1 else 1.0
        product_P += others * scale * (values - means[k])
    return product_P if over is None else product_P - product * (over * scale - 1)


def holm(p_values: Sequence[float]) -> Array:
    """Holm's step-down adjusted p-values: max over j <= k of min(1, (m - j + 1) p_(j)), in the order given."""
    p_M = np.asarray(p_values, dtype=np.float64)
    order_M = np.argsort(p_M, kind="stable")
    stepped_M = np.maximum.accumulate(np.minimum(1.0, (len(p_M) - np.arange(len(p_M))) * p_M[order_M]))
    adjusted_M = np.empty_like(stepped_M)
    adjusted_M[order_M] = stepped_M
    return adjusted_M


def proportionality(numerator_P: Array, denominator_P: Array) -> float | None:
    """c where x_p = c y_p at every prompt, a ratio known without error up to rounding, or None; 0 where x = 0."""
    scale = np.abs(numerator_P).max()
    if scale == 0:
        return 0.0
    square = denominator_P @ denominator_P
    informative = np.abs(denominator_P) > _ROUNDING * np.abs(denominator_P).max()
    # with one informative prompt, or a plain mean, a fit is always perfect
    if informative.sum() < 2 or len(np.unique(denominator_P)) == 1:
        return None
    constant = float(numerator_P @ denominator_P / square)
    return constant if np.abs(numerator_P - constant * denominator_P).max() <= _ROUNDING * scale else None


def studentised_means(values_P: Array, counts_BP: Array) -> Array:
    """t*_b = (mean_b - mean) / se_b over resamples, (..., B) for values (..., P); zero where both vanish, infinite where only the error does."""
    num_prompts = values_P.shape[-1]
    centred_P = values_P - values_P.mean(-1, keepdims=True)
    mean_B = centred_P @ counts_BP.T / num_prompts
    variance_B = np.maximum(centred_P**2 @ counts_BP.T / num_prompts - mean_B**2, 0.0)
    return _divide(mean_B, np.sqrt(variance_B / (num_prompts - 1)), np.abs(centred_P).max(-1, keepdims=True))


def critical_values(t_B: Array, num_prompts: int, level: float | Array, tails: Tails = MEAN) -> tuple[Array, Array]:
    """Critical values (low, high) from t*, over its last axis; see `Tails`."""
    tail = (1 - np.asarray(level)) / 2
    wide = student.ppf(1 - tail, num_prompts - 1)
    low, high = np.quantile(t_B, tail, axis=-1, method="lower"), np.quantile(t_B, 1 - tail, axis=-1, method="higher")
    blend = tails.towards_student
    low = (1 - blend) * low + blend * np.minimum(low, -wide)
    high = (1 - blend) * high + blend * np.maximum(high, wide)
    if tails.lean:
        known = (low < 0) & (high > 0) & np.isfinite(low) & np.isfinite(high)
        ratio = np.where(known, high / np.where(known, -low, 1.0), 1.0) ** tails.lean
        ratio = np.clip(ratio, 1 / _LONGEST, _LONGEST)
        low, high = low * np.maximum(1 / ratio, 1.0), high * np.maximum(ratio, 1.0)
    high = np.maximum(high, wide) if tails.high_as_student else high
    few = np.sqrt(24 / num_prompts)
    return low * (1 + few * tails.low), high * (1 + few * tails.high)


def _lognormal_weight(log_P: Array) -> float:
    """L / (L + L') of a log-normal against a normal, both fitted to exp(log_P); 0 where there is nothing to fit."""
    if len(log_P) < 3 or np.ptp(log_P) <= _ROUNDING:
        return 0.0
    largest = log_P.max()
    log_spread = largest + np.log(np.exp(log_P - largest).std())
    return float(expit(len(log_P) * (log_spread - np.log(log_P.std()) - log_P.mean())))


@lru_cache(maxsize=4)
def _draws(num_prompts: int, degrees: int, num_samples: int) -> tuple[Array, Array, Array]:
    rng = np.random.default_rng(0)
    shape = num_samples, num_prompts
    return rng.standard_normal(shape), rng.random(shape), rng.chisquare(degrees, num_samples)


def _residual(numerator_P: Array, denominator_P: Array) -> Array:
    """x - theta y at the estimated theta, which has mean zero; -y where theta is infinite."""
    mean_y = denominator_P.mean(-1, keepdims=True)
    known = mean_y > 0
    theta = numerator_P.mean(-1, keepdims=True) / np.where(known, mean_y, 1.0)
    return np.where(known, numerator_P - theta * denominator_P, -denominator_P)


def _studentised(values_P: Array) -> Array:
    return values_P.mean(-1) / (values_P.std(-1, ddof=1) / np.sqrt(values_P.shape[-1]))


def _fieller_end(x_P: Array, y_P: Array, critical: Array, theta: float, upward: bool) -> float:
    """The end of acceptance on one side of theta: a root of mean(d)^2 = q^2 var(d) / P, d = x - theta y."""
    if not np.isfinite(critical):  # too few prompts for the level
        return np.inf if upward else -np.inf
    covariance = np.cov(x_P, y_P) * float(critical) ** 2 / len(x_P)
    a = y_P.mean() ** 2 - covariance[1, 1]
    b = x_P.mean() * y_P.mean() - covariance[0, 1]
    c = x_P.mean() ** 2 - covariance[0, 0]
    if upward and (a <= 0 or not np.isfinite(theta)):
        return np.inf
    if b * b < a * c:  # every theta is accepted
        return np.inf if upward else -np.inf
    root = np.sqrt(b * b - a * c)
    # Both roots without cancellation, a = 0 included.
    pivot = b + np.copysign(root, b)
    roots = sorted([pivot / a if a != 0 else -np.copysign(np.inf, theta), c / pivot if pivot != 0 else 0.0])
    if upward:
        return roots[1]
    below = [r for r in roots if r <= theta]
    return below[-1] if below else -np.inf


def _divide(numerator_B: Array, error_B: Array, scale: float | Array) -> Array:
    tiny = _ROUNDING * np.asarray(scale)
    known_B = error_B > tiny
    infinite_B = np.where(np.abs(numerator_B) > tiny, np.copysign(np.inf, numerator_B), 0.0)
    return np.where(known_B, numerator_B / np.where(known_B, error_B, 1.0), infinite_B)
