"""Intervals of rates over prompts hold the truth near the edges too, and are no wider than a count of prompts allows."""

from typing import Any

import numpy as np
import pytest
from scipy.stats import beta, betabinom
from scipy.stats import t as student

from analysis.evaluation.intervals import difference_interval, p_value, rate_interval
from analysis.evaluation.measures import pass_at_k

RESPONSES, SAMPLES = 16, 1000
CHANCE = np.array([[pass_at_k(c, RESPONSES, k) for c in range(RESPONSES + 1)] for k in (1, 4, 16)])  # (k, correct)


def population(mean, concentration) -> Any:
    """How many of the responses to a prompt are correct, where its chance is Beta-distributed."""
    return betabinom(RESPONSES, mean * concentration, (1 - mean) * concentration)


@pytest.mark.parametrize("prompts", [24, 64])
@pytest.mark.parametrize("mean", [0.02, 0.1, 0.5, 0.9, 0.98])
@pytest.mark.parametrize("concentration", [0.3, 2.0])
def test_coverage(prompts, mean, concentration):
    """pass@1, pass@4 and pass@16 from near 0 to near 1; the binomial error of 1000 samples is 0.7 %."""
    rng, correct = np.random.default_rng(prompts), population(mean, concentration)
    drawn_SP = correct.rvs((SAMPLES, prompts), random_state=rng)
    truth_K = CHANCE @ correct.pmf(np.arange(RESPONSES + 1))  # pyright: ignore[reportAttributeAccessIssue]
    for values_C, truth in zip(CHANCE, truth_K, strict=True):
        if not 0.01 < truth < 0.99:
            continue
        intervals = [rate_interval(values_P) for values_P in values_C[drawn_SP]]
        held = np.mean([low <= truth <= high for low, high in intervals])
        assert held >= 0.925, (truth, held)
        assert all(0 <= low <= high <= 1 for low, high in intervals)


@pytest.mark.parametrize("concentration", [0.5, 2.0])
@pytest.mark.parametrize(("own", "base"), [(0.5, 0.4), (0.95, 0.9), (0.98, 0.98), (0.05, 0.02)])
def test_coverage_of_paired_differences(own, base, concentration):
    """Two policies that find the same prompts hard: the chances of a prompt share their rank."""
    rng, samples = np.random.default_rng(3), 600
    rank_SP = rng.random((samples, 48))
    values = []
    for mean in (own, base):
        chance_SP = beta(mean * concentration, (1 - mean) * concentration).ppf(rank_SP)
        values.append(rng.binomial(RESPONSES, chance_SP) / RESPONSES)
    intervals = [difference_interval(*pair) for pair in zip(*values, strict=True)]
    held = np.mean([low <= own - base <= high for low, high in intervals])
    assert held >= 0.92


def test_one_failure_in_64_prompts_is_not_everything_from_zero_to_one():
    values_P = np.array([1.0] * 63 + [0.0])
    low, high = rate_interval(values_P)
    assert (low, high) == pytest.approx((0.916, 0.997), abs=0.002)
    # the textbook's score interval, with Student's t
    z2 = student.ppf(0.975, 63) ** 2
    for end in (low, high):
        assert (63 / 64 - end) ** 2 == pytest.approx(z2 * end * (1 - end) / 64, rel=1e-9)


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_what_never_happened_is_not_proved_impossible(rate):
    low, high = rate_interval(np.full(60, rate))
    reach = max(high - rate, rate - low)
    assert min(high - rate, rate - low) == 0
    assert 1 - 0.025 ** (1 / 60) < reach < 0.07  # Clopper and Pearson's bound, and little more


def test_an_interval_is_never_wider_than_that_of_a_count_of_prompts():
    """A prompt's mean over responses says at least as much as one of its responses."""
    rng = np.random.default_rng(0)
    for _ in range(200):
        values_P = rng.beta(*rng.uniform(0.1, 5, 2), size=24)
        mean, z2 = values_P.mean(), student.ppf(0.975, 23) ** 2 / 24
        low, high = rate_interval(values_P)
        half = np.sqrt(z2 * mean * (1 - mean) + z2**2 / 4) / (1 + z2)
        assert high - low <= 2 * half + 1e-12
        assert low < mean < high
    narrow, wide = (rate_interval(0.5 + spread * rng.uniform(-0.5, 0.5, 24)) for spread in (0.2, 1.0))
    assert narrow[1] - narrow[0] < 0.5 * (wide[1] - wide[0])


def test_p_value_is_the_level_at_which_the_interval_ends_at_zero():
    rng = np.random.default_rng(2)
    own_P, base_P = rng.beta(4, 2, 32), rng.beta(2, 2, 32)
    p = p_value(lambda level: difference_interval(own_P, base_P, level))
    assert difference_interval(own_P, base_P, 1 - p)[0] == pytest.approx(0, abs=2e-3)
    assert p_value(lambda _: (-1.0, 1.0)) == 1.0
    assert p_value(lambda _: (0.1, 1.0)) == 1e-6
    assert difference_interval(np.ones(9), np.ones(9)) == pytest.approx((-0.32, 0.32), abs=0.06)
