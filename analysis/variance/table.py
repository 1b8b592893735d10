"""A table of estimators measured on the same groups, and their differences from one of them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from analysis.variance.intervals import (
    COMPARISON,
    Array,
    holm,
    if_enough,
    product_of_means,
    proportionality,
    ratio_interval,
    ratio_p_value,
)
from analysis.variance.moments import MEASURES, Interval, Moments, Row
from analysis.variance.text import interval_text

_ROUNDING = 1e-9
COMPARABLE = ("relative_variance", "trace_cov")


@dataclass(frozen=True)
class Difference:
    """An estimator's measure over the reference's: `ratio` with its 95 % interval; 1 is no difference.

    `p_value` is of a ratio of 1, two-sided; `p_holm` holds for all differences of the table together. Where a signal is
    not above zero the ratio is not known: inf, with the interval (0, inf) and a p-value of 1.
    """

    name: str
    reference: str
    measure: str
    ratio: float
    interval: Interval
    p_value: float
    p_holm: float

    @property
    def resolved(self) -> bool:
        """Whether the interval leaves out 1, by more than rounding."""
        return self.interval[0] > 1 + _ROUNDING or self.interval[1] < 1 - _ROUNDING


@dataclass(frozen=True, eq=False)
class Table:
    """Rows by name, in the order asked for; all intervals come from the same resamples of the same prompts."""

    rows: Mapping[str, Row]

    def __getitem__(self, name: str) -> Row:
        if name not in self.rows:
            raise KeyError(f"estimator {name!r} is not in this table: it has {', '.join(self.rows)}")
        return self.rows[name]

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows.values())

    def __len__(self) -> int:
        return len(self.rows)

    def against(self, reference: str, measure: str = "relative_variance") -> list[Difference]:
        """Every other estimator's measure over the reference's, paired prompt by prompt, with Holm's correction.

        `measure` is relative_variance or trace_cov. The ratio of traces means something only between estimators of the
        same mean: for two unbiased ones it is the ratio of relative variances, and needs no resolved signal.
        """
        if measure not in COMPARABLE:
            raise ValueError(f"measure {measure!r} cannot be compared as a ratio: choose from {', '.join(COMPARABLE)}")
        base = self[reference]
        ratios = [(row.name, *ratio_between(row, base, measure)) for row in self if row.name != reference]
        adjusted = holm([p for *_, p in ratios])
        return [
            Difference(name, reference, measure, ratio, interval, p, float(p_holm))
            for (name, ratio, interval, p), p_holm in zip(ratios, adjusted, strict=True)
        ]

    def to_dicts(self) -> list[dict[str, Any]]:
        """One record for each estimator and measure: estimator, group_size, measure, value, low, high, resolved."""
        records = []
        for row in self:
            for measure in MEASURES:
                low, high = if_enough(row.interval(measure), len(row.moments.second))
                place = {"estimator": row.name, "group_size": row.group_size, "measure": measure}
                value = getattr(row, measure)
                resolved = bool(np.isfinite([value, low, high]).all())
                records.append({**place, "value": value, "low": low, "high": high, "resolved": resolved})
        return records

    def __str__(self) -> str:
        shown = ("relative_variance", "bias", "cosine", "mse_rescaled")
        lines = [f"{'estimator':<26}" + "".join(f"{measure:>30}" for measure in shown)]
        for row in self:
            cells = [interval_text(getattr(row, m), *row.interval(m)) for m in shown]
            lines.append(f"{row.name:<26}" + "".join(f"{cell:>30}" for cell in cells))
        return "\n".join(lines)


def ratio_between(row: Row, base: Row, measure: str) -> tuple[float, Interval, float]:
    """Ratio of a measure of two rows of the same prompts, its interval and its p-value."""
    terms = comparison_terms(row.moments, base.moments, measure)
    p_value = ratio_p_value(*terms, row.counts_BP, tails=COMPARISON)
    return ratio_value(*terms), terms_interval(*terms, row.counts_BP), p_value


def ratio_value(numerator_P: Array, denominator_P: Array) -> float:
    """The ratio of means of `comparison_terms`, known exactly where they are proportional; inf where it is not known."""
    constant, mean = proportionality(numerator_P, denominator_P), float(denominator_P.mean())
    if constant is not None and denominator_P.any():
        return constant
    return max(float(numerator_P.mean()), 0.0) / mean if mean > 0 else np.inf


def terms_interval(numerator_P: Array, denominator_P: Array, counts_BP: Array, level: float = 0.95) -> Interval:
    """Its interval for fresh prompts."""
    return ratio_interval(numerator_P, denominator_P, counts_BP, level, tails=COMPARISON)


def comparison_terms(own: Moments, base: Moments, measure: str) -> tuple[Array, Array]:
    """x and y, one number a prompt, whose means have the ratio of the two measures; y = 0 where it is not known.

    T / S over T' / S' is E[x] / E[y] with x = T and y the pseudo-values of T' S / S'. The signals' noise nearly cancels in
    S / S', so that y is about as certain as T', and two estimators can be told apart whose signals are faint.
    """
    if measure == "trace_cov":
        return own.trace, base.trace
    means = own.signal.mean(), base.signal.mean()
    if min(means) <= 0 and (not all(means) or proportionality(own.signal, base.signal) is None):
        return own.trace, np.zeros_like(own.trace)
    return own.trace, product_of_means(base.trace, own.signal, over=base.signal)


def table_of(
    moments: Mapping[str, Moments],
    group_size: int,
    counts_BP: Array,
    sample_sizes: Mapping[str, float | None] | None = None,
) -> Table:
    """A table from moments by name, however they were measured; `counts_BP` from `analysis.variance.intervals.resample_counts`."""
    sizes = sample_sizes or {}
    return Table({name: Row(name, group_size, m, counts_BP, sizes.get(name)) for name, m in moments.items()})
