"""Variance within and between prompts, and the random projection that finds it."""

import numpy as np
import pytest
import torch
from small import random_rollouts, small_llama

from analysis.score_gram.core import score_gram
from analysis.study.pools import Measurement, measure_pool, sequences
from analysis.variance.between_prompts import batch_measures, mean_gradient_values, project
from analysis.variance.exact import exact_moments, softmax_bandit
from analysis.variance.intervals import resample_counts
from analysis.variance.moments import Moments
from opo.model.policy import Policy
from opo.model.tiny import character_tokenizer


def test_projection_of_a_prompts_gradient() -> None:
    """It is the projection of (1/N) sum_i A_i z_i with leave-one-out weights, unscored responses left out."""
    policy, rollouts = Policy(small_llama(), character_tokenizer()), random_rollouts(prompts=1, group=5, seed=3)
    rewards = torch.tensor([[1.0, 0.0, torch.nan, 1.0, 0.0]], dtype=torch.float64)
    rollouts = rollouts.with_(rewards_PG=rewards)
    found = measure_pool(policy, "0", "", list("abcde"), rollouts, Measurement(1, 0)).gradient_D
    assert all(p.grad is None for p in policy.model.parameters())
    advantages = {0: 2 / 3, 1: -2 / 3, 3: 2 / 3, 4: -2 / 3}  # r_i - mean of the three others
    total = torch.tensor(0.0)
    for n, advantage in advantages.items():
        tokens = rollouts.tokens_NT[n][rollouts.mask_NT[n]]
        ids = torch.tensor([rollouts.prompt_ids[0] + tokens.tolist()])
        terms = policy.model(input_ids=ids).logits[0, len(rollouts.prompt_ids[0]) - 1 : -1].log_softmax(-1)
        total = total + advantage * terms.gather(1, tokens[:, None]).sum() / 4
    total.backward()
    expected = sum(
        project(p.grad.flatten().double(), name, len(found))
        for name, p in policy.model.named_parameters()
        if p.grad is not None
    )
    assert isinstance(expected, torch.Tensor)
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-3, atol=1e-5 * float(expected.abs().max()))


def test_projection_keeps_inner_products_as_well_as_promised() -> None:
    """Over names (independent projections), <Sx, Sy> has mean <x, y> and a variance of at most (|x|^2 |y|^2 + <x, y>^2) / d."""
    rng, dim = torch.Generator().manual_seed(0), 64
    x, y = torch.randn(2, 500, generator=rng, dtype=torch.float64)
    y = x + y
    seen = torch.stack([project(x, f"p{i}", dim) @ project(y, f"p{i}", dim) for i in range(2000)])
    bound = (x @ x * (y @ y) + (x @ y) ** 2) / dim
    assert abs(seen.mean() - x @ y) < 4 * (bound / 2000).sqrt()
    assert 0.8 * bound < seen.var() < 1.1 * bound


def test_mean_gradient_is_unbiased_where_the_norm_of_the_mean_is_not() -> None:
    rng, truth = np.random.default_rng(0), np.array([0.5, -1.0, 0.25])
    draws = truth + rng.normal(size=(3000, 6, 3))
    found = np.array([mean_gradient_values(u).mean() for u in draws])
    assert abs(found.mean() - truth @ truth) < 4 * found.std() / np.sqrt(len(found))
    assert np.square(draws.mean(1)).sum(1).mean() > truth @ truth + 0.4


def test_shares_from_known_moments() -> None:
    """Bandits whose true gradients are known: within, between and the critical batch by their definitions."""
    bandits = [softmax_bandit([0.3 * p, 0.0, -0.2], [1.0, 0.0, 0.5 * (p % 2)]) for p in range(6)]
    gradients = np.stack([bandit.gradient for bandit in bandits])
    parts = [exact_moments([bandit], "leave_one_out", 4) for bandit in bandits]
    moments = Moments.join(parts)
    counts = resample_counts(6, 200, np.random.default_rng(0))
    found = batch_measures(moments, gradients, counts)
    within, pairs = moments.trace.mean(), gradients @ gradients.T
    mean = (pairs.sum() - np.trace(pairs)) / 30
    between = np.trace(pairs) / 6 - mean
    assert found["within_share"][0] == pytest.approx(within / (within + between))
    assert found["critical_prompts"][0] == pytest.approx((within + between) / mean)
    scaled = Moments.join([exact_moments([bandit], "group_mean", 4) for bandit in bandits])
    assert batch_measures(scaled, gradients, counts)["within_share"] == pytest.approx(found["within_share"])
    low, high = found["within_share"][1:]
    assert low <= found["within_share"][0] <= high <= 1


def test_gram_of_one_prompt_has_the_norm_of_its_gradient() -> None:
    """|u|^2 from the Gram matrix and from the projection agree within the projection's error."""
    policy, rollouts = Policy(small_llama(), character_tokenizer()), random_rollouts(prompts=1, group=6, seed=1)
    gram = score_gram(policy.model, *sequences(rollouts))
    assert isinstance(gram, torch.Tensor)
    rewards = rollouts.rewards_PG[0]
    weights = (rewards - rewards.mean()) * 6 / 5 / 6
    exact = float(weights @ gram @ weights)
    pool = measure_pool(policy, "0", "", list("abcdef"), rollouts, Measurement(1, 0))
    projected = np.square(pool.gradient_D.astype(np.float64)).sum()
    assert exact > 0
    assert projected == pytest.approx(exact, rel=5 * (2 / 16384) ** 0.5)
