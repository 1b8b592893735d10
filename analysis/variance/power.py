"""How many prompts, with how many responses each, resolve a given difference between two estimators.

The log of a ratio of relative variances is, to first order, a mean over prompts of

    psi = T / mean(T) - T' / mean(T') - S / mean(S) + S' / mean(S'),

primes for the reference, so that P prompts would resolve a true ratio rho with the wanted power from

    P = (z_{1 - alpha/2} + z_{power})^2 Var(psi) / log(rho)^2              (z of a normal)

on, if psi were normal. It is not, and intervals at few prompts are longer than normal ones, so power is simulated: P prompts
are drawn from the pilot's, their terms are stretched to the ratio and the variance of the design, and the share of draws
whose interval leaves out 1 is the power of P. Above 2,000 prompts the tails are normal and the formula is used.

Var(psi) falls with the number of responses, down to the spread between prompts. With K = floor(N / G) disjoint groups a
product of disjoint groups is a U-statistic of order two, whose variance is a / K + b / (K (K - 1)): so

    Var(psi) = spread + a / K + b / (K (K - 1)),

fitted with coefficients >= 0 to the pilot's whole pools, halves and quarters. The shape of psi is that of the nearest of these.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import nnls
from scipy.stats import norm

from analysis.variance.compare import compare
from analysis.variance.intervals import COMPARISON, FEWEST, Array, ratio_misses, resample_counts
from analysis.variance.pool import Pool
from analysis.variance.table import COMPARABLE

_ROUNDING = 1e-20  # of a squared relative difference
_FEWEST_PROMPTS = 5  # of a pilot: below this a bootstrap over prompts says nothing
_MOST_SIMULATED = 2000  # prompts
_DRAWS, _RESAMPLES = 1000, 400  # power to 1.3 points


@dataclass(frozen=True)
class Design:
    """P prompts with N responses each."""

    prompts: int
    responses: int

    @property
    def total(self) -> int:
        """Responses to sample and differentiate in all."""
        return self.prompts * self.responses


@dataclass(frozen=True)
class Plan:
    """Designs that resolve the difference, one for each number of responses asked about, and the cheapest of them."""

    ratio: float
    power: float
    designs: tuple[Design, ...]

    @property
    def cheapest(self) -> Design:
        return min(self.designs, key=lambda design: design.total)


def plan(
    pools: Sequence[Pool],
    group_size: int,
    estimator: str,
    reference: str,
    ratio: float,
    rng: np.random.Generator,
    *,
    power: float = 0.8,
    level: float = 0.95,
    measure: str = "relative_variance",
    responses: Sequence[int] | None = None,
    **options: Any,
) -> Plan:
    """Designs that distinguish `ratio`, the true ratio of the estimator's measure to the reference's, from 1.

    `pools` are a pilot; `responses` the pool sizes to plan for, by default 4, 8, 16 and 32 groups. The interval of
    `level` then leaves out 1 with probability `power`. `options` go to `compare`. Raises ValueError where the pilot has
    fewer than five prompts or four groups a pool, or its signal is not above zero (then compare `measure="trace_cov"`).
    """
    if measure not in COMPARABLE:
        raise ValueError(f"measure {measure!r} cannot be planned for: choose from {', '.join(COMPARABLE)}")
    if not ratio > 0 or ratio == 1 or not np.isfinite(ratio):
        raise ValueError(f"ratio={ratio}: it must be positive and not 1")
    if len(pools) < _FEWEST_PROMPTS or min(len(pool) for pool in pools) < 4 * group_size:
        raise ValueError(f"a pilot needs at least {_FEWEST_PROMPTS} prompts of 4 x {group_size} responses")
    names = list(dict.fromkeys([estimator, reference]))
    smallest = min(len(pool) for pool in pools)
    whole = _measured(pools, group_size, names, measure, rng, options)
    means_K1 = whole.mean(1, keepdims=True)
    if (means_K1 <= 0).any():
        raise ValueError("the pilot's signal is not above zero: use a larger pilot, or measure='trace_cov'")
    groups_F, terms_F = [], []
    for parts in (1, 2, 4):
        size = smallest // parts
        if size >= 2 * group_size:
            cuts = [rng.permutation(len(pool))[: size * parts].reshape(parts, size) for pool in pools]
            pieces = [[pool.take(cut[i]) for pool, cut in zip(pools, cuts, strict=True)] for i in range(parts)]
            estimates = [_measured(piece, group_size, names, measure, rng, options) / means_K1 for piece in pieces]
            groups_F.append(size // group_size)
            terms_F.append(np.stack([_terms(x_KP) for x_KP in estimates]))
    variance_F = np.array([(terms[:, 0] - terms[:, 1]).var(1, ddof=1).mean() for terms in terms_F])
    if variance_F.min() < _ROUNDING:
        raise ValueError(
            f"{estimator!r} and {reference!r} are one estimator up to scale at this group size: nothing to resolve"
        )
    basis_FC = _basis(np.array(groups_F)) / variance_F[:, None]  # relative errors count alike
    coefficients_C, _ = nnls(basis_FC, np.ones(len(groups_F)))
    sizes = [n * group_size for n in (4, 8, 16, 32)] if responses is None else list(responses)
    if min(sizes) < 2 * group_size:
        raise ValueError(f"responses={min(sizes)}: a pool must hold two groups of {group_size}")
    designs, seed = [], int(rng.integers(2**32))
    for size in sizes:
        variance = float(_basis(np.array([size // group_size]))[0] @ coefficients_C)
        nearest = int(np.abs(np.log(np.array(groups_F) / (size // group_size))).argmin())
        stretch = np.sqrt(variance / variance_F[nearest])
        x_N, y_N = 1 + stretch * (np.concatenate(list(terms_F[nearest]), axis=1) - 1)
        first = (norm.ppf((1 + level) / 2) + norm.ppf(power)) ** 2 * variance / np.log(ratio) ** 2
        designs.append(Design(_prompts_needed(ratio * x_N, y_N, first, power, level, seed), size))
    return Plan(ratio, power, tuple(designs))


def _measured(
    pools: Sequence[Pool], group_size: int, names: Sequence[str], measure: str, rng: np.random.Generator, options: Any
) -> Array:
    """Per-prompt moments that make the ratio, (2, P) or (4, P): traces, then signals, estimator before reference."""
    table = compare(pools, group_size, names, rng, num_bootstrap=1, **options)
    rows = [table[names[0]].moments, table[names[-1]].moments]
    columns = [row.trace for row in rows]
    if measure == "relative_variance":
        columns += [row.signal for row in rows]
    return np.stack(columns)


def _terms(scaled_KP: Array) -> Array:
    """x and y of `analysis.variance.table.comparison_terms` over their means, (2, P), from moments over theirs; psi = x - y."""
    own_P, base_P, *signals = scaled_KP
    return np.stack([own_P, base_P + signals[0] - signals[1] if signals else base_P])


def _basis(groups_F: Array) -> Array:
    return np.stack([np.ones(len(groups_F)), 1 / groups_F, 1 / (groups_F * (groups_F - 1))], axis=1)


def _prompts_needed(x_N: Array, y_N: Array, first: float, power: float, level: float, seed: int) -> int:
    """The smallest P, to 2 %, whose intervals leave out a ratio of 1 with the wanted power; `first` is the normal formula's."""
    if first > _MOST_SIMULATED:
        return int(np.ceil(first))

    def enough(prompts: int) -> bool:
        rng = np.random.default_rng(seed)
        counts_BP = resample_counts(prompts, _RESAMPLES, rng)
        chosen_RP = rng.integers(0, len(x_N), (_DRAWS, prompts))
        misses_R = ratio_misses(x_N[chosen_RP], y_N[chosen_RP], counts_BP, 1.0, level, COMPARISON)
        return (misses_R != 0).mean() >= power

    too_few, prompts = FEWEST - 1, max(FEWEST, int(np.ceil(first)))
    while not enough(prompts):
        too_few, prompts = prompts, 2 * prompts
    while prompts - too_few > max(1, prompts // 50):
        middle = (prompts + too_few) // 2
        too_few, prompts = (too_few, middle) if enough(middle) else (middle, prompts)
    return prompts
