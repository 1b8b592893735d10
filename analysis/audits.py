"""What OPO takes for granted, measured on the pools of a study.

The length-weighted baseline is the optimal one where |z|^2 is proportional to the length, that is, where (A1) scores of different
tokens are orthogonal and (A2) of equal norm. And any baseline b(x) weighted by scores is better than the mean reward only as far
as reward and squared score norm are correlated: with w = |z|^2, S = E w and V_b = E[(r - b)^2 w],

    V_mean - V_b = S ((mean - b*)^2 - (b - b*)^2),    b* = E[w r] / S,    at most V_mean - V_b* = Cov(r, w)^2 / S.

Gains are of baselines that are known, not estimated from the group; what remains of them in groups of G is what `moments` says.
Every number is a ratio of means over prompts with an interval over prompts (`analysis.stats`); regressions and correlations are
within prompts, since a baseline never compares responses to different prompts.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from analysis.pools import PromptPool
from analysis.stats import Array, log_product_interval, ratio_interval
from analysis.study_result import estimate

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


def audits(pools: Sequence[PromptPool], counts_BP: Array) -> list[dict[str, Any]]:
    """Rows (scope, measure, value, low, high, resolved) for the whole score, and for each part of the model."""
    norms = [np.diag(pool.gram_RR) for pool in pools]
    rows = [row for name in PROXIES for row in _proxy(name, pools, norms, counts_BP)]
    rows += [
        _row("token_orthogonality", [(p.token_sum_norm2_K.mean(), p.token_norm2_sum_K.mean()) for p in pools], counts_BP),
        _row("reward_length_rank", [(_rank(p.rewards_R, p.lengths_R), 1.0) for p in pools], counts_BP, signed=True),
        _row("reward_norm_rank", [(_rank(p.rewards_R, w), 1.0) for p, w in zip(pools, norms, strict=True)], counts_BP, signed=True),
        _gain("length_gain", pools, norms, [p.lengths_R for p in pools], counts_BP),
        _gain("energy_gain", pools, norms, [p.logit_energy_R for p in pools], counts_BP),
        _gain("best_gain", pools, norms, norms, counts_BP),
    ]
    for s, part in enumerate(pools[0].parts.tolist()):
        mine = [pool.part_norm2_SR[s] for pool in pools]
        lengths = [pool.lengths_R for pool in pools]
        shares = [(part_R.mean(), all_R.mean()) for part_R, all_R in zip(mine, norms, strict=True)]
        rows += [
            _row("norm2_share", shares, counts_BP, part),
            _row("norm_length_exponent", _log_products(lengths, mine)[:, [1, 0]], counts_BP, part, signed=True),
            _gain("best_gain", pools, mine, mine, counts_BP, part),
        ]
    return rows


def _proxy(name: str, pools: Sequence[PromptPool], norms: list[Array], counts_BP: Array) -> list[dict[str, Any]]:
    """Exponent, explained variance and rank correlation of |z|^2 on one proxy."""
    proxies = [getattr(pool, PROXIES[name]) for pool in pools]
    products_P3 = _log_products(proxies, norms)
    xx_P, xy_P, yy_P = products_P3.T
    r2 = _ratio(xy_P.mean() ** 2, xx_P.mean() * yy_P.mean())
    low, high = log_product_interval([xy_P, xx_P, yy_P], [2, -1, -1], counts_BP)
    ranks = [(_rank(x, w), 1.0) for x, w in zip(proxies, norms, strict=True)]
    return [
        _row(f"norm_{name}_exponent", products_P3[:, [1, 0]], counts_BP, signed=True),
        {"scope": "all", "measure": f"norm_{name}_r2"} | estimate(r2, low, min(high, 1.0)),
        _row(f"norm_{name}_rank", ranks, counts_BP, signed=True),
    ]


def _row(measure: str, pairs: Any, counts_BP: Array, scope: str = "all", signed: bool = False) -> dict[str, Any]:
    """mean(x) / mean(y) over prompts and its interval."""
    x_P, y_P = np.asarray(pairs, dtype=np.float64).T
    interval = ratio_interval(x_P, y_P, counts_BP, nonnegative=not signed)
    return {"scope": scope, "measure": measure} | estimate(_ratio(x_P.mean(), y_P.mean()), *interval)


def _ratio(x: float, y: float) -> float:
    return float(x / y) if y > 0 else np.inf


def _rank(x_R: Array, y_R: Array) -> float:
    """Spearman's correlation; zero where one of them is constant, since there is no order to agree with."""
    if np.ptp(x_R) == 0 or np.ptp(y_R) == 0:
        return 0.0
    return float(spearmanr(x_R, y_R).statistic)


def _log_products(xs: list[Array], ys: list[Array]) -> Array:
    """Mean of dx dx, dx dy, dy dy for each prompt, with d the log's deviation from the prompt's mean, (P, 3).

    A response whose score is exactly zero has no logarithm and is left out.
    """
    rows = []
    for x_R, y_R in zip(xs, ys, strict=True):
        keep = (y_R > 0) & (x_R > 0)
        if not keep.any():
            rows.append([0.0, 0.0, 0.0])
            continue
        x, y = np.log(x_R[keep]), np.log(y_R[keep])
        x, y = x - x.mean(), y - y.mean()
        rows.append([(x * x).mean(), (x * y).mean(), (y * y).mean()])
    return np.array(rows)


def _gain(
    measure: str, pools: Sequence[PromptPool], norms: list[Array], weights: list[Array], counts_BP: Array, scope: str = "all"
) -> dict[str, Any]:
    """(V_mean - V_b) / V_mean with b weighted by `weights`, each side a mean over prompts of jackknifed plug-ins."""
    pairs = [jackknifed_gain(p.rewards_R, w, v) for p, w, v in zip(pools, norms, weights, strict=True)]
    return _row(measure, pairs, counts_BP, scope, signed=True)


def jackknifed_gain(rewards_R: Array, norm2_R: Array, weights_R: Array) -> tuple[float, float]:
    """V_mean - V_b and V_mean of one prompt, with the plug-in's bias of order 1/R removed by leaving out one response at a time."""
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
    return float(gain), float(level)
