"""Intervals over prompts: their coverage, their exact cases, agreement with tests, and Holm's correction."""

import numpy as np
import pytest
from interval_coverage import bank, coverage
from scipy.stats import t as student

from analysis.variance.intervals import (
    COMPARISON,
    COSINE,
    FEWEST,
    RATIO,
    Tails,
    critical_values,
    holm,
    if_enough,
    lognormal_t,
    mean_interval,
    product_of_means,
    proportionality,
    ratio_interval,
    ratio_misses,
    ratio_p_value,
    resample_counts,
    studentised_means,
)

PROMPTS = 24


def sample(rng, scale, prompts=PROMPTS):
    """Traces and signals of prompts that differ log-normally in scale: means 2 and 1 times E[factor]."""
    factor_P = np.exp(scale * rng.normal(size=prompts))
    trace_P = factor_P * (2 + 0.6 * rng.normal(size=prompts))
    signal_P = factor_P * (1 + 0.8 * rng.normal(size=prompts))
    return trace_P, signal_P


def held(interval, truth):
    return interval[0] <= truth <= interval[1]


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0])
def test_ratio_interval_covers_at_two_dozen_prompts_where_the_percentile_does_not(scale):
    rng, mine, percentile = np.random.default_rng(1), [], []
    counts_BP = resample_counts(PROMPTS, 600, rng)
    for _ in range(1500):
        trace_P, signal_P = sample(rng, scale)
        mine.append(held(ratio_interval(trace_P, signal_P, counts_BP), 2.0))
        ratio_B = (counts_BP @ trace_P) / (counts_BP @ signal_P)
        percentile.append(held(np.quantile(ratio_B, [0.025, 0.975]), 2.0))
    assert 0.935 <= np.mean(mine) <= 0.98
    assert np.mean(percentile) < np.mean(mine)


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 2.0])
def test_interval_of_a_mean_covers_at_two_dozen_prompts_of_log_normal_scale(scale):
    """A positive moment and a signed one, each proportional to the prompt's scale; at 2.0 resampling alone covers 80 %."""
    rng, traces, signals = np.random.default_rng(2), [], []
    counts_BP = resample_counts(PROMPTS, 300, rng)
    mean_scale = np.exp(scale**2 / 2)
    for _ in range(1000):
        trace_P, signal_P = sample(rng, scale)
        traces.append(held(mean_interval(trace_P, trace_P + signal_P, counts_BP), 2 * mean_scale))
        signals.append(held(mean_interval(signal_P, trace_P + signal_P, counts_BP), mean_scale))
    # 93 to 97 %, and the 0.7 % of error that 1000 replicates have
    assert 0.923 <= np.mean(traces) <= 0.977
    assert 0.923 <= np.mean(signals) <= 0.977


def test_studentised_means_of_log_normal_samples_are_students_where_the_deviation_is_small_and_skewed_where_not():
    t_B = lognormal_t(1e-4, 1.0, PROMPTS, 1000, 20_000)
    for level in (0.025, 0.2, 0.975):
        assert np.quantile(t_B, level) == pytest.approx(student.ppf(level, PROMPTS - 1), abs=0.05)
    rng = np.random.default_rng(7)
    x = np.exp(1.5 * rng.normal(size=(20_000, PROMPTS))) * (rng.random((20_000, PROMPTS)) < 0.7)
    t = (x.mean(1) - 0.7 * np.exp(1.5**2 / 2)) / (x.std(1, ddof=1) / np.sqrt(PROMPTS))
    known = lognormal_t(1.5, 0.7, PROMPTS, 10**6, 20_000)
    np.testing.assert_allclose(np.quantile(known, [0.025, 0.975]), np.quantile(t, [0.025, 0.975]), rtol=0.05)


def test_interval_of_a_mean_does_not_depend_on_the_unit_or_on_prompts_that_vanish_up_to_rounding():
    rng = np.random.default_rng(8)
    counts_BP, (x, _) = resample_counts(PROMPTS, 400, rng), sample(rng, 1.5)
    x[:3] = 0
    expected = mean_interval(x, x, counts_BP)
    assert mean_interval(1e9 * x, 1e9 * x, counts_BP) == pytest.approx((1e9 * expected[0], 1e9 * expected[1]), rel=1e-9)
    x[:3] = 1e-25
    assert mean_interval(x, x, counts_BP) == pytest.approx(expected, rel=1e-9)
    assert mean_interval(np.full(5, 2.0), np.ones(5), resample_counts(5, 9, rng)) == (2.0, 2.0)
    assert mean_interval(np.ones(1), np.ones(1), resample_counts(1, 9, rng)) == (-np.inf, np.inf)
    for prompts in range(2, FEWEST):
        x = rng.exponential(size=prompts)
        assert mean_interval(x, x, resample_counts(prompts, 200, rng)) == (-np.inf, np.inf)


def test_interval_of_a_mean_of_many_normal_values_is_students():
    rng = np.random.default_rng(0)
    x = rng.normal(1.0, 2.0, size=400)
    counts_BP = resample_counts(400, 20_000, rng)
    low, high = ratio_interval(x, np.ones(400), counts_BP, nonnegative=False)
    assert mean_interval(x, 1 + rng.random(400), counts_BP) == pytest.approx((low, high), abs=0.05 * (high - low))
    half = student.ppf(0.975, 399) * x.std(ddof=1) / 20
    assert low == pytest.approx(x.mean() - half, abs=0.05 * half)
    assert high == pytest.approx(x.mean() + half, abs=0.05 * half)


@pytest.mark.parametrize("shift", [1.0, 0.15, -0.1])
def test_ratio_interval_is_the_set_of_accepted_ratios(shift):
    """Against a scan over theta of the studentised test, with a clear, a doubtful and a negative denominator."""
    rng = np.random.default_rng(3)
    x, y = rng.normal(2, 1, PROMPTS), rng.normal(shift, 0.4, PROMPTS)
    counts_BP = resample_counts(PROMPTS, 999, rng)
    low, high = ratio_interval(x, y, counts_BP)
    residual = x - x.mean() / y.mean() * y if y.mean() > 0 else -y
    q_low, q_high = critical_values(studentised_means(residual, counts_BP), PROMPTS, 0.95, RATIO)
    theta = np.concatenate([np.linspace(0, 50, 50_001), np.geomspace(50, 1e6, 2000)])
    difference = x - theta[:, None] * y
    t = difference.mean(1) / (difference.std(1, ddof=1) / np.sqrt(PROMPTS))
    accepted = theta[(t >= q_low) & (t <= q_high)]
    assert low == pytest.approx(accepted[0], abs=2e-3)
    assert (high == np.inf) == (accepted[-1] == theta[-1])
    if high < np.inf:
        assert high == pytest.approx(accepted[-1], abs=2e-3)
    else:
        assert shift < 1


def test_an_interval_excludes_one_exactly_when_the_p_value_is_below_its_alpha():
    rng = np.random.default_rng(4)
    counts_BP = resample_counts(PROMPTS, 999, rng)
    decisions = []
    for effect in np.linspace(0, 0.5, 60):
        y = np.exp(rng.normal(size=PROMPTS))
        x = y * (1 + effect + 0.5 * rng.normal(size=PROMPTS))
        out = not held(ratio_interval(x, y, counts_BP), 1.0)
        decisions.append(out)
        assert out == (ratio_p_value(x, y, counts_BP) < 0.05)
    assert 10 < sum(decisions) < 50


def test_p_values_are_uniform_where_there_is_no_difference():
    rng = np.random.default_rng(5)
    counts_BP = resample_counts(PROMPTS, 399, rng)
    p = [ratio_p_value(sample(rng, 0.5)[0], sample(rng, 0.5)[0], counts_BP) for _ in range(800)]
    for alpha in (0.05, 0.2, 0.5):
        assert np.mean(np.array(p) < alpha) == pytest.approx(alpha, abs=0.055)


def test_what_is_known_exactly_has_no_interval_and_what_is_unknown_has_no_end():
    rng = np.random.default_rng(0)
    counts_BP, y = resample_counts(5, 200, rng), np.array([1.0, -3.0, 0.5, 0.2, 0.1])
    assert ratio_interval(y / 64, y, counts_BP) == (1 / 64, 1 / 64)
    assert ratio_interval(0 * y, y, counts_BP) == (0.0, 0.0)
    assert ratio_interval(0 * y, 0 * y, counts_BP) == (0.0, np.inf)
    assert ratio_p_value(y, y, counts_BP) == 1.0
    assert ratio_p_value(2 * y, y, counts_BP) == pytest.approx(2 / 201)
    assert proportionality(np.array([1.0, 2.0]), np.array([1.0, 2.1])) is None
    one = resample_counts(1, 200, rng)
    assert ratio_interval(np.array([1.0]), np.array([2.0]), one) == (0.0, np.inf)
    assert ratio_p_value(np.array([1.0]), np.array([2.0]), one) == 1.0


@pytest.mark.parametrize("prompts", [2, 3, 7])
def test_fewer_than_eight_prompts_have_no_interval(prompts):
    rng = np.random.default_rng(0)
    counts_BP = resample_counts(prompts, 2000, rng)
    assert ratio_interval(*sample(rng, 0.0, prompts), counts_BP) == (0.0, np.inf)
    assert ratio_p_value(*sample(rng, 0.0, prompts), counts_BP) == 1.0
    assert if_enough((0.5, 2.0), prompts) == (-np.inf, np.inf)
    assert if_enough((0.5, 0.5), prompts) == (0.5, 0.5)  # known without data
    assert if_enough((0.5, 2.0), FEWEST) == (0.5, 2.0)


@pytest.mark.parametrize("tails", [RATIO, COMPARISON, COSINE])
def test_what_a_simulation_misses_is_what_lies_outside_the_interval(tails):
    rng = np.random.default_rng(11)
    counts_BP = resample_counts(PROMPTS, 300, rng)
    pairs = [sample(rng, 0.5) for _ in range(40)]
    x_RP, y_RP = (np.stack(rows) for rows in zip(*pairs, strict=True))
    for theta in (1.0, 1.9, 2.0, 2.6):
        ends = [ratio_interval(x, y, counts_BP, tails=tails) for x, y in pairs]
        expected = [(theta > high) - (theta < low) for low, high in ends]
        assert ratio_misses(x_RP, y_RP, counts_BP, theta, tails=tails).tolist() == expected


def test_tails_move_outwards():
    t_B = np.sort(np.random.default_rng(0).gamma(4.0, size=4000)) / 2 - 2  # the ratio of its tails is below the longest
    low, high = critical_values(t_B, PROMPTS, 0.95, Tails(towards_student=0.0))
    longer = critical_values(t_B, PROMPTS, 0.95, Tails(towards_student=0.0, lean=1.0))
    assert longer == pytest.approx((low, high * high / -low))
    cosine = critical_values(t_B, PROMPTS, 0.95, Tails(towards_student=0.0, low=0.1, high=0.4, high_as_student=True))
    assert cosine == pytest.approx((1.1 * low, 1.4 * max(high, student.ppf(0.975, PROMPTS - 1))))
    many = critical_values(t_B, 100 * PROMPTS, 0.95, Tails(towards_student=0.0, low=0.1))
    assert many == pytest.approx((1.01 * low, high))


def check_coverage(scales, group_sizes, prompt_counts, replicates, least, most):
    for group_size in group_sizes:
        found = bank(600 if replicates < 1000 else 3000, group_size)
        for prompts in prompt_counts:
            for scale in scales:
                share = coverage(found, group_size, prompts, scale, replicates)
                low, high = (f(share.items(), key=lambda item: item[1]) for f in (min, max))
                assert low[1] >= least, (group_size, prompts, scale, low)
                assert high[1] <= most, (group_size, prompts, scale, high)


def test_every_kind_of_interval_covers():
    """A small part of tests/benchmarks/bench_coverage.py; 400 replicates have an error of 1.1 %."""
    check_coverage((0.5,), (8,), (24,), 400, 0.905, 0.995)


@pytest.mark.prove
def test_every_kind_of_interval_covers_at_all_scales():
    """93 to 99.3 %, and three times the error of 1500 replicates, 0.6 and 0.2 %."""
    check_coverage((0.0, 0.5, 1.0), (2, 8), (24, 48), 1500, 0.912, 0.998)


def test_product_of_means_has_its_value_and_the_spread_of_the_delta_method():
    rng = np.random.default_rng(6)
    x, y = rng.normal(3, 1, 50), rng.normal(2, 0.5, 50)
    product = product_of_means(x, y)
    assert product.mean() == pytest.approx(x.mean() * y.mean(), rel=1e-12)
    np.testing.assert_allclose(
        product - product.mean(), (x - x.mean()) * y.mean() + x.mean() * (y - y.mean()), rtol=1e-9
    )
    np.testing.assert_allclose(product_of_means(x, x), 2 * x.mean() * x - x.mean() ** 2, rtol=1e-12)
    np.testing.assert_allclose(product_of_means(x, y, over=y), x, rtol=1e-12)
    np.testing.assert_allclose(product_of_means(x, over=y).mean(), x.mean() / y.mean(), rtol=1e-12)
    influence = x / y.mean() - x.mean() * y / y.mean() ** 2
    np.testing.assert_allclose(product_of_means(x, over=y), x.mean() / y.mean() + influence, rtol=1e-9)


def test_holm():
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm([0.6, 0.9]), [1.0, 1.0])
    assert holm([]).size == 0


def test_same_generator_same_resamples():
    first, second = (resample_counts(7, 50, np.random.default_rng(9)) for _ in range(2))
    assert (first == second).all()
    assert (first.sum(1) == 7).all()
