"""The variance meter against slow twins with gradients in full, against enumerated populations, and at the edges."""

from dataclasses import fields, replace
from functools import cache

import numpy as np
import pytest
from measured import CONTRACT, scored_pool, study_pools, values

from analysis.variance.compare import compare
from analysis.variance.estimators import Estimator, Groups, resolve
from analysis.variance.exact import exact_moments, softmax_bandit, tabular
from analysis.variance.intervals import resample_counts
from analysis.variance.moments import Moments, Row
from analysis.variance.partition import compositions, partitions


def explicit_moments(groups_a_D, reference_a_D):
    """The five moments by their definition, from gradients of disjoint groups in full."""
    g, u = np.asarray(groups_a_D), np.asarray(reference_a_D)
    pairs = [(a, b) for a in range(len(g)) for b in range(len(g)) if a != b]
    second = np.mean([x @ x for x in g])
    signal, reference, cross = (np.mean([x[a] @ y[b] for a, b in pairs]) for x, y in ((g, g), (u, u), (g, u)))
    error = np.mean([(g[a] - u[a]) @ (g[b] - u[b]) for a, b in pairs])
    trace = np.mean([(g[a] - g[b]) @ (g[a] - g[b]) / 2 for a, b in pairs])
    assert trace == pytest.approx(second - signal, rel=1e-10)
    return second, signal, reference, cross, error


@pytest.mark.parametrize("group_size", [2, 3, 8])
def test_moments_are_those_of_explicit_gradients(group_size):
    pool, scores = scored_pool(np.random.default_rng(1))
    table = compare([pool], group_size, CONTRACT, np.random.default_rng(7), num_bootstrap=1, num_partitions=3)
    index_MBG = partitions(len(pool), group_size, 3, np.random.default_rng(7))
    for name in CONTRACT:
        expected = []
        for index_BG in index_MBG:
            seen = [x[index_BG] for x in (pool.rewards, pool.lengths, np.diag(pool.gram), pool.logit_energy)]
            A, U = (resolve([n])[0].weights(Groups(*seen)) for n in (name, "leave_one_out"))
            g, u = (np.einsum("bg,bgd->bd", w, scores[index_BG]) / group_size for w in (A, U))
            expected.append(explicit_moments(g, u))
        found = [getattr(table[name].moments, field.name)[0] for field in fields(Moments)]
        np.testing.assert_allclose(found, np.mean(expected, axis=0), rtol=1e-9, atol=1e-12, err_msg=name)


def test_identities_hold_in_every_digit_that_counts():
    table = compare(study_pools(), 6, CONTRACT, np.random.default_rng(0), num_bootstrap=200)
    mean, loo = table["group_mean"], table["leave_one_out"]
    assert mean.trace_cov == pytest.approx((5 / 6) ** 2 * loo.trace_cov, rel=1e-12)
    for measure in ("relative_variance", "snr", "noise_scale", "mse_rescaled"):
        assert getattr(mean, measure) == pytest.approx(getattr(loo, measure), rel=1e-12)
        assert mean.interval(measure) == pytest.approx(loo.interval(measure), rel=1e-9)
    assert (loo.bias, loo.interval("bias")) == (0.0, (0.0, 0.0))
    assert (mean.bias, mean.cosine, loo.cosine) == pytest.approx((1 / 6, 1, 1), rel=1e-12)
    assert mean.interval("bias") == pytest.approx((1 / 6, 1 / 6), rel=1e-12)
    assert mean.interval("cosine") == (1.0, 1.0)
    pairs = compare(study_pools(), 2, CONTRACT, np.random.default_rng(0), num_bootstrap=1)
    for name in CONTRACT:
        if name.endswith("_loo"):
            assert values(pairs[name]) == pytest.approx(values(pairs["leave_one_out"]), rel=1e-9, abs=1e-9)


def test_measures_are_the_functions_of_means_that_they_are_said_to_be():
    row = compare(study_pools(), 4, ["length_weighted"], np.random.default_rng(0), num_bootstrap=1)["length_weighted"]
    m = row.moments
    T, S, R, X, D = (float(x.mean()) for x in (m.second - m.signal, m.signal, m.reference, m.cross, m.error))
    expected = {
        "trace_cov": T,
        "signal": S,
        "relative_variance": T / S,
        "snr": S / T,
        "noise_scale": 4 * T / S,
        "cosine": min(X / np.sqrt(S * R), 1),  # an estimate can exceed what a cosine can be
        "bias": np.sqrt(D / R),
        "mse": (T + D) / R,
        "mse_rescaled": 1 - X**2 / (R * (T + S)),
    }
    assert values(row) == pytest.approx(expected, rel=1e-12)
    best = min((c**2 * (T + S) - 2 * c * X + R) / R for c in np.linspace(0, 2, 2001))
    assert row.mse_rescaled == pytest.approx(best, abs=1e-5)


@cache
def two_prompts():
    """Fifteen responses and four; rewards and lengths depend on each other, scores on both."""
    first = tabular(3, 3, lambda y: 0.5 * (len(y) % 2) + 0.5 * (y[-1] != 2), np.random.default_rng(3))
    return [first, softmax_bandit([0.4, -0.2, 0.3, 0.0], [1, 0, 0, 0.5], lengths=[2, 9, 4, 1])]


def assert_mean_is(found, exact, sigmas=4.5):
    """Each moment's mean over many pools is its exact value, within its standard error."""
    for field in fields(Moments):
        values_P, truth = getattr(found, field.name), getattr(exact, field.name)[0]
        error = values_P.std(ddof=1) / np.sqrt(len(values_P))
        assert abs(values_P.mean() - truth) <= sigmas * error + 1e-12 * (1 + abs(truth)), field.name


@pytest.mark.parametrize("which", [0, 1])
def test_moments_are_unbiased_for_the_enumerated_population(which):
    population, rng = two_prompts()[which], np.random.default_rng(5)
    pools = [population.sample(24, rng) for _ in range(800)]
    table = compare(pools, 4, CONTRACT, rng, num_bootstrap=1, num_partitions=4)
    for name in CONTRACT:
        assert_mean_is(table[name].moments, exact_moments([population], name, 4))


def test_bias_of_the_trace_is_below_one_per_cent_at_64_responses():
    rng, names = np.random.default_rng(6), ["none", "leave_one_out", "length_weighted"]
    pools = [population.sample(64, rng) for population in two_prompts() * 1000]
    table = compare(pools, 4, names, rng, num_bootstrap=1, num_partitions=4)
    for name in names:
        truth = exact_moments(two_prompts(), name, 4).trace.mean()
        assert table[name].trace_cov == pytest.approx(truth, rel=0.01), name


@pytest.mark.parametrize("scale", [0.0, 0.5])
def test_intervals_of_the_whole_chain_hold_the_truth_for_fresh_prompts(scale):
    """Replicates of 24 prompts from a bank of enumerable ones; tests/benchmarks/bench_coverage.py is the long form."""
    rng, held = np.random.default_rng(8), []
    bank = []
    for _ in range(450):
        rewards = rng.permutation(np.arange(5) < rng.integers(1, 5))
        prompt = softmax_bandit(rng.normal(size=5), rewards, lengths=rng.integers(1, 12, 5))
        bank.append(replace(prompt, scores=prompt.scores * np.exp(scale * rng.normal())))
    found = compare([p.sample(64, rng) for p in bank], 4, ["length_weighted"], rng, num_bootstrap=1, num_partitions=10)
    found, exact = found["length_weighted"].moments, exact_moments(bank, "length_weighted", 4)
    truth = Row("", 4, exact, np.ones((1, 450)))
    counts_BP = resample_counts(24, 400, rng)
    for _ in range(300):
        chosen = rng.choice(450, 24, replace=False)
        some = Moments(*(getattr(found, field.name)[chosen] for field in fields(Moments)))
        low, high = Row("", 4, some, counts_BP).interval("relative_variance")
        held.append(low <= truth.relative_variance <= high)
    assert 0.925 <= np.mean(held) <= 0.985  # 95 % within two standard errors of 300 replicates


@pytest.mark.parametrize("name", ["shrinkage", "batch_mean"])
def test_estimators_that_couple_prompts_are_unbiased_for_the_enumerated_batch(name):
    rng, found = np.random.default_rng(9), []
    for _ in range(250):
        pools = [population.sample(10, rng) for population in two_prompts()]
        table = compare(pools, 2, [name], rng, num_bootstrap=1, num_partitions=2, prompts_per_batch=2)
        found.append(table[name].moments)
    exact = exact_moments(two_prompts(), name, 2)
    for p in range(2):
        own = Moments(*(np.array([getattr(moments, f.name)[p] for moments in found]) for f in fields(Moments)))
        truth = Moments(*(getattr(exact, f.name)[p : p + 1] for f in fields(Moments)))
        assert_mean_is(own, truth)


def test_every_prompt_is_in_a_batch_of_its_own_once_and_batches_hold_different_prompts():
    batches_MbP = compositions(7, 3, 50, np.random.default_rng(0))
    assert batches_MbP.shape == (50, 3, 3)
    for batches_bP in batches_MbP:
        assert set(batches_bP.ravel()[:7]) == set(range(7))
        assert all(len(set(batch)) == 3 for batch in batches_bP)


def test_a_coupled_estimator_that_looks_at_one_prompt_alone_is_measured_like_an_uncoupled_one():
    (loo,) = resolve(["leave_one_out"])
    alike = Estimator("coupled", loo.weights, couples_prompts=True)
    table = compare(study_pools(), 4, [loo, alike], np.random.default_rng(0), num_bootstrap=1, prompts_per_batch=5)
    assert values(table["coupled"]) == pytest.approx(values(table["leave_one_out"]), rel=1e-10, abs=1e-12)


def test_a_measure_that_there_is_not_is_refused():
    row = compare(study_pools(), 4, ["none"], np.random.default_rng(0), num_bootstrap=1)["none"]
    with pytest.raises(ValueError, match="unknown: choose from trace_cov"):
        row.interval("variance")


def test_tables_that_are_given_resamples_use_them():
    counts_BP = resample_counts(len(study_pools()), 300, np.random.default_rng(5))
    tables = [compare(study_pools(), 4, ["none"], np.random.default_rng(0), counts_BP=counts_BP) for _ in range(2)]
    other = compare(study_pools(), 4, ["none"], np.random.default_rng(0), num_bootstrap=300)
    assert len({table["none"].interval("trace_cov") for table in (*tables, other)}) == 2
