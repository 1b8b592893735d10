"""Algorithms that differ in their baseline: against slow twins, enumeration and one another."""

import itertools
import math
from functools import partial

import numpy as np
import pytest
import torch
from batches import batch, close, f64, per_response
from scipy.stats import beta as beta_distribution

from opo.algorithms import score_weights
from opo.algorithms.pkpo import Baseline, subset_advantages

REWARDS = [[1.0, 0.0, 0.5, 0.0], [0.0, 1.0, 1.0, 0.25]]
LENGTHS = [[1, 4, 2, 3], [5, 2, 2, 1]]
ARMS = f64([0.5, 0.3, 0.2])  # probabilities of three answers
VALUES = f64([0.0, 0.4, 1.0])  # and their rewards
SCORES = torch.eye(3, dtype=torch.float64) - ARMS  # of a softmax policy, by answer


def enumerated(group: int, advantages) -> tuple[torch.Tensor, float]:
    """Mean and trace of covariance of (1/G) sum_i A_i z_i over all groups of answers."""
    mean, square = torch.zeros(3, dtype=torch.float64), 0.0
    for answers in itertools.product(range(3), repeat=group):
        index = torch.tensor(answers)
        chance = float(ARMS[index].prod())
        estimate = (advantages(VALUES[index][None])[0][:, None] * SCORES[index]).mean(0)
        mean += chance * estimate
        square += chance * float(estimate @ estimate)
    return mean, square - float(mean @ mean)


def gradient_of_best(k: int) -> torch.Tensor:
    """grad E[max of k rewards], by enumeration of k answers."""
    gradient = torch.zeros(3, dtype=torch.float64)
    for answers in itertools.product(range(3), repeat=k):
        index = torch.tensor(answers)
        gradient += ARMS[index].prod() * VALUES[index].max() * SCORES[index].sum(0)
    return gradient


@pytest.mark.parametrize("baseline", ["none", "leave_one_out", "leave_one_out_minus_one"])
@pytest.mark.parametrize("k", [2, 3])
def test_pkpo_is_unbiased_for_the_best_of_k(baseline, k):
    mean, _ = enumerated(4, lambda rewards_PG: subset_advantages(rewards_PG, k, baseline))
    close(mean, gradient_of_best(k), 1e-12)


def test_pkpo_variance_falls_with_its_baselines():
    """The published order of the three estimators."""
    names: tuple[Baseline, ...] = ("none", "leave_one_out", "leave_one_out_minus_one")
    plain, others, minus_one = (enumerated(5, partial(subset_advantages, k=3, baseline=name))[1] for name in names)
    assert plain > others > minus_one


def slow_subset_advantages(rewards: list[float], k: int, baseline: str) -> list[float]:
    n = len(rewards)
    result = []
    for i in range(n):
        others = [r for j, r in enumerate(rewards) if j != i]
        total = 0.0
        for subset in itertools.combinations(range(n), k):
            if i in subset:
                rest = [rewards[j] for j in subset if j != i]
                subtracted = {
                    "none": 0.0,
                    "leave_one_out": float(np.mean([max(s) for s in itertools.combinations(others, k)])),
                    "leave_one_out_minus_one": max(rest),
                }[baseline]
                total += max([*rest, rewards[i]]) - subtracted
        result.append(n * total / math.comb(n, k))
    return result


@pytest.mark.parametrize("baseline", ["none", "leave_one_out", "leave_one_out_minus_one"])
def test_pkpo_against_all_subsets(baseline):
    rewards = [[0.3, 1.0, 0.3, 0.0, 0.7, 1.0], [0.2, 0.2, 0.9, 0.1, 0.4, 0.5]]
    expected = [slow_subset_advantages(row, 3, baseline) for row in rewards]
    close(subset_advantages(f64(rewards), 3, baseline), f64(expected), 1e-12)
    with_hole = subset_advantages(f64([[*rewards[0], torch.nan]]), 3, baseline)
    close(with_hole[0, :6], f64(expected[0]), 1e-12)
    assert with_hole[0, 6] == 0


def test_pkpo_of_one_is_leave_one_out():
    rollouts = batch(REWARDS, LENGTHS)
    close(per_response("pkpo", rollouts, k=1, baseline="leave_one_out"), per_response("rloo", rollouts), 1e-12)


@pytest.mark.parametrize(("k", "baseline"), [(5, "none"), (4, "leave_one_out"), (1, "leave_one_out_minus_one")])
def test_pkpo_refuses_groups_that_are_too_small(k, baseline):
    with pytest.raises(ValueError, match=f"pkpo: k={k}"):
        score_weights("pkpo", batch(REWARDS, LENGTHS), k=k, baseline=baseline)


def test_weights_of_length_make_opo():
    rollouts = batch(REWARDS, LENGTHS)
    opo = per_response("opo", rollouts)
    close(per_response("score_norm", rollouts, score_norm2_PG=3 * f64(LENGTHS)), opo)
    close(per_response("vcpo", rollouts, score_norm2_PG=3 * f64(LENGTHS)), opo)
    close(per_response("logit_energy", rollouts, logit_energy_NT=0.5 * rollouts.mask_NT), opo)


@pytest.mark.parametrize("name", ["score_norm", "logit_energy"])
def test_two_responses_left_out_are_rloo_for_any_weights(name):
    rollouts = batch([[1.0, 0.0], [0.3, 0.7]], [[1, 4], [5, 2]])
    weights = {"score_norm2_PG": f64([[1, 9], [4, 2]]), "logit_energy_NT": rollouts.mask_NT.double()}
    close(per_response(name, rollouts, leave_one_out=True, **weights), per_response("rloo", rollouts))


def test_vcpo_off_policy_by_hand():
    # one group, ratios 2 and 1/2 (log ratios spread over the tokens), norms 1 and 4: b = (4 * 1) / (4 + 1/4 * 4) = 4/5
    rollouts = batch([[1.0, 0.0]], [[2, 1]], logprobs=[[[-1.0, -1.0], [-1.0]]])
    log2 = math.log(2)
    policy_NT = f64([[-1 + log2 / 2, -1 + log2 / 2], [-1 - log2, 0.0]])
    given = {"score_norm2_PG": f64([[1.0, 4.0]]), "policy_logprobs_NT": policy_NT}
    weights = score_weights("vcpo", rollouts, **given)
    close(weights, f64([[2 * 0.2, 2 * 0.2], [0.5 * -0.8, 0.0]]) / 2)
    capped = score_weights("vcpo", rollouts, cap=1.5, **given)
    close(capped, f64([[1.5 * 0.2, 1.5 * 0.2], [0.5 * -0.8, 0.0]]) / 2)


def test_quantile_of_right_and_wrong_answers():
    # at q = 0.4 the baseline is 0 up to a success rate of 0.6 and 1 above it
    for right in range(6):
        rewards = [[1.0] * right + [0.0] * (5 - right)]
        baseline = 0.0 if right <= 3 else 1.0
        expected = (f64(rewards) - baseline) / 5
        close(per_response("quantile", batch(rewards, [[1] * 5]), q=0.4), expected)


def test_half_is_the_median():
    rewards = [[0.1, 0.9, 0.4, 0.3, 0.8]]
    close(per_response("quantile", batch(rewards, [[1] * 5]), q=0.5), (f64(rewards) - 0.4) / 5)


def test_kalman_by_a_loop():
    state, spread, expected = 0.0, 1.0, []
    for reward in REWARDS[0]:
        spread += 1e-5
        gain = spread / (spread + 1e-2)
        state += gain * (reward - state)
        spread *= 1 - gain
        expected.append((reward - state) / (math.sqrt(spread) + 1e-8) / 4)
    close(per_response("kalman", batch(REWARDS[:1], LENGTHS[:1]))[0], f64(expected), 1e-12)


def test_bnpo_by_scipy():
    rewards = [[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 0.0], [1.0, 0.0, 1.0, 0.0]]
    rates = np.array([0.25, 0.75, 0.5])
    strength = rates.mean() * (1 - rates.mean()) / rates.var() - 1
    alpha, beta = (max(1.0, 1 + strength * share / 3) for share in (rates.mean(), 1 - rates.mean()))
    density = f64(beta_distribution.pdf(rates, alpha, beta))
    expected = (f64(rewards) - f64(rates)[:, None]) / density[:, None] / 12
    close(per_response("bnpo", batch(rewards, [[1] * 4] * 3)), expected, 1e-12)


def test_bnpo_of_equal_rates_is_the_group_mean_and_other_rewards_are_refused():
    rollouts = batch([[1.0, 0.0], [0.0, 1.0]], [[1, 2], [3, 1]])
    close(per_response("bnpo", rollouts), per_response("group_mean", rollouts))
    with pytest.raises(ValueError, match="prompt 1 has a reward outside"):
        score_weights("bnpo", batch([[1.0, 0.0], [0.0, 1.5]], [[1, 2], [3, 1]]))


def test_shrinkage_is_its_baseline():
    rollouts = batch(REWARDS, LENGTHS)
    # two prompts: the other prompt's mean, noise and spread are all there is
    mean, noise = f64(REWARDS).mean(1), f64(REWARDS).var(1) / 4
    rloo = 4 / 3 * (f64(REWARDS) - mean[:, None])
    own = f64(REWARDS) - rloo
    shrink = 0.5 * noise.flip(0)[:, None] / noise.flip(0)[:, None]  # the spread of one prompt about itself is zero
    expected = f64(REWARDS) - (own + shrink * (mean.flip(0)[:, None] - own))
    close(per_response("shrinkage", rollouts), expected / 8)


def test_aspo_keeps_the_sign_and_favours_short_right_answers():
    rewards, lengths = [[1.0, 1.0, 0.0, 0.0]], [[1, 7, 4, 4]]
    z = f64([1.0, 1.0, -1.0, -1.0]) * math.sqrt(3) / 2
    bonus = f64([0.7 * math.sqrt(3) / 2, -0.7 * math.sqrt(3) / 2, 0.0, 0.0])  # 2 * 3/4 is more than the bound
    close(per_response("aspo", batch(rewards, lengths), std_eps=0.0)[0], (z + bonus) / 16)
    placed = per_response("aspo", batch(rewards, lengths), std_eps=0.0, position_PG=f64([[2.0, 2.0, 2.0, 2.0]]))
    close(placed[0], z / 16)


def test_mcts_dpo_of_right_and_wrong_is_dpo_on_all_pairs():
    rollouts = batch([[1.0, 0.0, 0.0]], [[1, 2, 1]])
    close(per_response("mcts_dpo", rollouts, beta=0.2)[0], f64([0.1, -0.05, -0.05]))
    # a worse answer of value 1/2 smooths the label by 1/3
    rollouts = batch([[1.0, 0.5]], [[1, 1]])
    close(per_response("mcts_dpo", rollouts, beta=0.2)[0], f64([1.0, -1.0]) * 0.1 * (1 - 2 / 3))
    with pytest.raises(ValueError, match="prompt 0 has a reward below zero"):
        score_weights("mcts_dpo", batch([[1.0, -0.5]], [[1, 1]]))
