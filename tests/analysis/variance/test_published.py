"""Results that others have published and anyone can repeat, each with its source."""

from itertools import product

import numpy as np
import pytest
import torch
from batches import batch, close, per_response

from analysis.variance.exact import Population, exact_moments
from opo.baselines import leave_one_out, shrinkage
from opo.losses import MAX_LOG_RATIO, clipped, constant_groups, z_scores


@pytest.mark.parametrize("p", [0.2, 0.6, 0.7, 0.95])
def test_two_arms_of_stanford_cs336(p):
    """Assignment 5, p = sigmoid(theta), reward 1 for one arm: variance p (1 - p) (1 - p - b)^2 / n; the mean is worse than none for p > 2/3."""
    arms = Population(np.array([p, 1 - p]), np.array([[1 - p], [-p]]), np.array([1.0, 0.0]), np.ones(2), np.ones(2))
    assert exact_moments([arms], "none", 4).trace[0] == pytest.approx(p * (1 - p) ** 3 / 4, rel=1e-12)
    for b in (0.3, p, 1 - p):
        assert arms.variance(b) == pytest.approx(p * (1 - p) * (1 - p - b) ** 2, abs=1e-15)
    assert arms.best_baseline == pytest.approx(1 - p)
    assert (arms.variance(p) > arms.variance(0.0)) == (p > 2 / 3)


@pytest.mark.parametrize(("group", "percent"), [(2, -51.3), (4, -40.0), (8, -27.0), (16, -16.0)])
def test_table_of_shrinkage_baselines(group, percent):
    """Error of the leave-one-out shrinkage baseline, averaged over its group, against the group mean's, for p ~ Beta(1.2, 2.2), 32 prompts.

    James and Stein across prompts (arXiv 2511.03710); the table is of an independent study of it. 6,000 batches: errors of half a point.
    """
    rng = np.random.default_rng(0)
    p_RP1 = rng.beta(1.2, 2.2, (6000, 32, 1))
    rewards = torch.from_numpy((rng.random((6000, 32, group)) < p_RP1).astype(np.float64))
    errors = [
        float(np.square(baseline.mean(-1).numpy() - p_RP1[..., 0]).mean()) for baseline in (shrinkage(rewards), rewards)
    ]
    assert 100 * (errors[0] / errors[1] - 1) == pytest.approx(percent, abs=1.0)


def test_leave_one_out_is_a_u_statistic():
    """arXiv 2603.01162: sum over pairs (r_i - r_j) (z_i - z_j) / (K (K - 1))."""
    rng = np.random.default_rng(1)
    rewards, z_KD = rng.normal(size=7), rng.normal(size=(7, 5))
    pairs = [(i, j) for i in range(7) for j in range(i)]
    expected = sum((rewards[i] - rewards[j]) * (z_KD[i] - z_KD[j]) for i, j in pairs) / (7 * 6)
    weights_K = per_response("rloo", batch([rewards.tolist()], [[1] * 7]))[0].numpy()
    found = weights_K @ z_KD
    scale = (found @ expected) / (found @ found)  # weights are known up to the loss's scale
    np.testing.assert_allclose(scale * found, expected, rtol=1e-12, atol=1e-13)
    advantages = rewards - leave_one_out(torch.from_numpy(rewards)[None])[0].numpy()
    np.testing.assert_allclose(advantages @ z_KD / 7, expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(("right", "group"), [(1, 8), (3, 8), (4, 8), (15, 16)])
def test_contrast_and_energy_of_binary_rewards(right, group):
    """arXiv 2607.00152 and 2605.05112: GRPO is sqrt(k (G - k)) / G times the contrast of means; RLOO's energy k (N - k) / (N - 1)^2."""
    rewards_1G = torch.tensor([[1.0] * right + [0.0] * (group - right)], dtype=torch.float64)
    z_GD = torch.from_numpy(np.random.default_rng(2).normal(size=(group, 5)))
    population_scores_G = z_scores(rewards_1G, 0.0)[0] * (group / (group - 1)) ** 0.5  # ddof = 0 as there
    contrast_D = z_GD[:right].mean(0) - z_GD[right:].mean(0)
    close(population_scores_G @ z_GD / group, (right * (group - right)) ** 0.5 / group * contrast_D)
    advantages_G = (rewards_1G - leave_one_out(rewards_1G))[0]
    close(advantages_G.square().mean(), right * (group - right) / (group - 1) ** 2)


def test_share_of_silent_groups():
    """The same: p^G + (1 - p)^G, from all groups of five and their probabilities."""
    groups = torch.tensor(list(product([0.0, 1.0], repeat=5)), dtype=torch.float64)
    probability = (0.3 ** groups.sum(1)) * 0.7 ** (5 - groups.sum(1))
    close((probability * constant_groups(groups)).sum(), 0.3**5 + 0.7**5)


def test_only_sequence_importance_sampling_is_unbiased_off_policy():
    """20 enumerable processes of three tokens, the policy 0 to 8 steps ahead of the one that sampled; expectations without sampling.

    Token ratios, PPO's clip and CISPO's bounded weight are unbiased at lag 0 and biased at every other; the sequence ratio at none.
    """
    sequences = list(product(range(3), repeat=3))
    for seed in range(20):
        rng = torch.Generator().manual_seed(seed)
        rewards_Y = torch.rand(len(sequences), generator=rng, dtype=torch.float64)
        start, step = (torch.randn(1 + 3 + 9, 3, generator=rng, dtype=torch.float64) for _ in range(2))
        states_YT = torch.tensor([[0, 1 + a, 4 + 3 * a + b] for a, b, _ in sequences])
        tokens_YT = torch.tensor(sequences)
        old_YT = start.log_softmax(-1)[states_YT, tokens_YT]
        for lag in (0, 1, 2, 4, 8):
            theta = (start + 0.1 * lag * step).requires_grad_()
            new_YT = theta.log_softmax(-1)[states_YT, tokens_YT]
            ratio_YT = (new_YT - old_YT).clamp(max=MAX_LOG_RATIO).exp()
            q_Y, sequence_ratio_Y = old_YT.sum(1).exp(), (new_YT - old_YT).sum(1).exp()
            surrogates = {
                "sequence": sequence_ratio_Y * rewards_Y,
                "token": (ratio_YT * rewards_Y[:, None]).sum(1),
                "ppo": clipped(ratio_YT, rewards_Y[:, None].expand_as(ratio_YT), 0.2, 0.2).sum(1),
                "cispo": (ratio_YT.detach().clamp(max=1.2) * rewards_Y[:, None] * new_YT).sum(1),
            }
            (truth,) = torch.autograd.grad((new_YT.sum(1).exp() * rewards_Y).sum(), theta, retain_graph=True)
            for name, surrogate_Y in surrogates.items():
                (found,) = torch.autograd.grad((q_Y * surrogate_Y).sum(), theta, retain_graph=True)
                bias = float((found - truth).norm() / truth.norm())
                assert (bias < 1e-12) == (name == "sequence" or lag == 0), (name, lag, bias)
