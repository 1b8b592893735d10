"""What OPO takes for granted, measured on the pools of a study.

The length-weighted baseline is the optimal one where |z|^2 is proportional to the length, that is, where (A1) scores of different
tokens are orthogonal and (A2) of equal norm. And any baseline b(x) weighted by scores is better than the mean reward only as far
as reward and squared score norm are correlated: with w = |z|^2, S = E w and V_b = E[(r - b)^2 w],

    V_mean - V_b = S ((mean - b*)^2 - (b - b*)^2),    b* = E[w r] / S,    at most V_mean - V_b* = Cov(r, w)^2 / S.

Gains are of baselines that are known, not estimated from the group; what remains of them in groups of G is what `moments` says.
Every number is a ratio of means over prompts with an interval over prompts (`analysis.variance.intervals`); regressions and correlations are
within prompts, since a baseline never compares responses to different prompts.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from analysis.study.pools import PromptPool
from analysis.variance.intervals import Array, product_of_means, ratio_interval
from opo.rounding import all_equal

PROXIES = {"length": "lengths_R", "energy": "logit_energy_R", "head": "head_norm2_R"}

# measure -> what it says, in a reader's words
AUDITS = {
    "norm_length_exponent": "exponent a in |z|² ∝ lengthᵃ within prompts; OPO assumes 1",
    "norm_energy_exponent": "exponent a in |z|² ∝ energyᵃ, with the logit energy Σ(1 − 2π + Σπ²)",
    "norm_head_exponent": "exponent a in |z|² ∝ headᵃ, with the squared score norm in the output layer",
    "norm_length_r2": "share of the variance of log |z|² that length explains within prompts",
    "norm_energy_r2": "share of the variance of log |z|² that the logit energy explains within prompts",
    "norm_head_r2": "share of the variance of log |z|² that the output layer's norm explains within prompts",
    "norm_length_rank": "rank correlation of |z|² and length within prompts",
    "norm_energy_rank": "rank correlation of |z|² and logit energy within prompts",
    "norm_head_rank": "rank correlation of |z|² and the output layer's squared norm within prompts",
    "token_orthogonality": "|Σ z_t|² over Σ|z_t|²: 1 where scores of different tokens are orthogonal (A1)",
    "reward_length_rank": "rank correlation of reward and length within prompts",
    "reward_norm_rank": "rank correlation of reward and |z|² within prompts",
    "best_gain": "the most that any score-weighted baseline could take off E[(r − mean)²|z|²]: Cov(r, |z|²)²/S",
    "length_gain": "what the length-weighted baseline, were it known, would take off E[(r − mean)²|z|²]",
    "energy_gain": "what the logit-energy-weighted baseline, were it known, would take off E[(r − mean)²|z|²]",
    "norm2_share": "share of |z|² that lies in this part of the model",
}


def audit_terms(pools: Sequence[PromptPool]) -> list[dict[str, Any]]:
    """One prompt's terms of every audit, (scope, measure, prompt_id, a, b, c): what is reported is made of their means over prompts.

    A measure that ends in _r2 is mean(b)^2 / (mean(a) mean(c)), any other mean(b) / mean(a).
    """
    rows: list[dict[str, Any]] = []
    for pool in pools:
        norms = np.diag(pool.gram_RR)
        terms_of_measures: list[tuple[str, str, tuple[float, float, float]]] = []
        for name, field in PROXIES.items():
            proxy = getattr(pool, field)
            products = _log_products(proxy, norms)
            terms_of_measures += [("all", f"norm_{name}_{kind}", products) for kind in ("exponent", "r2")]
            terms_of_measures.append(("all", f"norm_{name}_rank", (1.0, _rank(proxy, norms), 0.0)))
        terms_of_measures += [
            ("all", "token_orthogonality", (pool.token_norm2_sum_K.mean(), pool.token_sum_norm2_K.mean(), 0.0)),
            ("all", "reward_length_rank", (1.0, _rank(pool.rewards_R, pool.lengths_R), 0.0)),
            ("all", "reward_norm_rank", (1.0, _rank(pool.rewards_R, norms), 0.0)),
            ("all", "best_gain", jackknifed_gain(pool.rewards_R, norms, norms)),
            ("all", "length_gain", jackknifed_gain(pool.rewards_R, norms, pool.lengths_R)),
            ("all", "energy_gain", jackknifed_gain(pool.rewards_R, norms, pool.logit_energy_R)),
        ]
        for part, norm2_R in zip(pool.parts.tolist(), pool.part_norm2_SR, strict=True):
            terms_of_measures += [
                (part, "norm2_share", (norms.mean(), norm2_R.mean(), 0.0)),
                (part, "norm_length_exponent", _log_products(pool.lengths_R, norm2_R)),
                (part, "best_gain", jackknifed_gain(pool.rewards_R, norm2_R, norm2_R)),
            ]
        for scope, measure, terms in terms_of_measures:
            a, b, c = map(float, terms)
            rows.append({"scope": scope, "measure": measure, "prompt_id": pool.prompt_id, "a": a, "b": b, "c": c})
    return rows


def audit_value(measure: str, terms_P3: Array) -> float:
    """The measure from its terms at P prompts; inf where the data does not give it."""
    a, b, c = terms_P3.mean(0)
    if measure.endswith("_r2"):
        return float(b**2 / (a * c)) if a * c > 0 else np.inf
    return float(b / a) if a > 0 else np.inf


def audit_interval(measure: str, terms_P3: Array, counts_BP: Array, level: float = 0.95) -> tuple[float, float]:
    """Its interval for fresh prompts of the same kind."""
    a_P, b_P, c_P = terms_P3.T
    if measure.endswith("_r2"):
        if not a_P.any():
            return 0.0, 1.0
        low, high = ratio_interval(product_of_means(b_P, b_P, over=a_P), c_P, counts_BP, level)
        return low, min(high, 1.0)
    signed = measure.endswith(("_exponent", "_rank", "_gain"))
    low, high = ratio_interval(b_P, a_P, counts_BP, level, nonnegative=not signed)
    return (max(low, -1.0), min(high, 1.0)) if measure.endswith("_rank") else (low, high)


def _rank(x_R: Array, y_R: Array) -> float:
    """Spearman's correlation; zero where one of them is constant, since there is no order to agree with."""
    if all_equal(x_R) or all_equal(y_R):
        return 0.0
    result: Any = spearmanr(x_R, y_R)
    return float(result.statistic)


def _log_products(x_R: Array, y_R: Array) -> tuple[float, float, float]:
    """Means of dx dx, dx dy, dy dy, with d the deviation of the logarithm from the prompt's mean of it.

    A response whose score is exactly zero has no logarithm and is left out.
    """
    keep = (y_R > 0) & (x_R > 0)
    if not keep.any():
        return 0.0, 0.0, 0.0
    x, y = np.log(x_R[keep]), np.log(y_R[keep])
    x, y = x - x.mean(), y - y.mean()
    return float((x * x).mean()), float((x * y).mean()), float((y * y).mean())


def jackknifed_gain(rewards_R: Array, norm2_R: Array, weights_R: Array) -> tuple[float, float, float]:
    """V_mean and V_mean - V_b of one prompt, b weighted by `weights_R`; leaving out one response at a time removes bias of order 1/R."""
    r, w, v = rewards_R, norm2_R, weights_R
    terms = np.stack([np.ones_like(r), r, w, r * w, r * r * w, v, r * v])

    def plug_in(sums: Array) -> Array:
        n, r, w, rw, rrw, v, rv = sums
        values = []
        for b in (r / n, rv / np.where(v > 0, v, 1.0)):
            values.append((rrw - 2 * b * rw + b * b * w) / n)
        return np.stack([values[0] - values[1], values[0]])

    whole = terms.sum(1)
    n = len(r)
    without = plug_in(whole[:, None] - terms).mean(1)
    gain, level = n * plug_in(whole) - (n - 1) * without
    return float(level), float(gain), 0.0
