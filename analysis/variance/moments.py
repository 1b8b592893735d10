"""What is reported of an estimator: functions of means over prompts of its moments, each with its interval.

With T = tr Cov(g), S = |E g|^2, R = |grad E r|^2, X = <E g, grad E r>, D = |E g - grad E r|^2, each a mean over prompts
of unbiased estimates (`analysis.variance.compare` has them):

    relative_variance = T / S      snr = S / T             noise_scale = G T / S, in responses to a prompt
    cosine = X / sqrt(S R)         bias = sqrt(D / R)      mse = (T + D) / R
    mse_rescaled = 1 - X^2 / (R (T + S)), the least mse that a rescaling c g can have, at c = X / (T + S)

Ratios of unbiased means are consistent, not unbiased. An estimated S or R can be at or below zero, since it is a
product of noisy vectors: the ratio over it is then inf, its interval has no upper end, and nothing is ever NaN.

How often the intervals hold the truth is in README.md beside this file.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Self

import numpy as np

from analysis.variance.intervals import (
    BIAS,
    COSINE,
    RATIO,
    Array,
    Tails,
    mean_interval,
    product_of_means,
    proportionality,
    ratio_interval,
)

Interval = tuple[float, float]

MEASURES = ("trace_cov", "signal", "relative_variance", "snr", "noise_scale", "cosine", "bias", "mse", "mse_rescaled")


@dataclass(frozen=True)
class Moments:
    """Unbiased estimates of one estimator's moments, one number a prompt, (P,)."""

    second: Array  # E|g|^2
    signal: Array  # |E g|^2
    reference: Array  # |grad E r|^2
    cross: Array  # <E g, grad E r>
    error: Array  # |E g - grad E r|^2

    @property
    def trace(self) -> Array:
        """tr Cov(g) = E|g|^2 - |E g|^2."""
        return self.second - self.signal

    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        """The prompts of all parts, one after another."""
        return cls(*(np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(cls)))


@dataclass(frozen=True, eq=False)
class Row:
    """One estimator at one group size. Every measure is a property; `interval` is for fresh prompts, 95 %.

    `effective_sample_size` is (sum w)^2 / sum w^2 of the baseline's weights, a mean over groups; None without a
    baseline of weights.
    """

    name: str
    group_size: int
    moments: Moments
    counts_BP: Array
    effective_sample_size: float | None = None

    @property
    def trace_cov(self) -> float:
        return float(self.moments.trace.mean())

    @property
    def signal(self) -> float:
        return float(self.moments.signal.mean())

    @property
    def relative_variance(self) -> float:
        return _ratio(self.trace_cov, self.signal)

    @property
    def snr(self) -> float:
        return 1 / self.relative_variance if self.relative_variance > 0 else np.inf

    @property
    def noise_scale(self) -> float:
        return self.group_size * self.relative_variance

    @property
    def cosine(self) -> float:
        return self._cosine()[0]

    @property
    def bias(self) -> float:
        return _root(self._over_reference(self.moments.error))

    @property
    def mse(self) -> float:
        return self._over_reference(self.moments.trace + self.moments.error)

    @property
    def mse_rescaled(self) -> float:
        return self._mse_rescaled()[0]

    @property
    def resolved(self) -> bool:
        """Whether the signal stands out of the noise: the interval of the relative variance has an upper end."""
        return bool(np.isfinite(self.interval("relative_variance")[1]))

    def interval(self, measure: str) -> Interval:
        """95 % interval of a measure, all of its range from fewer than eight prompts. Raises ValueError for an unknown measure."""
        m, counts = self.moments, self.counts_BP
        if measure == "trace_cov":
            return mean_interval(m.trace, m.second, counts)
        if measure == "signal":
            return mean_interval(m.signal, m.second, counts)
        if measure in ("relative_variance", "snr", "noise_scale"):
            low, high = ratio_interval(m.trace, m.signal, counts)
            if measure == "snr":
                return 1 / high if high > 0 else np.inf, 1 / low if low > 0 else np.inf
            return (low, high) if measure == "relative_variance" else (self.group_size * low, self.group_size * high)
        if measure == "cosine":
            return self._cosine()[1]
        if measure == "bias":
            return bias_interval(m, counts)
        if measure == "mse":
            return ratio_interval(m.trace + m.error, m.reference, counts)
        if measure == "mse_rescaled":
            return self._mse_rescaled()[1]
        raise ValueError(f"measure {measure!r} is unknown: choose from {', '.join(MEASURES)}")

    def _over_reference(self, values_P: Array) -> float:
        """mean(values) / R, known exactly where the values are proportional to it prompt by prompt."""
        constant = proportionality(values_P, self.moments.reference)
        return _ratio(float(values_P.mean()), float(self.moments.reference.mean())) if constant is None else constant

    def _cosine(self) -> tuple[float, Interval]:
        m = self.moments
        scale = proportionality(m.cross, m.reference)
        if scale and proportionality(m.signal, m.cross):  # g is a multiple of an unbiased estimate
            sign = float(np.sign(scale))
            return sign, (sign, sign)
        value = float(np.sign(m.cross.mean())) * _root(self._explained(m.signal))
        if value <= 0:
            return value, (-1.0, 1.0)
        low, high = self._explained_interval(m.signal, COSINE)
        return value, (_root(low), _root(high))

    def _mse_rescaled(self) -> tuple[float, Interval]:
        low, high = self._explained_interval(self.moments.second, RATIO)
        return 1 - self._explained(self.moments.second), (1 - high, 1 - low)

    def _explained(self, norm_P: Array) -> float:
        """X^2 / (R n), the share of grad E r along g where n is |E g|^2 or E|g|^2; 0 where R or n is not above zero."""
        cross, reference, norm = (x.mean() for x in (self.moments.cross, self.moments.reference, norm_P))
        return float(min(cross**2 / (reference * norm), 1.0)) if min(reference, norm) > 0 else 0.0

    def _explained_interval(self, norm_P: Array, tails: Tails) -> Interval:
        m = self.moments
        if min(m.reference.mean(), norm_P.mean()) <= 0:
            return 0.0, 1.0
        explained_P = product_of_means(m.cross, m.cross, over=m.reference)
        low, high = ratio_interval(explained_P, norm_P, self.counts_BP, tails=tails)
        return min(low, 1.0), min(high, 1.0)


def bias_interval(moments: Moments, counts_BP: Array, level: float = 0.95) -> Interval:
    """Interval of |E g - grad J| / |grad J|."""
    low, high = ratio_interval(moments.error, moments.reference, counts_BP, level, tails=BIAS)
    return _root(low), _root(high)


def _ratio(numerator: float, denominator: float) -> float:
    return max(numerator, 0.0) / denominator if denominator > 0 else np.inf


def _root(value: float) -> float:
    return float(np.sqrt(max(value, 0.0)))
