"""Enumerable policies: moments against finite differences, closed forms and full enumeration, and the toy facts."""

import itertools
from functools import cache

import numpy as np
import pytest
import torch

from analysis.variance.estimators import Groups, resolve
from analysis.variance.exact import Population, autoregressive, exact_moments, softmax_bandit, tabular

WEIGHTED = ["length_weighted", "score_norm_weighted", "logit_energy_weighted"]
UNBIASED = ["none", "leave_one_out", *(f"{name}_loo" for name in WEIGHTED)]
EVERY = [*UNBIASED, "group_mean", *WEIGHTED, "group_standardized"]


@cache
def toy() -> Population:
    """Fifteen responses of up to three tokens; half a reward for an odd number of them, half for not ending in 2."""
    return tabular(3, 3, lambda tokens: 0.5 * (len(tokens) % 2) + 0.5 * (tokens[-1] != 2), np.random.default_rng(3))


@cache
def bandit() -> Population:
    return softmax_bandit([0.5, -0.3, 0.1], [1.0, 0.0, 0.4], lengths=[2, 7, 3])


def slow_moments(population, name, group_size):
    """E g and E|g|^2 over all ordered groups, with gradients in full."""
    (estimator,) = resolve([name])
    mean, second = np.zeros(population.scores.shape[1]), 0.0
    for group in itertools.product(range(len(population.probabilities)), repeat=group_size):
        y = np.array(group)[None]
        seen = (getattr(population, field)[y] for field in ("rewards", "lengths", "score_norms", "logit_energy"))
        weights = estimator.weights(Groups(*seen))[0]
        g = weights @ population.scores[y[0]] / group_size
        chance = population.probabilities[y[0]].prod()
        mean, second = mean + chance * g, second + chance * (g @ g)
    return mean, second


@pytest.mark.parametrize("name", EVERY)
def test_moments_from_multisets_are_those_of_all_ordered_groups(name):
    population = bandit()
    mean, second = slow_moments(population, name, 4)
    moments = exact_moments([population], name, 4)
    true = population.gradient
    expected = np.array([second, mean @ mean, true @ true, mean @ true, (mean - true) @ (mean - true)])
    found = moments.second, moments.signal, moments.reference, moments.cross, moments.error
    np.testing.assert_allclose(np.concatenate(found), expected, rtol=1e-11, atol=1e-15)


def test_scores_are_centred_and_the_gradient_is_that_of_expected_reward():
    for population in (toy(), bandit()):
        np.testing.assert_allclose(population.probabilities @ population.scores, 0, atol=1e-15)
    rewards, logits, step = [1.0, 0.0, 0.4], np.array([0.5, -0.3, 0.1]), 1e-6
    moved = [[softmax_bandit(logits + s * step * e, rewards).mean_reward for s in (1, -1)] for e in np.eye(3)]
    np.testing.assert_allclose(bandit().gradient, [(up - down) / (2 * step) for up, down in moved], atol=1e-9)


def test_logit_energy_is_the_squared_score_norm_where_every_prefix_has_its_own_logits():
    np.testing.assert_allclose(toy().logit_energy, toy().score_norms, rtol=1e-12)
    assert set(toy().lengths) == {1, 2, 3}
    assert len(toy().probabilities) == 15


def test_variance_is_a_parabola_in_the_baseline_with_its_minimum_at_the_score_weighted_reward():
    p = toy()
    for b in (-1.0, 0.0, p.mean_reward, 0.9):
        expected = p.variance(p.best_baseline) + p.mean_score_norm * (b - p.best_baseline) ** 2
        assert p.variance(b) == pytest.approx(expected, rel=1e-12)
        assert np.trace(p.covariance(b)) == pytest.approx(p.variance(b), rel=1e-12)
        constant = exact_moments([p], lambda rewards, lengths, b=b: rewards - b, 3)
        assert constant.trace[0] == pytest.approx(p.variance(b) / 3, rel=1e-12)
        assert constant.error[0] == pytest.approx(0, abs=1e-28)
    covariance = p.probabilities @ (p.rewards * p.score_norms) - p.mean_reward * p.mean_score_norm
    gain = p.variance(p.mean_reward) - p.variance(p.best_baseline)
    assert gain == pytest.approx(covariance**2 / p.mean_score_norm, rel=1e-10)


@pytest.mark.parametrize("success", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("rho", [1.25, 2.0, 4.0])
def test_gain_of_the_best_baseline_with_binary_rewards(success, rho):
    """Over E[(r - mu)^2 |z|^2] it is p(1-p)(rho-1)^2 / ((p+(1-p)rho)((1-p)+p rho)), rho = wrong over right norms."""
    z = np.sqrt([success, 1 - success]) * np.array([1.0, np.sqrt(rho)])  # norms 1 and rho after division by pi
    scores = np.diag(z / np.sqrt([success, 1 - success]))
    p = Population(np.array([success, 1 - success]), scores, np.array([1.0, 0.0]), np.ones(2), np.ones(2))
    wrong = 1 - success
    expected = success * wrong * (rho - 1) ** 2 / ((success + wrong * rho) * (wrong + success * rho))
    base = p.probabilities @ ((p.rewards - p.mean_reward) ** 2 * p.score_norms)
    assert (p.variance(p.mean_reward) - p.variance(p.best_baseline)) / base == pytest.approx(expected, rel=1e-12)
    assert p.best_baseline == pytest.approx(success / (success + wrong * rho), rel=1e-12)


@pytest.mark.parametrize("group_size", [2, 3, 4])
def test_leave_one_out_has_the_closed_form_of_an_unbiased_covariance(group_size):
    p = toy()
    reward_variance = p.probabilities @ (p.rewards - p.mean_reward) ** 2
    extra = reward_variance * p.mean_score_norm + p.gradient @ p.gradient
    expected = p.variance(p.mean_reward) / group_size + extra / (group_size * (group_size - 1))
    assert exact_moments([p], "leave_one_out", group_size).trace[0] == pytest.approx(expected, rel=1e-11)


@pytest.mark.parametrize("group_size", [2, 4])
def test_who_is_biased_and_by_how_much(group_size):
    p, norm = toy(), np.linalg.norm(toy().gradient)
    for name in UNBIASED:
        assert exact_moments([p], name, group_size).error[0] == pytest.approx(0, abs=1e-24), name
    shrunken = exact_moments([p], "group_mean", group_size)
    assert np.sqrt(shrunken.error[0]) / norm == pytest.approx(1 / group_size, rel=1e-10)
    factor = (1 - 1 / group_size) ** 2
    assert shrunken.trace[0] == pytest.approx(
        factor * exact_moments([p], "leave_one_out", group_size).trace[0], rel=1e-10
    )
    for name in WEIGHTED:  # the bias of a weighted mean does not point along the gradient
        m = exact_moments([p], name, group_size)
        cosine = m.cross[0] / np.sqrt(m.signal[0] * m.reference[0])
        assert 0.9 < cosine < 1 - 1e-5, name


def test_at_two_responses_all_leave_one_out_weightings_coincide():
    plain = exact_moments([toy()], "leave_one_out", 2)
    for name in WEIGHTED:
        assert exact_moments([toy()], f"{name}_loo", 2).second[0] == pytest.approx(plain.second[0], rel=1e-12)


def test_prompts_that_are_coupled_are_enumerated_together():
    first, second = bandit(), softmax_bandit([0.2, -0.2], [0.0, 1.0], lengths=[4, 1])
    coupled = exact_moments([first, second], "shrinkage", 2)
    assert coupled.error == pytest.approx([0, 0], abs=1e-28)
    alone = exact_moments([first, second], "leave_one_out", 2)
    assert (np.abs(coupled.trace / alone.trace - 1) > 0.01).all()
    batch = resolve(["batch_mean"])[0]
    expected = 0.0
    for y in itertools.product(range(3), range(3), range(2), range(2)):
        mine, other = np.array(y[:2]), np.array(y[2:])
        chance = first.probabilities[mine].prod() * second.probabilities[other].prod()
        rewards = np.stack([first.rewards[mine], second.rewards[other]])
        g = (first.rewards[mine] - rewards.mean()) @ first.scores[mine] / 2
        expected += chance * (g @ g)
    assert exact_moments([first, second], batch, 2).second[0] == pytest.approx(expected, rel=1e-12)


def test_a_transformer_enumerated_by_autograd_has_the_gram_matrix_that_one_pass_gives():
    from transformers import GPT2Config, GPT2LMHeadModel

    from analysis.score_gram.core import score_gram

    # GPT-2 has no operation that falls back to single precision.
    config = GPT2Config(vocab_size=3, n_positions=8, n_embd=8, n_layer=1, n_head=2)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = GPT2LMHeadModel(config).double().eval()
    prompt, responses = (1, 2), []

    def reward(tokens: tuple[int, ...]) -> float:
        responses.append(tokens)
        return float(sum(tokens) % 2)

    population = autoregressive(
        lambda tokens: model(torch.tensor([prompt + tokens])).logits[0, -1],
        list(model.parameters()),
        reward,
        max_tokens=3,
    )
    assert population.probabilities.sum() == pytest.approx(1, abs=1e-12)
    np.testing.assert_allclose(population.probabilities @ population.scores, 0, atol=1e-12)
    width = len(prompt) + 3
    ids_NL = torch.tensor([(*prompt, *y, *[0] * (width - len(prompt) - len(y))) for y in responses])
    lengths_N1 = torch.tensor([[len(y)] for y in responses])
    place_L = torch.arange(width)
    attention_NL = (place_L < len(prompt) + lengths_N1).long()
    response_NL = attention_NL * (place_L >= len(prompt))
    gram_NN = score_gram(model, ids_NL, attention_NL, response_NL)
    np.testing.assert_allclose(gram_NN.numpy(), population.gram, rtol=1e-8, atol=1e-10)


def test_sampling_follows_the_probabilities_and_keeps_what_belongs_together():
    pool = toy().sample(1500, np.random.default_rng(0))
    for drawn, values in ((pool.rewards, toy().rewards), (pool.lengths, toy().lengths)):
        mean = toy().probabilities @ values
        error = np.sqrt(toy().probabilities @ (values - mean) ** 2 / 1500)
        assert abs(drawn.mean() - mean) < 4 * error
    np.testing.assert_allclose(np.diag(pool.gram), pool.logit_energy, rtol=1e-12)


def test_probabilities_must_sum_to_one():
    with pytest.raises(ValueError, match="sum to one"):
        Population(np.array([0.5, 0.4]), np.eye(2), np.ones(2), np.ones(2), np.ones(2))
