"""The equal-variance group size: "OPO at G = 8 is worth RLOO at G = ...".

An estimator's relative variance at G is compared with the reference's at many group sizes s, on the same responses:

    rho(s) = relative variance of the estimator at G / relative variance of the reference at s,

which rises with s. The answer is the s where rho = 1, by linear interpolation of log rho in log s; its interval holds
the s where the 95 % interval of rho(s), paired over prompts, holds 1. Outside the sizes measured nothing is
extrapolated.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from analysis.variance.compare import compare
from analysis.variance.intervals import Array
from analysis.variance.moments import Interval
from analysis.variance.pool import Pool
from analysis.variance.table import ratio_between

_ROUNDING = 1e-9
_SIZES = (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)


@dataclass(frozen=True)
class EqualVariance:
    """The reference's group size of equal relative variance and its 95 % interval.

    0 stands for below the smallest size measured, inf for beyond the largest or not known. `ratios` has a line for each
    size: the size, rho, and the interval of rho.
    """

    name: str
    group_size: int
    reference: str
    size: float
    interval: Interval
    ratios: tuple[tuple[int, float, Interval], ...]

    @property
    def resolved(self) -> bool:
        """Whether both ends lie within the sizes measured."""
        return self.interval[0] > 0 and bool(np.isfinite(self.interval[1]))

    def __str__(self) -> str:
        def text(size: float) -> str:
            if size == 0:
                return f"below {self.ratios[0][0]}"
            return f"{size:.1f}" if np.isfinite(size) else f"beyond {self.ratios[-1][0]}"

        low, high = (text(end) for end in self.interval)
        return f"{self.name} at G={self.group_size} is worth {self.reference} at G={text(self.size)} [{low}, {high}]"


def equal_variance_group_size(
    pools: Sequence[Pool],
    group_size: int,
    estimator: str,
    reference: str,
    rng: np.random.Generator,
    *,
    sizes: Sequence[int] | None = None,
    measure: str = "relative_variance",
    **options: Any,
) -> EqualVariance:
    """At which group size the reference has the relative variance of the estimator at `group_size`.

    `sizes` are the reference's sizes to measure, by default those of 2, 3, 4, 6, 8, 12 ... that fit twice into every
    pool. `measure="trace_cov"` compares raw traces, which is right between unbiased estimators and needs no resolved
    signal. `options` go to `compare`. Raises ValueError on fewer than two sizes.
    """
    fitting = [s for s in _SIZES if 2 * s <= min(len(pool) for pool in pools)] if sizes is None else sorted(set(sizes))
    if len(fitting) < 2:
        raise ValueError(f"sizes={fitting}: at least two group sizes that fit twice into every pool are needed")
    names = list(dict.fromkeys([estimator, reference]))
    here = compare(pools, group_size, names, rng, **options)
    ratios = []
    for size in fitting:
        base = here[reference] if size == group_size else compare(pools, size, [reference], rng, **options)[reference]
        ratio, interval, _ = ratio_between(here[estimator], base, measure)
        ratios.append((size, ratio, interval))
    log_size_S = np.log(fitting)
    middle = _crossing(log_size_S, [ratio if np.isfinite(ratio) else 0.0 for _, ratio, _ in ratios])
    low, high = (_crossing(log_size_S, [max(interval[end], 0.0) for *_, interval in ratios]) for end in (1, 0))
    return EqualVariance(estimator, group_size, reference, middle, (low, high), tuple(ratios))


def _crossing(log_size_S: Array, ratio_S: Sequence[float]) -> float:
    """The size where a rising ratio reaches 1: 0 where it starts above, inf where it never does."""
    with np.errstate(divide="ignore"):
        log_S = np.maximum.accumulate(np.log(ratio_S))
    log_S = np.where(np.abs(log_S) < _ROUNDING, 0.0, log_S)  # an estimator against itself
    if log_S[0] > 0:
        return 0.0
    if log_S[-1] < 0:
        return np.inf
    k = int(np.argmax(log_S >= 0))
    if log_S[k] == 0 or not np.isfinite(log_S[k - 1]):
        return float(np.exp(log_size_S[k]))
    if not np.isfinite(log_S[k]):
        return float(np.exp(log_size_S[k - 1]))
    share = -log_S[k - 1] / (log_S[k] - log_S[k - 1])
    return float(np.exp(log_size_S[k - 1] + share * (log_size_S[k] - log_size_S[k - 1])))
